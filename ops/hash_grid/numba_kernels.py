"""Compiled loops of the CPU hash grid; :mod:`ops.hash_grid.numba_cpu` runs them on tensors.

A kernel is made for each number of features F, which is then a constant to the compiler, and compiled for each dtype on
first use. The machine code is cached beside this file.

Three things make them fast. A kernel works on one level, so that the level's part of the table stays in the cache. It
takes points in batches: first the corners of all their cells are found and touched, so that many cache misses are waited
for at once, then the arithmetic is done. And corners are fetched (backwards: their gradients are written) only when a
point leaves the cell of the point before it: samples along a ray and the taps of a numerical gradient mostly share theirs.

Every kernel is sequential and its order of summation depends on nothing but its arguments; threads are given separate
points (forwards) or separate levels (backwards), so results do not depend on their number.

Arguments that all kernels share: ``points`` (N, 3); ``table`` (E, F); ``level``, its index; ``levels``, of each level
(resolution, offset into the table, hash mask or 0 of a dense level), (L, 3) int64; ``scales`` (L,); ``cube``, (bound,
inverse extent); ``start`` and ``stop``, the range of points. Corners of a cell are numbered x + 2 y + 4 z, each
coordinate 0 or 1. Returned is what was touched, a number without meaning, lest the compiler leave the touching out.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numba import njit

from ops.hash_grid.layout import HASH_PRIME_Y, HASH_PRIME_Z

_BATCH = 64
_NO_CELL = (np.int32(-1), np.int32(-1), np.int32(-1))
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
    """Room for a batch: cells, positions in the cell, slopes (each axis by axis), whether a cell is entered, rows."""
    cells = np.empty((3, _BATCH), np.int32)
    return (
        cells,
        np.empty((3, _BATCH), dtype),
        np.empty((3, _BATCH), dtype),
        np.empty(_BATCH, np.bool_),
        np.empty((_BATCH, 8), np.int64),
    )


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
def _find_batch(points, table, level, scale, cube, cell, batch):
    """Fill the batch from up to _BATCH points, given the cell of the point before; that of the last is returned."""
    cells, positions, slopes, enters, rows = batch
    for axis in range(3):
        _locate(points[:, axis], level, scale, cube, cells[axis], positions[axis], slopes[axis])
    touched = table.dtype.type(0)
    for n in range(len(points)):
        i, j, k = cells[0, n], cells[1, n], cells[2, n]
        enters[n] = (i != cell[0]) | (j != cell[1]) | (k != cell[2])
        if enters[n]:
            cell = (i, j, k)
            _find_corners(np.int64(i), np.int64(j), np.int64(k), level, rows[n])
            for corner in range(8):
                touched += table[rows[n, corner], 0]
    return cell, touched


@njit(**_OPTIONS)
def _fetch(table, rows, polynomials):
    """Turn the features at 8 table rows into coefficients (F, 8) of x^i y^j z^k, numbered i + 2 j + 4 k."""
    for f in range(polynomials.shape[0]):
        for corner in range(8):
            polynomials[f, corner] = table[rows[corner], f]
        for axis in (1, 2, 4):
            for corner in range(8):
                if corner & axis:
                    polynomials[f, corner] -= polynomials[f, corner - axis]


@njit(**_OPTIONS)
def _flush(polynomials, rows, grad_table):
    """The transpose of :func:`_fetch`: coefficients' gradients are added to those of the 8 table rows, and emptied."""
    for f in range(polynomials.shape[0]):
        for axis in (1, 2, 4):
            for corner in range(8):
                if corner & axis:
                    polynomials[f, corner - axis] -= polynomials[f, corner]
        for corner in range(8):
            grad_table[rows[corner], f] += polynomials[f, corner]
            polynomials[f, corner] = 0


