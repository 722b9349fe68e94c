"""Distances between point sets, each one number an object, differentiable by both sets.

Letters: B objects, N and M points. Distances are in the unit of the coordinates, or in its square where they are
squared. None of the losses holds all N x M distances at once.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ops.assignment import auction_assignment, exact_assignment
from ops.nearest import fused_search, nearest_distances

PAIRS = 2**24  # of points whose distance is in memory at once: 64 MiB in float32, a few times that with gradients


def chamfer(x: Tensor, y: Tensor, *, squared: bool = True, chunk_size: int = PAIRS) -> tuple[Tensor, Tensor]:
    """Mean distance of each set's points to the nearest point of the other, one value for each direction.

    PSGN (arXiv:1612.00603) and latent_3d_points take squared distances. PSGN's code averages the two directions, others
    sum them. Neighbours come from a kd-tree on the CPU, from one kernel over all pairs on CUDA, and elsewhere from all
    pairs, a chunk at a time.

    Args:
        x: (B, N, 3).
        y: (B, M, 3).
        squared: squared Euclidean distances rather than Euclidean ones.
        chunk_size: most pairs of points whose distance is in memory at once; neither tree nor kernel holds any.

    Returns:
        ``to_y`` and ``to_x``, each (B,): the mean over x of the distance to y, and the mean over y of that to x.
        Where a point lies on its neighbour the gradient is zero.

    Raises:
        ValueError: for shapes that do not fit, empty sets, and on the CPU for coordinates that are not finite. Other
            devices would have to be waited for; there the mean over a set that has such coordinates is not finite.
    """
    x, y = _checked(x, y)
    return tuple(_distances(a, b, nearest_indices(a, b, chunk_size), squared).mean(1) for a, b in ((x, y), (y, x)))


def soft_chamfer(x: Tensor, y: Tensor, temperature: float, *, squared: bool = True, chunk_size: int = PAIRS) -> Tensor:
    """Chamfer distance in which every point sees all points of the other set, the nearest ones most.

    d(x) = sum_j w_j d(x, y_j) with w = softmax(-d(x, y_j) / temperature), and the mean over x plus the mean over y. It
    is never below the sum of ``chamfer``'s two directions, which is its limit for temperature 0; for large temperatures
    it tends to twice the mean of all distances. There is no published form of this name; the log-sum-exp, which stays
    below the minimum, is another one.

    Args:
        x: (B, N, 3).
        y: (B, M, 3).
        temperature: in the unit of the distances, so squared where they are.
        squared: squared Euclidean distances rather than Euclidean ones.
        chunk_size: most pairs of points whose distance is in memory at once; backwards they are computed again.

    Returns:
        (B,).

    Raises:
        ValueError: for shapes that do not fit, empty sets and temperatures that are not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature: {temperature}, expected a positive number; chamfer is the limit at 0")
    x, y = _checked(x, y)
    return _soft_mean(x, y, temperature, squared, chunk_size) + _soft_mean(y, x, temperature, squared, chunk_size)


def density_aware_chamfer(x: Tensor, y: Tensor, alpha: float = 1000.0, *, chunk_size: int = PAIRS) -> Tensor:
    """Chamfer distance in [0, 1] that notices a different density: Wu et al. (arXiv:2111.12702).

    The mean of both directions of 1 - exp(-alpha d^2) / n, with n the number of points that share the neighbour; zero
    only where the nearest neighbours are a bijection of coinciding points. The paper's formula has d for d^2; its code
    squares, and that is what its alpha of 1000 is for. The counts carry no gradient.

    Args:
        x: (B, N, 3), as large as an object in the unit cube.
        y: (B, M, 3).
        alpha: how fast a distance saturates, one over the unit squared.
        chunk_size: as in ``chamfer``.

    Returns:
        (B,).

    Raises:
        ValueError: as in ``chamfer``.
    """
    x, y = _checked(x, y)
    means = []
    for a, b in ((x, y), (y, x)):
        nearest = nearest_indices(a, b, chunk_size)
        counts = a.new_zeros(b.shape[:2]).scatter_add(1, nearest, a.new_ones(nearest.shape)).gather(1, nearest)
        means.append((1 - torch.exp(-alpha * _distances(a, b, nearest, squared=True)) / counts).mean(1))
    return 0.5 * (means[0] + means[1])


