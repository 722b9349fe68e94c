"""From signed distances and densities to opacities, weights and pixels.

Letters: R rays, S samples on each, C values of a sample; sections of a ray are numbered from the camera outwards.

:func:`surface_alpha` and :func:`composite_sections` are what training spends its time in. Plain PyTorch defines them;
float32 tensors go through one compiled pass each, forward and backward: numba on a CPU, Triton on a GPU.
"""

from typing import Any

import torch
import torch.nn.functional as F
from lightning_utilities.core.imports import RequirementCache
from torch import Tensor
from torch.autograd import Function

NUMBA, TRITON = RequirementCache("numba"), RequirementCache("triton")


def annealed_slope(cosine: Tensor, ratio: float) -> Tensor:
    """The slope of the SDF along a ray that NeuS's opacity assumes, never positive.

    At ratio 0 even a back-facing surface gets a little opacity, so that gradients flow while the shape is still
    wrong; at 1 only front-facing ones do. NeuS (arXiv:2106.10689), supplementary; Neuralangelo keeps it.

    Args:
        cosine: (...) direction . gradient, the gradient *not* normalised.
        ratio: progress of the annealing in [0, 1].
    """
    return -((0.5 - 0.5 * cosine).relu() * (1 - ratio) + (-cosine).relu() * ratio)


def alpha_from_sdf(sdf: Tensor, slope: Tensor, lengths: Tensor, inv_s: Tensor | float) -> Tensor:
    """Opacity of sections of a ray: NeuS (arXiv:2106.10689), Eq. 13, with the SDF taken as linear in each section.

    Args:
        sdf: (R, S) signed distance in the middle of each section.
        slope: (R, S) its derivative along the ray, not positive.
        lengths: (R, S) lengths of the sections.
        inv_s: sharpness s of the logistic, one over the distance unit.

    Returns:
        (R, S) in [0, 1]. Over sections that tile a ray on which the SDF is linear, the product of 1 - alpha is
        sigmoid(s f_end) / sigmoid(s f_start).
    """
    half_drop = slope * lengths / 2
    entering = torch.sigmoid((sdf - half_drop) * inv_s)
    leaving = torch.sigmoid((sdf + half_drop) * inv_s)
    return ((entering - leaving) / (entering + 1e-5)).clamp(0, 1)


def alpha_from_density(density: Tensor, lengths: Tensor) -> Tensor:
    """Opacity of (R, S) sections of constant density: NeRF (arXiv:2003.08934), Eq. 3."""
    return -torch.expm1(-density * lengths)


def weights_from_alpha(alpha: Tensor) -> Tensor:
    """Share of the pixel that each section contributes: w_i = alpha_i prod_{j<i} (1 - alpha_j), (R, S) each."""
    transmittance = torch.cumprod(1 - alpha, dim=-1)
    return alpha * F.pad(transmittance[:, :-1], (1, 0), value=1.0)


def composite(weights: Tensor, values: Tensor) -> Tensor:
    """(R, C) weighted sum of (R, S, C) values over the samples of each ray."""
    return (weights[:, None] @ values).squeeze(1)


def surface_alpha(
    sdf: Tensor, gradient: Tensor, directions: Tensor, lengths: Tensor, inv_s: Tensor, ratio: float
) -> Tensor:
    """Opacity of sections of rays: :func:`alpha_from_sdf` at the :func:`annealed_slope` of the SDF.

    Args:
        sdf: (R, S) signed distance in the middle of each section.
        gradient: (R, S, 3) of the SDF there.
        directions: (R, 3) unit.
        lengths: (R, S) lengths of the sections.
        inv_s: () sharpness of the logistic.
        ratio: progress of the annealing in [0, 1].

    Returns:
        (R, S) in [0, 1], as often differentiable as its definition.
    """
    # positions of samples are not trained; whoever wants their derivative gets the definition's
    is_mixed = any(tensor.dtype != sdf.dtype for tensor in (gradient, directions, lengths))
    if _kernels(sdf) is None or is_mixed or directions.requires_grad or lengths.requires_grad:
        return _plain_alpha(sdf, gradient, directions, lengths, inv_s, ratio)
    tensors = [tensor.contiguous() for tensor in (sdf, gradient, directions, lengths, inv_s)]
    return _SurfaceAlpha.apply(*tensors, ratio)


def composite_sections(alpha: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """What a ray sees of its sections, and what they leave of the light behind them.

    Args:
        alpha: (R, S) opacities.
        values: (R, S, C) of the sections, colours for instance, in the opacities' precision.

    Returns:
        ``pixels`` (R, C), the sum of values by :func:`weights_from_alpha`; and ``log_transmittance`` (R,), as the sum
        of log(1 - alpha), since the product of many 1 - alpha loses the digits of small opacities.
    """
    if _kernels(alpha) is None or values.dtype != alpha.dtype:
        return _plain_composite(alpha, values)
    return _Composite.apply(alpha.contiguous(), values.contiguous())


def _plain_alpha(
    sdf: Tensor, gradient: Tensor, directions: Tensor, lengths: Tensor, inv_s: Tensor, ratio: float
) -> Tensor:
    slope = annealed_slope((gradient * directions[:, None]).sum(-1), ratio)
    return alpha_from_sdf(sdf, slope, lengths, inv_s)


def _plain_composite(alpha: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    return composite(weights_from_alpha(alpha), values), torch.log1p(-alpha).sum(dim=-1)


class _SurfaceAlpha(Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *tensors, ratio = inputs
        ctx.save_for_backward(*tensors)
        ctx.ratio = ratio
        return _kernels(tensors[0]).surface_alpha(*tensors, ratio)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            sdf, gradient, inv_s = tensors[0], tensors[1], tensors[4]
            alpha = _plain_alpha(*tensors, ctx.ratio)
            by_sdf, by_gradient, by_inv_s = _differentiable((alpha,), (sdf, gradient, inv_s), (grad,))
        else:
            kernels = _kernels(tensors[0])
            by_sdf, by_gradient, by_inv_s = kernels.surface_alpha_backward(grad.contiguous(), *tensors, ctx.ratio)
        return by_sdf, by_gradient, None, None, by_inv_s, None


class _Composite(Function):
    @staticmethod
    def forward(ctx: Any, alpha: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(alpha, values)
        return _kernels(alpha).composite(alpha, values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        alpha, values = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _differentiable(_plain_composite(alpha, values), (alpha, values), grads)
        return _kernels(alpha).composite_backward(*(grad.contiguous() for grad in grads), alpha, values)


def _differentiable(
    outputs: tuple[Tensor, ...], inputs: tuple[Tensor, ...], grads: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    """Gradients by those inputs that have one, with the graph that leads to them."""
    wanted = [input_ for input_ in inputs if input_.requires_grad]
    found = iter(torch.autograd.grad(outputs, wanted, grads, create_graph=True))
    return tuple(next(found) if input_.requires_grad else None for input_ in inputs)


def _kernels(tensor: Tensor) -> Any:
    """The compiled functions for such tensors; ``None`` where there are none."""
    if tensor.device.type == "cuda" and tensor.dtype == torch.float32 and TRITON:
        from ops import rendering_triton

        return rendering_triton
    return cpu_kernels(tensor)


def cpu_kernels(tensor: Tensor) -> Any:
    """:mod:`ops.rendering_kernels` where such tensors can go through it, else ``None``."""
    if tensor.device.type != "cpu" or tensor.dtype != torch.float32 or not NUMBA:
        return None
    # imported where it is used: numba takes a second
    from ops import rendering_kernels

    return rendering_kernels
