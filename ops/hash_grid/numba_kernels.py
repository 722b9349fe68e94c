"""Compiled loops of the CPU hash grid; :mod:`ops.hash_grid.numba_cpu` runs them on tensors.

A kernel is made for each number of features F, which is then a constant to the compiler, and compiled for each dtype on
first use. The machine code is cached beside this file.

Points come in batches, which go through all levels while they are in the cache. First cells, positions in them and the
table rows of all corners are found, in loops that the compiler vectorises; then comes the interpolation, without a
branch that depends on a point, so that the processor looks up the corners of several points at the same time.

Every kernel is sequential and its order of summation depends on nothing but its arguments; threads are given separate
points (forwards) or separate levels (backwards), so results do not depend on their number.

Arguments that all kernels share: ``points`` (N, 3); ``table`` (E, F); ``levels``, of each level its
(resolution, offset into the table, hash mask or 0 if dense), (L, 3) int64; ``scales`` (L,); ``cube``, (bound, inverse
extent); ``start`` and ``stop``, the range of points; ``own_levels``, those to work on. Corners of a cell are numbered
x + 2 y + 4 z, each coordinate 0 or 1.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numba import njit

from ops.hash_grid.layout import HASH_PRIME_Y, HASH_PRIME_Z

_BATCH = 256
_PRIME_Y, _PRIME_Z = np.uint32(HASH_PRIME_Y), np.uint32(HASH_PRIME_Z)
# the harmless part of "fast": multiply-adds may be fused, but sums keep their order, and NaN and inf what they are
OPTIONS = {"nogil": True, "cache": True, "error_model": "numpy", "fastmath": {"contract", "nsz"}}


@njit(**OPTIONS)
def _new_batch(dtype):
    """Room for a batch, axis by axis: coordinates, whether inside, cells, positions; and table rows of corners."""
    coordinates, is_inside = np.empty((3, _BATCH), dtype), np.empty((3, _BATCH), dtype)
    # unsigned, for numba looks at the sign of any other index
    cells, rows = np.empty((3, _BATCH), np.uint32), np.empty((8, _BATCH), np.uint32)
    return coordinates, is_inside, cells, np.empty((3, _BATCH), dtype), rows


@njit(**OPTIONS)
def _load(points, first, number, cube, batch):
    """Take ``number`` points into the batch: coordinates in [0, 1], and 0 instead of 1 where one had to be clamped."""
    coordinates, is_inside = batch[0], batch[1]
    real = cube.dtype.type
    zero, one, bound, inverse_extent = real(0), real(1), cube[0], cube[1]
    for axis in range(3):
        for n in range(number):
            coordinate = (points[first + n, axis] + bound) * inverse_extent
            coordinates[axis, n] = zero if coordinate < zero else one if coordinate > one else coordinate
            is_inside[axis, n] = zero if (coordinate < zero) | (coordinate > one) else one


# inlined before it is compiled, rather than compiled once more by itself
@njit(inline="always", **OPTIONS)
def _locate(number, level, scale, batch):
    """Find one level's cells, the positions in them, and the rows of their corners."""
    coordinates, _, cells, positions, rows = batch
    find_cells(number, level, scale, coordinates, cells, positions)
    find_rows(number, level, cells, rows)


@njit(**OPTIONS)
def find_cells(number, level, scale, coordinates, cells, positions):
    """One level's cells, axis by axis, and the positions in them, of coordinates in [0, 1]."""
    real = coordinates.dtype.type
    last_cell = np.int32(level[0] - 2)
    first_of_last = real(last_cell)
    for axis in range(3):
        for n in range(number):
            position = coordinates[axis, n] * scale
            # written so that NaN takes the last cell, and stays NaN in the position within it
            cell = np.int32(position) if position < first_of_last else last_cell
            cells[axis, n] = cell
            positions[axis, n] = position - real(cell)


@njit(**OPTIONS)
def find_rows(number, level, cells, rows):
    """Table rows of the eight corners of one level's cells, counted from the level's first."""
    resolution, mask = np.uint32(level[0]), np.uint32(level[2])
    x, y, z = cells
    if mask == 0:
        to_y, to_z = resolution, resolution * resolution
        for n in range(number):
            row = x[n] + to_y * y[n] + to_z * z[n]
            rows[0, n] = row
            rows[1, n] = row + 1
            rows[2, n] = row + to_y
            rows[3, n] = row + to_y + 1
            rows[4, n] = row + to_z
            rows[5, n] = row + to_z + 1
            rows[6, n] = row + to_z + to_y
            rows[7, n] = row + to_z + to_y + 1
    else:
        for n in range(number):
            # casts keep numba from going over to 64 bits
            x0, y0, z0 = x[n], np.uint32(y[n] * _PRIME_Y), np.uint32(z[n] * _PRIME_Z)
            x1, y1, z1 = np.uint32(x0 + np.uint32(1)), np.uint32(y0 + _PRIME_Y), np.uint32(z0 + _PRIME_Z)
            rows[0, n] = (x0 ^ y0 ^ z0) & mask
            rows[1, n] = (x1 ^ y0 ^ z0) & mask
            rows[2, n] = (x0 ^ y1 ^ z0) & mask
            rows[3, n] = (x1 ^ y1 ^ z0) & mask
            rows[4, n] = (x0 ^ y0 ^ z1) & mask
            rows[5, n] = (x1 ^ y0 ^ z1) & mask
            rows[6, n] = (x0 ^ y1 ^ z1) & mask
            rows[7, n] = (x1 ^ y1 ^ z1) & mask


