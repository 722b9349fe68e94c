"""The hash encoding on GPU, in Triton.

A program handles a block of points on one level. The level is the slow axis of the launch, so that one level's part of
the table is in the L2 cache at a time; features of a vertex are read and written as one vector. The table is used as it
is stored: no copy, no cast, no operation by PyTorch per level. Gradients of the table are summed by atomic additions,
whose order, and so the last bits of the sum, differ from run to run.

``TRITON_INTERPRET=1``, set before triton is imported, runs the same kernels slowly on CPU tensors, for tests.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ops.hash_grid.layout import HASH_PRIME_Y, HASH_PRIME_Z, GridLayout

_POINTS_PER_PROGRAM = 128
_PRIME_Y = tl.constexpr(HASH_PRIME_Y)
_PRIME_Z = tl.constexpr(HASH_PRIME_Z)


def encode(points: Tensor, table: Tensor, layout: GridLayout, active_levels: int) -> Tensor:
    """Features (N, A); see :class:`ops.hash_grid.autograd.Kernels`."""
    features = table.new_empty(len(points), active_levels * layout.features_per_level)
    _launch(_encode_kernel, points, (table, features, features), layout, active_levels, WITH_JACOBIAN=False)
    return features


def encode_with_jacobian(
    points: Tensor, table: Tensor, layout: GridLayout, active_levels: int
) -> tuple[Tensor, Tensor]:
    """Features (N, A) and Jacobian (N, 3, A) in one pass."""
    features = table.new_empty(len(points), active_levels * layout.features_per_level)
    jacobian = table.new_empty(len(points), 3, active_levels * layout.features_per_level)
    _launch(_encode_kernel, points, (table, features, jacobian), layout, active_levels, WITH_JACOBIAN=True)
    return features, jacobian


def scatter(points: Tensor, grad_features: Tensor | None, grad_jacobian: Tensor | None, layout: GridLayout) -> Tensor:
    """Gradient of the table, (E, F)."""
    some_gradient = grad_features if grad_jacobian is None else grad_jacobian
    assert some_gradient is not None
    grad_table = points.new_zeros(layout.num_entries, layout.features_per_level)
    tensors = [some_gradient if given is None else given for given in (grad_features, grad_jacobian)]
    _launch(
        _scatter_kernel,
        points,
        (*tensors, grad_table),
        layout,
        some_gradient.shape[-1] // layout.features_per_level,
        WITH_FEATURES=grad_features is not None,
        WITH_JACOBIAN=grad_jacobian is not None,
    )
    return grad_table


def contract_second_derivatives(points: Tensor, table: Tensor, grad_jacobian: Tensor, layout: GridLayout) -> Tensor:
    """(N, 3) gradient by the points of sum(jacobian * grad_jacobian)."""
    active_levels = grad_jacobian.shape[-1] // layout.features_per_level
    # one slice a level, added up afterwards: the sum over levels then needs no atomics
    by_level = points.new_empty(active_levels, len(points), 3)
    _launch(_second_derivatives_kernel, points, (table, grad_jacobian, by_level), layout, active_levels)
    return by_level.sum(dim=0)


def _launch(
    kernel: triton.JITFunction,
    points: Tensor,
    tensors: tuple[Tensor, ...],
    layout: GridLayout,
    active_levels: int,
    **switches: bool,
) -> None:
    features = layout.features_per_level
    if features & (features - 1):
        raise ValueError(
            f"Hash grid: features_per_level is {features}, but the triton backend needs a power of two; choose "
            "another number or set backend to 'reference'."
        )
    if len(points) == 0:
        return
    launch = kernel[triton.cdiv(len(points), _POINTS_PER_PROGRAM), active_levels]
    constants = _constants(layout, points.dtype, points.device)
    with torch.cuda.device_of(points):  # Triton launches on the current device, which need not be the tensors'
        launch(points, *tensors, *constants, len(points), F=features, BLOCK=_POINTS_PER_PROGRAM, **switches)


@lru_cache
def _constants(layout: GridLayout, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """On the device: (L, 3) resolution, offset and hash mask (0 if dense); (L,) scales; (bound, inverse extent)."""
    return (
        torch.tensor(layout.level_records, dtype=torch.int64, device=device),
        torch.tensor(layout.scales, dtype=dtype, device=device),
        torch.tensor([layout.bound, layout.inverse_extent], dtype=dtype, device=device),
    )


@triton.jit
def _locate(coordinate, cube_ptr, scale, last_cell):
    """Cell of a coordinate, position within it, and cells per world unit (0 where the coordinate is clamped)."""
    inverse_extent = tl.load(cube_ptr + 1)
    unit = (coordinate + tl.load(cube_ptr)) * inverse_extent
    is_inside = (unit >= 0) & (unit <= 1)
    # not clamp(), which hides NaN
    position = tl.where(unit < 0, 0.0, tl.where(unit > 1, 1.0, unit)) * scale
    cell = tl.maximum(tl.minimum(position.to(tl.int32), last_cell), 0)
    return cell, position - cell.to(position.dtype), tl.where(is_inside, scale * inverse_extent, 0.0)


@triton.jit
def _locate_points(points_ptr, n, is_point, cube_ptr, scale, last_cell):
    """:func:`_locate` on each axis of points ``n``: three cells, three positions, three slopes."""
    x = tl.load(points_ptr + 3 * n, mask=is_point, other=0.0)
    y = tl.load(points_ptr + 3 * n + 1, mask=is_point, other=0.0)
    z = tl.load(points_ptr + 3 * n + 2, mask=is_point, other=0.0)
    i, x, dx = _locate(x, cube_ptr, scale, last_cell)
    j, y, dy = _locate(y, cube_ptr, scale, last_cell)
    k, z, dz = _locate(z, cube_ptr, scale, last_cell)
    return i, j, k, x, y, z, dx, dy, dz


@triton.jit
def _load_level(level_ptr):
    """Resolution, offset into the table, and hash mask (0 of a dense level)."""
    return tl.load(level_ptr).to(tl.int32), tl.load(level_ptr + 1), tl.load(level_ptr + 2).to(tl.uint32)


@triton.jit
def _element(i, j, k, CORNER: tl.constexpr, resolution, offset, mask, F: tl.constexpr):
    """Where in the table the features of a corner of cell (i, j, k) begin; int64, as tables may pass 2^31 elements."""
    i, j, k = i + CORNER % 2, j + CORNER // 2 % 2, k + CORNER // 4
    dense = i + resolution * (j + resolution * k)
    # wraps around in 32 bits, of which the mask keeps the lower ones
    hashed = (i.to(tl.uint32) ^ (j.to(tl.uint32) * _PRIME_Y) ^ (k.to(tl.uint32) * _PRIME_Z)) & mask
    return (offset + tl.where(mask == 0, dense, hashed.to(tl.int32)).to(tl.int64)) * F


@triton.jit
def _weights(x, y, z, dx, dy, dz, CORNER: tl.constexpr):
    """Closeness to a corner along each axis, whose product is the corner's weight, and their derivatives."""
    wx, sx = (x, dx) if CORNER % 2 else (1.0 - x, -dx)
    wy, sy = (y, dy) if CORNER // 2 % 2 else (1.0 - y, -dy)
    wz, sz = (z, dz) if CORNER // 4 else (1.0 - z, -dz)
    return wx, wy, wz, sx, sy, sz


