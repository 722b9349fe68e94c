"""Losses that make a field a signed distance and put its zero set where it is known to be."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor


def eikonal(gradient: Tensor, num_samples: int | None = None) -> Tensor:
    """Mean squared deviation of the gradient's length from one: IGR (arXiv:2002.10099).

    Args:
        gradient: (..., 3) gradients of the field.
        num_samples: what the sum is divided by; the number of gradients where not given. Neuralangelo divides by all
            samples of a batch, those on rays that miss the sphere included.
    """
    deviation = (gradient.norm(dim=-1) - 1) ** 2
    return deviation.sum() / (num_samples or max(deviation.numel(), 1))


def curvature(laplacian: Tensor, num_samples: int | None = None) -> Tensor:
    """Mean absolute Laplacian of the field: Neuralangelo (arXiv:2306.03092); arguments as for ``eikonal``."""
    return laplacian.abs().sum() / (num_samples or max(laplacian.numel(), 1))


def zero_at_points(sdf: Tensor, kind: Literal["l1", "huber"] = "l1", huber_delta: float = 0.01) -> Tensor:
    """Deviation from zero of (P,) field values at points of the surface: Geo-NeuS (arXiv:2205.15848).

    ``huber`` is quadratic below ``huber_delta`` (normalised unit), which forgives the noise of triangulated points.
    No points give zero.
    """
    if sdf.numel() == 0:
        return sdf.sum()
    if kind == "l1":
        return sdf.abs().mean()
    return F.huber_loss(sdf, sdf.new_zeros(()).expand_as(sdf), delta=huber_delta) / huber_delta