@njit(**OPTIONS)
def _corners(rows, n):
    """Table rows of the corners of point n's cell, read before anything is written that might change them."""
    return rows[0, n], rows[1, n], rows[2, n], rows[3, n], rows[4, n], rows[5, n], rows[6, n], rows[7, n]


@njit(**OPTIONS)
def _edges(table, at, f):
    """Feature f at the lower ends of the cell's four edges along x, and how much it grows along each of them."""
    a, b, c, d = table[at[0], f], table[at[2], f], table[at[4], f], table[at[6], f]
    to_a, to_b = table[at[1], f] - a, table[at[3], f] - b
    to_c, to_d = table[at[5], f] - c, table[at[7], f] - d
    return a, b, c, d, to_a, to_b, to_c, to_d


@njit(**OPTIONS)
def _add_edges(grad_table, at, f, a, b, c, d, to_a, to_b, to_c, to_d):
    """The transpose of :func:`_edges`."""
    grad_table[at[0], f] += a - to_a
    grad_table[at[1], f] += to_a
    grad_table[at[2], f] += b - to_b
    grad_table[at[3], f] += to_b
    grad_table[at[4], f] += c - to_c
    grad_table[at[5], f] += to_c
    grad_table[at[6], f] += d - to_d
    grad_table[at[7], f] += to_d


