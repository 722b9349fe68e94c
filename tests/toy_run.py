"""A run that takes milliseconds a step and draws from everything that is random, to be stopped and resumed."""

import csv
import os
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule, Trainer, seed_everything
from pytorch_lightning.loggers import CSVLogger
from torch.utils.data import DataLoader

from callbacks.checkpoint import Checkpoint
from datamodules.base import DataModule
from datamodules.object_stream import BatchDataset, StreamSampler
from launch.runs import new_version


class Numbers(DataModule):
    """Seven numbers, two a batch: three batches an epoch, and what is left begins the next one."""

    provides = frozenset()

    def __init__(self) -> None:
        super().__init__(frozenset(), "the method")

    def train_dataloader(self) -> DataLoader:
        rank, num_ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        sampler = StreamSampler(7, 2, (1, 1), 0, rank, num_ranks, self.batches_trained)
        dataset = BatchDataset(lambda request: _batch(request.positions), 7)
        return DataLoader(dataset=dataset, batch_size=None, sampler=sampler, generator=torch.Generator())

    def val_dataloader(self) -> DataLoader:
        return DataLoader(dataset=torch.arange(3.0), batch_size=1, generator=torch.Generator())


def _batch(positions: tuple[int, ...]) -> dict[str, Any]:
    return {"numbers": torch.tensor(positions).float(), "object_id": [f"number_{k}" for k in positions]}


class Noisy(LightningModule):
    """Learns something from noise; ``bad_step`` is the step whose loss, or gradient, is not finite."""

    def __init__(self, width: int = 2, bad_step: int = -1, bad: str = "loss") -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(2, width), torch.nn.Linear(width, 1))
        self.bad_step, self.bad = bad_step, bad

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        noise = random.random() + np.random.rand()
        fit = (self.net(torch.nn.functional.dropout(batch["numbers"])) - noise).square().mean()
        prior = self.net[0].weight.square().sum()
        if self.global_step == self.bad_step:
            # the root has no gradient where it is 0, but a value
            prior = (prior - prior.detach()).sqrt() if self.bad == "gradient" else prior * float(self.bad)
        loss = fit + 0.01 * prior
        self.log_dict({"train/fit": fit.detach(), "train/prior": prior.detach(), "train/loss": loss.detach()})
        return loss

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("val/score", self.net[0].weight.sum() + batch.sum() * torch.rand(()))

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(
    runs: Path, checkpoint: Path | None = None, callbacks: list[Any] | None = None, model: Any = Noisy, **arguments: Any
) -> Path:
    """Fit what ``model`` makes, once random numbers are seeded, in a folder of its own, which is returned."""
    seed_everything(0, verbose=False)
    logger = CSVLogger(runs, name="", version=new_version(runs) if os.environ.get("LOCAL_RANK", "0") == "0" else None)
    callbacks = [Checkpoint(1, keep_all=True)] if callbacks is None else callbacks
    settings = {"max_steps": 8, "val_check_interval": 2, "check_val_every_n_epoch": None, "log_every_n_steps": 1}
    trainer = Trainer(
        accelerator="cpu", logger=logger, callbacks=callbacks, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, **settings | arguments,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model(), datamodule=Numbers(), ckpt_path=checkpoint, weights_only=True)
    return Path(logger.log_dir)


def logged(run: Path) -> list[dict[str, str]]:
    """All that was logged, a row a time, without columns that are empty there."""
    if not (run / "metrics.csv").is_file():
        return []
    with (run / "metrics.csv").open() as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


def state(checkpoint: Path) -> dict[str, Any]:
    """What makes a run go on: weights, optimizer, schedules, position in the data and randomness, flattened."""
    content = torch.load(checkpoint, weights_only=True)
    others = ("callbacks", "loops", "pytorch-lightning_version", "version", "method")
    return _flat({key: value for key, value in content.items() if key not in others})


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of what differs."""
    assert one.keys() == other.keys()
    return [k for k, v in one.items() if not (torch.equal(v, other[k]) if torch.is_tensor(v) else v == other[k])]


def _flat(content: Any, name: str = "") -> dict[str, Any]:
    if isinstance(content, dict):
        return {k: v for key, value in content.items() for k, v in _flat(value, f"{name}.{key}").items()}
    if isinstance(content, list | tuple):
        return _flat(dict(enumerate(content)), name)
    return {name: content}
