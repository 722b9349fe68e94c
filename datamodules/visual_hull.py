"""Where an object is and how large, from its masks alone: the box around their visual hull."""

import numpy as np
import torch
from torch import Tensor

from ops.cameras import project

MASK_EDGE = 160  # pixels of the reduced masks' longer edge
GRID = 40  # points along an edge of the grid that is carved
ROUNDS = 3
MOST_VIEWS = 36


def closest_to_axes(camera_to_world: np.ndarray) -> np.ndarray:
    """The point (3,) with the least sum of squared distances to the optical axes of (V, 4, 4) cameras."""
    forward, positions = camera_to_world[:, :3, 2], camera_to_world[:, :3, 3]
    across = np.eye(3) - forward[:, :, None] * forward[:, None]
    return np.linalg.lstsq(across.sum(0), (across @ positions[:, :, None]).sum(0)[:, 0], rcond=None)[0]


def hull_bounds(masks: Tensor, intrinsics: Tensor, camera_to_world: Tensor, name: str) -> np.ndarray:
    """Lowest and highest corner of a box that holds the visual hull of an object that all cameras look at.

    A grid about the point that the cameras look at is carved by the masks, and again, finer, what is left of it. The
    masks are widened by a cell each time, so that no thin part falls between the points: the box is a few hundredths
    too large rather than too small.

    Args:
        masks: (V, H, W) uint8 coverage.
        intrinsics: (V, 3, 3) pixels.
        camera_to_world: (V, 4, 4) OpenCV axes, in the frame of the box.
        name: of the scene, for errors.

    Returns:
        (2, 3) float64.

    Raises:
        ValueError: nothing is left, since masks and cameras do not agree.
    """
    chosen = np.unique(np.linspace(0, len(masks) - 1, min(len(masks), MOST_VIEWS)).astype(int))
    matrices, poses = intrinsics[chosen].double(), camera_to_world[chosen].double()
    reduction = max(1, max(masks.shape[1:]) // MASK_EDGE)
    pooled = torch.nn.functional.max_pool2d((masks[chosen] > 127).float()[:, None], reduction, ceil_mode=True)
    center = closest_to_axes(poses.numpy())
    nearest = np.linalg.norm(poses[:, :3, 3].numpy() - center, axis=1).min()
    bounds = np.stack([center - 0.9 * nearest, center + 0.9 * nearest])
    for _ in range(ROUNDS):
        cell = (bounds[1] - bounds[0]) / GRID
        axes = [low + step * (np.arange(GRID) + 0.5) for low, step in zip(bounds[0], cell, strict=True)]
        points = torch.from_numpy(np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3))
        kept = points[_carved(points, float(np.linalg.norm(cell)) / 2, pooled, matrices, poses, reduction)].numpy()
        if len(kept) == 0:
            raise ValueError(
                f"{name}: no point is inside all masks, so that the object cannot be found; check that the masks are "
                "white on the object, that each belongs to its photograph, and the direction of the poses"
            )
        bounds = np.stack([kept.min(0) - cell, kept.max(0) + cell])
    return bounds


def _carved(
    points: Tensor, reach: float, pooled: Tensor, intrinsics: Tensor, poses: Tensor, reduction: int
) -> Tensor:
    # (N,) bool: in the mask of nearly every view that sees the point; one bad mask in twenty does not cut
    num_seen, num_inside = torch.zeros(len(points)), torch.zeros(len(points))
    for mask, matrix, pose in zip(pooled, intrinsics, poses, strict=True):
        pixels, depth = project(points, matrix, pose)
        in_front = depth > 2 * reach
        if not in_front.any():
            continue
        margin = int(np.ceil(float(matrix[0, 0] * reach / depth[in_front].min()) / reduction))
        margin = min(margin, max(mask.shape[1:]))
        wide = _widened(mask, margin)
        x, y = (pixels / reduction).floor().nan_to_num(-1, -1, -1).clamp(-1, 2**30).long().T
        seen = in_front & (x >= 0) & (y >= 0) & (x < wide.shape[1]) & (y < wide.shape[0])
        num_seen += seen
        num_inside[seen] += wide[y[seen], x[seen]]
    return (num_seen >= max(1, len(pooled) // 2)) & (num_inside >= 0.95 * num_seen)


def _widened(mask: Tensor, margin: int) -> Tensor:
    # (1, h, w) -> (h, w); a square, one direction after the other
    for kernel, padding in (((1, 2 * margin + 1), (0, margin)), ((2 * margin + 1, 1), (margin, 0))):
        mask = torch.nn.functional.max_pool2d(mask[None], kernel, stride=1, padding=padding)[0]
    return mask[0]


def similarity_of_bounds(bounds: np.ndarray, fill: float = 1.0) -> np.ndarray:
    """(4, 4) map that sends the unit sphere onto the sphere around a (2, 3) box, so that the box fills it by ``fill``."""
    matrix = np.diag([np.linalg.norm(bounds[1] - bounds[0]) / 2 / fill] * 3 + [1.0])
    matrix[:3, 3] = bounds.mean(0)
    return matrix