def earth_movers(x: Tensor, y: Tensor, *, exact: bool = False, epsilon: float = 0.01, squared: bool = False) -> Tensor:
    """Mean distance between partners under a bijection of least total distance: the earth mover's distance over N.

    Args:
        x: (B, N, 3).
        y: (B, N, 3), as many points.
        exact: the best bijection, in cubic time, rather than one within ``epsilon`` of it.
        epsilon: largest relative excess over the least distance.
        squared: squared Euclidean distances, of which then the least total is sought.

    Returns:
        (B,). Gradients are those of the distances, for the bijection as it is; both sets get them.

    Raises:
        ValueError: for sets of different sizes and coordinates that are not finite.
    """
    x, y = _floating(x, y)
    partners = exact_assignment(x, y, squared=squared) if exact else auction_assignment(x, y, epsilon, squared=squared)
    return _distances(x, y, partners, squared).mean(1)


@torch.no_grad()
def nearest_indices(x: Tensor, y: Tensor, chunk_size: int = PAIRS) -> Tensor:
    """(B, N) int64: the nearest of (B, M, 3) points for every one of (B, N, 3)."""
    if x.device.type == "cpu":
        return torch.stack([nearest_distances(a, b)[1] for a, b in zip(x, y, strict=True)])
    search = fused_search(x.device.type)
    return nearest_by_pairs(x, y, chunk_size) if search is None else search(x, y)[1]


@torch.no_grad()
def nearest_by_pairs(x: Tensor, y: Tensor, chunk_size: int = PAIRS) -> Tensor:
    """As ``nearest_indices``, from at most ``chunk_size`` distances at a time, but never less than a point's own."""
    objects = max(1, min(len(x), chunk_size // y.shape[1]))
    rows = max(1, chunk_size // (objects * y.shape[1]))
    parts = [
        torch.cat([_pairs(chunk, b).argmin(2) for chunk in a.split(rows, dim=1)], dim=1)
        for a, b in zip(x.split(objects), y.split(objects), strict=True)
    ]
    return torch.cat(parts)


def _soft_mean(x: Tensor, y: Tensor, temperature: float, squared: bool, chunk_size: int) -> Tensor:
    def soft(chunk: Tensor) -> Tensor:
        distances = _pairs(chunk, y)
        if squared:
            distances = distances.square()
        return (torch.softmax(-distances / temperature, dim=2) * distances).sum(2)

    rows = max(1, chunk_size // (len(x) * y.shape[1]))
    if not torch.is_grad_enabled():
        return torch.cat([soft(chunk) for chunk in x.split(rows, dim=1)], dim=1).mean(1)
    parts = [checkpoint(soft, chunk, use_reentrant=False, preserve_rng_state=False) for chunk in x.split(rows, dim=1)]
    return torch.cat(parts, dim=1).mean(1)


def _pairs(x: Tensor, y: Tensor) -> Tensor:
    # the expansion through a matrix product loses half of the digits of small distances
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _distances(x: Tensor, y: Tensor, partners: Tensor, squared: bool) -> Tensor:
    offsets = x - y.gather(1, partners[..., None].expand(-1, -1, 3))
    # not the root of the squares: its gradient at zero is not finite, a norm's is zero
    return offsets.square().sum(2) if squared else torch.linalg.vector_norm(offsets, dim=2)


def _checked(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    is_fit = x.ndim == y.ndim == 3 and len(x) == len(y) and x.shape[2] == y.shape[2] == 3
    if not is_fit or 0 in (x.shape[1], y.shape[1]):
        raise ValueError(
            f"x and y have shapes {tuple(x.shape)} and {tuple(y.shape)}, expected (B, N, 3) and (B, M, 3) with N and M "
            "at least 1"
        )
    return _floating(x, y)


def _floating(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    # half precision has three digits, fewer than a distance between neighbours needs
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    return x.to(dtype), y.to(dtype)
