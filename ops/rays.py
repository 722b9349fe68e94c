"""Rays against the unit sphere, in which every scene lies."""

import torch
from torch import Tensor


def unit_sphere_intersection(origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distances at which rays enter and leave the unit sphere.

    Args:
        origins: (R, 3) ray origins, normalised frame.
        directions: (R, 3) unit ray directions.

    Returns:
        ``near`` and ``far``, each (R,), ``near`` clamped to 0, both 0 where the ray misses; and ``hits``, (R,) bool.
    """
    towards_centre = -(origins * directions).sum(-1)
    half_chord_squared = towards_centre**2 - (origins**2).sum(-1) + 1
    half_chord = half_chord_squared.clamp(min=0).sqrt()
    far = towards_centre + half_chord
    hits = (half_chord_squared > 0) & (far > 0)
    near = (towards_centre - half_chord).clamp(min=0)
    return torch.where(hits, near, 0), torch.where(hits, far, 0), hits


def points_along(origins: Tensor, directions: Tensor, distances: Tensor) -> Tensor:
    """(R, S, 3) points at (R, S) distances on rays given by (R, 3) origins and directions."""
    return origins[:, None] + directions[:, None] * distances[..., None]
