"""What all Triton kernels of the hash grid begin with: a point's cell on a level, its corners and their weights."""

import triton
import triton.language as tl

from ops.hash_grid.layout import HASH_PRIME_Y, HASH_PRIME_Z

_PRIME_Y = tl.constexpr(HASH_PRIME_Y)
_PRIME_Z = tl.constexpr(HASH_PRIME_Z)


@triton.jit
def locate(coordinate, cube_ptr, scale, last_cell):
    """Cell of a coordinate, position within it, and cells per world unit (0 where the coordinate is clamped)."""
    inverse_extent = tl.load(cube_ptr + 1)
    unit = (coordinate + tl.load(cube_ptr)) * inverse_extent
    is_inside = (unit >= 0) & (unit <= 1)
    # not clamp(), which hides NaN
    position = tl.where(unit < 0, 0.0, tl.where(unit > 1, 1.0, unit)) * scale
    cell = tl.maximum(tl.minimum(position.to(tl.int32), last_cell), 0)
    return cell, position - cell.to(position.dtype), tl.where(is_inside, scale * inverse_extent, 0.0)


@triton.jit
def load_points(points_ptr, n, is_point):
    """Coordinates of points ``n``, zero where there is none."""
    x = tl.load(points_ptr + 3 * n, mask=is_point, other=0.0)
    y = tl.load(points_ptr + 3 * n + 1, mask=is_point, other=0.0)
    z = tl.load(points_ptr + 3 * n + 2, mask=is_point, other=0.0)
    return x, y, z


@triton.jit
def locate_points(points_ptr, n, is_point, cube_ptr, scale, last_cell):
    """:func:`locate` on each axis of points ``n``: three cells, three positions, three slopes."""
    x, y, z = load_points(points_ptr, n, is_point)
    i, x, dx = locate(x, cube_ptr, scale, last_cell)
    j, y, dy = locate(y, cube_ptr, scale, last_cell)
    k, z, dz = locate(z, cube_ptr, scale, last_cell)
    return i, j, k, x, y, z, dx, dy, dz


@triton.jit
def load_level(level_ptr):
    """Resolution, offset into the table, and hash mask (0 of a dense level)."""
    return tl.load(level_ptr).to(tl.int32), tl.load(level_ptr + 1), tl.load(level_ptr + 2).to(tl.uint32)


@triton.jit
def element_of(i, j, k, CORNER: tl.constexpr, resolution, offset, mask, F: tl.constexpr):
    """Where in the table the features of a corner of cell (i, j, k) begin; int64, as tables may pass 2^31 elements."""
    i, j, k = i + CORNER % 2, j + CORNER // 2 % 2, k + CORNER // 4
    dense = i + resolution * (j + resolution * k)
    # wraps around in 32 bits, of which the mask keeps the lower ones
    hashed = (i.to(tl.uint32) ^ (j.to(tl.uint32) * _PRIME_Y) ^ (k.to(tl.uint32) * _PRIME_Z)) & mask
    return (offset + tl.where(mask == 0, dense, hashed.to(tl.int32)).to(tl.int64)) * F


@triton.jit
def weights_of(x, y, z, dx, dy, dz, CORNER: tl.constexpr):
    """Closeness to a corner along each axis, whose product is the corner's weight, and their derivatives."""
    wx, sx = (x, dx) if CORNER % 2 else (1.0 - x, -dx)
    wy, sy = (y, dy) if CORNER // 2 % 2 else (1.0 - y, -dy)
    wz, sz = (z, dz) if CORNER // 4 else (1.0 - z, -dz)
    return wx, wy, wz, sx, sy, sz
