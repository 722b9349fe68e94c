"""A run that is asked to leave: it saves, puts its SLURM job back into the queue, and stops.

The signal is noted and nothing else: whatever waits for other processes inside a signal handler may wait forever, since
they may be inside a collective. The ranks agree at safe points, where all of them are at the same place: after an
optimizer step, before a validation, and after each of its batches.
"""

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.rank_zero import rank_zero_info

from callbacks.requeue import LEFT_EARLY, requeue
from callbacks.results import results_folder, write_whole


class Preemption(Callback):
    """Saves ``checkpoints/last.ckpt`` at SIGUSR1, requeues the SLURM job and ends with exit status 75.

    Without SLURM it saves and ends. ``sbatch --signal=SIGUSR1@120`` sends the signal 120 seconds before the time limit:
    longer than the longest batch of validation, and what saving takes. Commands other than ``fit`` have nothing to save
    and go on.

    Args:
        every_seconds: About the time between two agreements of the ranks while they train, each an all-reduce of two
            numbers. One process alone agrees with itself at every step.
    """

    def __init__(self, every_seconds: float = 1.0) -> None:
        self.every_seconds = every_seconds
        self.is_asked = False
        self._last_step = self._next_step = 0
        self._last_time = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listen from here on; main.py has held the signal back until now."""
        folder = results_folder(trainer)
        if stage != "fit" or not _savers(trainer):
            return
        if folder is not None and trainer.is_global_zero:
            _record_job(folder / "environment.json")
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGUSR1, self._note)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Say where a resumed run goes on."""
        if trainer.state.fn == "fit":
            rank_zero_info(f"resumed from step {checkpoint['global_step']} of {trainer.ckpt_path}")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_step = self._next_step = trainer.global_step
        self._last_time = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Agree after an optimizer step; between two, gradients accumulate that no checkpoint holds."""
        step = trainer.global_step
        if step == self._last_step or step < self._next_step:
            return
        seconds = (time.monotonic() - self._last_time) / (step - self._last_step)
        is_asked, slowest = self._agreed(trainer, seconds)
        if is_asked:
            self._leave(trainer)
        self._last_step, self._last_time = step, time.monotonic()
        self._next_step = step + max(1, int(self.every_seconds / slowest)) if trainer.world_size > 1 else step

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._leave_validation(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Agree; the checkpoint knows that this validation has to begin again."""
        self._leave_validation(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop listening."""
        if signal.getsignal(signal.SIGUSR1) == self._note:
            signal.signal(signal.SIGUSR1, signal.SIG_DFL)

    def _note(self, *_: Any) -> None:
        self.is_asked = True

    def _agreed(self, trainer: Trainer, seconds: float = 0.0) -> tuple[bool, float]:
        """Whether any rank was asked to leave, and the slowest rank's number."""
        if trainer.world_size == 1:
            return self.is_asked, seconds
        own = torch.tensor([float(self.is_asked), seconds], device=trainer.strategy.root_device)
        is_asked, slowest = trainer.strategy.reduce(own, reduce_op="max").tolist()
        return bool(is_asked), slowest

    def _leave_validation(self, trainer: Trainer) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking and self._agreed(trainer)[0]:
            self._leave(trainer)

    def _leave(self, trainer: Trainer) -> None:
        for saver in _savers(trainer):
            saver.save_now(trainer)
        if not trainer.validating:  # Lightning would log this step only now
            trainer._logger_connector.update_train_step_metrics()
        # SLURM ends a job that it requeues; from here on it ends by itself, and at once
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        status = 0
        if trainer.is_global_zero:
            status = LEFT_EARLY
            for logger in trainer.loggers:
                logger.save()
            rank_zero_info(f"SIGUSR1: saved step {trainer.global_step}; {requeue()}")
        # a process that fails takes the others with it, so only the first one does, after all have saved
        trainer.strategy.barrier("Preemption")
        raise SystemExit(status)


def _savers(trainer: Trainer) -> list[Any]:
    return [callback for callback in trainer.checkpoint_callbacks if hasattr(callback, "save_now")]


def _record_job(path: Path) -> None:
    """Whose run this is, for one that resumes, where nothing else has said so."""
    if "SLURM_JOB_ID" in os.environ and not path.exists():
        names = {"job_id": "JOB_ID", "restart_count": "RESTART_COUNT", "array_task_id": "ARRAY_TASK_ID"}
        job = {key: os.environ.get(f"SLURM_{name}") for key, name in names.items()}
        write_whole(path, json.dumps({"slurm": job}) + "\n")
