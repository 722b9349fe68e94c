"""One training step of Neuralangelo at the CPU demo's sizes, with some of them changed."""

from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser

from benchmarks.growth.axis import Turn, clocks
from benchmarks.neuralangelo_step import ROOT, WithoutTrainer, random_rays
from ops.types import RayBatch

FOREGROUND_SHARE = 0.75


def demo_model(**changes: Any) -> WithoutTrainer:
    """The model of configs/neuralangelo_demo.yaml halfway through its run, untrained: a sphere of radius one half."""
    config = yaml.safe_load((ROOT / "configs/neuralangelo_demo.yaml").read_text())
    parser = ArgumentParser()
    parser.add_class_arguments(WithoutTrainer, "model")
    torch.manual_seed(0)
    settings = config["model"]["init_args"] | {"max_steps": config["trainer"]["max_steps"]} | changes
    model = parser.instantiate(parser.parse_object({"model": settings})).model
    model.at_step = model.max_steps // 2  # all levels are awake
    return model


def demo_rays(num_rays: int) -> RayBatch:
    """Random rays, as many of them through the sphere as the demo draws on its object."""
    return random_rays(num_rays, FOREGROUND_SHARE, "cpu")


def demo_step(num_rays: int = 1024, **changes: Any) -> Turn:
    """A turn that takes one step: forward, backward, optimizer."""
    model, batch = demo_model(**changes), demo_rays(num_rays)
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
