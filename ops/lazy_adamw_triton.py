"""Rows brought up to date on a GPU, in Triton, without waiting for how many there are.

Points mark the rows they read by an atomic "or" on the row's stamp; whoever marks a row first appends it to the list of
its level. The kernels that go through the lists are started with a fixed number of programs, which read from memory how
far they have to go. ``TRITON_INTERPRET=1`` runs all of it on CPU tensors, for tests.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ops.hash_grid.triton_cells import element_of, load_level, locate_points
from ops.hash_grid.triton_gpu import _constants
from ops.lazy_adamw_history import COLUMNS, Step
from ops.lazy_adamw_rows import LazyRows

_POINTS_PER_PROGRAM = 128
_ROWS_PER_PROGRAM = 64
# programs a level that go through a list; enough to fill a large GPU with the finest levels alone
_MAX_PROGRAMS = 1024
_COLUMNS = tl.constexpr(COLUMNS)


def prepare(rows: LazyRows, points: Tensor, active_levels: int, will_learn: bool) -> None:
    """See :class:`ops.lazy_adamw_rows.RowKernels`."""
    if len(points) == 0:
        return
    levels, scales, cube = _constants(rows.layout, points.dtype, points.device)
    starts = rows.counts.clone()
    blocks = triton.cdiv(len(points), _POINTS_PER_PROGRAM)
    with torch.cuda.device_of(points):
        _mark_kernel[blocks, active_levels](
            points, rows.stamps, rows.listed, rows.counts, levels, scales, cube, len(points), rows.history.steps,
            WILL_LEARN=will_learn, BLOCK=_POINTS_PER_PROGRAM,
        )  # fmt: skip
        _replay(rows, rows.listed, starts, rows.counts, levels, active_levels, will_learn)
    if not will_learn:
        rows.counts.copy_(starts)


def step(rows: LazyRows, grad: Tensor, step: Step) -> None:
    """See :class:`ops.lazy_adamw_rows.RowKernels`."""
    layout = rows.layout
    levels = _constants(layout, grad.dtype, grad.device)[0]
    with torch.cuda.device_of(grad):
        _step_kernel[_programs(len(rows.listed)), layout.num_levels](
            rows.listed, rows.stamps, rows.weights, *rows.moments, grad, rows.counts, levels, *step,
            rows.history.steps, F=layout.features_per_level, BLOCK=_ROWS_PER_PROGRAM,
        )  # fmt: skip
    rows.counts.zero_()


def replay_all(rows: LazyRows) -> None:
    """See :class:`ops.lazy_adamw_rows.RowKernels`."""
    every = torch.arange(len(rows.table), dtype=torch.int32, device=rows.table.device)
    # as one level that holds all rows and begins with the first
    bounds = torch.tensor([[0], [len(every)]], dtype=torch.int32, device=every.device)
    with torch.cuda.device_of(every):
        _replay(rows, every, bounds[0], bounds[1], bounds.new_zeros(1, 3, dtype=torch.int64), 1, True)


def _replay(
    rows: LazyRows, listed: Tensor, starts: Tensor, stops: Tensor, levels: Tensor, num_levels: int, keeps_mark: bool
) -> None:
    history = rows.history
    _replay_kernel[_programs(len(listed)), num_levels](
        listed, rows.stamps, rows.weights, *rows.moments, history.values, history.powers, starts, stops, levels,
        history.steps, history.num_terms, history.tolerance,
        KEEPS_MARK=keeps_mark, F=rows.layout.features_per_level, BLOCK=_ROWS_PER_PROGRAM,
    )  # fmt: skip


def _programs(num_rows: int) -> int:
    return min(triton.cdiv(num_rows, _ROWS_PER_PROGRAM), _MAX_PROGRAMS)


@triton.jit(do_not_specialize=["num_points", "now"])
def _mark_kernel(
    points_ptr,
    stamps_ptr,
    listed_ptr,
    counts_ptr,
    levels_ptr,
    scales_ptr,
    cube_ptr,
    num_points,
    now,
    WILL_LEARN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    level = tl.program_id(1)
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_point = n < num_points
    resolution, offset, mask = load_level(levels_ptr + 3 * level)
    scale = tl.load(scales_ptr + level)
    i, j, k, _, _, _, _, _, _ = locate_points(points_ptr, n, is_point, cube_ptr, scale, resolution - 2)
    for corner in tl.static_range(8):
        row = element_of(i, j, k, corner, resolution, offset, mask, 1)
        # most rows are listed already: looking first spares the atomic operation
        stamp = tl.load(stamps_ptr + row, mask=is_point, other=1)
        is_wanted = is_point & (stamp & 1 == 0)
        if not WILL_LEARN:
            is_wanted &= stamp < 2 * now
        stamp = tl.atomic_or(stamps_ptr + row, 1, mask=is_wanted, sem="relaxed")
        is_first = (is_wanted & (stamp & 1 == 0)).to(tl.int32)
        number = tl.sum(is_first, 0)
        if number > 0:
            place = tl.atomic_add(counts_ptr + level, number, sem="relaxed") + tl.cumsum(is_first, 0) - 1
            tl.store(listed_ptr + offset + place, row.to(tl.int32), mask=is_first != 0)


@triton.jit(do_not_specialize=["now"])
def _replay_kernel(
    listed_ptr,
    stamps_ptr,
    weights_ptr,
    first_ptr,
    second_ptr,
    values_ptr,
    powers_ptr,
    starts_ptr,
    stops_ptr,
    levels_ptr,
    now,
    num_terms,
    tolerance,
    KEEPS_MARK: tl.constexpr,
    F: tl.constexpr,
    BLOCK: tl.constexpr,
):
    level = tl.program_id(1)
    listed_ptr += tl.load(levels_ptr + 3 * level + 1)
    start, stop = tl.load(starts_ptr + level), tl.load(stops_ptr + level)
    f = tl.arange(0, F)[None, :]
    for block in range(start + tl.program_id(0) * BLOCK, stop, tl.num_programs(0) * BLOCK):
        index = block + tl.arange(0, BLOCK)
        row = tl.load(listed_ptr + index, mask=index < stop, other=0)
        stamp = tl.load(stamps_ptr + row, mask=index < stop, other=2 * now)
        before = stamp >> 1
        is_behind = before < now
        missed = now - before
        mask = is_behind[:, None]
        element = row.to(tl.int64)[:, None] * F + f
        weight = tl.load(weights_ptr + element, mask=mask, other=0.0)
        m = tl.load(first_ptr + element, mask=mask, other=0.0)
        v = tl.load(second_ptr + element, mask=mask, other=0.0)

        values = values_ptr + before * _COLUMNS
        mean = tl.load(values + 4)[:, None]
        root = tl.sqrt(v)
        inverse = 1.0 / (root + mean)
        r = mean * inverse
        square = r * r
        series = tl.load(values + 6)[:, None] - r * tl.load(values + 7)[:, None]
        series = 1.0 + square * (tl.load(values + 5)[:, None] - r * series)
        total = tl.load(values + 3)[:, None] * inverse * series

        is_rough = mask & (m != 0) & (tl.load(values + 8)[:, None] * square * square * r > tolerance)
        terms = tl.where(is_rough, tl.minimum(missed, num_terms)[:, None], 0)
        longest = tl.max(tl.max(terms, 1), 0)
        if longest > 0:
            total = tl.where(is_rough, 0.0, total)
            for k in range(1, longest + 1):
                later = values_ptr + tl.minimum(before + k, now) * _COLUMNS
                gain, epsilon = tl.load(later + 1)[:, None], tl.load(later + 2)[:, None]
                power, widening = tl.load(powers_ptr + 4 * k + 2), tl.load(powers_ptr + 4 * k + 3)
                total += tl.where(k <= terms, power * gain / (root + epsilon * widening), 0.0)

        decay = tl.load(values_ptr + now * _COLUMNS)
        weight = decay / tl.load(values)[:, None] * weight - decay * m * total
        tl.store(weights_ptr + element, weight, mask=mask)
        tl.store(first_ptr + element, m * tl.load(powers_ptr + 4 * missed)[:, None], mask=mask)
        tl.store(second_ptr + element, v * tl.load(powers_ptr + 4 * missed + 1)[:, None], mask=mask)
        tl.store(stamps_ptr + row, 2 * now + (stamp & 1 if KEEPS_MARK else 0), mask=index < stop)


@triton.jit(do_not_specialize=["now"])
def _step_kernel(
    listed_ptr,
    stamps_ptr,
    weights_ptr,
    first_ptr,
    second_ptr,
    grad_ptr,
    counts_ptr,
    levels_ptr,
    decay,
    one_minus_beta1,
    beta2,
    one_minus_beta2,
    rate,
    bias_root,
    eps,
    now,
    F: tl.constexpr,
    BLOCK: tl.constexpr,
):
    level = tl.program_id(1)
    listed_ptr += tl.load(levels_ptr + 3 * level + 1)
    stop = tl.load(counts_ptr + level)
    f = tl.arange(0, F)[None, :]
    for block in range(tl.program_id(0) * BLOCK, stop, tl.num_programs(0) * BLOCK):
        index = block + tl.arange(0, BLOCK)
        row = tl.load(listed_ptr + index, mask=index < stop, other=0)
        mask = (index < stop)[:, None]
        element = row.to(tl.int64)[:, None] * F + f
        gradient = tl.load(grad_ptr + element, mask=mask, other=0.0)
        weight = tl.load(weights_ptr + element, mask=mask, other=0.0)
        m = tl.load(first_ptr + element, mask=mask, other=0.0)
        v = tl.load(second_ptr + element, mask=mask, other=0.0)
        m += one_minus_beta1 * (gradient - m)
        v = beta2 * v + one_minus_beta2 * gradient * gradient
        weight = decay * weight - rate * m / (tl.sqrt(v) / bias_root + eps)
        tl.store(weights_ptr + element, weight, mask=mask)
        tl.store(first_ptr + element, m, mask=mask)
        tl.store(second_ptr + element, v, mask=mask)
        tl.store(stamps_ptr + row, tl.zeros_like(row) + 2 * now, mask=index < stop)
