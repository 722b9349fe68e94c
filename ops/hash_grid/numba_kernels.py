"""Compiled loops of the CPU hash grid; :mod:`ops.hash_grid.numba_cpu` runs them on tensors.

A kernel is made for each number of features F, which is then a constant to the compiler, and compiled for each dtype on
first use. The machine code is cached beside this file.

Points come in batches: first their cells, the positions in them and the table rows of all corners are found, in loops
that the compiler vectorises; then comes the interpolation, without a branch that depends on a point, so that the
processor looks up the corners of several points at the same time. Forwards, levels are the outer loop, so that a
level's part of the table stays in the cache; backwards, batches are, so that the incoming gradients do.

Every kernel is sequential and its order of summation depends on nothing but its arguments; threads are given separate
points (forwards) or separate levels (backwards), so results do not depend on their number.

Arguments that all kernels share: ``points`` (3, N), axis by axis; ``table`` (E, F); ``levels``, of each level its
(resolution, offset into the table, hash mask or 0 if dense), (L, 3) int64; ``scales`` (L,); ``cube``, (bound, inverse
extent); ``start`` and ``stop``, the range of points; ``own_levels``, those to work on. Corners of a cell are numbered
x + 2 y + 4 z, each coordinate 0 or 1.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numba import njit

from ops.hash_grid.layout import HASH_PRIME_Y, HASH_PRIME_Z

_BATCH = 128
_PRIME_Y, _PRIME_Z = np.uint32(HASH_PRIME_Y), np.uint32(HASH_PRIME_Z)
# the harmless part of "fast": multiply-adds may be fused, but sums keep their order, and NaN and inf what they are
_OPTIONS = {"nogil": True, "cache": True, "error_model": "numpy", "fastmath": {"contract", "nsz"}}


@njit(**_OPTIONS)
def _new_batch(dtype):
    """Room for a batch: cells, positions within them and cells per world unit, axis by axis; table rows of corners."""
    # unsigned, for numba looks at the sign of any other index
    cells, rows = np.empty((3, _BATCH), np.uint32), np.empty((8, _BATCH), np.uint32)
    return cells, np.empty((3, _BATCH), dtype), np.empty((3, _BATCH), dtype), rows


@njit(**_OPTIONS)
def _locate(points, first, number, level, scale, cube, batch):
    """Fill the batch, all but the cells per world unit, from ``number`` points; rows count from the level's first."""
    cells, positions, _, rows = batch
    real = cube.dtype.type
    zero, one, bound, inverse_extent = real(0), real(1), cube[0], cube[1]
    resolution, mask, last_cell = np.uint32(level[0]), np.uint32(level[2]), np.int32(level[0] - 2)
    first_of_last = real(last_cell)
    for axis in range(3):
        for n in range(number):
            unit = (points[axis, first + n] + bound) * inverse_extent
            position = (zero if unit < zero else one if unit > one else unit) * scale
            # written so that NaN takes the last cell, and stays NaN in the position within it
            cell = np.int32(position) if position < first_of_last else last_cell
            cells[axis, n] = cell
            positions[axis, n] = position - real(cell)
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


@njit(**_OPTIONS)
def _find_slopes(points, first, number, scale, cube, batch):
    """Fill in the batch's cells per world unit, 0 along an axis on which the point is clamped."""
    slopes = batch[2]
    real = cube.dtype.type
    zero, one, bound, inverse_extent = real(0), real(1), cube[0], cube[1]
    for axis in range(3):
        for n in range(number):
            unit = (points[axis, first + n] + bound) * inverse_extent
            slopes[axis, n] = zero if (unit < zero) | (unit > one) else scale * inverse_extent


@njit(**_OPTIONS)
def _corners(rows, n):
    """Table rows of the corners of point n's cell, read before anything is written that might change them."""
    return rows[0, n], rows[1, n], rows[2, n], rows[3, n], rows[4, n], rows[5, n], rows[6, n], rows[7, n]


@njit(**_OPTIONS)
def _edges(table, at, f):
    """Feature f at the lower ends of the cell's four edges along x, and how much it grows along each of them."""
    a, b, c, d = table[at[0], f], table[at[2], f], table[at[4], f], table[at[6], f]
    to_a, to_b = table[at[1], f] - a, table[at[3], f] - b
    to_c, to_d = table[at[5], f] - c, table[at[7], f] - d
    return a, b, c, d, to_a, to_b, to_c, to_d


