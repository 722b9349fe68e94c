"""What a step of AdamW on a hash table costs: lazily, on the rows that it reads, or densely, on all of them.

    python benchmarks/optimizer.py                                   # CPU
    python benchmarks/optimizer.py --device cuda --rows 16 19 22 25 --features 8
    python benchmarks/optimizer.py --rows 14 --features 2 --shares 0.01 1 --repeats 2

A step is all that depends on the table's size: the rows that points read are brought up to date, and the optimizer
steps. The points of every step are new, so that a row waits for about one over the share of steps before it is read
again. The encoding and its gradient, the same on all sides, are left out: rows that are read have a gradient.
``torch.optim.AdamW`` as fused and as foreach is what is compared; all take turns within one run.

Bytes are counted, not measured: the dense optimizer reads weight, gradient and two moments and writes all but the
gradient; the lazy one reads three and writes three of every row that is behind, and then steps on those that were read.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor

from benchmarks.machine import machine
from ops.hash_grid.grid import HashGrid
from ops.lazy_adamw import LazyAdamW

_FINEST = 4096  # of one hashed level, so that a cell's eight corners are eight random rows


def points_that_read(share: float, num_rows: int, generator: torch.Generator, device: str) -> Tensor:
    """(N, 3) points whose corners, eight of random rows each, are about that share of the table."""
    draws = -torch.tensor(max(1 - share, 1e-3)).log().item() * num_rows
    return (torch.rand(max(int(draws / 8), 1), 3, generator=generator) * 2 - 1).to(device)


def milliseconds(work: Callable[[], object], device: str) -> float:
    """Wall time on a GPU, until it is done; on a CPU the time of this process, which neighbours do not change."""
    if device == "cuda":
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) * 1e3
    start = time.process_time()
    work()
    return (time.process_time() - start) * 1e3


class Side:
    """A table of one hashed level, and an optimizer of it."""

    def __init__(self, name: str, log2_rows: int, features: int, device: str) -> None:
        self.name, self.device = name, device
        grid = HashGrid(1, features, log2_rows, _FINEST, _FINEST, bound=1.0).to(device)
        self.table, parameters = grid.table, list(grid.parameters())
        settings = {"lr": 1e-3, "weight_decay": 1e-2}
        match name:
            case "lazy":
                self.optimizer = LazyAdamW(parameters, **settings)
            case "fused":
                self.optimizer = torch.optim.AdamW(parameters, fused=True, **settings)
            case _:
                self.optimizer = torch.optim.AdamW(parameters, foreach=True, **settings)
        self.table.grad = torch.zeros_like(self.table)

    def step(self, points: Tensor) -> tuple[float, float]:
        """Milliseconds of bringing up to date and of stepping."""
        rows = getattr(self.table, "lazy_rows", None)
        before = milliseconds(lambda: rows.prepare(points, 1), self.device) if rows is not None else 0.0
        if rows is not None:
            # as the backward pass would: rows that are read, and no others, have a gradient
            self.table.grad.zero_()
            self.table.grad[rows.listed[: int(rows.counts[0])].long()] = 1e-4
        return before, milliseconds(self.optimizer.step, self.device)


def compare(log2_rows: int, features: int, shares: list[float], device: str, repeats: int, warm_up: int) -> None:
    """Print times and bytes for every share, and the share at which lazy stops paying."""
    num_rows = 2**log2_rows
    megabyte = num_rows * features * 4 / 1e6
    print(f"\n2^{log2_rows} rows of {features}, {megabyte:.1f} MB; dense: {7 * megabyte:.1f} MB a step")
    print(f"{'share':>7}{'read':>8}{'lazy ms':>9}{'(ready':>8}{'step)':>8}{'fused ms':>10}{'foreach ms':>12}"
          f"{'lazy MB':>9}{'fused/lazy':>12}{'foreach/lazy':>14}")  # fmt: skip
    paying = []
    for share in shares:
        generator = torch.Generator().manual_seed(0)
        sides = [Side(name, log2_rows, features, device) for name in ("lazy", "fused", "foreach")]
        times: dict[str, list[tuple[float, float]]] = {side.name: [] for side in sides}
        moved, read = [], []
        for repeat in range(warm_up + repeats):
            points = points_that_read(share, num_rows, generator, device)
            rows = sides[0].table.lazy_rows
            stamps = rows.stamps.clone()
            for side in sides:
                taken = side.step(points)
                if repeat >= warm_up:
                    times[side.name].append(taken)
            was_read = rows.stamps == 2 * rows.history.steps
            was_behind = was_read & (stamps < 2 * (rows.history.steps - 1))
            read.append(was_read.float().mean().item())
            moved.append((6 * was_behind.float().mean().item() + 7 * read[-1]) * megabyte)
        ready, lazy = (statistics.median(values) for values in zip(*times["lazy"], strict=True))
        fused, foreach = (statistics.median(step for _, step in times[name]) for name in ("fused", "foreach"))
        total = ready + lazy
        print(f"{share:7.0%}{read[-1]:8.1%}{total:9.2f}{ready:8.2f}{lazy:8.2f}{fused:10.2f}{foreach:12.2f}"
              f"{moved[-1]:9.1f}{fused / total:12.2f}{foreach / total:14.2f}")  # fmt: skip
        paying += [share] if total < fused else []
    limit = f"up to {max(paying):.0%} of the rows" if paying else "at none of these shares"
    print(f"lazy is faster than fused {limit}")


def main() -> None:
    """Parse the command line and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rows", type=int, nargs="+", default=[16, 18, 20, 22], help="logarithms of numbers of rows")
    parser.add_argument("--features", type=int, nargs="+", default=[2])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.01, 0.03, 0.1, 0.3, 1.0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--warm-up", type=int, default=20, help="steps before, in which rows fall behind")
    arguments = parser.parse_args()
    print(f"{machine(arguments.device)}, median of {arguments.repeats}")
    for features in arguments.features:
        for log2_rows in arguments.rows:
            compare(log2_rows, features, arguments.shares, arguments.device, arguments.repeats, arguments.warm_up)


if __name__ == "__main__":
    main()