@lru_cache
def encode_kernel(features: int) -> Callable[..., None]:
    """Kernel that writes the active levels' ``encoded`` (N, A)."""

    @njit(**OPTIONS)
    def encode(points, table, levels, scales, cube, start, stop, encoded):
        batch = _, _, _, (x, y, z), rows = _new_batch(table.dtype)
        for first in range(start, stop, _BATCH):
            number = min(_BATCH, stop - first)
            _load(points, first, number, cube, batch)
            for level in range(encoded.shape[1] // features):
                own_table, column = table[levels[level, 1] :], level * features
                _locate(number, levels[level], scales[level], batch)
                for n in range(number):
                    at, (u, v, w) = _corners(rows, n), (x[n], y[n], z[n])
                    for f in range(features):
                        a, b, c, d, to_a, to_b, to_c, to_d = _edges(own_table, at, f)
                        a, b, c, d = a + to_a * u, b + to_b * u, c + to_c * u, d + to_d * u
                        low, high = a + (b - a) * v, c + (d - c) * v
                        encoded[first + n, column + f] = low + (high - low) * w

    return encode


@lru_cache
def encode_with_jacobian_kernel(features: int) -> Callable[..., None]:
    """Kernel that writes the active levels' ``encoded`` (N, A) and its derivatives ``jacobian`` (N, 3, A)."""

    @njit(**OPTIONS)
    def encode_with_jacobian(points, table, levels, scales, cube, start, stop, encoded, jacobian):
        batch = _, (x_in, y_in, z_in), _, (x, y, z), rows = _new_batch(table.dtype)
        for first in range(start, stop, _BATCH):
            number = min(_BATCH, stop - first)
            _load(points, first, number, cube, batch)
            for level in range(encoded.shape[1] // features):
                own_table, column = table[levels[level, 1] :], level * features
                _locate(number, levels[level], scales[level], batch)
                per_unit = scales[level] * cube[1]  # cells
                for n in range(number):
                    at, (u, v, w) = _corners(rows, n), (x[n], y[n], z[n])
                    du, dv, dw = x_in[n] * per_unit, y_in[n] * per_unit, z_in[n] * per_unit
                    for f in range(features):
                        a, b, c, d, to_a, to_b, to_c, to_d = _edges(own_table, at, f)
                        a, b, c, d = a + to_a * u, b + to_b * u, c + to_c * u, d + to_d * u
                        low, high = a + (b - a) * v, c + (d - c) * v
                        low_x, high_x = to_a + (to_b - to_a) * v, to_c + (to_d - to_c) * v
                        encoded[first + n, column + f] = low + (high - low) * w
                        jacobian[first + n, 0, column + f] = (low_x + (high_x - low_x) * w) * du
                        jacobian[first + n, 1, column + f] = ((b - a) + ((d - c) - (b - a)) * w) * dv
                        jacobian[first + n, 2, column + f] = (high - low) * dw

    return encode_with_jacobian


@lru_cache
def scatter_kernel(features: int) -> Callable[..., None]:
    """Kernel that adds its levels' part of the table's gradient to ``grad_table``, given ``grad_features`` (N, A)."""

    @njit(**OPTIONS)
    def scatter(points, grad_features, levels, scales, cube, own_levels, grad_table):
        batch = _, _, _, (x, y, z), rows = _new_batch(grad_table.dtype)
        for first in range(0, len(points), _BATCH):
            number = min(_BATCH, len(points) - first)
            _load(points, first, number, cube, batch)
            for level in own_levels:
                own_table, column = grad_table[levels[level, 1] :], level * features
                _locate(number, levels[level], scales[level], batch)
                for n in range(number):
                    at, (u, v, w) = _corners(rows, n), (x[n], y[n], z[n])
                    for f in range(features):
                        grad = grad_features[first + n, column + f]
                        high = grad * w
                        low = grad - high
                        b, d = low * v, high * v
                        a, c = low - b, high - d
                        to_a, to_b, to_c, to_d = a * u, b * u, c * u, d * u
                        _add_edges(own_table, at, f, a, b, c, d, to_a, to_b, to_c, to_d)

    return scatter


@lru_cache
def scatter_with_jacobian_kernel(features: int) -> Callable[..., None]:
    """The same as :func:`scatter_kernel`, with ``grad_jacobian`` (N, 3, A) in the same pass."""

    @njit(**OPTIONS)
    def scatter_with_jacobian(points, grad_features, grad_jacobian, levels, scales, cube, own_levels, grad_table):
        batch = _, (x_in, y_in, z_in), _, (x, y, z), rows = _new_batch(grad_table.dtype)
        for first in range(0, len(points), _BATCH):
            number = min(_BATCH, len(points) - first)
            _load(points, first, number, cube, batch)
            for level in own_levels:
                own_table, column = grad_table[levels[level, 1] :], level * features
                _locate(number, levels[level], scales[level], batch)
                per_unit = scales[level] * cube[1]  # cells
                for n in range(number):
                    at, (u, v, w) = _corners(rows, n), (x[n], y[n], z[n])
                    du, dv, dw = x_in[n] * per_unit, y_in[n] * per_unit, z_in[n] * per_unit
                    for f in range(features):
                        by_x = grad_jacobian[first + n, 0, column + f] * du
                        by_y = grad_jacobian[first + n, 1, column + f] * dv
                        by_z = grad_jacobian[first + n, 2, column + f] * dw
                        # the steps of encode_with_jacobian backwards
                        grad = grad_features[first + n, column + f]
                        high = grad * w + by_z
                        low = grad - high
                        high_y, high_x = by_y * w, by_x * w
                        b, d = low * v + (by_y - high_y), high * v + high_y
                        a, c = low - b, high - d
                        d_x, b_x = high_x * v, (by_x - high_x) * v
                        to_a, to_b = a * u + (by_x - high_x - b_x), b * u + b_x
                        to_c, to_d = c * u + (high_x - d_x), d * u + d_x
                        _add_edges(own_table, at, f, a, b, c, d, to_a, to_b, to_c, to_d)

    return scatter_with_jacobian


@lru_cache
def contract_second_derivatives_kernel(features: int) -> Callable[..., None]:
    """Kernel that adds d sum(jacobian * ``grad_jacobian`` (N, 3, A)) by the points to ``grad_points`` (N, 3)."""

    @njit(**OPTIONS)
    def contract_second_derivatives(points, table, grad_jacobian, levels, scales, cube, start, stop, grad_points):
        batch = _, (x_in, y_in, z_in), _, (x, y, z), rows = _new_batch(table.dtype)
        for first in range(start, stop, _BATCH):
            number = min(_BATCH, stop - first)
            _load(points, first, number, cube, batch)
            for level in range(grad_jacobian.shape[2] // features):
                own_table, column = table[levels[level, 1] :], level * features
                _locate(number, levels[level], scales[level], batch)
                per_unit = scales[level] * cube[1]  # cells
                for n in range(number):
                    at, (u, v, w) = _corners(rows, n), (x[n], y[n], z[n])
                    du, dv, dw = x_in[n] * per_unit, y_in[n] * per_unit, z_in[n] * per_unit
                    for f in range(features):
                        a, b, c, d, to_a, to_b, to_c, to_d = _edges(own_table, at, f)
                        low_xy, high_xy = to_b - to_a, to_d - to_c
                        low_x, high_x = to_a + low_xy * v, to_c + high_xy * v
                        low_y, high_y = b - a + low_xy * u, d - c + high_xy * u
                        by_xy = (low_xy + (high_xy - low_xy) * w) * du * dv
                        by_xz = (high_x - low_x) * du * dw
                        by_yz = (high_y - low_y) * dv * dw
                        to_x = grad_jacobian[first + n, 0, column + f]
                        to_y = grad_jacobian[first + n, 1, column + f]
                        to_z = grad_jacobian[first + n, 2, column + f]
                        grad_points[first + n, 0] += by_xy * to_y + by_xz * to_z
                        grad_points[first + n, 1] += by_xy * to_x + by_yz * to_z
                        grad_points[first + n, 2] += by_xz * to_x + by_yz * to_y

    return contract_second_derivatives