@njit(**_OPTIONS)
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

    @njit(**_OPTIONS)
    def encode(points, table, levels, scales, cube, start, stop, encoded):
        batch = _, (x, y, z), _, rows = _new_batch(table.dtype)
        for level in range(encoded.shape[1] // features):
            own_table, column = table[levels[level, 1] :], level * features
            for first in range(start, stop, _BATCH):
                number = min(_BATCH, stop - first)
                _locate(points, first, number, levels[level], scales[level], cube, batch)
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

    @njit(**_OPTIONS)
    def encode_with_jacobian(points, table, levels, scales, cube, start, stop, encoded, jacobian):
        batch = _, (x, y, z), (dx, dy, dz), rows = _new_batch(table.dtype)
        for level in range(encoded.shape[1] // features):
            own_table, column = table[levels[level, 1] :], level * features
            for first in range(start, stop, _BATCH):
                number = min(_BATCH, stop - first)
                _locate(points, first, number, levels[level], scales[level], cube, batch)
                _find_slopes(points, first, number, scales[level], cube, batch)
                for n in range(number):
                    at, (u, v, w) = _corners(rows, n), (x[n], y[n], z[n])
                    for f in range(features):
                        a, b, c, d, to_a, to_b, to_c, to_d = _edges(own_table, at, f)
                        a, b, c, d = a + to_a * u, b + to_b * u, c + to_c * u, d + to_d * u
                        low, high = a + (b - a) * v, c + (d - c) * v
                        low_x, high_x = to_a + (to_b - to_a) * v, to_c + (to_d - to_c) * v
                        encoded[first + n, column + f] = low + (high - low) * w
                        jacobian[first + n, 0, column + f] = (low_x + (high_x - low_x) * w) * dx[n]
                        jacobian[first + n, 1, column + f] = ((b - a) + ((d - c) - (b - a)) * w) * dy[n]
                        jacobian[first + n, 2, column + f] = (high - low) * dz[n]

    return encode_with_jacobian


@lru_cache
def scatter_kernel(features: int) -> Callable[..., None]:
    """Kernel that adds its levels' part of the table's gradient to ``grad_table``, given ``grad_features`` (N, A)."""

    @njit(**_OPTIONS)
    def scatter(points, grad_features, levels, scales, cube, own_levels, grad_table):
        batch = _, (x, y, z), _, rows = _new_batch(grad_table.dtype)
        for first in range(0, points.shape[1], _BATCH):
            number = min(_BATCH, points.shape[1] - first)
            for level in own_levels:
                own_table, column = grad_table[levels[level, 1] :], level * features
                _locate(points, first, number, levels[level], scales[level], cube, batch)
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

    @njit(**_OPTIONS)
    def scatter_with_jacobian(points, grad_features, grad_jacobian, levels, scales, cube, own_levels, grad_table):
        batch = _, (x, y, z), (dx, dy, dz), rows = _new_batch(grad_table.dtype)
        for first in range(0, points.shape[1], _BATCH):
            number = min(_BATCH, points.shape[1] - first)
            for level in own_levels:
                own_table, column = grad_table[levels[level, 1] :], level * features
                _locate(points, first, number, levels[level], scales[level], cube, batch)
                _find_slopes(points, first, number, scales[level], cube, batch)
                for n in range(number):
                    at, (u, v, w) = _corners(rows, n), (x[n], y[n], z[n])
                    for f in range(features):
                        by_x = grad_jacobian[first + n, 0, column + f] * dx[n]
                        by_y = grad_jacobian[first + n, 1, column + f] * dy[n]
                        by_z = grad_jacobian[first + n, 2, column + f] * dz[n]
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

    @njit(**_OPTIONS)
    def contract_second_derivatives(points, table, grad_jacobian, levels, scales, cube, start, stop, grad_points):
        batch = _, (x, y, z), (dx, dy, dz), rows = _new_batch(table.dtype)
        for level in range(grad_jacobian.shape[2] // features):
            own_table, column = table[levels[level, 1] :], level * features
            for first in range(start, stop, _BATCH):
                number = min(_BATCH, stop - first)
                _locate(points, first, number, levels[level], scales[level], cube, batch)
                _find_slopes(points, first, number, scales[level], cube, batch)
                for n in range(number):
                    at, (u, v, w) = _corners(rows, n), (x[n], y[n], z[n])
                    for f in range(features):
                        a, b, c, d, to_a, to_b, to_c, to_d = _edges(own_table, at, f)
                        low_xy, high_xy = to_b - to_a, to_d - to_c
                        low_x, high_x = to_a + low_xy * v, to_c + high_xy * v
                        low_y, high_y = b - a + low_xy * u, d - c + high_xy * u
                        by_xy = (low_xy + (high_xy - low_xy) * w) * dx[n] * dy[n]
                        by_xz = (high_x - low_x) * dx[n] * dz[n]
                        by_yz = (high_y - low_y) * dy[n] * dz[n]
                        to_x = grad_jacobian[first + n, 0, column + f]
                        to_y = grad_jacobian[first + n, 1, column + f]
                        to_z = grad_jacobian[first + n, 2, column + f]
                        grad_points[first + n, 0] += by_xy * to_y + by_xz * to_z
                        grad_points[first + n, 1] += by_xy * to_x + by_yz * to_z
                        grad_points[first + n, 2] += by_xz * to_x + by_yz * to_y

    return contract_second_derivatives
