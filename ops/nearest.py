"""Nearest neighbours between point sets."""

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor


def nearest_distances(queries: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Euclidean distance from every query to its nearest point.

    Args:
        queries: (N, 3).
        points: (M, 3), same device.

    Returns:
        ``distances``, (N,) in the dtype of ``queries``, and ``indices``, (N,) int64 into ``points``. Without any point
        the distances are infinite and the indices -1.

    Raises:
        ValueError: for coordinates that are not finite.
    """
    for name, tensor in (("queries", queries), ("points", points)):
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(
                f"{name}: expected finite coordinates, found {int((~torch.isfinite(tensor)).sum())} others"
            )
    if len(queries) == 0 or len(points) == 0:
        return queries.new_full((len(queries),), torch.inf), torch.full((len(queries),), -1, device=queries.device)
    if queries.device.type != "cpu":
        return _brute_force(queries, points)
    # median splits buy little on surfaces and cost half of the time
    tree = cKDTree(points.detach().numpy().astype(np.float64), balanced_tree=False)
    distances, indices = tree.query(queries.detach().numpy().astype(np.float64), workers=-1)
    return torch.from_numpy(distances).to(queries.dtype), torch.from_numpy(indices)


def _brute_force(queries: Tensor, points: Tensor, pairs: int = 2**28) -> tuple[Tensor, Tensor]:
    distances, indices = [], []
    for chunk in queries.split(max(1, pairs // len(points))):
        # the expansion through a matrix product loses half of the digits of small distances
        result = torch.cdist(chunk, points.to(chunk), compute_mode="donot_use_mm_for_euclid_dist").min(dim=1)
        distances.append(result.values)
        indices.append(result.indices)
    return torch.cat(distances), torch.cat(indices)
