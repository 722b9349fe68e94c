"""What a command ran with, as ``environment.json`` beside what it wrote: versions, revision, hardware, command."""

import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from callbacks.results import results_folder, write_whole

ROOT = Path(__file__).parents[1]
PACKAGES = (
    "bottega", "torch", "pytorch-lightning", "torchmetrics", "jsonargparse", "numpy", "scipy", "numba", "triton",
    "trimesh", "pycolmap", "wandb",
)  # fmt: skip
COMMAND_VARIABLE = "BOTTEGA_COMMAND"
"""Environment variable in which main.py leaves its arguments, as a shell would read them."""


class Environment(Callback):
    """Writes ``environment.json`` into the folder of the command's results, before anything else happens there."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder = results_folder(trainer)
        if folder is not None and trainer.is_global_zero:
            facts = environment() | {"num_processes": trainer.world_size, "continues": None}
            add_facts(folder / "environment.json", facts, is_new=True)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._continue(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._continue(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._continue(trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._continue(trainer)

    def _continue(self, trainer: Trainer) -> None:
        # Lightning names the checkpoint only once it has been read
        folder = results_folder(trainer)
        if folder is not None and trainer.is_global_zero and trainer.ckpt_path is not None:
            add_facts(folder / "environment.json", {"continues": str(trainer.ckpt_path)})


def add_facts(path: Path, facts: dict[str, Any], is_new: bool = False) -> dict[str, Any]:
    """Write facts into an ``environment.json``, beside those that it has unless it is to be new; returns all."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() and not is_new else {}
    write_whole(path, json.dumps(known | facts, indent=2) + "\n")
    return known | facts


def environment() -> dict[str, Any]:
    """All that is known of this process without a trainer, fit for JSON."""
    revision, is_dirty = git_state(ROOT)
    return {
        "command": ["python", "main.py", *main_arguments()],
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "versions": {name: found for name in PACKAGES if (found := _version(name)) is not None},
        "git_revision": revision,
        "git_dirty": is_dirty,
        "hardware": hardware(),
        "python": platform.python_version(),
        "slurm": slurm_job(),
    }


def main_arguments() -> list[str]:
    """Arguments of main.py, of this process's command line where main.py left none."""
    return shlex.split(os.environ[COMMAND_VARIABLE]) if COMMAND_VARIABLE in os.environ else sys.argv[1:]


def git_state(folder: Path) -> tuple[str | None, bool | None]:
    """Commit of the checkout and whether tracked files differ from it; ``None`` where the folder is no checkout."""
    try:
        top, revision = _git(folder, "rev-parse", "--show-toplevel", "HEAD").splitlines()
        if Path(top).resolve() != folder.resolve():
            return None, None  # a checkout of something else around us
        return revision, bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, ValueError, subprocess.SubprocessError):
        return None, None


def hardware() -> dict[str, Any]:
    """Machine, processor, cores that this process may use, memory in GiB, and GPUs."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "host": platform.node(),
        "system": platform.platform(),
        "cpu": _cpu(),
        "cores": cores,
        "memory_gib": None if memory is None else round(memory / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())],
    }


def slurm_job() -> dict[str, Any] | None:
    """The SLURM job that this process is part of."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return None
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    return {
        "job_id": job,
        "restart_count": int(os.environ.get("SLURM_RESTART_COUNT", 0)),
        "array_task_id": None if task is None else int(task),
    }


def _cpu() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=20
    )
    return done.stdout
