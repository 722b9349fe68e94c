"""Sphere tracing of analytic fields, coarse to fine: a cone of rays first, then the rays in it."""

import torch
from torch import Tensor

from ops.types import Field


def march(
    field: Field,
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    *,
    spread: float = 0.0,
    tolerance: float = 2e-5,
    max_steps: int = 512,
) -> Tensor:
    """Distances at which rays meet a surface (Hart, "Sphere tracing", The Visual Computer 12, 1996).

    With ``spread`` the ray is the axis of a cone that is ``spread * distance`` wide there, and the result is a distance
    up to which the whole cone is surely empty: where its rays may start (Crassin et al. call it cone marching).

    Args:
        field: a lower bound of the distance to the surface, zero on it.
        origins: (R, 3).
        directions: (R, 3) unit.
        near: (R,) where to start.
        far: (R,) where to give up.
        spread: width of the cone at distance 1.
        tolerance: a ray has arrived where the field is below this.
        max_steps: steps after which a ray, by then creeping along the surface, counts as arrived if it is within 1e-3.

    Returns:
        (R,) distances, infinite where the ray (or the cone) meets nothing before ``far``.
    """
    distances = torch.full_like(near, torch.inf)
    active = (near < far).nonzero()[:, 0]
    origin, direction, t, last = origins[active], directions[active], near[active], far[active]
    for step in range(max_steps):
        if len(active) == 0:
            break
        room = field(origin + t[:, None] * direction)
        # in a cone, stopping at twice its width instead of where it touches keeps the number of steps finite
        arrived = room < torch.clamp(2 * spread * t, min=tolerance if step < max_steps - 1 else 1e-3)
        distances[active[arrived]] = t[arrived]
        t = t + (room - spread * t) / (1 + spread)
        going = (~arrived & (t < last)).nonzero()[:, 0]
        active, origin, direction, t, last = (x[going] for x in (active, origin, direction, t, last))
    return distances


def sphere_entry_exit(origins: Tensor, directions: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """Distances at which rays enter and leave a ball about the origin, each (R,); both 0 where they miss it."""
    middle = -(origins * directions).sum(dim=-1)
    half_chord = (radius**2 - (origins + middle[:, None] * directions).square().sum(dim=-1)).clamp(min=0).sqrt()
    hits = half_chord > 0
    return (middle - half_chord).clamp(min=0) * hits, (middle + half_chord).clamp(min=0) * hits
