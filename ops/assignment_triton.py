"""The auction of :mod:`ops.assignment` on GPU, in Triton: one program an object, a block of points bids at a time.

Every round the points that waited last, up to ``BIDDERS`` of them, look at all targets and bid at the prices of today;
where several want one target the highest bid has it, of equal ones the first. That bids are made side by side changes
what they are, not that they keep epsilon-complementary slackness, so the bound on the sum holds as for bids in turn,
and is certified in the same way. Prices are float64, costs have the dtype of the points. Nothing is atomic: the result
is a function of the points.

A program goes on by itself through all bid increments, as nobody knows the number of rounds before. It stops after
``ROUNDS`` and is launched again where it is not done, so that no launch lasts for seconds.

``TRITON_INTERPRET=1``, set before triton is imported, runs the same kernel slowly on CPU tensors, for tests.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BIDDERS = 16  # a power of two
TARGETS = 128  # of a tile, which has BIDDERS rows
ROUNDS = 20_000


@torch.no_grad()
def parallel_auction(
    x: Tensor, y: Tensor, epsilon: float, *, squared: bool, scaling: float, floor: float, num_rounds: int = ROUNDS
) -> Tensor:
    """Targets of all points as by :func:`ops.assignment.auction_assignment`, which checks what is handed in.

    Args:
        x: (B, N, 3) float32 or float64.
        y: (B, N, 3), same device and dtype.
        epsilon: largest relative excess.
        squared: whether squared distances are summed.
        scaling: between the bid increments of successive phases.
        floor: smallest bid increment, as a share of the largest cost.
        num_rounds: most rounds of a launch.

    Returns:
        (B, N) int64.
    """
    num_objects, size = x.shape[:2]
    if size == 1:  # there is no second best target
        return torch.zeros(num_objects, 1, dtype=torch.int64, device=x.device)
    width = triton.cdiv(size, TARGETS) * TARGETS
    # one coordinate after another; what fills up the last tile is too far for anybody
    targets = y.new_full((num_objects, 3, width), torch.inf)
    targets[:, :, :size] = y.transpose(1, 2)
    prices = torch.zeros(num_objects, width, dtype=torch.float64, device=x.device)
    owners = torch.full((num_objects, width), -1, dtype=torch.int32, device=x.device)
    waiting = torch.arange(size, dtype=torch.int32, device=x.device).repeat(num_objects, 1)
    num_waiting = torch.full((num_objects,), size, dtype=torch.int32, device=x.device)
    # largest cost and increment, found in the first launch
    scales = torch.zeros(num_objects, 2, dtype=torch.float64, device=x.device)
    is_done = torch.zeros(num_objects, dtype=torch.int32, device=x.device)
    while not bool(is_done.all()):
        with torch.cuda.device_of(x):  # Triton launches on the current device, which need not be the tensors'
            _auction_kernel[num_objects,](
                x.contiguous(),
                targets,
                prices,
                owners,
                waiting,
                num_waiting,
                scales,
                is_done,
                size,
                width,
                num_rounds,
                epsilon,
                scaling,
                floor,
                SQUARED=squared,
                BIDDERS=BIDDERS,
                TARGETS=TARGETS,
            )
    partners = torch.empty(num_objects, size, dtype=torch.int64, device=x.device)
    places = torch.arange(size, device=x.device).expand(num_objects, -1)
    return partners.scatter_(1, owners[:, :size].long(), places)


@triton.jit
def _tile_costs(x, y, z, targets_ptr, width, j, SQUARED: tl.constexpr):
    """(BIDDERS, TARGETS) costs of points for targets j, float64."""
    dx = x[:, None] - tl.load(targets_ptr + j)[None, :]
    dy = y[:, None] - tl.load(targets_ptr + width + j)[None, :]
    dz = z[:, None] - tl.load(targets_ptr + 2 * width + j)[None, :]
    cost = dx * dx + dy * dy + dz * dz
    if not SQUARED:
        cost = tl.sqrt(cost)
    return cost.to(tl.float64)


@triton.jit
def _load_points(points_ptr, i, is_point):
    x = tl.load(points_ptr + 3 * i, mask=is_point, other=0.0)
    y = tl.load(points_ptr + 3 * i + 1, mask=is_point, other=0.0)
    z = tl.load(points_ptr + 3 * i + 2, mask=is_point, other=0.0)
    return x, y, z


@triton.jit
def _best_two(x, y, z, targets_ptr, prices_ptr, width, SQUARED: tl.constexpr, TARGETS: tl.constexpr):
    """Of each point the cheapest target, the first of equal ones, what it costs with its price, and the second."""
    lane = tl.arange(0, TARGETS)
    infinite = tl.full((x.shape[0], TARGETS), float("inf"), dtype=tl.float64)
    best, second, best_tile = infinite, infinite, tl.zeros((x.shape[0], TARGETS), dtype=tl.int32)
    # each cell of the tile has a best and a second of its own
    for start in range(0, width, TARGETS):
        value = _tile_costs(x, y, z, targets_ptr, width, start + lane, SQUARED)
        value += tl.load(prices_ptr + start + lane)[None, :]
        is_best = value < best
        second = tl.minimum(second, tl.where(is_best, best, value))
        best = tl.where(is_best, value, best)
        best_tile = tl.where(is_best, start, best_tile)
    least = tl.min(best, axis=1)
    index = tl.where(best == least[:, None], best_tile + lane[None, :], 2147483647)
    target = tl.min(index, axis=1)
    # the second best is another cell's best, or the best cell's second
    others = tl.where(index == target[:, None], second, best)
    return target, least, tl.min(others, axis=1)


@triton.jit
def _bid(
    points_ptr,
    targets_ptr,
    prices_ptr,
    owners_ptr,
    waiting_ptr,
    num_waiting,
    width,
    increment,
    SQUARED: tl.constexpr,
    BIDDERS: tl.constexpr,
    TARGETS: tl.constexpr,
):
    """One round; returns how many points wait now."""
    k = tl.arange(0, BIDDERS)
    is_bidder = k < num_waiting
    place = num_waiting - 1 - k
    i = tl.load(waiting_ptr + place, mask=is_bidder, other=0)
    x, y, z = _load_points(points_ptr, i, is_bidder)
    target, best, second = _best_two(x, y, z, targets_ptr, prices_ptr, width, SQUARED, TARGETS)
    bid = tl.load(prices_ptr + target) + (second - best) + increment
    # who does not bid wants a target that nobody has
    target = tl.where(is_bidder, target, -1 - k)

    rivals = target[:, None] == target[None, :]
    is_beaten = (bid[None, :] > bid[:, None]) | ((bid[None, :] == bid[:, None]) & (k[None, :] < k[:, None]))
    beaten = tl.sum((rivals & is_beaten).to(tl.int32), axis=1)
    wins = is_bidder & (beaten == 0)
    loser = tl.load(owners_ptr + target, mask=wins, other=-1)
    loser = tl.where(wins, loser, tl.where(is_bidder, i, -1))
    tl.debug_barrier()  # all have read prices, owners and who waits
    tl.store(prices_ptr + target, bid, mask=wins)
    tl.store(owners_ptr + target, i, mask=wins)
    stays = loser >= 0
    left = tl.maximum(num_waiting - BIDDERS, 0)
    tl.store(waiting_ptr + left + tl.cumsum(stays.to(tl.int32), 0) - 1, loser, mask=stays)
    tl.debug_barrier()  # and see what the others have written
    return left + tl.sum(stays.to(tl.int32), axis=0)


@triton.jit
def _review(
    points_ptr,
    targets_ptr,
    prices_ptr,
    owners_ptr,
    waiting_ptr,
    size,
    width,
    increment,
    SQUARED: tl.constexpr,
    BIDDERS: tl.constexpr,
    TARGETS: tl.constexpr,
):
    """Sum of the costs, the dual value, and how many points could do better by more than an increment.

    Those are written to where they wait; nobody's target is taken away.
    """
    k = tl.arange(0, BIDDERS)
    total = tl.zeros((BIDDERS,), dtype=tl.float64)
    dual = tl.zeros((BIDDERS,), dtype=tl.float64)
    count = 0
    for start in range(0, size, BIDDERS):
        j = start + k
        is_target = j < size
        i = tl.load(owners_ptr + j, mask=is_target, other=0)
        x, y, z = _load_points(points_ptr, i, is_target)
        _, best, _ = _best_two(x, y, z, targets_ptr, prices_ptr, width, SQUARED, TARGETS)
        price = tl.load(prices_ptr + j, mask=is_target, other=0.0)
        dx = x - tl.load(targets_ptr + j, mask=is_target, other=0.0)
        dy = y - tl.load(targets_ptr + width + j, mask=is_target, other=0.0)
        dz = z - tl.load(targets_ptr + 2 * width + j, mask=is_target, other=0.0)
        cost = dx * dx + dy * dy + dz * dz
        if not SQUARED:
            cost = tl.sqrt(cost)
        cost = cost.to(tl.float64)
        total += tl.where(is_target, cost, 0.0)
        dual += tl.where(is_target, best - price, 0.0)
        is_unhappy = is_target & (cost + price > best + increment)
        order = count + tl.cumsum(is_unhappy.to(tl.int32), 0) - 1
        tl.store(waiting_ptr + order, i, mask=is_unhappy)
        # a mark, as the point's target may be needed yet
        tl.store(owners_ptr + j, -2 - i, mask=is_unhappy)
        count += tl.sum(is_unhappy.to(tl.int32), axis=0)
    return tl.sum(total, axis=0), tl.sum(dual, axis=0), count


@triton.jit
def _largest_cost(
    points_ptr, targets_ptr, size, width, SQUARED: tl.constexpr, BIDDERS: tl.constexpr, TARGETS: tl.constexpr
):
    k, lane = tl.arange(0, BIDDERS), tl.arange(0, TARGETS)
    largest = tl.zeros((BIDDERS, TARGETS), dtype=tl.float64)
    for start in range(0, size, BIDDERS):
        x, y, z = _load_points(points_ptr, start + k, start + k < size)
        for first in range(0, width, TARGETS):
            cost = _tile_costs(x, y, z, targets_ptr, width, first + lane, SQUARED)
            is_pair = (start + k < size)[:, None] & (first + lane < size)[None, :]
            largest = tl.maximum(largest, tl.where(is_pair, cost, 0.0))
    return tl.max(tl.max(largest, axis=1), axis=0)


@triton.jit
def _settle(owners_ptr, size, is_done, TARGETS: tl.constexpr):
    """Give marked targets back to their points, or away."""
    for start in range(0, size, TARGETS):
        j = start + tl.arange(0, TARGETS)
        owner = tl.load(owners_ptr + j, mask=j < size, other=0)
        tl.store(owners_ptr + j, tl.where(is_done, -2 - owner, -1), mask=(j < size) & (owner < -1))


@triton.jit(do_not_specialize=["size", "num_rounds"])
def _auction_kernel(
    points_ptr,
    targets_ptr,
    prices_ptr,
    owners_ptr,
    waiting_ptr,
    num_waiting_ptr,
    scales_ptr,
    is_done_ptr,
    size,
    width,
    num_rounds,
    epsilon,
    scaling,
    floor,
    SQUARED: tl.constexpr,
    BIDDERS: tl.constexpr,
    TARGETS: tl.constexpr,
):
    member = tl.program_id(0).to(tl.int64)
    points_ptr += member * size * 3
    targets_ptr += member * 3 * width
    prices_ptr += member * width
    owners_ptr += member * width
    waiting_ptr += member * size
    num_waiting = tl.load(num_waiting_ptr + member)
    is_done = tl.load(is_done_ptr + member)
    largest = tl.load(scales_ptr + 2 * member)
    increment = tl.load(scales_ptr + 2 * member + 1)
    if (increment == 0.0) & (is_done == 0):
        largest = _largest_cost(points_ptr, targets_ptr, size, width, SQUARED, BIDDERS, TARGETS)
        increment = largest / scaling
    num_done = 0
    while (num_done < num_rounds) & (is_done == 0):
        if num_waiting > 0:
            num_waiting = _bid(
                points_ptr, targets_ptr, prices_ptr, owners_ptr, waiting_ptr, num_waiting, width, increment,
                SQUARED, BIDDERS, TARGETS,
            )  # fmt: skip
        else:
            increment /= scaling
            total, dual, num_waiting = _review(
                points_ptr, targets_ptr, prices_ptr, owners_ptr, waiting_ptr, size, width, increment,
                SQUARED, BIDDERS, TARGETS,
            )  # fmt: skip
            is_enough = (total <= (1.0 + epsilon) * dual) | (total == 0.0) | (increment < floor * largest)
            is_done = is_enough.to(tl.int32)
            tl.debug_barrier()
            _settle(owners_ptr, size, is_enough, TARGETS)
            tl.debug_barrier()
        num_done += 1
    tl.store(num_waiting_ptr + member, num_waiting)
    tl.store(scales_ptr + 2 * member, largest)
    tl.store(scales_ptr + 2 * member + 1, increment)
    tl.store(is_done_ptr + member, is_done)
