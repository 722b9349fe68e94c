"""Compiled loops of the CPU hash grid for points with taps around them, or alone (see ``numba_kernels``).

Taps lie a fraction of a cell from their centre, so most of them share its cell. Its eight corners are fetched once
and laid out axis by axis, one point beside the other, so that interpolation is arithmetic on vectors of points, for
the taps too: all of them are first interpolated in their centre's cell, without a branch, and those that left it
("strays") are then collected and done again in their own. Backwards the taps' shares of a corner are summed before
they are added to the table. The arithmetic of one point is that of a point alone, bit for bit.

Beside the arguments of all kernels: ``offsets`` (1 + T, 3) from the centre, of which the first is zero.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numba import njit

from ops.hash_grid.numba_kernels import OPTIONS, find_cells, find_rows

_BATCH = 128


@njit(**OPTIONS)
def _load(points, offsets, first, number, cube, coordinates):
    """Coordinates of centre and taps, (1 + T, 3, batch), clamped to [0, 1] in the cube."""
    real = cube.dtype.type
    zero, one, bound, inverse_extent = real(0), real(1), cube[0], cube[1]
    for tap in range(len(offsets)):
        for axis in range(3):
            offset = offsets[tap, axis]
            for n in range(number):
                coordinate = ((points[first + n, axis] + offset) + bound) * inverse_extent
                coordinates[tap, axis, n] = zero if coordinate < zero else one if coordinate > one else coordinate


@njit(**OPTIONS)
def _new_cells(dtype, features):
    """Room for cells, positions in them, table rows of their corners, and numbers of each corner, batch last."""
    cells, positions = np.empty((3, _BATCH), np.uint32), np.empty((3, _BATCH), dtype)
    return cells, positions, np.empty((8, _BATCH), np.uint32), np.empty((features, 8, _BATCH), dtype)


@njit(**OPTIONS)
def _find_strays(number, cells, tap_cells, is_stray, strays):
    """Which taps are not in the cell of their centre, how many of them, and where in the batch."""
    for n in range(number):
        moved = (cells[0, n] ^ tap_cells[0, n]) | (cells[1, n] ^ tap_cells[1, n]) | (cells[2, n] ^ tap_cells[2, n])
        is_stray[n] = moved != 0
    count = 0
    for n in range(number):
        strays[count] = n
        count += is_stray[n]
    return count


@njit(**OPTIONS)
def _pick(count, strays, source, picked):
    for row in range(len(source)):
        for n in range(count):
            picked[row, n] = source[row, strays[n]]


@njit(**OPTIONS)
def _copy(number, source, copied):
    # not copied[:] = source, for which numba compiles the formatting of an error message: 3 seconds
    for row in range(len(source)):
        for n in range(number):
            copied[row, n] = source[row, n]


@lru_cache
def encode_kernel(features: int) -> Callable[..., None]:
    """Kernel that writes the active levels' ``encoded`` (N, 1 + T, A)."""

    @njit(**OPTIONS)
    def gather(number, table, rows, corners):
        """Features at the lower ends of a cell's four edges along x, and how much they grow along each of them."""
        for corner in range(8):
            for f in range(features):
                for n in range(number):
                    corners[f, corner, n] = table[rows[corner, n], f]
        for f in range(features):
            for lower in range(0, 8, 2):
                for n in range(number):
                    corners[f, lower + 1, n] -= corners[f, lower, n]

    @njit(**OPTIONS)
    def interpolate(number, corners, positions, values):
        x, y, z = positions
        for f in range(features):
            edges = corners[f]
            for n in range(number):
                u, v, w = x[n], y[n], z[n]
                a, b = edges[0, n] + edges[1, n] * u, edges[2, n] + edges[3, n] * u
                c, d = edges[4, n] + edges[5, n] * u, edges[6, n] + edges[7, n] * u
                low, high = a + (b - a) * v, c + (d - c) * v
                values[f, n] = low + (high - low) * w

    @njit(**OPTIONS)
    def encode(points, offsets, table, levels, scales, cube, start, stop, encoded):
        coordinates = np.empty((len(offsets), 3, _BATCH), table.dtype)
        cells, positions, rows, corners = _new_cells(table.dtype, features)
        stray_cells, stray_positions, stray_rows, stray_corners = _new_cells(table.dtype, features)
        tap_cells, values = np.empty((3, _BATCH), np.uint32), np.empty((features, _BATCH), table.dtype)
        is_stray, strays = np.empty(_BATCH, np.uint32), np.empty(_BATCH, np.uint32)
        for first in range(start, stop, _BATCH):
            number = min(_BATCH, stop - first)
            _load(points, offsets, first, number, cube, coordinates)
            for level in range(encoded.shape[2] // features):
                own_table, column = table[levels[level, 1] :], level * features
                for tap in range(len(offsets)):
                    find_cells(number, levels[level], scales[level], coordinates[tap], tap_cells, positions)
                    if tap == 0:
                        _copy(number, tap_cells, cells)
                        find_rows(number, levels[level], cells, rows)
                        gather(number, own_table, rows, corners)
                    interpolate(number, corners, positions, values)
                    for n in range(number):
                        for f in range(features):
                            encoded[first + n, tap, column + f] = values[f, n]
                    count = _find_strays(number, cells, tap_cells, is_stray, strays)
                    if count > 0:
                        _pick(count, strays, tap_cells, stray_cells)
                        _pick(count, strays, positions, stray_positions)
                        find_rows(count, levels[level], stray_cells, stray_rows)
                        gather(count, own_table, stray_rows, stray_corners)
                        interpolate(count, stray_corners, stray_positions, values)
                        for n in range(count):
                            for f in range(features):
                                encoded[first + strays[n], tap, column + f] = values[f, n]

    return encode


@lru_cache
def scatter_kernel(features: int) -> Callable[..., None]:
    """Kernel that adds its levels' part of the table's gradient to ``grad_table``, given ``grad`` (N, 1 + T, A)."""

    @njit(**OPTIONS)
    def spread(number, grad, positions, corners):
        """The transpose of interpolation, added to the corners' sums."""
        x, y, z = positions
        for f in range(features):
            sums = corners[f]
            for n in range(number):
                u, v, w = x[n], y[n], z[n]
                high = grad[f, n] * w
                low = grad[f, n] - high
                b, d = low * v, high * v
                a, c = low - b, high - d
                to_a, to_b, to_c, to_d = a * u, b * u, c * u, d * u
                sums[0, n] += a - to_a
                sums[1, n] += to_a
                sums[2, n] += b - to_b
                sums[3, n] += to_b
                sums[4, n] += c - to_c
                sums[5, n] += to_c
                sums[6, n] += d - to_d
                sums[7, n] += to_d

    @njit(**OPTIONS)
    def add(number, corners, rows, grad_table):
        for corner in range(8):
            for f in range(features):
                for n in range(number):
                    grad_table[rows[corner, n], f] += corners[f, corner, n]

    @njit(**OPTIONS)
    def scatter(points, offsets, grad, levels, scales, cube, own_levels, grad_table):
        dtype = grad_table.dtype
        zero = dtype.type(0)
        coordinates = np.empty((len(offsets), 3, _BATCH), dtype)
        cells, positions, rows, corners = _new_cells(dtype, features)
        stray_cells, stray_positions, stray_rows, stray_corners = _new_cells(dtype, features)
        tap_cells, tap_grad = np.empty((3, _BATCH), np.uint32), np.empty((features, _BATCH), dtype)
        stray_grad = np.empty((features, _BATCH), dtype)
        is_stray, strays = np.empty(_BATCH, np.uint32), np.empty(_BATCH, np.uint32)
        for first in range(0, len(points), _BATCH):
            number = min(_BATCH, len(points) - first)
            _load(points, offsets, first, number, cube, coordinates)
            for level in own_levels:
                own_table, column = grad_table[levels[level, 1] :], level * features
                corners[:] = zero
                for tap in range(len(offsets)):
                    find_cells(number, levels[level], scales[level], coordinates[tap], tap_cells, positions)
                    if tap == 0:
                        _copy(number, tap_cells, cells)
                    for n in range(number):
                        for f in range(features):
                            tap_grad[f, n] = grad[first + n, tap, column + f]
                    count = _find_strays(number, cells, tap_cells, is_stray, strays)
                    if count > 0:
                        _pick(count, strays, tap_cells, stray_cells)
                        _pick(count, strays, positions, stray_positions)
                        _pick(count, strays, tap_grad, stray_grad)
                        find_rows(count, levels[level], stray_cells, stray_rows)
                        stray_corners[:] = zero
                        spread(count, stray_grad, stray_positions, stray_corners)
                        add(count, stray_corners, stray_rows, own_table)
                        # both, as a position may be NaN
                        for n in range(count):
                            for axis in range(3):
                                positions[axis, strays[n]] = zero
                            for f in range(features):
                                tap_grad[f, strays[n]] = zero
                    spread(number, tap_grad, positions, corners)
                find_rows(number, levels[level], cells, rows)
                add(number, corners, rows, own_table)

    return scatter
