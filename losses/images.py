"""Losses between pixels."""

import math

import torch
from torch import Tensor


def color_l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Absolute difference of (R, 3) colours, summed over channels and averaged over pixels."""
    return (prediction - target).abs().sum(-1).mean()


def mask_cross_entropy(log_transmittance: Tensor, mask: Tensor, floor: float = 1e-3) -> Tensor:
    """Binary cross-entropy between rendered opacity and a mask, averaged over rays, always in float32.

    As in NeuS (arXiv:2106.10689), but from log(1 - o) = sum log(1 - alpha): neither 1 - o nor o is ever the difference
    of two numbers that are nearly alike, so the floor may be as small as one likes.

    Args:
        log_transmittance: (R,) logarithm of the share of light that passes the foreground, not positive.
        mask: (R,) foreground coverage in [0, 1]; counted as foreground above one half, as NeuS does.
        floor: a ray that is right or wrong to within this costs no less or no more, and pulls no more; NeuS's is 1e-3.
    """
    log_transmittance = log_transmittance.float()
    log_opacity = (-torch.expm1(log_transmittance)).clamp(min=floor).log()
    log_likelihood = torch.where(mask > 0.5, log_opacity, log_transmittance)
    return -log_likelihood.clamp(math.log(floor), math.log1p(-floor)).mean()