@lru_cache
def encode_kernel(features: int) -> Callable[..., float]:
    """Kernel that writes one level's columns of ``encoded`` (N, A)."""

    @njit(**_OPTIONS)
    def encode(points, table, levels, scales, cube, level, start, stop, encoded):
        batch = _, positions, _, enters, rows = _new_batch(table.dtype)
        polynomials = np.empty((features, 8), table.dtype)
        cell, sink = _NO_CELL, table.dtype.type(0)
        for first in range(start, stop, _BATCH):
            chunk = points[first : min(first + _BATCH, stop)]
            cell, touched = _find_batch(chunk, table, levels[level], scales[level], cube, cell, batch)
            sink += touched
            for n in range(len(chunk)):
                if enters[n]:
                    _fetch(table, rows[n], polynomials)
                x, y, z = positions[0, n], positions[1, n], positions[2, n]
                for f in range(features):
                    p = polynomials[f]
                    value = p[0] + p[2] * y + (p[4] + p[6] * y) * z
                    by_x = p[1] + p[3] * y + (p[5] + p[7] * y) * z
                    encoded[first + n, level * features + f] = value + by_x * x
        return sink

    return encode


@lru_cache
def encode_with_jacobian_kernel(features: int) -> Callable[..., float]:
    """Kernel that writes one level's columns of ``encoded`` (N, A) and of its derivatives ``jacobian`` (N, 3, A)."""

    @njit(**_OPTIONS)
    def encode_with_jacobian(points, table, levels, scales, cube, level, start, stop, encoded, jacobian):
        batch = _, positions, slopes, enters, rows = _new_batch(table.dtype)
        polynomials = np.empty((features, 8), table.dtype)
        cell, sink = _NO_CELL, table.dtype.type(0)
        for first in range(start, stop, _BATCH):
            chunk = points[first : min(first + _BATCH, stop)]
            cell, touched = _find_batch(chunk, table, levels[level], scales[level], cube, cell, batch)
            sink += touched
            for n in range(len(chunk)):
                if enters[n]:
                    _fetch(table, rows[n], polynomials)
                x, y, z = positions[0, n], positions[1, n], positions[2, n]
                dx, dy, dz = slopes[0, n], slopes[1, n], slopes[2, n]
                for f in range(features):
                    p, column = polynomials[f], level * features + f
                    value = p[0] + p[2] * y + (p[4] + p[6] * y) * z
                    by_x = p[1] + p[3] * y + (p[5] + p[7] * y) * z
                    encoded[first + n, column] = value + by_x * x
                    jacobian[first + n, 0, column] = by_x * dx
                    jacobian[first + n, 1, column] = (p[2] + p[3] * x + (p[6] + p[7] * x) * z) * dy
                    jacobian[first + n, 2, column] = (p[4] + p[5] * x + (p[6] + p[7] * x) * y) * dz
        return sink

    return encode_with_jacobian


@lru_cache
def scatter_kernel(features: int) -> Callable[..., float]:
    """Kernel that adds one level's part of the table's gradient to ``grad_table``, given ``grad_features`` (N, A)."""

    @njit(**_OPTIONS)
    def scatter(points, grad_features, levels, scales, cube, level, grad_table):
        batch = _, positions, _, enters, rows = _new_batch(grad_table.dtype)
        polynomials, held_rows = np.zeros((features, 8), grad_table.dtype), np.zeros(8, np.int64)
        cell, sink, stop = _NO_CELL, grad_table.dtype.type(0), points.shape[0]
        for first in range(0, stop, _BATCH):
            chunk = points[first : min(first + _BATCH, stop)]
            cell, touched = _find_batch(chunk, grad_table, levels[level], scales[level], cube, cell, batch)
            sink += touched
            for n in range(len(chunk)):
                if enters[n]:
                    _flush(polynomials, held_rows, grad_table)
                    held_rows[:] = rows[n]
                x, y, z = positions[0, n], positions[1, n], positions[2, n]
                xy, xz, yz, xyz = x * y, x * z, y * z, x * y * z
                for f in range(features):
                    p, grad = polynomials[f], grad_features[first + n, level * features + f]
                    p[0] += grad
                    p[1] += grad * x
                    p[2] += grad * y
                    p[3] += grad * xy
                    p[4] += grad * z
                    p[5] += grad * xz
                    p[6] += grad * yz
                    p[7] += grad * xyz
        _flush(polynomials, held_rows, grad_table)
        return sink

    return scatter


