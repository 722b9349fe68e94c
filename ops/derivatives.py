"""Numerical gradient and Laplacian of a scalar field from a few taps around a point.

Neuralangelo (arXiv:2306.03092), §3.2 describes six taps on the axes; four taps at alternating corners of a cube, the
default of its code, are a third less work. Their Laplacian is as good, their gradient only of first order: its error
along an axis is epsilon / sqrt(3) times the mixed second derivative of the two other axes.
"""

import math

import torch
from torch import Tensor

_AXES = torch.eye(3)
_CORNERS = torch.tensor([[1.0, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]])


def tap_offsets(num_taps: int, epsilon: float, like: Tensor) -> Tensor:
    """Offsets of the taps from their centre, each of length ``epsilon``.

    Args:
        num_taps: 4 (alternating corners of a cube) or 6 (plus and minus each axis).
        epsilon: distance of a tap from the centre, in the field's unit.
        like: a tensor whose dtype and device the result takes.

    Returns:
        (num_taps, 3). With 6 taps the three positive ones come first.
    """
    if num_taps == 4:
        return _CORNERS.to(like) * (epsilon / math.sqrt(3))
    if num_taps == 6:
        return torch.cat([_AXES, -_AXES]).to(like) * epsilon
    raise ValueError(f"num_taps: expected 4 or 6, got {num_taps}")


def derivatives_from_taps(center: Tensor, taps: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Gradient and Laplacian of a field, exact for quadratic fields, but for 4 taps' gradient (see the module).

    Args:
        center: (...) values f at the centres.
        taps: (..., T) values at the ``tap_offsets``, T = 4 or 6.
        epsilon: distance of the taps from their centre.

    Returns:
        gradient (..., 3) and Laplacian (...), the trace of the Hessian.
    """
    if taps.shape[-1] == 4:
        e = epsilon / math.sqrt(3)
        gradient = taps @ _CORNERS.to(taps) / (4 * e)
        return gradient, (taps.sum(-1) / 2 - 2 * center) / e**2
    plus, minus = taps.chunk(2, dim=-1)
    return (plus - minus) / (2 * epsilon), (taps.sum(-1) - 6 * center) / epsilon**2