@triton.jit(do_not_specialize=["num_points"])
def _encode_kernel(
    points_ptr,
    table_ptr,
    features_ptr,
    jacobian_ptr,
    levels_ptr,
    scales_ptr,
    cube_ptr,
    num_points,
    F: tl.constexpr,
    BLOCK: tl.constexpr,
    WITH_JACOBIAN: tl.constexpr,
):
    level = tl.program_id(1)
    width = tl.num_programs(1) * F
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_point = n < num_points
    f = tl.arange(0, F)[None, :]
    scale = tl.load(scales_ptr + level)
    resolution, offset, mask = _load_level(levels_ptr + 3 * level)
    i, j, k, x, y, z, dx, dy, dz = _locate_points(points_ptr, n, is_point, cube_ptr, scale, resolution - 2)

    encoded = tl.zeros((BLOCK, F), dtype=x.dtype)
    by_x = tl.zeros((BLOCK, F), dtype=x.dtype)
    by_y = tl.zeros((BLOCK, F), dtype=x.dtype)
    by_z = tl.zeros((BLOCK, F), dtype=x.dtype)
    for corner in tl.static_range(8):
        element = _element(i, j, k, corner, resolution, offset, mask, F)
        values = tl.load(table_ptr + element[:, None] + f, mask=is_point[:, None], other=0.0)
        wx, wy, wz, sx, sy, sz = _weights(x, y, z, dx, dy, dz, corner)
        encoded += (wx * wy * wz)[:, None] * values
        if WITH_JACOBIAN:
            by_x += (sx * wy * wz)[:, None] * values
            by_y += (wx * sy * wz)[:, None] * values
            by_z += (wx * wy * sz)[:, None] * values

    column = level * F + f
    tl.store(features_ptr + n[:, None] * width + column, encoded, mask=is_point[:, None])
    if WITH_JACOBIAN:
        jacobian_ptrs = jacobian_ptr + n[:, None] * (3 * width) + column
        tl.store(jacobian_ptrs, by_x, mask=is_point[:, None])
        tl.store(jacobian_ptrs + width, by_y, mask=is_point[:, None])
        tl.store(jacobian_ptrs + 2 * width, by_z, mask=is_point[:, None])


