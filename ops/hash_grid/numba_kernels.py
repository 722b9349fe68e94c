"""Compiled loops of the CPU hash grid; :mod:`ops.hash_grid.numba_cpu` runs them on tensors.

A kernel is made for each number of features F, which is then a constant to the compiler, and compiled for each dtype on
first use. The machine code is cached beside this file.

Corners of a cell are numbered x + 2 y + 4 z, each coordinate 0 or 1. They are fetched into a small array (backwards,
their gradients are flushed from it) only when a point leaves the cell of the point before it: samples along a ray and
the taps of a numerical gradient mostly share their cell.

Every kernel is sequential and its order of summation depends on nothing but its arguments; threads are given separate
points (forwards) or separate levels (backwards), so results do not depend on their number.

Arguments that all kernels share: ``points`` (N, 3); ``table`` (E, F); ``levels``, of each level (resolution, offset
into the table, hash mask or 0 of a dense level), (L, 3) int64; ``scales`` (L,); ``cube``, (bound, inverse extent), in
the points' dtype like all floats here.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numba import njit

from ops.hash_grid.layout import HASH_PRIME_Y, HASH_PRIME_Z

# Points whose rows of the output stay in the L1 or L2 cache while all levels are written to them
_BLOCK = 256
# the harmless part of "fast": multiply-adds may be fused, but sums keep their order, and NaN and inf what they are
_OPTIONS = {"nogil": True, "cache": True, "error_model": "numpy", "fastmath": {"contract", "nsz"}}


@njit(**_OPTIONS)
def _locate(coordinate, cube, scale, last_cell):
    """Cell of a coordinate, position within it, and cells per world unit (0 where the coordinate is clamped)."""
    number = cube.dtype.type
    unit = (coordinate + cube[0]) * cube[1]
    cells_per_unit = scale * cube[1]
    if unit < number(0):
        unit, cells_per_unit = number(0), number(0)
    elif unit > number(1):
        unit, cells_per_unit = number(1), number(0)
    position = unit * scale
    # written so that NaN takes the last cell, and stays NaN in the position within it
    cell = np.int64(position) if position < number(last_cell) else last_cell
    return cell, position - number(cell), cells_per_unit


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
def _fetch(table, rows, corners):
    """Copy the features of 8 table rows into ``corners`` (F, 8)."""
    for corner in range(8):
        for f in range(corners.shape[0]):
            corners[f, corner] = table[rows[corner], f]


@njit(**_OPTIONS)
def _flush(corners, rows, grad_table):
    """Add what the corners have gathered, (F, 8), to their rows of the table's gradient, and empty them."""
    for corner in range(8):
        for f in range(corners.shape[0]):
            grad_table[rows[corner], f] += corners[f, corner]
            corners[f, corner] = 0


@njit(**_OPTIONS)
def _products(x0, x1, y0, y1, z0, z1):
    """The 8 products of one factor from each axis, in the order of the corners."""
    a, b, c, d = x0 * y0, x1 * y0, x0 * y1, x1 * y1
    return a * z0, b * z0, c * z0, d * z0, a * z1, b * z1, c * z1, d * z1


@njit(**_OPTIONS)
def _dot(weights, corners):
    """Sum over corners of weight times value."""
    a = weights[0] * corners[0] + weights[1] * corners[1] + weights[2] * corners[2] + weights[3] * corners[3]
    b = weights[4] * corners[4] + weights[5] * corners[5] + weights[6] * corners[6] + weights[7] * corners[7]
    return a + b


@njit(**_OPTIONS)
def _add(corners, weights, factor):
    """Add weight times factor to each corner."""
    corners[0] += weights[0] * factor
    corners[1] += weights[1] * factor
    corners[2] += weights[2] * factor
    corners[3] += weights[3] * factor
    corners[4] += weights[4] * factor
    corners[5] += weights[5] * factor
    corners[6] += weights[6] * factor
    corners[7] += weights[7] * factor


