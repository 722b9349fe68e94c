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
_ROWS = 64  # gathered at a time; more would be in each other's way in the first cache
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
            # in the order of memory, where a row's neighbours, and its page, are the next row's
            of_level[start:stop].sort()
            replay(of_level[start:stop], *arrays, *numbers, will_learn)
            counts[level] = stop if will_learn else start

    in_parallel(work, _dealt_out(active_levels))


def step(rows: LazyRows, grad: Tensor, step: Step) -> None:
    """See :class:`ops.lazy_adamw_rows.RowKernels`."""
    kernel, arrays = _step_kernel(rows.layout.features_per_level), _arrays(rows)[:4]
    numbers = np.array(step, arrays[1].dtype)
    for offset, count in zip(rows.layout.offsets, rows.counts.tolist(), strict=False):
        of_level = rows.listed[offset : offset + count].numpy()
        of_level.sort()
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
    rows, offset = batch[4], level[1]
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
def _movers(features: int) -> tuple[Callable[..., None], Callable[..., None]]:
    """Functions that copy rows of a table into columns of an array, and back.

    One table after the other: tables often begin at the same place of a page, and processors take the same place of
    different pages for the same memory at first, so that alternating between them took ten times as long.
    """

    @njit(**_OPTIONS)
    def take(table, rows, number, columns):
        for n in range(number):
            row = np.uint32(rows[n])
            for f in range(features):
                columns[f, n] = table[row, f]

    @njit(**_OPTIONS)
    def put(columns, rows, number, table):
        for n in range(number):
            row = np.uint32(rows[n])
            for f in range(features):
                table[row, f] = columns[f, n]

    return take, put


@lru_cache
def _replay_kernel(features: int) -> Callable[..., None]:
    """Kernel that brings the rows up to date, and keeps or deletes the mark of being listed."""
    take, put = _movers(features)

    @njit(**_OPTIONS)
    def replay(listed, stamps, weights, first, second, values, powers, now, num_terms, tolerance, keeps_mark):
        real = weights.dtype.type
        one, limit, decay = real(1), real(tolerance), values[now, 0]
        behind, steps = np.empty(_ROWS, np.uint32), np.empty(_ROWS, np.int64)
        history, power = np.empty((values.shape[1], _ROWS), values.dtype), np.empty((2, _ROWS), values.dtype)
        weight, m, v, total, rough = np.empty((5, features, _ROWS), weights.dtype)
        for start in range(0, len(listed), _ROWS):
            number = 0
            for row in listed[start : start + _ROWS]:
                stamp = stamps[row]
                stamps[row] = 2 * now + (stamp & 1 if keeps_mark else 0)
                if stamp >> 1 < now:
                    behind[number], steps[number] = row, stamp >> 1
                    number += 1
            for n in range(number):
                before = steps[n]
                for column in range(len(history)):
                    history[column, n] = values[before, column]
                power[0, n], power[1, n] = powers[now - before, 0], powers[now - before, 1]
            take(weights, behind, number, weight)
            take(first, behind, number, m)
            take(second, behind, number, v)
            decays, _, _, sums, mean, second_moment, third, fourth, remainder = history
            most = real(0)
            for f in range(features):
                for n in range(number):
                    inverse = one / (np.sqrt(v[f, n]) + mean[n])
                    r = mean[n] * inverse
                    square = r * r
                    series = one + square * (second_moment[n] - r * (third[n] - r * fourth[n]))
                    total[f, n] = sums[n] * inverse * series
                    rough[f, n] = remainder[n] * square * square * r if m[f, n] != 0 else real(0)
                    most = max(most, rough[f, n])
            if most > limit:
                for f in range(features):
                    for n in range(number):
                        if rough[f, n] > limit:
                            terms = min(now - steps[n], num_terms)
                            total[f, n] = _added_up(np.sqrt(v[f, n]), steps[n], terms, values, powers)
            for f in range(features):
                for n in range(number):
                    weight[f, n] = decay / decays[n] * weight[f, n] - decay * m[f, n] * total[f, n]
                    m[f, n] *= power[0, n]
                    v[f, n] *= power[1, n]
            put(weight, behind, number, weights)
            put(m, behind, number, first)
            put(v, behind, number, second)

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
    """Kernel that takes AdamW's step on listed rows, and unmarks them."""

    take, put = _movers(features)

    @njit(**_OPTIONS)
    def step(listed, stamps, weights, first, second, grad, numbers, now):
        decay, one_minus_beta1, beta2, one_minus_beta2, rate, root, eps = numbers
        weight, m, v, gradient = np.empty((4, features, _ROWS), weights.dtype)
        for start in range(0, len(listed), _ROWS):
            rows = listed[start : start + _ROWS]
            number = len(rows)
            take(weights, rows, number, weight)
            take(first, rows, number, m)
            take(second, rows, number, v)
            take(grad, rows, number, gradient)
            for f in range(features):
                for n in range(number):
                    m[f, n] += one_minus_beta1 * (gradient[f, n] - m[f, n])
                    v[f, n] = beta2 * v[f, n] + one_minus_beta2 * gradient[f, n] * gradient[f, n]
                    weight[f, n] = decay * weight[f, n] - rate * m[f, n] / (np.sqrt(v[f, n]) / root + eps)
            put(weight, rows, number, weights)
            put(m, rows, number, first)
            put(v, rows, number, second)
            for n in range(number):
                stamps[np.uint32(rows[n])] = 2 * now

    return step
