"""One-to-one assignments between point sets of equal size: exact by SciPy, or near the optimum by an auction.

The auction is that of Bertsekas (Annals of Operations Research 14, 1988) with epsilon-scaling: every point of x in turn
bids for the point of y that is cheapest to it, and raises its price until the second cheapest is as good. Objects of a
batch are shared out to threads on the CPU; on CUDA each has a program of :mod:`ops.assignment_triton`. Other devices
hand their points to the CPU, as the exact assignment always does.
"""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from numba import njit
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import Tensor

logger = logging.getLogger("bottega")

CANDIDATES = 12  # cheapest targets that a point remembers, so that few bids look at all of them
SCALING = 5.0  # between the bid increments of successive rounds
FLOOR = 1e-12  # smallest bid increment, as a share of the largest cost


def exact_assignment(x: Tensor, y: Tensor, *, squared: bool = False) -> Tensor:
    """The bijection with the least sum of distances, in cubic time: a tenth of a second for 1024 points.

    Args:
        x: (B, N, 3).
        y: (B, N, 3).
        squared: whether squared distances are summed; the best bijection is another then.

    Returns:
        (B, N) int64: point i of x belongs to point ``result[:, i]`` of y.

    Raises:
        ValueError: for sets of different sizes or coordinates that are not finite.
    """
    metric = "sqeuclidean" if squared else "euclidean"
    return _assign_each(lambda a, b: linear_sum_assignment(cdist(a, b, metric))[1], x, y)


def auction_assignment(x: Tensor, y: Tensor, epsilon: float = 0.01, *, squared: bool = False) -> Tensor:
    """A bijection whose sum of distances is at most (1 + epsilon) times the least one.

    The bound is certified for each object: bids become finer until the sum is within it of the dual value, which no
    bijection can undercut. Where the least sum is zero or nearly so, the result is within 1e-12 N of the largest
    distance instead. The result does not depend on the number of threads. On CUDA it is another one within the bound,
    up to the rounding of distances in the points' dtype.

    Args:
        x: (B, N, 3).
        y: (B, N, 3).
        epsilon: largest relative excess.
        squared: whether squared distances are summed.

    Returns:
        (B, N) int64: point i of x belongs to point ``result[:, i]`` of y.

    Raises:
        ValueError: for sets of different sizes, coordinates that are not finite, or an epsilon that is not positive.
    """
    if not epsilon > 0:
        raise ValueError(f"epsilon: {epsilon}, expected a positive share; exact_assignment has none")
    if x.device.type == "cuda" and (auction := _parallel_auction()) is not None:
        _check(x, y)
        # half precision has three digits, fewer than a distance between neighbours needs
        dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
        return auction(x.to(dtype), y.to(dtype), epsilon, squared=squared, scaling=SCALING, floor=FLOOR)
    return _assign_each(lambda a, b: _auction(a, np.ascontiguousarray(b.T), squared, epsilon), x, y)


@lru_cache  # one line in the log
def _parallel_auction() -> Callable[..., Tensor] | None:
    try:
        from ops.assignment_triton import parallel_auction
    except ImportError as error:
        logger.warning("Assignments: triton, without which they are made on the CPU, cannot be imported: %s", error)
        return None
    return parallel_auction


def _check(x: Tensor, y: Tensor) -> None:
    if x.ndim != 3 or x.shape != y.shape or x.shape[2] != 3 or x.shape[1] == 0:
        raise ValueError(
            f"x and y have shapes {tuple(x.shape)} and {tuple(y.shape)}, expected (B, N, 3), the same, and N at least "
            "1: a bijection needs as many points on both sides; draw as many from the larger set"
        )
    for name, points in (("x", x), ("y", y)):
        if not bool(torch.isfinite(points).all()):
            raise ValueError(
                f"{name}: expected finite coordinates, found {int((~torch.isfinite(points)).sum())} others"
            )


def _assign_each(assign: Callable[[np.ndarray, np.ndarray], np.ndarray], x: Tensor, y: Tensor) -> Tensor:
    _check(x, y)
    pairs = [points.detach().double().cpu().contiguous().numpy() for points in (x, y)]
    num_threads = min(torch.get_num_threads(), len(x))
    if num_threads <= 1:
        results = list(map(assign, *pairs))
    else:
        # threads of one call alone: a forked worker of a DataLoader would inherit a lasting pool without its threads
        with ThreadPoolExecutor(num_threads) as threads:
            results = list(threads.map(assign, *pairs))
    return torch.from_numpy(np.stack(results).astype(np.int64)).to(x.device)


