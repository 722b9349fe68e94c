"""The softplus of surface networks, alone and carried with its derivatives, compiled where it runs on a CPU.

PyTorch's calls a library's ``exp`` and ``log1p``, and takes longer than the matrix products beside it. Polynomials that
the compiler vectorises need a fraction of the time and come nearer: at beta = 100 the error is below 1e-8.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning_utilities.core.imports import RequirementCache
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from ops.threads import for_ranges

NUMBA = RequirementCache("numba")
# fewer numbers than these are not worth waking a thread for
_MIN_COUNT = 65536
# points whose share of the gradient of the weights is one sum, so that it does not depend on the number of threads
_BLOCK = 1024


def softplus(x: Tensor, beta: float) -> Tensor:
    """log(1 + exp(beta x)) / beta of a tensor of any shape, as often differentiable as torch's."""
    return _Softplus.apply(x, beta) if _is_compiled(x) else F.softplus(x, beta=beta)


def softplus_jet(
    jet: Tensor, points: Tensor, affine: Tensor, weight: Tensor, beta: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A linear form of softplus units, with its gradient and Laplacian in space.

    Unit h is the softplus s of a_h, the sum of what the jet holds and of an affine function of the point. With d_h the
    derivatives of a_h by the point, which has no second ones along the axes, the chain rule gives sum_h w_h s(a_h),
    sum_h w_h s'(a_h) d_h and sum_h w_h s''(a_h) |d_h|^2.

    Args:
        jet: (N, 4, H) first part of a_h, and its derivatives along x, y and z.
        points: (N, 3).
        affine: (4, H) second part: constant, and factors of x, y and z.
        weight: (H,) w of the linear form.
        beta: sharpness of the softplus.

    Returns:
        value (N,), gradient (N, 3), Laplacian (N,) and the units themselves (N, H), differentiable once by jet, affine
        and weight.
    """
    if _is_compiled(jet):
        return _SoftplusJet.apply(jet, points, affine, weight, beta)
    input_, slope = jet[:, 0] + (affine[0] + points.detach() @ affine[1:]), jet[:, 1:] + affine[1:]
    units, first = F.softplus(input_, beta=beta), torch.sigmoid(beta * input_)
    laplacian = (beta * first * (1 - first) * slope.square().sum(1)) @ weight
    return units @ weight, (first[:, None] * slope) @ weight, laplacian, units


def _is_compiled(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.device.type == "cpu" and bool(NUMBA)


class _Softplus(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, beta: float) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        ctx.beta = beta
        out = torch.empty_like(x)
        _on_slices(_kernels().forward, _MIN_COUNT, [x.view(-1), out.view(-1)], beta)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            return grad * torch.sigmoid(ctx.beta * x), None
        grad_x = torch.empty_like(x)
        flat = [tensor.view(-1) for tensor in (grad.contiguous(), x, grad_x)]
        _on_slices(_kernels().backward, _MIN_COUNT, flat, ctx.beta)
        return grad_x, None


class _SoftplusJet(Function):
    @staticmethod
    def forward(
        ctx: Any, jet: Tensor, points: Tensor, affine: Tensor, weight: Tensor, beta: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        jet, points, affine, weight = (tensor.contiguous() for tensor in (jet, points, affine, weight))
        ctx.save_for_backward(jet, points, affine, weight)
        ctx.beta = beta
        form, units = jet.new_empty(len(jet), 5), jet.new_empty(len(jet), len(weight))
        _on_slices(_kernels().jet_forward, _BLOCK, [jet, points, form, units], beta, affine, weight)
        return form[:, 0], form[:, 1:4], form[:, 4], units

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        jet, points, affine, weight = ctx.saved_tensors
        value, gradient, laplacian, units = grads
        grad_form = torch.cat([value[:, None], gradient, laplacian[:, None]], dim=1)
        grad_jet = torch.empty_like(jet)
        sums = jet.new_zeros(-(-len(jet) // _BLOCK), 5, len(weight))
        rows = [tensor.detach().numpy() for tensor in (jet, points, grad_form, units.contiguous(), grad_jet)]
        sums_of, *whole = (tensor.detach().numpy() for tensor in (sums, affine, weight))

        def work(start: int, stop: int) -> None:
            for block in range(start, stop):
                of_block = slice(block * _BLOCK, (block + 1) * _BLOCK)
                arrays = (*(array[of_block] for array in rows), sums_of[block], *whole)
                _kernels().jet_backward(*arrays, np.float32(ctx.beta))

        for_ranges(len(sums), 1, work)
        total = sums.sum(0)
        return grad_jet, None, total[:4], total[4], None


def _on_slices(kernel: Callable[..., None], least: int, tensors: list[Tensor], beta: float, *shared: Tensor) -> None:
    """Run a kernel on the rows of tensors, some for each thread, and on shared tensors whole."""
    arrays, whole = ([tensor.detach().numpy() for tensor in each] for each in (tensors, shared))
    # a slice and not its ends: of an index that starts at 0 the compiler knows that it is never negative
    for_ranges(
        len(arrays[0]), least, lambda *ends: kernel(*(a[slice(*ends)] for a in arrays), *whole, np.float32(beta))
    )


def _kernels() -> Any:
    # imported where it is used: numba takes a second
    from ops import softplus_kernels

    return softplus_kernels
