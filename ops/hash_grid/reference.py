"""The multiresolution hash encoding in plain PyTorch: the definition that the fast backends are compared with.

Müller et al., "Instant Neural Graphics Primitives" (arXiv:2201.05989), Sec. 3, with tiny-cuda-nn's sizes (see
:mod:`ops.hash_grid.layout`) and vertices at whole positions: the grid's first and last vertices lie on the faces of the
cube, without the half-cell shift of tiny-cuda-nn.

Letters: N points, L levels, F features of one level, A = active levels times F, E table entries.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ops.hash_grid.layout import HASH_PRIME_Y, HASH_PRIME_Z, GridLayout


def encode(points: Tensor, table: Tensor, layout: GridLayout, active_levels: int) -> Tensor:
    """Trilinear features of the coarsest levels; differentiable to any order by autograd.

    Args:
        points: (N, 3) world units; clamped to the cube.
        table: (E, F), same dtype as the points.
        layout: Sizes of the levels.
        active_levels: Levels to look up, the coarsest first.

    Returns:
        (N, A), level-major.
    """
    features = []
    for values, weights, _ in _corners(points, table, layout, active_levels):
        x, y, z = weights.unbind(dim=-1)  # each (N, 8)
        features.append(((x * y * z).unsqueeze(-1) * values).sum(dim=1))
    return torch.cat(features, dim=-1)


def encode_with_jacobian(
    points: Tensor, table: Tensor, layout: GridLayout, active_levels: int
) -> tuple[Tensor, Tensor]:
    """Features as :func:`encode` gives them, (N, A), and their derivatives by x, y and z, (N, 3, A) per world unit."""
    features, jacobian = [], []
    for values, weights, slopes in _corners(points, table, layout, active_levels):
        x, y, z = weights.unbind(dim=-1)  # each (N, 8)
        dx, dy, dz = slopes.unbind(dim=-1)
        products = torch.stack([x * y * z, dx * y * z, x * dy * z, x * y * dz], dim=1)  # (N, 4, 8)
        value_and_derivatives = products @ values  # (N, 4, F)
        features.append(value_and_derivatives[:, 0])
        jacobian.append(value_and_derivatives[:, 1:])
    return torch.cat(features, dim=-1), torch.cat(jacobian, dim=-1)


def _corners(
    points: Tensor, table: Tensor, layout: GridLayout, active_levels: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For each level the features of a cell's 8 corners, (N, 8, F), and the weights along each axis and their slopes.

    Both of the latter are (N, 8, 3): a corner's weight is the product over axes of the point's closeness to it.
    """
    is_upper = torch.tensor([[c & 1, c >> 1 & 1, c >> 2 & 1] for c in range(8)], device=points.device)  # (8, 3)
    unit = (points + layout.bound) * layout.inverse_extent  # (N, 3), in [0, 1] inside the cube
    is_inside = (unit >= 0.0) & (unit <= 1.0)
    for level in range(active_levels):
        scale, resolution = layout.scales[level], layout.resolutions[level]
        position = unit.clamp(0.0, 1.0) * scale  # (N, 3) in cells
        # the far face belongs to the last cell, whose upper corner exists
        cell = position.detach().floor().long().clamp(0, resolution - 2)
        fraction = (position - cell).unsqueeze(1)  # (N, 1, 3)
        weights = torch.where(is_upper.bool(), fraction, 1.0 - fraction)
        cells_per_unit = (is_inside.to(points) * (scale * layout.inverse_extent)).unsqueeze(1)
        slopes = (2 * is_upper - 1) * cells_per_unit
        index = _entry_index(cell.unsqueeze(1) + is_upper, level, layout)  # (N, 8)
        yield layout.level_rows(table, level)[index], weights, slopes


def _entry_index(vertex: Tensor, level: int, layout: GridLayout) -> Tensor:
    """(..., 3) whole vertex coordinates -> (...) rows of the level's part of the table."""
    x, y, z = vertex.unbind(dim=-1)
    if layout.is_hashed[level]:
        return (x ^ (y * HASH_PRIME_Y) ^ (z * HASH_PRIME_Z)) & layout.hash_mask
    resolution = layout.resolutions[level]
    return x + resolution * (y + resolution * z)
