"""The derivatives of the encoding, once for all fast backends.

Features are linear in the table and trilinear in the point, so everything follows from four kernels: features, features
with their Jacobian, the transpose of both onto the table ("scatter"), and the mixed second derivatives. The reference
backend needs none of this, autograd differentiates it.

What may be differentiated: features twice, by points and table (so losses of ``autograd.grad(features, points)`` train
the table); features with Jacobian once. What is asked beyond that raises, it is never silently zero.

Every function takes the table twice: the one that is learnt, (E, F), which the gradient is of, and the ``values`` that
kernels read in its place, which are the table itself or its copy in half precision. Gradients are in the points' dtype.

Letters: N points, T taps around each, A = active levels times F features of one level, E table entries.
"""

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from ops.hash_grid.layout import GridLayout


class Kernels(Protocol):
    """What a fast backend implements; inputs are contiguous, on one device, and of one dtype.

    But the table may be in float16 where ``READS_HALF``.
    """

    READS_HALF: bool

    def encode(self, points: Tensor, table: Tensor, values: Tensor, layout: GridLayout, active_levels: int) -> Tensor:
        """(N, 3) points, (E, F) table -> (N, A) features."""

    def encode_with_jacobian(
        self, points: Tensor, table: Tensor, values: Tensor, layout: GridLayout, active_levels: int
    ) -> tuple[Tensor, Tensor]:
        """(N, 3) points, (E, F) table -> (N, A) features and (N, 3, A) their derivatives by the points."""

    def scatter(
        self, points: Tensor, grad_features: Tensor | None, grad_jacobian: Tensor | None, layout: GridLayout
    ) -> Tensor:
        """Gradient of the table, (E, F), of a loss whose gradients by features or Jacobian (or both) are given."""

    def encode_stencil(
        self, points: Tensor, offsets: Tensor, table: Tensor, values: Tensor, layout: GridLayout, active_levels: int
    ) -> Tensor:
        """(N, 3) points, (T, 3) offsets, (E, F) table -> (N, 1 + T, A) features of points and of points + offsets."""

    def scatter_stencil(self, points: Tensor, offsets: Tensor, grad_features: Tensor, layout: GridLayout) -> Tensor:
        """Gradient of the table, (E, F), given (N, 1 + T, A)."""

    def contract_second_derivatives(
        self, points: Tensor, table: Tensor, grad_jacobian: Tensor, layout: GridLayout
    ) -> Tensor:
        """(N, 3) gradient by the points of sum(jacobian * grad_jacobian); within a cell only mixed terms exist."""


def encode(
    points: Tensor, table: Tensor, values: Tensor, layout: GridLayout, active_levels: int, kernels: Kernels
) -> Tensor:
    """Features (N, A) of (N, 3) points, differentiable twice."""
    return _Encode.apply(points, table, values, layout, active_levels, kernels)


def encode_with_jacobian(
    points: Tensor, table: Tensor, values: Tensor, layout: GridLayout, active_levels: int, kernels: Kernels
) -> tuple[Tensor, Tensor]:
    """Features (N, A) and Jacobian (N, 3, A) of (N, 3) points, differentiable once."""
    return _EncodeWithJacobian.apply(points, table, values, layout, active_levels, kernels)


def encode_stencil(
    points: Tensor,
    offsets: Tensor,
    table: Tensor,
    values: Tensor,
    layout: GridLayout,
    active_levels: int,
    kernels: Kernels,
) -> Tensor:
    """Features (N, 1 + T, A) of (N, 3) points and of taps at (T, 3) offsets from them, differentiable once."""
    return _EncodeStencil.apply(points, offsets, table, values, layout, active_levels, kernels)


