"""How the steps a second grow with the processes of a run, and what they spend on talking to each other.

    python -m benchmarks.growth.ranks
    python -m benchmarks.growth.ranks --small --plot ranks.svg

Every rank takes the CPU demo's step on rays of its own, so twice the ranks are twice the rays a step; gradients are
averaged by DistributedDataParallel over gloo. The same step without averaging takes turns with it: the difference is
what communication costs, waiting for the slower rank included. Ranks have one thread each and share this machine.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.growth.axis import Growth, Turn, run
from benchmarks.neuralangelo_step import build, random_rays
from tests.ranks import on_ranks, printed

NUM_STEPS = 8


class Step(nn.Module):
    """A method whose forward is its training step, as the wrapper wants it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The loss."""
        return self.model.training_step(batch, 0)


def train(rank: int, num_ranks: int, num_rays: int) -> None:
    """Take steps with and without averaging in turn; the first rank leaves seconds of both in ``seconds.json``."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    model, batch = build("demo", "cpu"), random_rays("demo", "cpu", num_rays)
    optimizer = model.configure_optimizers()["optimizer"]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    model.on_train_batch_start(batch, 0)
    wrapped = DistributedDataParallel(Step(model))

    def seconds(averaged: bool) -> float:
        torch.distributed.barrier()
        start = time.perf_counter()
        wrapped.require_backward_grad_sync = averaged
        wrapped(batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - start

    for averaged in (True, False):
        seconds(averaged)
    turns = [(seconds(True), seconds(False)) for _ in range(NUM_STEPS)]
    if rank == 0:
        Path("seconds.json").write_text(json.dumps([statistics.median(side) for side in zip(*turns, strict=True)]))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def prepare(num_ranks: int, num_rays: int = 512) -> Turn:
    """A turn that starts so many processes."""

    def turn() -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            statuses = on_ranks(train, Path(folder), num_ranks, num_rays, num_ranks=num_ranks)
            if any(statuses):
                sys.exit(f"ranks ended with {statuses}\n{printed(Path(folder))}")
            together, alone = json.loads((Path(folder) / "seconds.json").read_text())
        return {
            "ms a step": 1e3 * together,
            "without averaging, ms": 1e3 * alone,
            "share of communication, %": max(0.0, 100 * (1 - alone / together)),
            "µs a ray": 1e6 * together / (num_rays * num_ranks),
        }

    return turn


GROWTH = Growth(
    title="A step of 512 rays a rank, gloo",
    axis="ranks",
    sizes=(1, 2),
    small=(1, 2),
    prepare=prepare,
    plotted=("ms a step", "without averaging, ms"),
    unit="ms a step",
    exponent=None,
    repeats=2,
    remark="A flat line is perfect: each rank adds its own rays. Ranks of one machine share its memory and caches.",
)

if __name__ == "__main__":
    run(GROWTH, description=__doc__)
