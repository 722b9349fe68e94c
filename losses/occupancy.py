"""Losses of occupancy at points, and of the latent codes beside it."""

import torch.nn.functional as F
from torch import Tensor


def occupancy_cross_entropy(logits: Tensor, occupancy: Tensor) -> Tensor:
    """Binary cross-entropy summed over points and averaged over objects: Occupancy Networks (arXiv:1812.03828), Eq. 3.

    Args:
        logits: (B, M).
        occupancy: (B, M) bool or float in [0, 1]; true is inside.

    Raises:
        ValueError: for different shapes.
    """
    _check(logits, occupancy)
    losses = F.binary_cross_entropy_with_logits(logits.float(), occupancy.float(), reduction="none")
    return losses.sum(1).mean()


def occupancy_squared_error(values: Tensor, occupancy: Tensor) -> Tensor:
    """Mean squared error over points and objects: IM-Net (arXiv:1812.02822), all points weighted alike.

    Args:
        values: (B, M), about in [0, 1].
        occupancy: (B, M) bool or float in [0, 1]; true is inside.

    Raises:
        ValueError: for different shapes.
    """
    _check(values, occupancy)
    return F.mse_loss(values.float(), occupancy.float())


def gaussian_kl(mean: Tensor, log_std: Tensor) -> Tensor:
    """Divergence KL(q || N(0, 1)) of diagonal Gaussians, summed over dimensions and averaged over objects.

    The second term of Occupancy Networks (arXiv:1812.03828), Eq. 4: sum of (mean^2 + std^2 - 1) / 2 - log std.

    Args:
        mean: (B, Z).
        log_std: (B, Z), the logarithm of the standard deviation, not of the variance.

    Raises:
        ValueError: for different shapes.
    """
    if mean.shape != log_std.shape or mean.ndim != 2:
        raise ValueError(
            f"mean and log_std have shapes {tuple(mean.shape)} and {tuple(log_std.shape)}, expected (B, Z)"
        )
    mean, log_std = mean.float(), log_std.float()
    # expm1: near the prior std^2 - 1 would cancel
    return (0.5 * (mean.square() + (2 * log_std).expm1()) - log_std).sum(1).mean()


def _check(values: Tensor, occupancy: Tensor) -> None:
    if values.shape != occupancy.shape or values.ndim != 2:
        raise ValueError(
            f"values and occupancy have shapes {tuple(values.shape)} and {tuple(occupancy.shape)}, expected (B, M)"
        )