class _EncodeStencil(Function):
    @staticmethod
    def forward(
        ctx: Any,
        points: Tensor,
        offsets: Tensor,
        table: Tensor,
        values: Tensor,
        layout: GridLayout,
        active_levels: int,
        kernels: Kernels,
    ) -> Tensor:
        ctx.save_for_backward(points, offsets, values)
        ctx.settings = layout, active_levels, kernels
        return kernels.encode_stencil(points, offsets, values, layout, active_levels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_features: Tensor) -> tuple[Tensor | None, ...]:
        points, offsets, values = ctx.saved_tensors
        layout, active_levels, kernels = ctx.settings
        grad_points = grad_offsets = grad_table = None
        grad_features = grad_features.contiguous()
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            stencil = torch.cat([points.unsqueeze(1), points.unsqueeze(1) + offsets], dim=1)  # (N, 1 + T, 3)
            _, jacobian = kernels.encode_with_jacobian(stencil.reshape(-1, 3), values, layout, active_levels)
            grad_stencil = (jacobian.unflatten(0, stencil.shape[:2]) * grad_features.unsqueeze(2)).sum(dim=-1)
            grad_points, grad_offsets = grad_stencil.sum(dim=1), grad_stencil[:, 1:].sum(dim=0)
        if ctx.needs_input_grad[2]:
            grad_table = kernels.scatter_stencil(points, offsets, grad_features, layout)
        return grad_points, grad_offsets, grad_table, None, None, None, None


class _Encode(Function):
    @staticmethod
    def forward(
        ctx: Any,
        points: Tensor,
        table: Tensor,
        values: Tensor,
        layout: GridLayout,
        active_levels: int,
        kernels: Kernels,
    ) -> Tensor:
        ctx.save_for_backward(points, table, values)
        ctx.settings = layout, active_levels, kernels
        return kernels.encode(points, values, layout, active_levels)

    @staticmethod
    def backward(ctx: Any, grad_features: Tensor) -> tuple[Tensor | None, ...]:
        points, table, values = ctx.saved_tensors
        layout, active_levels, kernels = ctx.settings
        grad_points = grad_table = None
        if ctx.needs_input_grad[0]:
            _, jacobian = _EncodeWithJacobian.apply(points, table, values, layout, active_levels, kernels)
            # not a matmul, which autocast would send to half precision
            grad_points = (jacobian * grad_features.unsqueeze(1)).sum(dim=-1)
        if ctx.needs_input_grad[1]:
            grad_table = _Scatter.apply(points, grad_features, layout, active_levels, kernels)
        return grad_points, grad_table, None, None, None, None


class _EncodeWithJacobian(Function):
    @staticmethod
    def forward(
        ctx: Any,
        points: Tensor,
        table: Tensor,
        values: Tensor,
        layout: GridLayout,
        active_levels: int,
        kernels: Kernels,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(points, values)
        ctx.settings = layout, active_levels, kernels
        ctx.set_materialize_grads(False)
        return kernels.encode_with_jacobian(points, values, layout, active_levels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_features: Tensor | None, grad_jacobian: Tensor | None) -> tuple[Tensor | None, ...]:
        points, values = ctx.saved_tensors
        layout, active_levels, kernels = ctx.settings
        grad_points = grad_table = None
        grad_features = None if grad_features is None else grad_features.contiguous()
        grad_jacobian = None if grad_jacobian is None else grad_jacobian.contiguous()
        if ctx.needs_input_grad[0]:
            grad_points = torch.zeros_like(points)
            if grad_features is not None:
                _, jacobian = kernels.encode_with_jacobian(points, values, layout, active_levels)
                grad_points += (jacobian * grad_features.unsqueeze(1)).sum(dim=-1)
            if grad_jacobian is not None:
                grad_points += kernels.contract_second_derivatives(points, values, grad_jacobian, layout)
        if ctx.needs_input_grad[1] and (grad_features is not None or grad_jacobian is not None):
            grad_table = kernels.scatter(points, grad_features, grad_jacobian, layout)
        return grad_points, grad_table, None, None, None, None


class _Scatter(Function):
    """The table's gradient as a function of its own, because it too depends on points and incoming gradient."""

    @staticmethod
    def forward(
        ctx: Any, points: Tensor, grad_features: Tensor, layout: GridLayout, active_levels: int, kernels: Kernels
    ) -> Tensor:
        ctx.save_for_backward(points, grad_features)
        ctx.settings = layout, active_levels, kernels
        return kernels.scatter(points, grad_features.contiguous(), None, layout)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_table: Tensor) -> tuple[Tensor | None, ...]:
        points, grad_features = ctx.saved_tensors
        layout, active_levels, kernels = ctx.settings
        features, jacobian = kernels.encode_with_jacobian(points, grad_table.contiguous(), layout, active_levels)
        grad_points = (jacobian * grad_features.unsqueeze(1)).sum(dim=-1) if ctx.needs_input_grad[0] else None
        return grad_points, features if ctx.needs_input_grad[1] else None, None, None, None