@triton.jit(do_not_specialize=["num_points"])
def _scatter_kernel(
    points_ptr,
    grad_features_ptr,
    grad_jacobian_ptr,
    grad_table_ptr,
    levels_ptr,
    scales_ptr,
    cube_ptr,
    num_points,
    F: tl.constexpr,
    BLOCK: tl.constexpr,
    WITH_FEATURES: tl.constexpr,
    WITH_JACOBIAN: tl.constexpr,
):
    level = tl.program_id(1)
    width = tl.num_programs(1) * F
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_point = n < num_points
    f = tl.arange(0, F)[None, :]
    scale = tl.load(scales_ptr + level)
    resolution, offset, mask = _load_level(levels_ptr + 3 * level)
    i, j, k, x, y, z, dx, dy, dz = _locate_points(points_ptr, n, is_point, cube_ptr, scale, resolution - 2)

    column = level * F + f
    if WITH_FEATURES:
        grad = tl.load(grad_features_ptr + n[:, None] * width + column, mask=is_point[:, None], other=0.0)
    if WITH_JACOBIAN:
        grad_ptrs = grad_jacobian_ptr + n[:, None] * (3 * width) + column
        grad_x = tl.load(grad_ptrs, mask=is_point[:, None], other=0.0)
        grad_y = tl.load(grad_ptrs + width, mask=is_point[:, None], other=0.0)
        grad_z = tl.load(grad_ptrs + 2 * width, mask=is_point[:, None], other=0.0)
    for corner in tl.static_range(8):
        wx, wy, wz, sx, sy, sz = _weights(x, y, z, dx, dy, dz, corner)
        total = tl.zeros((BLOCK, F), dtype=x.dtype)
        if WITH_FEATURES:
            total += (wx * wy * wz)[:, None] * grad
        if WITH_JACOBIAN:
            total += (sx * wy * wz)[:, None] * grad_x
            total += (wx * sy * wz)[:, None] * grad_y
            total += (wx * wy * sz)[:, None] * grad_z
        element = _element(i, j, k, corner, resolution, offset, mask, F)
        tl.atomic_add(grad_table_ptr + element[:, None] + f, total, mask=is_point[:, None], sem="relaxed")


@triton.jit(do_not_specialize=["num_points"])
def _second_derivatives_kernel(
    points_ptr,
    table_ptr,
    grad_jacobian_ptr,
    grad_points_ptr,
    levels_ptr,
    scales_ptr,
    cube_ptr,
    num_points,
    F: tl.constexpr,
    BLOCK: tl.constexpr,
):
    level = tl.program_id(1)
    width = tl.num_programs(1) * F
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_point = n < num_points
    f = tl.arange(0, F)[None, :]
    scale = tl.load(scales_ptr + level)
    resolution, offset, mask = _load_level(levels_ptr + 3 * level)
    i, j, k, x, y, z, dx, dy, dz = _locate_points(points_ptr, n, is_point, cube_ptr, scale, resolution - 2)

    grad_ptrs = grad_jacobian_ptr + n[:, None] * (3 * width) + level * F + f
    grad_x = tl.load(grad_ptrs, mask=is_point[:, None], other=0.0)
    grad_y = tl.load(grad_ptrs + width, mask=is_point[:, None], other=0.0)
    grad_z = tl.load(grad_ptrs + 2 * width, mask=is_point[:, None], other=0.0)
    by_x = tl.zeros((BLOCK,), dtype=x.dtype)
    by_y = tl.zeros((BLOCK,), dtype=x.dtype)
    by_z = tl.zeros((BLOCK,), dtype=x.dtype)
    for corner in tl.static_range(8):
        element = _element(i, j, k, corner, resolution, offset, mask, F)
        values = tl.load(table_ptr + element[:, None] + f, mask=is_point[:, None], other=0.0)
        # the features weighted by the incoming gradients, then the mixed second derivatives of the corner's weight
        to_x, to_y, to_z = tl.sum(values * grad_x, 1), tl.sum(values * grad_y, 1), tl.sum(values * grad_z, 1)
        wx, wy, wz, sx, sy, sz = _weights(x, y, z, dx, dy, dz, corner)
        xy, xz, yz = sx * sy * wz, sx * wy * sz, wx * sy * sz
        by_x += xy * to_y + xz * to_z
        by_y += xy * to_x + yz * to_z
        by_z += xz * to_x + yz * to_y

    grad_point_ptrs = grad_points_ptr + (level.to(tl.int64) * num_points + n) * 3
    tl.store(grad_point_ptrs, by_x, mask=is_point)
    tl.store(grad_point_ptrs + 1, by_y, mask=is_point)
    tl.store(grad_point_ptrs + 2, by_z, mask=is_point)