@lru_cache
def scatter_with_jacobian_kernel(features: int) -> Callable[..., float]:
    """The same as :func:`scatter_kernel`, with ``grad_jacobian`` (N, 3, A) in the same pass."""

    @njit(**_OPTIONS)
    def scatter_with_jacobian(points, grad_features, grad_jacobian, levels, scales, cube, level, grad_table):
        batch = _, positions, slopes, enters, rows = _new_batch(grad_table.dtype)
        polynomials, held_rows = np.zeros((features, 8), grad_table.dtype), np.zeros(8, np.int64)
        cell, sink, stop = _NO_CELL, grad_table.dtype.type(0), points.shape[0]
        for first in range(0, stop, _BATCH):
            chunk = points[first : min(first + _BATCH, stop)]
            cell, touched = _find_batch(chunk, grad_table, levels[level], scales[level], cube, cell, batch)
            sink += touched
            for n in range(len(chunk)):
                if enters[n]:
                    _flush(polynomials, held_rows, grad_table)
                    held_rows[:] = rows[n]
                x, y, z = positions[0, n], positions[1, n], positions[2, n]
                for f in range(features):
                    p, column = polynomials[f], level * features + f
                    grad = grad_features[first + n, column]
                    by_x = grad_jacobian[first + n, 0, column] * slopes[0, n]
                    by_y = grad_jacobian[first + n, 1, column] * slopes[1, n]
                    by_z = grad_jacobian[first + n, 2, column] * slopes[2, n]
                    p[0] += grad
                    p[1] += grad * x + by_x
                    p[2] += grad * y + by_y
                    p[3] += (grad * x + by_x) * y + by_y * x
                    p[4] += grad * z + by_z
                    p[5] += (grad * x + by_x) * z + by_z * x
                    p[6] += (grad * y + by_y) * z + by_z * y
                    p[7] += ((grad * x + by_x) * y + by_y * x) * z + by_z * (x * y)
        _flush(polynomials, held_rows, grad_table)
        return sink

    return scatter_with_jacobian


@lru_cache
def contract_second_derivatives_kernel(features: int) -> Callable[..., float]:
    """Kernel that adds one level's part of d sum(jacobian * ``grad_jacobian`` (N, 3, A)) to ``grad_points`` (N, 3)."""

    @njit(**_OPTIONS)
    def contract_second_derivatives(
        points, table, grad_jacobian, levels, scales, cube, level, start, stop, grad_points
    ):
        batch = _, positions, slopes, enters, rows = _new_batch(table.dtype)
        polynomials = np.empty((features, 8), table.dtype)
        cell, sink = _NO_CELL, table.dtype.type(0)
        for first in range(start, stop, _BATCH):
            chunk = points[first : min(first + _BATCH, stop)]
            cell, touched = _find_batch(chunk, table, levels[level], scales[level], cube, cell, batch)
            sink += touched
            for n in range(len(chunk)):
                if enters[n]:
                    _fetch(table, rows[n], polynomials)
                x, y, z = positions[0, n], positions[1, n], positions[2, n]
                dx, dy, dz = slopes[0, n], slopes[1, n], slopes[2, n]
                for f in range(features):
                    p, column = polynomials[f], level * features + f
                    by_xy, by_xz, by_yz = p[3] + p[7] * z, p[5] + p[7] * y, p[6] + p[7] * x
                    to_x = grad_jacobian[first + n, 0, column] * dx
                    to_y = grad_jacobian[first + n, 1, column] * dy
                    to_z = grad_jacobian[first + n, 2, column] * dz
                    grad_points[first + n, 0] += (by_xy * to_y + by_xz * to_z) * dx
                    grad_points[first + n, 1] += (by_xy * to_x + by_yz * to_z) * dy
                    grad_points[first + n, 2] += (by_xz * to_x + by_yz * to_y) * dz
        return sink

    return contract_second_derivatives
