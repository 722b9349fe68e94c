"""A coarse, cached copy of a signed distance field that tells rays where there is nothing to look at."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ops.rays import points_along
from ops.rendering import cpu_kernels
from ops.sampling import importance_distances
from ops.types import Field


class SdfGrid(nn.Module):
    """Signed distances on a lattice over [-1, 1]^3: an occupancy grid that also knows how far the surface is.

    Args:
        resolution: G vertices an axis.
        num_probes: look-ups a ray; two a cell over the longest chord are plenty.
        sharpness: upper limit of the logistic's s by which samples are placed, in units of one over a cell. A sharper
            one would trust the lattice beyond its resolution and place no sample where the true surface is.
    """

    values: Tensor  # (1, 1, G, G, G), indexed [z, y, x] as grid_sample wants it

    def __init__(self, resolution: int, num_probes: int = 96, sharpness: float = 2.5) -> None:
        super().__init__()
        self.resolution, self.num_probes, self.sharpness = resolution, num_probes, sharpness
        self.register_buffer("values", torch.zeros(1, 1, resolution, resolution, resolution))

    @property
    def cell(self) -> float:
        """Edge of a cell, normalised unit."""
        return 2 / (self.resolution - 1)

    @torch.no_grad()
    def update(self, field: Field, band: float | None = None) -> None:
        """Take the values of a field.

        Args:
            field: (N, 3) -> (N,) signed distances.
            band: only vertices whose cached magnitude is below this many cells are evaluated; all where not given.
        """
        flat = self.values.view(-1)
        if band is None:
            index = torch.arange(flat.numel(), device=flat.device)
        else:
            index = (flat.abs() < band * self.cell).nonzero().squeeze(-1)
        axis = torch.linspace(-1, 1, self.resolution, device=flat.device)
        z, y, x = torch.unravel_index(index, self.values.shape[2:])
        flat[index] = field(torch.stack([axis[x], axis[y], axis[z]], dim=-1)).to(flat)

    def forward(self, points: Tensor) -> Tensor:
        """(..., 3) points -> (...) cached signed distances, interpolated; outside the lattice those of its border."""
        grid = points.reshape(1, -1, 1, 1, 3).to(self.values)
        values = F.grid_sample(self.values, grid, align_corners=True, padding_mode="border")
        return values.view(points.shape[:-1])

    @torch.no_grad()
    def along(self, origins: Tensor, directions: Tensor, distances: Tensor) -> Tensor:
        """Cached signed distances at (R, P) distances on rays given by (R, 3) origins and directions, (R, P)."""
        kernels = cpu_kernels(self.values)
        if kernels is None or any(tensor.dtype != self.values.dtype for tensor in (origins, directions, distances)):
            return self(points_along(origins, directions, distances))
        return kernels.interpolate_along(self.values[0, 0], origins, directions, distances)

    @torch.no_grad()
    def section_edges(
        self,
        origins: Tensor,
        directions: Tensor,
        near: Tensor,
        far: Tensor,
        num_sections: int,
        inv_s: Tensor,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor]:
        """Borders of sections that are short where the cached surface is, and which rays pass nothing at all.

        Args:
            origins, directions: (R, 3) rays.
            near, far: (R,) where they are inside the unit sphere.
            num_sections: S sections a ray.
            inv_s: () the field's present sharpness.
            generator: jitter of the borders; ``None`` for none.

        Returns:
            (R, S + 1) increasing distances; and (R,) bool, true where some opacity is possible.
        """
        steps = torch.linspace(0, 1, self.num_probes, device=near.device, dtype=near.dtype)
        distances = near[:, None] + (far - near)[:, None] * steps
        sdf = self.along(origins, directions, distances)
        inv_s = inv_s.clamp(max=self.sharpness / self.cell)
        # beyond 8 / s the logistic passes less than a thousandth of its mass; two cells for what the lattice misses
        is_occupied = sdf.amin(dim=-1) < 8 / inv_s + 2 * self.cell
        jitter: Tensor | float = 0.5
        if generator is not None:
            shape = (len(near), num_sections + 1)
            jitter = torch.rand(shape, generator=generator, device=near.device, dtype=near.dtype)
        quantiles = (torch.arange(num_sections + 1, device=near.device, dtype=near.dtype) + jitter) / (num_sections + 1)
        quantiles = quantiles.expand(len(near), num_sections + 1)
        return importance_distances(distances, sdf, inv_s, quantiles), is_occupied
