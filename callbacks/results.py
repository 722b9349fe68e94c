"""Where a run's results go, what their files are called and how they get there whole."""

import os
import re
import uuid
from pathlib import Path
from typing import Any

import torch.distributed
from pytorch_lightning import LightningModule, Trainer


def results_folder(trainer: Trainer) -> Path | None:
    """The folder of the first logger; ``None`` in a fast dev run or without loggers, when nothing may be written.

    Every rank has to ask, because the ranks agree on it.
    """
    folder = trainer.log_dir
    return Path(folder) if folder and trainer.loggers and not trainer.fast_dev_run else None


def training_steps(trainer: Trainer, pl_module: LightningModule) -> int:
    """Optimizer steps behind the weights; the module's own ``step``, as the trainer's is 0 after loading to test."""
    return int(getattr(pl_module, "step", trainer.global_step))


def file_name(object_id: str) -> str:
    """An object's name as part of a file name on any system: letters, digits, ``.``, ``_`` and ``-``."""
    # 150: most file systems end at 255 bytes, and a stage, a suffix and an extension join it
    return re.sub(r"[^A-Za-z0-9._-]+", "_", object_id).lstrip(".")[:150] or "object"


def object_ids(batch: dict[str, Any]) -> list[str]:
    """Names of a batch's objects, their index in the split where the dataset has no names."""
    return list(batch.get("object_id", [str(index) for index in batch["object_index"].tolist()]))


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file so that at any moment it is the old one or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:100]}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def gathered(value: Any) -> list[Any]:
    """The value of every rank, in the order of ranks; every rank has to ask."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values
