"""Nearest neighbours between point sets: by a kd-tree on the CPU, elsewhere by all pairs, on CUDA in one kernel."""

import logging
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

logger = logging.getLogger("bottega")


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
        search = fused_search(queries.device.type)
        return _brute_force(queries, points) if search is None else _by_kernel(search, queries, points)
    # median splits buy little on surfaces and cost half of the time
    tree = cKDTree(points.detach().numpy().astype(np.float64), balanced_tree=False)
    distances, indices = tree.query(queries.detach().numpy().astype(np.float64), workers=-1)
    return torch.from_numpy(distances).to(queries.dtype), torch.from_numpy(indices)


@lru_cache  # one choice, and one line in the log, for each kind of device
def fused_search(device_type: str) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """:func:`ops.nearest_triton.nearest_neighbours` where it runs, else ``None``: pairs are then taken in chunks."""
    if device_type != "cuda":
        return None
    try:
        from ops.nearest_triton import nearest_neighbours
    except ImportError as error:
        logger.warning("Nearest points: triton, which is many times faster, cannot be imported: %s", error)
        return None
    return nearest_neighbours


def _by_kernel(
    search: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], queries: Tensor, points: Tensor
) -> tuple[Tensor, Tensor]:
    # half precision has three digits, fewer than a distance between neighbours needs
    dtype = torch.promote_types(queries.dtype, torch.float32)
    squared, indices = search(queries.to(dtype)[None], points.to(dtype)[None])
    return squared[0].sqrt().to(queries.dtype), indices[0]


def _brute_force(queries: Tensor, points: Tensor, pairs: int = 2**28) -> tuple[Tensor, Tensor]:
    distances, indices = [], []
    for chunk in queries.split(max(1, pairs // len(points))):
        # the expansion through a matrix product loses half of the digits of small distances
        result = torch.cdist(chunk, points.to(chunk), compute_mode="donot_use_mm_for_euclid_dist").min(dim=1)
        distances.append(result.values)
        indices.append(result.indices)
    return torch.cat(distances), torch.cat(indices)
