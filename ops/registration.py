"""Point-to-point registration under a similarity, and the thinning that goes with it, as Open3D's are defined."""

import numpy as np
import torch

from ops.nearest import nearest_distances


def voxel_means(points: np.ndarray, edge: float) -> np.ndarray:
    """The mean of the points (N, 3) in each occupied voxel, whose grid begins half an edge below the lowest point."""
    if len(points) == 0:
        return points
    cells = np.floor((points - (points.min(0) - edge / 2)) / edge).astype(np.int64)
    size = cells.max(0) + 1
    if np.prod(size.astype(np.float64)) > 2.0**62:
        raise ValueError(f"Points that spread over {np.ptp(points, axis=0)} cannot be thinned to {edge}")
    _, voxel, counts = np.unique(np.ravel_multi_index(cells.T, size), return_inverse=True, return_counts=True)
    sums = np.stack([np.bincount(voxel, weights=points[:, axis]) for axis in range(3)], axis=1)
    return sums / counts[:, None]


def similarity_between(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The similarity (4, 4) that brings points (N, 3) nearest to their partners (N, 3) in the squared mean.

    Umeyama (IEEE PAMI 1991), Eq. 40 to 42.
    """
    mean_source, mean_target = source.mean(0), target.mean(0)
    covariance = (target - mean_target).T @ (source - mean_source) / len(source)
    u, singular, v = np.linalg.svd(covariance)
    signs = np.array([1, 1, np.sign(np.linalg.det(u) * np.linalg.det(v))])
    rotation = (u * signs) @ v
    variance = ((source - mean_source) ** 2).sum(1).mean()
    scale = (singular * signs).sum() / variance if variance > 0 else 1.0
    matrix = np.eye(4)
    matrix[:3, :3] = scale * rotation
    matrix[:3, 3] = mean_target - scale * rotation @ mean_source
    return matrix


def iterative_closest_points(
    source: np.ndarray,
    target: np.ndarray,
    max_distance: float,
    max_iterations: int = 30,
    share_tolerance: float = 1e-6,
    error_tolerance: float = 1e-6,
) -> np.ndarray:
    """The similarity (4, 4) that iterative closest points end at, starting from the identity.

    Partners farther apart than ``max_distance`` do not count. With fewer than three of them it goes no further.

    Args:
        source: (N, 3), moved.
        target: (M, 3), fixed.
        max_distance: unit of the points.
        max_iterations: the most there are.
        share_tolerance: it ends when the share of points that have a partner changes by less than this,
        error_tolerance: and the root mean square of their distances by less than this, unit of the points.
    """
    result, moved, share, error = np.eye(4), source, np.inf, np.inf
    points = torch.from_numpy(np.ascontiguousarray(target))
    for _ in range(max_iterations):
        distances, index = nearest_distances(torch.from_numpy(np.ascontiguousarray(moved)), points)
        near = (distances < max_distance).numpy()
        if near.sum() < 3:
            break
        before, share, error = (share, error), near.mean(), np.sqrt(np.mean(distances.numpy()[near] ** 2))
        if abs(before[0] - share) < share_tolerance and abs(before[1] - error) < error_tolerance:
            break
        update = similarity_between(moved[near], target[index.numpy()[near]])
        result = update @ result
        moved = source @ result[:3, :3].T + result[:3, 3]
    return result
