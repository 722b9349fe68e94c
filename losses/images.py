"""Losses between pixels."""

from torch import Tensor


def color_l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Absolute difference of (R, 3) colours, summed over channels and averaged over pixels."""
    return (prediction - target).abs().sum(-1).mean()


def mask_cross_entropy(transmittance: Tensor, mask: Tensor, floor: float = 1e-3) -> Tensor:
    """Binary cross-entropy between rendered opacity and a mask, averaged over rays, always in float32.

    As in NeuS (arXiv:2106.10689). It takes the transmittance 1 - o, because o itself rounds to one.

    Args:
        transmittance: (R,) share of light that passes the foreground.
        mask: (R,) foreground coverage in [0, 1]; counted as foreground above one half, as NeuS does.
        floor: opacity and transmittance are kept this far from zero.
    """
    transmittance = transmittance.float().clamp(floor, 1 - floor)
    inside = mask > 0.5
    return -(inside * (-transmittance).log1p() + ~inside * transmittance.log()).mean()
