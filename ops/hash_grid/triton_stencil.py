"""Triton kernels of the hash grid for points with taps around them; :mod:`ops.hash_grid.triton_gpu` launches them.

Most taps lie in the cell of their centre. Its corners are read once, and only taps that left the cell read their own;
backwards, what centre and taps give to a corner of that cell is summed before the one atomic addition.
"""

import triton
import triton.language as tl

from ops.hash_grid.triton_cells import element_of, load_level, load_points, locate, weights_of


@triton.jit
def _locate_tap(x, y, z, offsets_ptr, TAP: tl.constexpr, cube_ptr, scale, last_cell):
    """Cell and position of a tap, 0 being the centre itself."""
    if TAP > 0:
        x += tl.load(offsets_ptr + 3 * TAP - 3)
        y += tl.load(offsets_ptr + 3 * TAP - 2)
        z += tl.load(offsets_ptr + 3 * TAP - 1)
    i, x, _ = locate(x, cube_ptr, scale, last_cell)
    j, y, _ = locate(y, cube_ptr, scale, last_cell)
    k, z, _ = locate(z, cube_ptr, scale, last_cell)
    return i, j, k, x, y, z


@triton.jit
def _weight(x, y, z, CORNER: tl.constexpr):
    wx, wy, wz, _, _, _ = weights_of(x, y, z, x, y, z, CORNER)
    return (wx * wy * wz)[:, None]


@triton.jit(do_not_specialize=["num_points"])
def encode_stencil_kernel(
    points_ptr,
    offsets_ptr,
    table_ptr,
    features_ptr,
    levels_ptr,
    scales_ptr,
    cube_ptr,
    num_points,
    F: tl.constexpr,
    BLOCK: tl.constexpr,
    T: tl.constexpr,
):
    level = tl.program_id(1)
    width = tl.num_programs(1) * F
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_point = n < num_points
    f = tl.arange(0, F)[None, :]
    scale = tl.load(scales_ptr + level)
    resolution, offset, mask = load_level(levels_ptr + 3 * level)
    center_x, center_y, center_z = load_points(points_ptr, n, is_point)
    center = _locate_tap(center_x, center_y, center_z, offsets_ptr, 0, cube_ptr, scale, resolution - 2)
    shared = ()  # joined by plus below, as Triton knows no star
    for corner in tl.static_range(8):
        element = element_of(center[0], center[1], center[2], corner, resolution, offset, mask, F)
        shared = shared + (tl.load(table_ptr + element[:, None] + f, mask=is_point[:, None], other=0.0),)  # noqa: RUF005

    for tap in tl.static_range(1 + T):
        i, j, k, x, y, z = _locate_tap(center_x, center_y, center_z, offsets_ptr, tap, cube_ptr, scale, resolution - 2)
        is_stray = (is_point & ((i != center[0]) | (j != center[1]) | (k != center[2])))[:, None]
        encoded = tl.zeros((BLOCK, F), dtype=x.dtype)
        for corner in tl.static_range(8):
            values = shared[corner]
            if tap > 0:
                element = element_of(i, j, k, corner, resolution, offset, mask, F)
                values = tl.load(table_ptr + element[:, None] + f, mask=is_stray, other=values)
            encoded += _weight(x, y, z, corner) * values.to(x.dtype)
        row = n[:, None] * (1 + T) + tap
        tl.store(features_ptr + row * width + level * F + f, encoded, mask=is_point[:, None])


@triton.jit(do_not_specialize=["num_points"])
def scatter_stencil_kernel(
    points_ptr,
    offsets_ptr,
    grad_features_ptr,
    grad_table_ptr,
    levels_ptr,
    scales_ptr,
    cube_ptr,
    num_points,
    F: tl.constexpr,
    BLOCK: tl.constexpr,
    T: tl.constexpr,
):
    level = tl.program_id(1)
    width = tl.num_programs(1) * F
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_point = n < num_points
    f = tl.arange(0, F)[None, :]
    scale = tl.load(scales_ptr + level)
    resolution, offset, mask = load_level(levels_ptr + 3 * level)
    center_x, center_y, center_z = load_points(points_ptr, n, is_point)
    center = _locate_tap(center_x, center_y, center_z, offsets_ptr, 0, cube_ptr, scale, resolution - 2)
    shared = ()
    for _ in tl.static_range(8):
        shared = shared + (tl.zeros((BLOCK, F), dtype=center_x.dtype),)  # noqa: RUF005

    for tap in tl.static_range(1 + T):
        i, j, k, x, y, z = _locate_tap(center_x, center_y, center_z, offsets_ptr, tap, cube_ptr, scale, resolution - 2)
        is_stray = (is_point & ((i != center[0]) | (j != center[1]) | (k != center[2])))[:, None]
        row = n[:, None] * (1 + T) + tap
        grad = tl.load(grad_features_ptr + row * width + level * F + f, mask=is_point[:, None], other=0.0)
        sums = ()
        for corner in tl.static_range(8):
            part = _weight(x, y, z, corner) * grad
            if tap > 0:
                element = element_of(i, j, k, corner, resolution, offset, mask, F)
                tl.atomic_add(grad_table_ptr + element[:, None] + f, part, mask=is_stray, sem="relaxed")
                part = tl.where(is_stray, 0.0, part)
            sums = sums + (shared[corner] + part,)  # noqa: RUF005
        shared = sums
    for corner in tl.static_range(8):
        element = element_of(center[0], center[1], center[2], corner, resolution, offset, mask, F)
        tl.atomic_add(grad_table_ptr + element[:, None] + f, shared[corner], mask=is_point[:, None], sem="relaxed")
