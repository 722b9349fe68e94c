"""One training step of Neuralangelo at the CPU demo's sizes, with some of them changed."""

from typing import Any

from benchmarks.growth.axis import Turn, clocks
from benchmarks.neuralangelo_step import build, random_rays


def demo_step(num_rays: int = 1024, **changes: Any) -> Turn:
    """A turn that takes one step: forward, backward, optimizer."""
    model, batch = build("demo", "cpu", **changes), random_rays("demo", "cpu", num_rays)
    optimizer = model.configure_optimizers()["optimizer"]
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # every turn sees the same surface
    model.on_train_batch_start(batch, 0)

    def step() -> None:
        model.training_step(batch, 0).backward()
        optimizer.step()
        optimizer.zero_grad()

    def turn() -> dict[str, float]:
        step()  # what the other sizes left in the caches goes
        figures: dict[str, float] = {}
        with clocks(figures, 1e3):
            step()
        return figures

    return turn