@lru_cache
def encode_kernel(features: int) -> Callable[..., None]:
    """Kernel that writes the features of points ``start`` to ``stop`` into ``encoded`` (N, A)."""

    @njit(**_OPTIONS)
    def encode(points, table, levels, scales, cube, start, stop, encoded):
        one = table.dtype.type(1)
        rows = np.empty(8, np.int64)
        corners = np.empty((features, 8), table.dtype)
        for block in range(start, stop, _BLOCK):
            for level in range(encoded.shape[1] // features):
                cell, last_cell = (-1, -1, -1), levels[level, 0] - 2
                for n in range(block, min(block + _BLOCK, stop)):
                    i, x, _ = _locate(points[n, 0], cube, scales[level], last_cell)
                    j, y, _ = _locate(points[n, 1], cube, scales[level], last_cell)
                    k, z, _ = _locate(points[n, 2], cube, scales[level], last_cell)
                    if (i, j, k) != cell:
                        cell = (i, j, k)
                        _find_corners(i, j, k, levels[level], rows)
                        _fetch(table, rows, corners)
                    weights = _products(one - x, x, one - y, y, one - z, z)
                    for f in range(features):
                        encoded[n, level * features + f] = _dot(weights, corners[f])

    return encode


@lru_cache
def encode_with_jacobian_kernel(features: int) -> Callable[..., None]:
    """Kernel that writes features into ``encoded`` (N, A) and their derivatives into ``jacobian`` (N, 3, A)."""

    @njit(**_OPTIONS)
    def encode_with_jacobian(points, table, levels, scales, cube, start, stop, encoded, jacobian):
        one = table.dtype.type(1)
        rows = np.empty(8, np.int64)
        corners = np.empty((features, 8), table.dtype)
        for block in range(start, stop, _BLOCK):
            for level in range(encoded.shape[1] // features):
                cell, last_cell = (-1, -1, -1), levels[level, 0] - 2
                for n in range(block, min(block + _BLOCK, stop)):
                    i, x, dx = _locate(points[n, 0], cube, scales[level], last_cell)
                    j, y, dy = _locate(points[n, 1], cube, scales[level], last_cell)
                    k, z, dz = _locate(points[n, 2], cube, scales[level], last_cell)
                    if (i, j, k) != cell:
                        cell = (i, j, k)
                        _find_corners(i, j, k, levels[level], rows)
                        _fetch(table, rows, corners)
                    weights = _products(one - x, x, one - y, y, one - z, z)
                    by_x = _products(-dx, dx, one - y, y, one - z, z)
                    by_y = _products(one - x, x, -dy, dy, one - z, z)
                    by_z = _products(one - x, x, one - y, y, -dz, dz)
                    for f in range(features):
                        column = level * features + f
                        encoded[n, column] = _dot(weights, corners[f])
                        jacobian[n, 0, column] = _dot(by_x, corners[f])
                        jacobian[n, 1, column] = _dot(by_y, corners[f])
                        jacobian[n, 2, column] = _dot(by_z, corners[f])

    return encode_with_jacobian


@lru_cache
def scatter_kernel(features: int) -> Callable[..., None]:
    """Kernel that adds one level's part of the table's gradient to ``grad_table``, given ``grad_features`` (N, A)."""

    @njit(**_OPTIONS)
    def scatter(points, grad_features, levels, scales, cube, level, grad_table):
        one = grad_table.dtype.type(1)
        rows = np.zeros(8, np.int64)
        corners = np.zeros((features, 8), grad_table.dtype)
        cell, last_cell = (-1, -1, -1), levels[level, 0] - 2
        for n in range(points.shape[0]):
            i, x, _ = _locate(points[n, 0], cube, scales[level], last_cell)
            j, y, _ = _locate(points[n, 1], cube, scales[level], last_cell)
            k, z, _ = _locate(points[n, 2], cube, scales[level], last_cell)
            if (i, j, k) != cell:
                _flush(corners, rows, grad_table)
                cell = (i, j, k)
                _find_corners(i, j, k, levels[level], rows)
            weights = _products(one - x, x, one - y, y, one - z, z)
            for f in range(features):
                _add(corners[f], weights, grad_features[n, level * features + f])
        _flush(corners, rows, grad_table)

    return scatter


@lru_cache
def scatter_with_jacobian_kernel(features: int) -> Callable[..., None]:
    """The same as :func:`scatter_kernel`, with ``grad_jacobian`` (N, 3, A) in the same pass."""

    @njit(**_OPTIONS)
    def scatter_with_jacobian(points, grad_features, grad_jacobian, levels, scales, cube, level, grad_table):
        one = grad_table.dtype.type(1)
        rows = np.zeros(8, np.int64)
        corners = np.zeros((features, 8), grad_table.dtype)
        cell, last_cell = (-1, -1, -1), levels[level, 0] - 2
        for n in range(points.shape[0]):
            i, x, dx = _locate(points[n, 0], cube, scales[level], last_cell)
            j, y, dy = _locate(points[n, 1], cube, scales[level], last_cell)
            k, z, dz = _locate(points[n, 2], cube, scales[level], last_cell)
            if (i, j, k) != cell:
                _flush(corners, rows, grad_table)
                cell = (i, j, k)
                _find_corners(i, j, k, levels[level], rows)
            weights = _products(one - x, x, one - y, y, one - z, z)
            by_x = _products(-dx, dx, one - y, y, one - z, z)
            by_y = _products(one - x, x, -dy, dy, one - z, z)
            by_z = _products(one - x, x, one - y, y, -dz, dz)
            for f in range(features):
                column = level * features + f
                _add(corners[f], weights, grad_features[n, column])
                _add(corners[f], by_x, grad_jacobian[n, 0, column])
                _add(corners[f], by_y, grad_jacobian[n, 1, column])
                _add(corners[f], by_z, grad_jacobian[n, 2, column])
        _flush(corners, rows, grad_table)

    return scatter_with_jacobian


@lru_cache
def contract_second_derivatives_kernel(features: int) -> Callable[..., None]:
    """Kernel that adds, to ``grad_points`` (N, 3), the derivative of sum(jacobian * ``grad_jacobian`` (N, 3, A))."""

    @njit(**_OPTIONS)
    def contract_second_derivatives(points, table, grad_jacobian, levels, scales, cube, start, stop, grad_points):
        one = table.dtype.type(1)
        rows = np.empty(8, np.int64)
        corners = np.empty((features, 8), table.dtype)
        for level in range(grad_jacobian.shape[2] // features):
            cell, last_cell = (-1, -1, -1), levels[level, 0] - 2
            for n in range(start, stop):
                i, x, dx = _locate(points[n, 0], cube, scales[level], last_cell)
                j, y, dy = _locate(points[n, 1], cube, scales[level], last_cell)
                k, z, dz = _locate(points[n, 2], cube, scales[level], last_cell)
                if (i, j, k) != cell:
                    cell = (i, j, k)
                    _find_corners(i, j, k, levels[level], rows)
                    _fetch(table, rows, corners)
                by_yz = _products(one - x, x, -dy, dy, -dz, dz)
                by_xz = _products(-dx, dx, one - y, y, -dz, dz)
                by_xy = _products(-dx, dx, -dy, dy, one - z, z)
                for f in range(features):
                    column = level * features + f
                    yz, xz, xy = _dot(by_yz, corners[f]), _dot(by_xz, corners[f]), _dot(by_xy, corners[f])
                    gx, gy, gz = grad_jacobian[n, 0, column], grad_jacobian[n, 1, column], grad_jacobian[n, 2, column]
                    grad_points[n, 0] += xy * gy + xz * gz
                    grad_points[n, 1] += xy * gx + yz * gz
                    grad_points[n, 2] += xz * gx + yz * gy

    return contract_second_derivatives
