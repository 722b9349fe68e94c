"""Folders of runs, ``<run_root>/<run_name>/version_<n>/``: finding, making and describing them."""

import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any


def newest_checkpoint(folder: Path) -> Path:
    """The last checkpoint of the newest run below a folder; a ``ValueError`` where there is none."""
    found = sorted(folder.glob("**/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ValueError(
            f"no run below {folder}/ has a checkpoint (looked for **/checkpoints/last.ckpt); "
            "run `python main.py fit --config configs/<experiment>.yaml` first or give --ckpt_path"
        )
    return found[-1]


def run_of(checkpoint: str | Path) -> Path | None:
    """The folder of the run that a checkpoint lies in, if it lies in one."""
    folder = Path(checkpoint).parent.parent
    return folder if (folder / "config.yaml").is_file() else None


def new_version(runs: Path) -> int:
    """Make the next folder ``version_<n>`` for a run, and no other process gets the same n.

    Raises:
        ValueError: it cannot be made.
    """
    writable(runs)
    taken = [int(path.name[8:]) for path in runs.glob("version_*") if path.name[8:].isdigit()]
    version = max(taken, default=-1) + 1
    while True:
        try:
            (runs / f"version_{version}").mkdir()
            return version
        except FileExistsError:
            version += 1


def writable(folder: Path) -> Path:
    """The folder, made where it is not there.

    Raises:
        ValueError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{uuid.uuid4().hex}.tmp"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"{folder}/ cannot be written to ({error.strerror}); choose another place for runs with --run_root"
        ) from error
    return folder


def is_first_process() -> bool:
    """Whether this is the one process among those of a run that makes folders, by what its starter has told it."""
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "NODE_RANK", "GROUP_RANK")
    return all(os.environ.get(name, "0") == "0" for name in names)


def place_loggers(loggers: Any, folder: Path, version: str | None) -> None:
    """Send every logger of the config to ``folder`` and there to ``version``, or to the next free one."""
    for logger in loggers if isinstance(loggers, list) else []:
        is_wandb = "name" in logger.init_args and "project" in logger.init_args
        logger.init_args.name = folder.name
        logger.init_args.save_dir = str(folder if is_wandb else folder.parent)
        logger.init_args.version = None if is_wandb else version  # W&B's version is the identity of its run


def remove_if_empty(loggers: Any) -> None:
    """Remove the folders that ``place_loggers`` sent loggers to, where there is nothing in them."""
    for logger in loggers if isinstance(loggers, list) else []:
        folder = Path(logger.init_args.save_dir, logger.init_args.name, f"version_{logger.init_args.version}")
        with suppress(OSError):  # it is not empty, or there is none
            folder.rmdir()


def changed_settings(trained: Any, given: Any, key: str) -> list[str]:
    """Where two configurations differ, one line a key: what it is now and what it was in training."""
    if isinstance(trained, dict) and isinstance(given, dict):
        names = [name for name in trained if name in given]
        return [line for name in names for line in changed_settings(trained[name], given[name], f"{key}.{name}")]
    return [] if trained == given else [f"{key} is {given}, but was {trained}"]
