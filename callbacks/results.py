"""Where a run's results go, and what the ranks know of them."""

from pathlib import Path
from typing import Any

import torch.distributed
from pytorch_lightning import LightningModule, Trainer

from callbacks.files import file_name, write_whole

__all__ = ["file_name", "gathered", "object_ids", "results_folder", "training_steps", "write_whole"]


def results_folder(trainer: Trainer) -> Path | None:
    """The folder of the first logger; ``None`` in a fast dev run or without loggers, when nothing may be written.

    Every rank has to ask, because the ranks agree on it.
    """
    folder = trainer.log_dir
    return Path(folder) if folder and trainer.loggers and not trainer.fast_dev_run else None


def training_steps(trainer: Trainer, pl_module: LightningModule) -> int:
    """Optimizer steps behind the weights; the module's own ``step``, as the trainer's is 0 after loading to test."""
    return int(getattr(pl_module, "step", trainer.global_step))


def object_ids(batch: dict[str, Any]) -> list[str]:
    """Names of a batch's objects, their index in the split where the dataset has no names."""
    return list(batch.get("object_id", [str(index) for index in batch["object_index"].tolist()]))


def gathered(value: Any) -> list[Any]:
    """The value of every rank, in the order of ranks; every rank has to ask."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values
