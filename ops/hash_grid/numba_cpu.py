"""The hash encoding on CPU: numba's compiled loops, shared out to threads.

Threads are Python's own (the loops release the GIL), not numba's: they compile in half the time, need no OpenMP or TBB,
may be used from several callers at once, and their number follows ``torch.get_num_threads()`` at every call. Values and
gradients are the same to the last bit for any number of threads.

PyTorch's OpenMP threads spin for a while after each of its operations, and where no core is spare that starves these.
Set ``OMP_WAIT_POLICY=PASSIVE`` before torch is imported.
"""

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ops.hash_grid import numba_kernels
from ops.hash_grid.layout import GridLayout

# Long enough to hide the microseconds of a call, short enough to share the demo's 82 thousand points evenly
_POINTS_PER_TASK = 32768


def encode(points: Tensor, table: Tensor, layout: GridLayout, active_levels: int) -> Tensor:
    """Features (N, A); see :class:`ops.hash_grid.autograd.Kernels`."""
    kernel = numba_kernels.encode_kernel(layout.features_per_level)
    features = table.new_empty(len(points), active_levels * layout.features_per_level)
    arrays = *_arrays(_axis_by_axis(points), table), *_constants(layout, table.dtype)
    _for_ranges(active_levels, len(points), lambda *task: kernel(*arrays, *task, features.numpy()))
    return features


def encode_with_jacobian(
    points: Tensor, table: Tensor, layout: GridLayout, active_levels: int
) -> tuple[Tensor, Tensor]:
    """Features (N, A) and Jacobian (N, 3, A) in one pass."""
    kernel = numba_kernels.encode_with_jacobian_kernel(layout.features_per_level)
    features = table.new_empty(len(points), active_levels * layout.features_per_level)
    jacobian = table.new_empty(len(points), 3, active_levels * layout.features_per_level)
    arrays = *_arrays(_axis_by_axis(points), table), *_constants(layout, table.dtype)
    outputs = features.numpy(), jacobian.numpy()
    _for_ranges(active_levels, len(points), lambda *task: kernel(*arrays, *task, *outputs))
    return features, jacobian


def scatter(points: Tensor, grad_features: Tensor | None, grad_jacobian: Tensor | None, layout: GridLayout) -> Tensor:
    """Gradient of the table, (E, F); each level is one thread's, so that nothing races and the order is fixed."""
    some_gradient = grad_features if grad_jacobian is None else grad_jacobian
    assert some_gradient is not None
    active_levels = some_gradient.shape[-1] // layout.features_per_level
    grad_table = points.new_zeros(layout.num_entries, layout.features_per_level)
    constants = _constants(layout, points.dtype)
    if grad_jacobian is None:
        kernel = numba_kernels.scatter_kernel(layout.features_per_level)
        arrays = *_arrays(_axis_by_axis(points), some_gradient), *constants
    else:
        kernel = numba_kernels.scatter_with_jacobian_kernel(layout.features_per_level)
        if grad_features is None:
            grad_features = points.new_zeros(len(points), some_gradient.shape[-1])
        arrays = *_arrays(_axis_by_axis(points), grad_features, grad_jacobian), *constants
    # fine levels first, they miss the cache most and take longest
    _for_tasks(active_levels, lambda i: kernel(*arrays, active_levels - 1 - i, grad_table.numpy()))
    return grad_table


def contract_second_derivatives(points: Tensor, table: Tensor, grad_jacobian: Tensor, layout: GridLayout) -> Tensor:
    """(N, 3) gradient by the points of sum(jacobian * grad_jacobian)."""
    kernel = numba_kernels.contract_second_derivatives_kernel(layout.features_per_level)
    active_levels = grad_jacobian.shape[-1] // layout.features_per_level
    grad_points = torch.zeros_like(points)
    arrays = *_arrays(_axis_by_axis(points), table, grad_jacobian), *_constants(layout, table.dtype)
    for level in range(active_levels):  # one after the other, as all of them add to the same sums
        _for_ranges(1, len(points), lambda _, *rows, level=level: kernel(*arrays, level, *rows, grad_points.numpy()))
    return grad_points


def _axis_by_axis(points: Tensor) -> Tensor:
    """(N, 3) -> (3, N), contiguous; six times faster than a transpose."""
    return torch.stack(points.unbind(1))


def _arrays(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    return tuple(tensor.detach().numpy() for tensor in tensors)


@lru_cache
def _constants(layout: GridLayout, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``levels``, ``scales`` and ``cube`` as the kernels take them."""
    float_type = np.float64 if dtype == torch.float64 else np.float32
    cube = np.array([layout.bound, layout.inverse_extent], float_type)
    return np.array(layout.level_records, np.int64), np.array(layout.scales, float_type), cube


def _for_ranges(num_levels: int, num_points: int, work: Callable[[int, int, int], Any]) -> None:
    """Call ``work(level, start, stop)`` for ranges that cover the points of each level, level after level."""
    starts = range(0, num_points, _POINTS_PER_TASK)

    def work_on(task: int) -> None:
        level, i = divmod(task, len(starts))
        work(level, starts[i], min(starts[i] + _POINTS_PER_TASK, num_points))

    _for_tasks(num_levels * len(starts), work_on)


def _for_tasks(num_tasks: int, work: Callable[[int], Any]) -> None:
    """Call ``work(0)`` to ``work(num_tasks - 1)`` on as many threads as torch uses, this one among them."""
    next_task = itertools.count()

    def take_tasks() -> None:
        while (task := next(next_task)) < num_tasks:
            work(task)

    num_helpers = min(torch.get_num_threads(), num_tasks) - 1
    helpers = [_thread_pool().submit(take_tasks) for _ in range(num_helpers)]
    take_tasks()
    for helper in helpers:
        helper.result()


@lru_cache
def _thread_pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="hash_grid")


# a forked process (a DataLoader's worker) inherits the pool without its threads, and would wait for them for ever
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_thread_pool.cache_clear)
