"""Compiled loops of the CPU hash grid; :mod:`ops.hash_grid.numba_cpu` runs them on tensors.

A kernel is made for each number of features F, which is then a constant to the compiler, and compiled for each dtype on
first use. The machine code is cached beside this file.

Three things make them fast. A kernel works on one level, so that the level's part of the table stays in the cache. It
takes points in batches: first the corners of all their cells are found and touched, so that many cache misses pass at
the same time; then comes the arithmetic. And points that follow each other in the same cell, as taps of a numerical
gradient and samples along a ray mostly do, form a run, whose corners are looked up once: within a cell a feature is a
polynomial in the position (x, y, z) with the eight terms 1, x, y, xy, z, xz, yz, xyz, which the corners determine.
Backwards, the gradients of those eight coefficients are summed over the run before they go to the corners.

Every kernel is sequential and its order of summation depends on nothing but its arguments; threads are given separate
points (forwards) or separate levels (backwards), so results do not depend on their number.

Arguments that all kernels share: ``points`` (3, N), axis by axis; ``table`` (E, F); ``levels``, of each level its
(resolution, offset into the table, hash mask or 0 if dense), (L, 3) int64; ``scales`` (L,); ``cube``, (bound, inverse
extent); ``level``, which one to work on; ``start`` and ``stop``, the range of points. Corners of a cell are numbered
x + 2 y + 4 z, each coordinate 0 or 1. Kernels return the sum of what they touched, a number without meaning, lest the
compiler leave the touching out.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numba import njit

from ops.hash_grid.layout import HASH_PRIME_Y, HASH_PRIME_Z

_BATCH = 128
# levels up to this size stay in a core's own cache, where looking ahead gains nothing
_CACHE_BYTES = 2**20
# the harmless part of "fast": multiply-adds may be fused, but sums keep their order, and NaN and inf what they are
_OPTIONS = {"nogil": True, "cache": True, "error_model": "numpy", "fastmath": {"contract", "nsz"}}


@njit(**_OPTIONS)
def _find_corners(x, y, z, level, rows):
    """Write the table rows of the 8 corners of cell (x, y, z) into ``rows``."""
    resolution, offset, mask = level[0], level[1], level[2]
    for corner in range(8):
        i, j, k = x + (corner & 1), y + (corner >> 1 & 1), z + (corner >> 2)
        if mask == 0:
            rows[corner] = offset + i + resolution * (j + resolution * k)
        else:
            rows[corner] = offset + ((i ^ (j * HASH_PRIME_Y) ^ (k * HASH_PRIME_Z)) & mask)


@njit(**_OPTIONS)
def _new_batch(dtype):
    """Room for a batch: cells, positions within them and slopes, each axis by axis; starts and table rows of runs."""
    cells, starts, rows = (
        np.empty((3, _BATCH), np.int32),
        np.empty(_BATCH + 1, np.int64),
        np.empty((_BATCH, 8), np.int64),
    )
    return cells, np.empty((3, _BATCH), dtype), np.empty((3, _BATCH), dtype), starts, rows


@njit(**_OPTIONS)
def _locate(coordinates, level, scale, cube, cells, positions, slopes):
    """Cells along one axis, positions within them, and cells per world unit (0 where the coordinate is clamped)."""
    number = cube.dtype.type
    zero, one, bound, inverse_extent = number(0), number(1), cube[0], cube[1]
    last_cell = np.int32(level[0] - 2)
    first_of_last, cells_per_unit = number(last_cell), scale * inverse_extent
    for n in range(len(coordinates)):  # without branches, for LLVM to vectorise
        unit = (coordinates[n] + bound) * inverse_extent
        position = (zero if unit < zero else one if unit > one else unit) * scale
        # written so that NaN takes the last cell, and stays NaN in the position within it
        cell = np.int32(position) if position < first_of_last else last_cell
        cells[n] = cell
        positions[n] = position - number(cell)
        slopes[n] = zero if (unit < zero) | (unit > one) else cells_per_unit


@njit(**_OPTIONS)
def _touch(table, rows):
    """Sum of one value of each of 8 table rows, in pairs, so that no addition waits for more than two others."""
    a, b = table[rows[0], 0] + table[rows[1], 0], table[rows[2], 0] + table[rows[3], 0]
    c, d = table[rows[4], 0] + table[rows[5], 0], table[rows[6], 0] + table[rows[7], 0]
    return (a + b) + (c + d)


@njit(**_OPTIONS)
def _find_runs(points, table, level, scale, cube, batch):
    """Fill the batch from up to _BATCH points and return the number of runs of points that share a cell."""
    cells, positions, slopes, starts, rows = batch
    for axis in range(3):
        _locate(points[axis], level, scale, cube, cells[axis], positions[axis], slopes[axis])
    entries = level[2] + 1 if level[2] else level[0] ** 3
    is_touched = entries * table.shape[1] * table.itemsize > _CACHE_BYTES
    num_runs, touched = 0, table.dtype.type(0)
    for n in range(points.shape[1]):
        i, j, k = cells[0, n], cells[1, n], cells[2, n]
        if n == 0 or i != cells[0, n - 1] or j != cells[1, n - 1] or k != cells[2, n - 1]:
            _find_corners(np.int64(i), np.int64(j), np.int64(k), level, rows[num_runs])
            if is_touched:
                touched += _touch(table, rows[num_runs])
            starts[num_runs] = n
            num_runs += 1
    starts[num_runs] = points.shape[1]
    return num_runs, touched


@njit(**_OPTIONS)
def _polynomial(table, rows, f):
    """Coefficients of x^i y^j z^k, numbered i + 2 j + 4 k, that pass through feature f of 8 corners."""
    a, x = table[rows[0], f], table[rows[1], f] - table[rows[0], f]
    y, xy = table[rows[2], f], table[rows[3], f] - table[rows[2], f]
    z, xz = table[rows[4], f], table[rows[5], f] - table[rows[4], f]
    yz, xyz = table[rows[6], f], table[rows[7], f] - table[rows[6], f]
    y, xy, yz, xyz = y - a, xy - x, yz - z, xyz - xz
    return a, x, y, xy, z - a, xz - x, yz - y, xyz - xy


@njit(**_OPTIONS)
def _add_polynomial(grad_table, rows, f, a, x, y, xy, z, xz, yz, xyz):
    """The transpose of :func:`_polynomial`: gradients of the coefficients are added to those of the corners."""
    a, y, z, yz = a - x, y - xy, z - xz, yz - xyz
    a, x, z, xz = a - y, x - xy, z - yz, xz - xyz
    grad_table[rows[0], f] += a - z
    grad_table[rows[1], f] += x - xz
    grad_table[rows[2], f] += y - yz
    grad_table[rows[3], f] += xy - xyz
    grad_table[rows[4], f] += z
    grad_table[rows[5], f] += xz
    grad_table[rows[6], f] += yz
    grad_table[rows[7], f] += xyz


@lru_cache
def encode_kernel(features: int) -> Callable[..., float]:
    """Kernel that writes one level's columns of ``encoded`` (N, A)."""

    @njit(**_OPTIONS)
    def encode(points, table, levels, scales, cube, level, start, stop, encoded):
        batch = _, (x, y, z), _, starts, rows = _new_batch(table.dtype)
        sink = table.dtype.type(0)
        for first in range(start, stop, _BATCH):
            chunk = points[:, first : min(first + _BATCH, stop)]
            num_runs, touched = _find_runs(chunk, table, levels[level], scales[level], cube, batch)
            sink += touched
            for run in range(num_runs):
                for f in range(features):
                    p, px, py, pxy, pz, pxz, pyz, pxyz = _polynomial(table, rows[run], f)
                    for n in range(starts[run], starts[run + 1]):
                        value = p + py * y[n] + (pz + pyz * y[n]) * z[n]
                        by_x = px + pxy * y[n] + (pxz + pxyz * y[n]) * z[n]
                        encoded[first + n, level * features + f] = value + by_x * x[n]
        return sink

    return encode