@njit(nogil=True, cache=True, error_model="numpy")
def _auction(x: np.ndarray, targets: np.ndarray, squared: bool, epsilon: float) -> np.ndarray:
    """Target of every point of ``x`` (N, 3) among ``targets`` (3, N)."""
    size = len(x)
    if size == 1:
        return np.zeros(1, np.int64)
    count = min(CANDIDATES, size)
    # a price never falls, so what was not among a point's candidates stays dearer than its limit of that time
    nearest, costs, limits = np.empty((size, count), np.int64), np.empty((size, count)), np.empty(size)
    prices, row = np.zeros(size), np.empty(size)
    target_of, owner_of, cost_of = np.full(size, -1, np.int64), np.full(size, -1, np.int64), np.zeros(size)
    largest = 0.0
    for i in range(size):
        limits[i] = _scan(x[i], targets, squared, prices, nearest[i], costs[i], row)
        largest = max(largest, row.max())
    increment = largest / SCALING
    waiting, num_waiting = np.arange(size), size
    while True:
        while num_waiting > 0:
            i = waiting[num_waiting - 1]
            target, best, second = _best_two(prices, nearest[i], costs[i])
            if second > limits[i]:
                limits[i] = _scan(x[i], targets, squared, prices, nearest[i], costs[i], row)
                target, best, second = _best_two(prices, nearest[i], costs[i])
            cost_of[i] = best - prices[target]
            prices[target] += second - best + increment
            loser = owner_of[target]
            owner_of[target], target_of[i] = i, target
            if loser >= 0:
                target_of[loser] = -1
                waiting[num_waiting - 1] = loser
            else:
                num_waiting -= 1
        increment /= SCALING
        dual = 0.0
        for i in range(size):
            _, best, _ = _best_two(prices, nearest[i], costs[i])
            if best > limits[i]:
                limits[i] = _scan(x[i], targets, squared, prices, nearest[i], costs[i], row)
                _, best, _ = _best_two(prices, nearest[i], costs[i])
            dual += best - prices[i]
            # who could do better by more than the next increment would bid again
            if cost_of[i] + prices[target_of[i]] > best + increment:
                waiting[num_waiting] = i
                num_waiting += 1
        total = cost_of.sum()
        if total <= (1 + epsilon) * dual or total == 0 or increment < FLOOR * largest:
            return target_of
        for i in waiting[:num_waiting]:
            owner_of[target_of[i]] = -1
            target_of[i] = -1


@njit(nogil=True, cache=True, error_model="numpy")
def _best_two(prices: np.ndarray, nearest: np.ndarray, costs: np.ndarray) -> tuple[int, float, float]:
    """The cheapest candidate, what it costs with its price, and what the second cheapest does."""
    best, second, target = np.inf, np.inf, -1
    for k in range(len(nearest)):
        value = costs[k] + prices[nearest[k]]
        if value < best:
            best, second, target = value, best, nearest[k]
        elif value < second:
            second = value
    return target, best, second


@njit(nogil=True, cache=True, error_model="numpy")
def _scan(
    point: np.ndarray,
    targets: np.ndarray,
    squared: bool,
    prices: np.ndarray,
    nearest: np.ndarray,
    costs: np.ndarray,
    row: np.ndarray,
) -> float:
    """Find the targets that are cheapest to a point at the prices of today.

    Writes them into ``nearest`` (K,), their costs without prices into ``costs`` (K,), and all costs with prices into
    ``row`` (N,). Returns the limit below which no other target with its price is, or will ever be.
    """
    for j in range(len(row)):
        a, b, c = point[0] - targets[0, j], point[1] - targets[1, j], point[2] - targets[2, j]
        row[j] = a * a + b * b + c * c
    if not squared:
        # loops of their own, which the compiler makes vector instructions of
        for j in range(len(row)):
            row[j] = np.sqrt(row[j])
    for j in range(len(row)):
        row[j] += prices[j]
    count, found, limit = len(nearest), 0, np.inf
    for j in range(len(row)):
        value = row[j]
        if found == count:
            if value >= costs[count - 1]:
                limit = min(limit, value)
                continue
            limit = min(limit, costs[count - 1])
        else:
            found += 1
        k = found - 1
        while k > 0 and costs[k - 1] > value:
            costs[k], nearest[k] = costs[k - 1], nearest[k - 1]
            k -= 1
        costs[k], nearest[k] = value, j
    for k in range(count):
        costs[k] -= prices[nearest[k]]
    return limit
