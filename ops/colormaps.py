"""Numbers as colours."""

import torch
from torch import Tensor

# dark to bright in even steps of lightness, so that it also reads in grey
HEAT = (
    (0.05, 0.03, 0.20),
    (0.33, 0.06, 0.43),
    (0.63, 0.14, 0.40),
    (0.88, 0.33, 0.22),
    (0.98, 0.63, 0.13),
    (0.99, 0.98, 0.70),
)


def heat(values: Tensor, highest: float) -> Tensor:
    """Colours from near black (0) over red to pale yellow (``highest`` and above); grey where a value is NaN.

    Args:
        values: (...) float, not negative.
        highest: value of the brightest colour.

    Returns:
        (..., 3) sRGB in [0, 1].
    """
    anchors = torch.tensor(HEAT, dtype=values.dtype, device=values.device)
    place = (values.nan_to_num(0) / highest).clamp(0, 1) * (len(HEAT) - 1)
    low = place.floor().long().clamp(max=len(HEAT) - 2)
    color = torch.lerp(anchors[low], anchors[low + 1], (place - low)[..., None])
    return torch.where(values.isnan()[..., None], 0.5, color)
