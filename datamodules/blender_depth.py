"""Depth maps that Blender rendered, as distances along rays."""

import math

import numpy as np
import torch
from torch import Tensor

from datamodules.exr import read_exr
from datamodules.omniobject3d_files import Frames, image_size
from ops.cameras import pixel_centers, project


def read_depths(frames: Frames, intrinsics: Tensor, where: str) -> np.ndarray:
    """Distances along the rays of all pixels' centres, (V, H, W) float32, render frame; infinite past the object.

    Whether Blender wrote distances along the optical axis or along the ray depends on its version. Both are tried: only
    one of them puts what two cameras see into the same place.

    Raises:
        ValueError: a file is missing or of another size, or neither reading agrees with itself.
    """
    folder = frames.paths[0].parent.parent / "depths"
    maps = []
    for path in frames.paths:
        found = sorted(folder.glob(f"{path.stem}_depth*.exr"))
        if not found:
            raise ValueError(f"{where}: {folder} has no {path.stem}_depth*.exr; unpack the object's archive again")
        channels = read_exr(found[0])
        depth = next((channels[name] for name in ("V", "Z", "Y", "R") if name in channels), None)
        if depth is None or depth.shape != image_size(path):
            raise ValueError(
                f"{found[0]}: channels {', '.join(channels)} of shape {next(iter(channels.values())).shape}, expected "
                f"one of depth of {image_size(path)}, the size of {path.name}"
            )
        # Blender's background is 1e10, or 65504 in half precision
        maps.append(np.where((depth > 0) & (depth < 1e4), depth, np.inf))
    stack = np.stack(maps).astype(np.float32)
    lengths = ray_lengths(intrinsics, *stack.shape[1:])
    poses = torch.from_numpy(frames.camera_to_world)
    errors = {
        is_planar: _disagreement(stack * lengths if is_planar else stack, intrinsics, poses)
        for is_planar in (True, False)
    }
    is_planar = errors[True] <= errors[False]
    if not errors[is_planar] < 0.02:
        raise ValueError(
            f"{where}: the depth maps agree with the cameras neither as distances along the axis nor along the ray: "
            f"what two views see is {errors[True]:.2g} and {errors[False]:.2g} of its distance apart (median); leave "
            "depth out, with normalization masks or scan"
        )
    return stack * lengths if is_planar else stack


def ray_lengths(intrinsics: Tensor, height: int, width: int) -> np.ndarray:
    """(H, W) float32: how long the ray of each pixel's centre is where it is 1 deep."""
    centers = torch.cat([pixel_centers(height, width).double(), torch.ones(height * width, 1)], dim=1)
    rays = torch.linalg.solve_triangular(intrinsics.double(), centers.T, upper=True)
    return rays.norm(dim=0).reshape(height, width).float().numpy()


def points_of_depth(distances: np.ndarray, intrinsics: Tensor, pose: Tensor, every: int = 1) -> np.ndarray:
    """What one view sees, (N, 3) float64: every n-th of the pixels of an (H, W) map that see something."""
    chosen = np.flatnonzero(np.isfinite(distances))[::every]
    height, width = distances.shape
    centers = pixel_centers(height, width).double()[chosen]
    rays = torch.linalg.solve_triangular(
        intrinsics.double(), torch.cat([centers, torch.ones(len(centers), 1)], dim=1).T, upper=True
    ).T
    rays = rays / rays.norm(dim=1, keepdim=True) * torch.from_numpy(distances.ravel()[chosen]).double()[:, None]
    return (rays @ pose[:3, :3].double().T + pose[:3, 3].double()).numpy()


def _disagreement(distances: np.ndarray, intrinsics: Tensor, poses: Tensor, most_pairs: int = 12) -> float:
    # median, relative to its distance, of how far what one view sees is from what its nearest other view sees there
    directions = torch.nn.functional.normalize(poses[:, :3, 3] - poses[:, :3, 3].mean(0), dim=1)
    closeness = (directions @ directions.T).fill_diagonal_(-2)
    apart = []
    for view in range(0, len(poses), max(1, len(poses) // most_pairs)):
        other = int(closeness[view].argmax())
        seen = int(np.isfinite(distances[view]).sum())
        points = torch.from_numpy(points_of_depth(distances[view], intrinsics, poses[view], max(1, seen // 2000)))
        pixels, depth = project(points, intrinsics.double(), poses[other])
        x, y = pixels.floor().long().T
        inside = (depth > 0) & (x >= 0) & (y >= 0) & (x < distances.shape[2]) & (y < distances.shape[1])
        expected = (points[inside] - poses[other][:3, 3]).norm(dim=1).numpy()
        found = distances[other][y[inside], x[inside]]
        both = np.isfinite(found)
        apart.append(abs(found - expected)[both] / expected[both])
    values = np.concatenate(apart)
    return float(np.median(values)) if len(values) else math.inf
