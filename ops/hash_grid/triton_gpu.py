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
from torch import Tensor

from ops.hash_grid import triton_kernels, triton_stencil
from ops.hash_grid.layout import GridLayout

READS_HALF = True
_POINTS_PER_PROGRAM = 128


def encode(points: Tensor, table: Tensor, layout: GridLayout, active_levels: int) -> Tensor:
    """Features (N, A); see :class:`ops.hash_grid.autograd.Kernels`."""
    features = points.new_empty(len(points), active_levels * layout.features_per_level)
    _launch(
        triton_kernels.encode_kernel, points, (table, features, features), layout, active_levels, WITH_JACOBIAN=False
    )
    return features


def encode_with_jacobian(
    points: Tensor, table: Tensor, layout: GridLayout, active_levels: int
) -> tuple[Tensor, Tensor]:
    """Features (N, A) and Jacobian (N, 3, A) in one pass."""
    features = points.new_empty(len(points), active_levels * layout.features_per_level)
    jacobian = points.new_empty(len(points), 3, active_levels * layout.features_per_level)
    _launch(
        triton_kernels.encode_kernel, points, (table, features, jacobian), layout, active_levels, WITH_JACOBIAN=True
    )
    return features, jacobian


def scatter(points: Tensor, grad_features: Tensor | None, grad_jacobian: Tensor | None, layout: GridLayout) -> Tensor:
    """Gradient of the table, (E, F)."""
    some_gradient = grad_features if grad_jacobian is None else grad_jacobian
    assert some_gradient is not None
    grad_table = points.new_zeros(layout.num_entries, layout.features_per_level)
    tensors = [some_gradient if given is None else given for given in (grad_features, grad_jacobian)]
    _launch(
        triton_kernels.scatter_kernel,
        points,
        (*tensors, grad_table),
        layout,
        some_gradient.shape[-1] // layout.features_per_level,
        WITH_FEATURES=grad_features is not None,
        WITH_JACOBIAN=grad_jacobian is not None,
    )
    return grad_table


def encode_stencil(points: Tensor, offsets: Tensor, table: Tensor, layout: GridLayout, active_levels: int) -> Tensor:
    """Features (N, 1 + T, A) of points and of the taps around them."""
    features = points.new_empty(len(points), 1 + len(offsets), active_levels * layout.features_per_level)
    tensors = offsets, table, features
    _launch(triton_stencil.encode_stencil_kernel, points, tensors, layout, active_levels, T=len(offsets))
    return features


def scatter_stencil(points: Tensor, offsets: Tensor, grad_features: Tensor, layout: GridLayout) -> Tensor:
    """Gradient of the table, (E, F), given that of points and taps, (N, 1 + T, A)."""
    grad_table = points.new_zeros(layout.num_entries, layout.features_per_level)
    active_levels = grad_features.shape[-1] // layout.features_per_level
    tensors = offsets, grad_features, grad_table
    _launch(triton_stencil.scatter_stencil_kernel, points, tensors, layout, active_levels, T=len(offsets))
    return grad_table


def contract_second_derivatives(points: Tensor, table: Tensor, grad_jacobian: Tensor, layout: GridLayout) -> Tensor:
    """(N, 3) gradient by the points of sum(jacobian * grad_jacobian)."""
    active_levels = grad_jacobian.shape[-1] // layout.features_per_level
    # one slice a level, added up afterwards: the sum over levels then needs no atomics
    by_level = points.new_empty(active_levels, len(points), 3)
    _launch(triton_kernels.second_derivatives_kernel, points, (table, grad_jacobian, by_level), layout, active_levels)
    return by_level.sum(dim=0)


def _launch(
    kernel: triton.JITFunction,
    points: Tensor,
    tensors: tuple[Tensor, ...],
    layout: GridLayout,
    active_levels: int,
    **switches: int,
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
