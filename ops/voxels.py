"""Volumes over [-0.5, 0.5]^3 whose voxels are named [x, y, z]."""

import numpy as np
import torch
from torch import Tensor

from ops.marching_cubes import march, weld
from ops.types import Shape

MARGIN = 1e-5  # of the largest difference to the threshold: nearer values are moved there, lest vertices coincide


def voxel_centers(resolution: int, device: torch.device | str | None = None) -> Tensor:
    """(R, R, R, 3) centres of the voxels: -0.5 + (i + 0.5) / R along each axis."""
    if resolution < 1:
        raise ValueError(f"resolution: {resolution}, expected at least 1 voxel along each axis")
    axis = (torch.arange(resolution, device=device, dtype=torch.float64) + 0.5) / resolution - 0.5
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).float()


def shape_from_voxels(values: Tensor, threshold: float = 0.5) -> Shape:
    """The closed surface around the voxels whose value is above a threshold, by marching cubes between their centres.

    Where occupied voxels touch the border of the volume the surface runs on that border, as it would halfway between
    an occupied voxel and an equally empty one.

    Args:
        values: (R, R, R) probabilities, or occupancy as 0 and 1; bool too.
        threshold: what is above it is inside, what is equal is not.

    Returns:
        A watertight mesh on the CPU with float32 vertices in [-0.5, 0.5]^3, faces counter-clockwise seen from outside;
        ``Shape.empty()`` where no value is above the threshold.

    Raises:
        ValueError: for volumes that are not cubes, and values that are not finite.
    """
    if values.ndim != 3 or len(set(values.shape)) != 1:
        raise ValueError(f"values: shape {tuple(values.shape)}, expected (R, R, R)")
    # in float32, as ``values > threshold`` is decided
    relative = (threshold - values.detach().cpu().float()).numpy()
    if not np.isfinite(relative).all():
        raise ValueError(f"values: {int((~np.isfinite(relative)).sum())} of {relative.size} are not finite")
    if not (relative < 0).any():
        return Shape.empty()
    least = MARGIN * np.abs(relative).max()
    relative = np.where(relative < 0, np.minimum(relative, -least), np.maximum(relative, least))
    # the border's mirror image, outside: the surface comes to lie halfway, on the faces of the cube
    padded = np.abs(np.pad(relative, 1, mode="edge"))
    padded[1:-1, 1:-1, 1:-1] = relative
    resolution = len(values)
    piece = march(
        padded,
        np.zeros(3, np.int64),
        resolution + 1,
        lambda index: ((index - 0.5) / resolution - 0.5).astype(np.float32),
    )
    return Shape.empty() if piece is None else weld([piece])
