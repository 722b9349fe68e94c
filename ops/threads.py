"""Compiled loops shared out to threads of Python's own; the loops must release the GIL.

They need no OpenMP or TBB, may be used from several callers at once, and their number follows
``torch.get_num_threads()`` at every call.
"""

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import torch


def for_ranges(count: int, least: int, work: Callable[[int, int], Any]) -> None:
    """Call ``work(start, stop)`` on ranges that make up ``count``, one a thread and none shorter than ``least``."""
    num_ranges = max(min(torch.get_num_threads(), count // least), 1)
    ends = [count * i // num_ranges for i in range(num_ranges + 1)]
    in_parallel(lambda range_: work(*range_), list(itertools.pairwise(ends)))


def in_parallel(work: Callable[[Any], Any], shares: list[Any]) -> None:
    """Call ``work`` on every share, each on a thread of its own, the first on this one."""
    others = [_pool().submit(work, share) for share in shares[1:]]
    work(shares[0])
    for other in others:
        other.result()


@lru_cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="compiled_loops")


# a forked process (a DataLoader's worker) inherits the pool without its threads, and would wait for them for ever
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)
