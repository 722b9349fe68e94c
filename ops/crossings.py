"""Where a ray first enters a surface, from samples of a field along it."""

from typing import NamedTuple

import torch
from torch import Tensor


class Crossings(NamedTuple):
    """Where each of R rays first enters a surface; entries of rays that do not are meaningless, but finite."""

    distances: Tensor  # (R,) from the ray's origin
    found: Tensor  # (R,) bool
    before: Tensor  # (R,) int, the last sample in front of the surface
    fraction: Tensor  # (R,) in [0, 1], of the way from that sample to the next one

    def interpolate(self, values: Tensor) -> Tensor:
        """(R, C) values at the crossings, from (R, S, C) values at the samples."""
        rows = torch.arange(len(values), device=values.device)
        return torch.lerp(values[rows, self.before], values[rows, self.before + 1], self.fraction[:, None])


def first_crossings(distances: Tensor, sdf: Tensor, min_slope: float = 0.0) -> Crossings:
    """First change of sign from positive to negative along each ray: Geo-NeuS (arXiv:2205.15848).

    The field counts as linear between neighbouring samples, so the crossing is differentiable in its values there.

    Args:
        distances: (R, S) increasing, S at least 2.
        sdf: (R, S) values there.
        min_slope: a crossing is not reported where the field falls by less than this for each unit of distance: the
            place of a grazing one is as uncertain as its gradient is large.
    """
    enters = (sdf[:, :-1] > 0) & (sdf[:, 1:] <= 0)
    before = enters.to(torch.uint8).argmax(dim=-1)  # the first of several
    rows = torch.arange(len(sdf), device=sdf.device)
    outer, inner = sdf[rows, before], sdf[rows, before + 1]
    start, length = distances[rows, before], distances[rows, before + 1] - distances[rows, before]
    drop = outer - inner
    found = enters.any(dim=-1) & (drop >= min_slope * length)
    # where nothing is found the quotient may be 0 / 0, whose gradient would be NaN even if it is never used
    fraction = torch.where(found, outer, 0) / torch.where(found, drop, 1)
    return Crossings(start + fraction * length, found, before, fraction)
