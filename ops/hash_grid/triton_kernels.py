"""Triton kernels of the hash grid for single points; :mod:`ops.hash_grid.triton_gpu` launches them on tensors.

A program handles a block of points on one level: the first axis of the launch is that of blocks, the second of levels.
"""

import triton
import triton.language as tl

from ops.hash_grid.triton_cells import element_of, load_level, locate_points, weights_of


@triton.jit(do_not_specialize=["num_points"])
def encode_kernel(
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
    resolution, offset, mask = load_level(levels_ptr + 3 * level)
    i, j, k, x, y, z, dx, dy, dz = locate_points(points_ptr, n, is_point, cube_ptr, scale, resolution - 2)

    encoded = tl.zeros((BLOCK, F), dtype=x.dtype)
    by_x = tl.zeros((BLOCK, F), dtype=x.dtype)
    by_y = tl.zeros((BLOCK, F), dtype=x.dtype)
    by_z = tl.zeros((BLOCK, F), dtype=x.dtype)
    for corner in tl.static_range(8):
        element = element_of(i, j, k, corner, resolution, offset, mask, F)
        values = tl.load(table_ptr + element[:, None] + f, mask=is_point[:, None], other=0.0).to(x.dtype)
        wx, wy, wz, sx, sy, sz = weights_of(x, y, z, dx, dy, dz, corner)
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
def scatter_kernel(
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
    resolution, offset, mask = load_level(levels_ptr + 3 * level)
    i, j, k, x, y, z, dx, dy, dz = locate_points(points_ptr, n, is_point, cube_ptr, scale, resolution - 2)

    column = level * F + f
    if WITH_FEATURES:
        grad = tl.load(grad_features_ptr + n[:, None] * width + column, mask=is_point[:, None], other=0.0)
    if WITH_JACOBIAN:
        grad_ptrs = grad_jacobian_ptr + n[:, None] * (3 * width) + column
        grad_x = tl.load(grad_ptrs, mask=is_point[:, None], other=0.0)
        grad_y = tl.load(grad_ptrs + width, mask=is_point[:, None], other=0.0)
        grad_z = tl.load(grad_ptrs + 2 * width, mask=is_point[:, None], other=0.0)
    for corner in tl.static_range(8):
        wx, wy, wz, sx, sy, sz = weights_of(x, y, z, dx, dy, dz, corner)
        total = tl.zeros((BLOCK, F), dtype=x.dtype)
        if WITH_FEATURES:
            total += (wx * wy * wz)[:, None] * grad
        if WITH_JACOBIAN:
            total += (sx * wy * wz)[:, None] * grad_x
            total += (wx * sy * wz)[:, None] * grad_y
            total += (wx * wy * sz)[:, None] * grad_z
        element = element_of(i, j, k, corner, resolution, offset, mask, F)
        tl.atomic_add(grad_table_ptr + element[:, None] + f, total, mask=is_point[:, None], sem="relaxed")


@triton.jit(do_not_specialize=["num_points"])
def second_derivatives_kernel(
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
    resolution, offset, mask = load_level(levels_ptr + 3 * level)
    i, j, k, x, y, z, dx, dy, dz = locate_points(points_ptr, n, is_point, cube_ptr, scale, resolution - 2)

    grad_ptrs = grad_jacobian_ptr + n[:, None] * (3 * width) + level * F + f
    grad_x = tl.load(grad_ptrs, mask=is_point[:, None], other=0.0)
    grad_y = tl.load(grad_ptrs + width, mask=is_point[:, None], other=0.0)
    grad_z = tl.load(grad_ptrs + 2 * width, mask=is_point[:, None], other=0.0)
    by_x = tl.zeros((BLOCK,), dtype=x.dtype)
    by_y = tl.zeros((BLOCK,), dtype=x.dtype)
    by_z = tl.zeros((BLOCK,), dtype=x.dtype)
    for corner in tl.static_range(8):
        element = element_of(i, j, k, corner, resolution, offset, mask, F)
        values = tl.load(table_ptr + element[:, None] + f, mask=is_point[:, None], other=0.0).to(x.dtype)
        # the features weighted by the incoming gradients, then the mixed second derivatives of the corner's weight
        to_x, to_y, to_z = tl.sum(values * grad_x, 1), tl.sum(values * grad_y, 1), tl.sum(values * grad_z, 1)
        wx, wy, wz, sx, sy, sz = weights_of(x, y, z, dx, dy, dz, corner)
        xy, xz, yz = sx * sy * wz, sx * wy * sz, wx * sy * sz
        by_x += xy * to_y + xz * to_z
        by_y += xy * to_x + yz * to_z
        by_z += xz * to_x + yz * to_y

    grad_point_ptrs = grad_points_ptr + (level.to(tl.int64) * num_points + n) * 3
    tl.store(grad_point_ptrs, by_x, mask=is_point)
    tl.store(grad_point_ptrs + 1, by_y, mask=is_point)
    tl.store(grad_point_ptrs + 2, by_z, mask=is_point)
