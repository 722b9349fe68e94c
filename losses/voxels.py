"""Losses between volumes of occupancy."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor


def voxel_cross_entropy(logits: Tensor, voxels: Tensor, reduction: Literal["sum", "mean"] = "mean") -> Tensor:
    """Binary cross-entropy of a volume, summed over the voxels of an object or averaged; averaged over objects.

    The text of 3D-R2N2 (arXiv:1604.00449) sums over voxels, its released code averages, and so do the losses in its
    tables, beside which an untrained network has ln 2 = 0.693. Its softmax over two channels, empty and occupied, is
    the sigmoid of ``occupied - empty``, so that difference is the logit here.

    Args:
        logits: (B, R, R, R) of being occupied.
        voxels: (B, R, R, R) bool or float in [0, 1].
        reduction: ``"sum"`` is R^3 times ``"mean"``.

    Raises:
        ValueError: for different shapes, or another reduction.
    """
    if logits.shape != voxels.shape or logits.ndim < 2:
        raise ValueError(
            f"voxels: shape {tuple(voxels.shape)}, expected that of the logits, {tuple(logits.shape)} = (B, R, R, R); "
            "check that the data's voxel_resolution is what the method predicts"
        )
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction: {reduction!r}, expected 'sum' or 'mean'")
    # in float32 whatever the logits: the sum over 32^3 voxels overflows half precision
    losses = F.binary_cross_entropy_with_logits(logits.float(), voxels.float(), reduction="none").flatten(1)
    return (losses.sum(1) if reduction == "sum" else losses.mean(1)).mean()
