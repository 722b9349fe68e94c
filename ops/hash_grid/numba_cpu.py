"""The hash encoding on CPU: numba's compiled loops, shared out to threads.

Threads are those of ``ops.threads``, not numba's, whose loops take twice as long to compile. Values and gradients are
the same to the last bit for any number of threads.

PyTorch's OpenMP threads spin for a while after each of its operations, and where no core is spare that starves these.
Set ``OMP_WAIT_POLICY=PASSIVE`` before torch is imported.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ops.hash_grid import numba_kernels, numba_stencil
from ops.hash_grid.layout import GridLayout
from ops.threads import for_ranges, in_parallel

READS_HALF = False  # numba has no float16 on CPU
# Fewer points than these are not worth waking a thread for
_MIN_POINTS = 1024


def encode(points: Tensor, table: Tensor, layout: GridLayout, active_levels: int) -> Tensor:
    """Features (N, A); see :class:`ops.hash_grid.autograd.Kernels`."""
    kernel = numba_kernels.encode_kernel(layout.features_per_level)
    features = table.new_empty(len(points), active_levels * layout.features_per_level)
    arrays = *_arrays(points, table), *_constants(layout, table.dtype)
    for_ranges(len(points), _MIN_POINTS, lambda *ends: kernel(*arrays, *ends, features.numpy()))
    return features


def encode_stencil(points: Tensor, offsets: Tensor, table: Tensor, layout: GridLayout, active_levels: int) -> Tensor:
    """Features (N, 1 + T, A) of points and of the taps around them."""
    kernel = numba_stencil.encode_kernel(layout.features_per_level)
    features = table.new_empty(len(points), 1 + len(offsets), active_levels * layout.features_per_level)
    arrays = *_arrays(points, _with_center(offsets), table), *_constants(layout, table.dtype)
    for_ranges(len(points), _MIN_POINTS // (1 + len(offsets)), lambda *ends: kernel(*arrays, *ends, features.numpy()))
    return features


def encode_with_jacobian(
    points: Tensor, table: Tensor, layout: GridLayout, active_levels: int
) -> tuple[Tensor, Tensor]:
    """Features (N, A) and Jacobian (N, 3, A) in one pass."""
    kernel = numba_kernels.encode_with_jacobian_kernel(layout.features_per_level)
    features = table.new_empty(len(points), active_levels * layout.features_per_level)
    jacobian = table.new_empty(len(points), 3, active_levels * layout.features_per_level)
    arrays = *_arrays(points, table), *_constants(layout, table.dtype)
    outputs = features.numpy(), jacobian.numpy()
    for_ranges(len(points), _MIN_POINTS, lambda *ends: kernel(*arrays, *ends, *outputs))
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
        arrays = *_arrays(points, some_gradient), *constants
    else:
        kernel = numba_kernels.scatter_with_jacobian_kernel(layout.features_per_level)
        if grad_features is None:
            grad_features = points.new_zeros(len(points), some_gradient.shape[-1])
        arrays = *_arrays(points, grad_features, grad_jacobian), *constants
    in_parallel(lambda levels: kernel(*arrays, levels, grad_table.numpy()), _dealt_out(active_levels))
    return grad_table


def scatter_stencil(points: Tensor, offsets: Tensor, grad_features: Tensor, layout: GridLayout) -> Tensor:
    """Gradient of the table, (E, F), given that of points and taps, (N, 1 + T, A)."""
    kernel = numba_stencil.scatter_kernel(layout.features_per_level)
    grad_table = points.new_zeros(layout.num_entries, layout.features_per_level)
    arrays = *_arrays(points, _with_center(offsets), grad_features), *_constants(layout, points.dtype)
    active_levels = grad_features.shape[-1] // layout.features_per_level
    in_parallel(lambda levels: kernel(*arrays, levels, grad_table.numpy()), _dealt_out(active_levels))
    return grad_table


def contract_second_derivatives(points: Tensor, table: Tensor, grad_jacobian: Tensor, layout: GridLayout) -> Tensor:
    """(N, 3) gradient by the points of sum(jacobian * grad_jacobian)."""
    kernel = numba_kernels.contract_second_derivatives_kernel(layout.features_per_level)
    grad_points = torch.zeros_like(points)
    arrays = *_arrays(points, table, grad_jacobian), *_constants(layout, table.dtype)
    for_ranges(len(points), _MIN_POINTS, lambda *ends: kernel(*arrays, *ends, grad_points.numpy()))
    return grad_points


def _with_center(offsets: Tensor) -> Tensor:
    return torch.cat([offsets.new_zeros(1, 3), offsets])


def _arrays(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    return tuple(tensor.detach().numpy() for tensor in tensors)


@lru_cache
def _constants(layout: GridLayout, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``levels``, ``scales`` and ``cube`` as the kernels take them."""
    float_type = np.float64 if dtype == torch.float64 else np.float32
    cube = np.array([layout.bound, layout.inverse_extent], float_type)
    return np.array(layout.level_records, np.int64), np.array(layout.scales, float_type), cube


def _dealt_out(num_levels: int) -> list[np.ndarray]:
    """Levels for each thread, dealt to and fro, as fine ones miss the cache most and take longest."""
    num_hands = min(torch.get_num_threads(), num_levels)
    round_trip = [*range(num_hands), *reversed(range(num_hands))]
    hand_of_level = np.resize(round_trip, num_levels)
    return [np.flatnonzero(hand_of_level == hand) for hand in range(num_hands)]
