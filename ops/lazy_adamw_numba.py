"""Rows brought up to date on the CPU, by numba's compiled loops; a level is one thread's, so that nothing races."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from numba import njit
from torch import Tensor

from ops.hash_grid.numba_kernels import _load, _locate, _new_batch
from ops.lazy_adamw_history import Step
from ops.lazy_adamw_rows import LazyRows
from ops.threads import for_ranges, in_parallel

_BATCH = 256  # points, as many as _new_batch has room for
_MIN_ROWS = 4096  # fewer are not worth waking a thread for
_OPTIONS = {"nogil": True, "cache": True, "error_model": "numpy", "fastmath": {"contract", "nsz"}}


def prepare(rows: LazyRows, points: Tensor, active_levels: int, will_learn: bool) -> None:
    """See :class:`ops.lazy_adamw_rows.RowKernels`."""
    layout, dtype = rows.layout, points.numpy().dtype
    scales, cube = np.array(layout.scales, dtype), np.array([layout.bound, layout.inverse_extent], dtype)
    levels, now = np.array(layout.level_records, np.int64), rows.history.steps
    replay, arrays, numbers = _replay_kernel(layout.features_per_level), _arrays(rows), _numbers(rows)
    counts, listed = rows.counts.numpy(), rows.listed.numpy()

    def work(own_levels: list[int]) -> None:
        for level in own_levels:
            start, offset = counts[level], layout.offsets[level]
            of_level = listed[offset : layout.offsets[level + 1]]
            place = levels[level], scales[level], cube
            stop = _mark(points.numpy(), *place, arrays[0], of_level, start, now, will_learn)
            replay(of_level[start:stop], *arrays, *numbers, will_learn)
            counts[level] = stop if will_learn else start

    in_parallel(work, _dealt_out(active_levels))


def step(rows: LazyRows, grad: Tensor, step: Step) -> None:
    """See :class:`ops.lazy_adamw_rows.RowKernels`."""
    kernel, arrays = _step_kernel(rows.layout.features_per_level), _arrays(rows)[:4]
    numbers = np.array(step, arrays[1].dtype)
    for offset, count in zip(rows.layout.offsets, rows.counts.tolist(), strict=False):
        of_level = rows.listed[offset : offset + count].numpy()
        for_ranges(
            count,
            _MIN_ROWS,
            lambda *ends, listed=of_level: kernel(
                listed[slice(*ends)], *arrays, grad.numpy(), numbers, rows.history.steps
            ),
        )
    rows.counts.zero_()


def replay_all(rows: LazyRows) -> None:
    """See :class:`ops.lazy_adamw_rows.RowKernels`."""
    kernel, arrays, numbers = _replay_kernel(rows.layout.features_per_level), _arrays(rows), _numbers(rows)
    every = np.arange(len(rows.table), dtype=np.int32)
    for_ranges(len(every), _MIN_ROWS, lambda *ends: kernel(every[slice(*ends)], *arrays, *numbers, True))


def _arrays(rows: LazyRows) -> tuple[np.ndarray, ...]:
    history = rows.history
    tensors = rows.stamps, rows.weights, *rows.moments, history.values, history.powers
    return tuple(tensor.numpy() for tensor in tensors)


def _numbers(rows: LazyRows) -> tuple[int, int, float]:
    history = rows.history
    return history.steps, history.num_terms, history.tolerance


def _dealt_out(num_levels: int) -> list[list[int]]:
    num_hands = min(torch.get_num_threads(), num_levels)
    return [list(range(hand, num_levels, num_hands)) for hand in range(num_hands)]


@njit(**_OPTIONS)
def _mark(points, level, scale, cube, stamps, listed, count, now, will_learn):
    """Append the level's rows that the points read, and that are behind or will learn, to the list; its new length."""
    batch = _new_batch(cube.dtype)
    rows, offset, resolution = batch[4], level[1], level[0]
    for first in range(0, len(points), _BATCH):
        number = min(_BATCH, len(points) - first)
        _load(points, first, number, cube, batch)
        _locate(number, level, scale, batch)
        for n in range(number):
            for corner in range(8):
                row = offset + rows[corner, n]
                stamp = stamps[row]
                if stamp & 1 == 0 and (will_learn or stamp < 2 * now):
                    stamps[row] = stamp | 1
                    listed[count] = row
                    count += 1
    return count


@lru_cache
def _replay_kernel(features: int) -> Callable[..., None]:
    """Kernel that brings the rows up to date, and keeps or deletes the mark of being listed."""

    @njit(**_OPTIONS)
    def replay(listed, stamps, weights, first, second, values, powers, now, num_terms, tolerance, keeps_mark):
        real = weights.dtype.type
        one, limit = real(1), real(tolerance)
        for index in range(len(listed)):
            row = listed[index]
            stamp = stamps[row]
            before = stamp >> 1
            stamps[row] = 2 * now + (stamp & 1 if keeps_mark else 0)
            if before == now:
                continue
            missed, history = now - before, values[before]
            decay, mean = values[now, 0] / history[0], history[4]
            for f in range(features):
                weight, m, v = weights[row, f], first[row, f], second[row, f]
                root = np.sqrt(v)
                inverse = one / (root + mean)
                r = mean * inverse
                square = r * r
                series = one + square * (history[5] - r * (history[6] - r * history[7]))
                total = history[3] * inverse * series
                if (history[8] * square * square * r > limit) & (m != 0):
                    total = _added_up(root, before, min(missed, num_terms), values, powers)
                weights[row, f] = decay * weight - values[now, 0] * m * total
                first[row, f] = m * powers[missed, 0]
                second[row, f] = v * powers[missed, 1]

    return replay


@njit(**_OPTIONS)
def _added_up(root, before, num_terms, values, powers):
    """The sum of :mod:`ops.lazy_adamw_rows`, term by term."""
    total = values.dtype.type(0)
    for k in range(1, num_terms + 1):
        total += powers[k, 2] * values[before + k, 1] / (root + values[before + k, 2] * powers[k, 3])
    return total


@lru_cache
def _step_kernel(features: int) -> Callable[..., None]:
    """Kernel that takes AdamW's step on listed rows, unmarks them, and sets their gradient to zero."""

    @njit(**_OPTIONS)
    def step(listed, stamps, weights, first, second, grad, numbers, now):
        decay, one_minus_beta1, beta2, one_minus_beta2, rate, root, eps = numbers
        for index in range(len(listed)):
            row = listed[index]
            stamps[row] = 2 * now
            for f in range(features):
                gradient = grad[row, f]
                grad[row, f] = 0
                m = first[row, f] + one_minus_beta1 * (gradient - first[row, f])
                v = beta2 * second[row, f] + one_minus_beta2 * gradient * gradient
                first[row, f], second[row, f] = m, v
                weights[row, f] = decay * weights[row, f] - rate * m / (np.sqrt(v) / root + eps)

    return step
