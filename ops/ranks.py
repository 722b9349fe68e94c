"""Work that all processes of a run would do alike, shared out among them."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed
from torch import Tensor

T = TypeVar("T")


def any_rank(flags: Tensor) -> Tensor:
    """(n,) bool, true where it is on any rank; every rank has to ask."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return flags
    counts = flags.to(torch.uint8)
    torch.distributed.all_reduce(counts, torch.distributed.ReduceOp.MAX)
    return counts.bool()


def map_on_ranks(fn: Callable[[T], dict[str, Tensor]], items: Sequence[T]) -> list[dict[str, Tensor]]:
    """``fn`` of every item, on every rank, each item worked on by one of them.

    Args:
        fn: item -> tensors of the same names and shapes for every item.
        items: the same on all ranks, all of which have to call; at least one.

    Returns:
        The results in the order of the items.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [fn(item) for item in items]
    rank, num_ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    share = -(-len(items) // num_ranks)
    # the last ranks may come to an item again: a collective wants equally much from each
    own = [fn(items[k % len(items)]) for k in range(rank * share, (rank + 1) * share)]
    gathered = {}
    for name in own[0]:
        mine = torch.stack([result[name] for result in own])
        parts = [torch.empty_like(mine) for _ in range(num_ranks)]
        torch.distributed.all_gather(parts, mine)
        gathered[name] = torch.cat(parts)
    return [{name: values[k] for name, values in gathered.items()} for k in range(len(items))]


def rows_on_ranks(fn: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """``fn(rows)``, each rank computing a share of the rows.

    Args:
        fn: (m, ...) -> (m, ...) row by row, of any number of rows, none included.
        rows: (n, ...), the same on all ranks, all of which have to call.

    Returns:
        (n, ...), the same on all ranks.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return fn(rows)
    rank, num_ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    share = -(-len(rows) // num_ranks)
    # a rank without rows of its own does the last ones again: a collective wants equally much from each
    start = max(min(rank * share, len(rows) - share), 0)
    own = fn(rows[start : start + share])
    parts = [torch.empty_like(own) for _ in range(num_ranks)]
    torch.distributed.all_gather(parts, own.contiguous())
    result = torch.empty(len(rows), *own.shape[1:], dtype=own.dtype, device=own.device)
    for k, part in enumerate(parts):
        result[max(min(k * share, len(rows) - share), 0) :][:share] = part
    return result