@lru_cache
def encode_with_jacobian_kernel(features: int) -> Callable[..., float]:
    """Kernel that writes one level's columns of ``encoded`` (N, A) and of its derivatives ``jacobian`` (N, 3, A)."""

    @njit(**_OPTIONS)
    def encode_with_jacobian(points, table, levels, scales, cube, level, start, stop, encoded, jacobian):
        batch = _, (x, y, z), (dx, dy, dz), starts, rows = _new_batch(table.dtype)
        sink = table.dtype.type(0)
        for first in range(start, stop, _BATCH):
            chunk = points[:, first : min(first + _BATCH, stop)]
            num_runs, touched = _find_runs(chunk, table, levels[level], scales[level], cube, batch)
            sink += touched
            for run in range(num_runs):
                for f in range(features):
                    column = level * features + f
                    p, px, py, pxy, pz, pxz, pyz, pxyz = _polynomial(table, rows[run], f)
                    for n in range(starts[run], starts[run + 1]):
                        value = p + py * y[n] + (pz + pyz * y[n]) * z[n]
                        by_x = px + pxy * y[n] + (pxz + pxyz * y[n]) * z[n]
                        by_y = py + pxy * x[n] + (pyz + pxyz * x[n]) * z[n]
                        by_z = pz + pxz * x[n] + (pyz + pxyz * x[n]) * y[n]
                        encoded[first + n, column] = value + by_x * x[n]
                        jacobian[first + n, 0, column] = by_x * dx[n]
                        jacobian[first + n, 1, column] = by_y * dy[n]
                        jacobian[first + n, 2, column] = by_z * dz[n]
        return sink

    return encode_with_jacobian


@lru_cache
def scatter_kernel(features: int) -> Callable[..., float]:
    """Kernel that adds one level's part of the table's gradient to ``grad_table``, given ``grad_features`` (N, A)."""

    @njit(**_OPTIONS)
    def scatter(points, grad_features, levels, scales, cube, level, grad_table):
        batch = _, (x, y, z), _, starts, rows = _new_batch(grad_table.dtype)
        zero = sink = grad_table.dtype.type(0)
        for first in range(0, points.shape[1], _BATCH):
            chunk = points[:, first : first + _BATCH]
            num_runs, touched = _find_runs(chunk, grad_table, levels[level], scales[level], cube, batch)
            sink += touched
            for run in range(num_runs):
                for f in range(features):
                    p = px = py = pxy = pz = pxz = pyz = pxyz = zero
                    for n in range(starts[run], starts[run + 1]):
                        grad = grad_features[first + n, level * features + f]
                        grad_y = grad * y[n]
                        p += grad
                        px += grad * x[n]
                        py += grad_y
                        pxy += grad_y * x[n]
                        pz += grad * z[n]
                        pxz += grad * z[n] * x[n]
                        pyz += grad_y * z[n]
                        pxyz += grad_y * z[n] * x[n]
                    _add_polynomial(grad_table, rows[run], f, p, px, py, pxy, pz, pxz, pyz, pxyz)
        return sink

    return scatter


@lru_cache
def scatter_with_jacobian_kernel(features: int) -> Callable[..., float]:
    """The same as :func:`scatter_kernel`, with ``grad_jacobian`` (N, 3, A) in the same pass."""

    @njit(**_OPTIONS)
    def scatter_with_jacobian(points, grad_features, grad_jacobian, levels, scales, cube, level, grad_table):
        batch = _, (x, y, z), (dx, dy, dz), starts, rows = _new_batch(grad_table.dtype)
        zero = sink = grad_table.dtype.type(0)
        for first in range(0, points.shape[1], _BATCH):
            chunk = points[:, first : first + _BATCH]
            num_runs, touched = _find_runs(chunk, grad_table, levels[level], scales[level], cube, batch)
            sink += touched
            for run in range(num_runs):
                for f in range(features):
                    column = level * features + f
                    p = px = py = pxy = pz = pxz = pyz = pxyz = zero
                    for n in range(starts[run], starts[run + 1]):
                        grad = grad_features[first + n, column]
                        by_x = grad_jacobian[first + n, 0, column] * dx[n]
                        by_y = grad_jacobian[first + n, 1, column] * dy[n]
                        by_z = grad_jacobian[first + n, 2, column] * dz[n]
                        to_x, to_y = grad * x[n] + by_x, grad * y[n] + by_y
                        to_xy = to_x * y[n] + by_y * x[n]
                        p += grad
                        px += to_x
                        py += to_y
                        pxy += to_xy
                        pz += grad * z[n] + by_z
                        pxz += to_x * z[n] + by_z * x[n]
                        pyz += to_y * z[n] + by_z * y[n]
                        pxyz += to_xy * z[n] + by_z * x[n] * y[n]
                    _add_polynomial(grad_table, rows[run], f, p, px, py, pxy, pz, pxz, pyz, pxyz)
        return sink

    return scatter_with_jacobian


@lru_cache
def contract_second_derivatives_kernel(features: int) -> Callable[..., float]:
    """Kernel that adds one level's part of d sum(jacobian * ``grad_jacobian`` (N, 3, A)) to ``grad_points`` (N, 3)."""

    @njit(**_OPTIONS)
    def contract_second_derivatives(
        points, table, grad_jacobian, levels, scales, cube, level, start, stop, grad_points
    ):
        batch = _, (x, y, z), (dx, dy, dz), starts, rows = _new_batch(table.dtype)
        sink = table.dtype.type(0)
        for first in range(start, stop, _BATCH):
            chunk = points[:, first : min(first + _BATCH, stop)]
            num_runs, touched = _find_runs(chunk, table, levels[level], scales[level], cube, batch)
            sink += touched
            for run in range(num_runs):
                for f in range(features):
                    column = level * features + f
                    _, _, _, pxy, _, pxz, pyz, pxyz = _polynomial(table, rows[run], f)
                    for n in range(starts[run], starts[run + 1]):
                        by_xy = (pxy + pxyz * z[n]) * dx[n] * dy[n]
                        by_xz = (pxz + pxyz * y[n]) * dx[n] * dz[n]
                        by_yz = (pyz + pxyz * x[n]) * dy[n] * dz[n]
                        to_x = grad_jacobian[first + n, 0, column]
                        to_y = grad_jacobian[first + n, 1, column]
                        to_z = grad_jacobian[first + n, 2, column]
                        grad_points[first + n, 0] += by_xy * to_y + by_xz * to_z
                        grad_points[first + n, 1] += by_xy * to_x + by_yz * to_z
                        grad_points[first + n, 2] += by_xz * to_x + by_yz * to_y
        return sink

    return contract_second_derivatives
