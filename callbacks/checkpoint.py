"""Checkpoints of everything that a run is, while it goes on and of its very end."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning import LightningModule, Trainer, callbacks
from pytorch_lightning.trainer.states import TrainerFn

from callbacks.checkpoint_file import CheckpointFiles, link_whole, remove_leftovers
from callbacks.results import gathered

NUM_KEPT = 2
"""Checkpoints of a run that stay: the newest, and the one before it in case somebody damages that."""


class Checkpoint(callbacks.Checkpoint):
    """``checkpoints/step<k>.ckpt`` every so many steps and at the end of the run; ``last.ckpt`` is the newest of them.

    The two newest are kept; ``last.ckpt`` is a second name of one of them and takes no room. A resumed run has a folder
    of its own, and what an earlier one saved stays as it is. A validation that was interrupted is made up for.

    Args:
        every_n_train_steps: steps between checkpoints.
        keep_all: keep every one, not only the two newest.
    """

    def __init__(self, every_n_train_steps: int = 1000, keep_all: bool = False) -> None:
        if every_n_train_steps < 1:
            raise ValueError(f"every_n_train_steps is {every_n_train_steps}, expected at least 1 step")
        self.every_n_train_steps, self.keep_all = every_n_train_steps, keep_all
        # names by which Lightning and its loggers know the newest checkpoint
        self.last_model_path = self.best_model_path = ""
        self.current_score, self.save_top_k = None, -1 if keep_all else NUM_KEPT
        self.folder = Path()
        self._kept: list[Path] = []
        self._saved = (0, 0)
        self._step_seen = self._num_validations = 0
        self._has_validated = False
        self._max_steps: int | None = None
        self._random_states: list[dict[str, Any]] = []
        self._before_validation: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Have all checkpoints written and read by ``CheckpointFiles``, those of other callbacks too."""
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = CheckpointFiles()
        # every rank has to ask: they agree on it
        self.folder = Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints"

    def save_now(self, trainer: Trainer) -> bool:
        """Save the present state as ``step<k>.ckpt`` and ``last.ckpt``; every rank has to call it.

        It may be called in ``on_train_batch_end`` and anywhere in a validation, which the resumed run then repeats.

        Returns:
            Whether it was saved; between two batches whose gradients accumulate there is nothing to go on from.

        Raises:
            ValueError: on every rank, if the checkpoint cannot be written, or may not because it is not finite.
        """
        if trainer.fit_loop._should_accumulate():
            return False
        self._write(trainer)
        return True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take up the randomness that a checkpoint holds, when nothing before the first step draws any more."""
        self._step_seen, self._has_validated = trainer.global_step, False
        self._saved = self._progress(trainer)
        if trainer.ckpt_path is not None and trainer.is_global_zero:
            remove_leftovers(Path(trainer.ckpt_path).parent)
        if trainer.global_rank < len(self._random_states):
            _set_random_state(self._random_states[trainer.global_rank], pl_module.device)
        self._random_states = []
        self._before_validation = _random_state(pl_module.device)
        if self._max_steps is not None and not _is_validation_due(trainer):
            self._restore_max_steps(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._has_validated = False
        if _is_validation_due(trainer):
            self._before_validation = _random_state(pl_module.device)
        # the second of two batches whose gradients accumulate is the one with a step
        if trainer.global_step == self._step_seen or trainer.fast_dev_run:
            return
        self._step_seen = trainer.global_step
        if self._step_seen % self.every_n_train_steps == 0 or self._step_seen == trainer.max_steps:
            self.save_now(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore_max_steps(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._num_validations += 1
        self._has_validated = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save once more what was saved before validation, which may have chosen something."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        # not the step: validation may fall between two batches whose gradients accumulate
        if self._saved[0] == self._progress(trainer)[0] and not trainer.fast_dev_run:
            self.save_now(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what the run has come to."""
        if self._saved != self._progress(trainer) and not trainer.fast_dev_run:
            self._write(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the random states of all ranks, and whether a validation of this step is still to be made."""
        # by the trainer's own word, since other callbacks may save before this one hears that validation begins
        is_validating = trainer.state.fn == TrainerFn.FITTING and trainer.validating and not self._has_validated
        now = self._before_validation if is_validating else _random_state(pl_module.device)
        checkpoint["random_states"] = gathered(now)
        if trainer.state.fn == TrainerFn.FITTING:
            progress = trainer.fit_loop.epoch_loop.batch_progress.total
            is_batch_ending = progress.completed < progress.processed
            is_pending = is_validating or (is_batch_ending and _is_validation_due(trainer))
            checkpoint["is_validation_pending"] = is_pending
            loops = checkpoint["loops"]["fit_loop"]
            _mark_validation(loops, is_pending, is_validating)
            if is_batch_ending or trainer.validating:
                _mark_epoch(loops["epoch_progress"])

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the random states up later; see to it that the validation of a run's very last step is made."""
        self._random_states = checkpoint.get("random_states", [])
        is_over = 0 <= trainer.max_steps <= checkpoint["global_step"]
        if trainer.state.fn == TrainerFn.FITTING and is_over and checkpoint.get("is_validation_pending"):
            # Lightning does not begin a fit that has all its steps; the limit is put back before validation
            self._max_steps = trainer.max_steps
            trainer.fit_loop.epoch_loop.max_steps = checkpoint["global_step"] + 1

    def _write(self, trainer: Trainer) -> None:
        path, failure = self.folder / f"step{trainer.global_step}.ckpt", None
        try:
            trainer.save_checkpoint(path, weights_only=False)
        except ValueError as error:
            failure = str(error)
            # where only the first rank failed, the others wait for it
            trainer.strategy.barrier("Trainer.save_checkpoint")
        if trainer.is_global_zero and failure is None:
            try:
                link_whole(path, self.folder / "last.ckpt")
            except ValueError as error:
                failure = str(error)
        if (failure := trainer.strategy.broadcast(failure)) is not None:
            raise ValueError(failure)
        self._saved = self._progress(trainer)
        self.last_model_path = self.best_model_path = str(self.folder / "last.ckpt")
        self._kept = [*(kept for kept in self._kept if kept != path), path]
        if trainer.is_global_zero:
            while len(self._kept) > NUM_KEPT and not self.keep_all:
                self._kept.pop(0).unlink(missing_ok=True)
            for logger in trainer.loggers:
                logger.after_save_checkpoint(self)

    def _progress(self, trainer: Trainer) -> tuple[int, int]:
        return trainer.fit_loop.epoch_loop.batch_progress.total.processed, self._num_validations

    def _restore_max_steps(self, trainer: Trainer) -> None:
        if self._max_steps is not None:
            trainer.fit_loop.epoch_loop.max_steps, self._max_steps = self._max_steps, None


class BestCheckpoint(callbacks.ModelCheckpoint):
    """``checkpoints/best.ckpt``: the checkpoint of the best validation, also beyond a resumed run's own.

    Where no validation after the resumption is better, the best stays in the folder of the run that it is from.

    Args:
        monitor: name of the logged score.
        mode: whether the best score is the largest or the smallest.
    """

    def __init__(self, monitor: str, mode: str = "max") -> None:
        super().__init__(monitor=monitor, mode=mode, filename="best", enable_version_counter=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the best score although it belongs to another folder."""
        super().load_state_dict(state_dict | {"dirpath": self.dirpath})


def _is_validation_due(trainer: Trainer) -> bool:
    loop = trainer.fit_loop
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def _mark_validation(loops: dict[str, Any], is_pending: bool, is_running: bool) -> None:
    """Write into the state of Lightning's loops whether validation is to be made before the next batch.

    Lightning by itself forgets a validation that was due when the checkpoint was written, and goes on in the middle of
    one that was running, without what its first half came to.
    """
    batches, validated = loops["epoch_loop.batch_progress"], loops["epoch_loop.val_loop.batch_progress"]
    done = validated["total"]["completed"] - (validated["current"]["completed"] if is_running else 0)
    validated["total"] = dict.fromkeys(("ready", "started", "processed", "completed"), done)
    if is_pending:
        for counts in (batches["total"], batches["current"]):
            counts["completed"] = counts["processed"]
        # as if interrupted in its first batch
        validated["total"] |= {"ready": done + 1, "started": done + 1}
        validated["current"] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
        validated["is_last_batch"] = False


def _mark_epoch(progress: dict[str, Any]) -> None:
    """Write an epoch that is under way as one that was begun once and not ended.

    Lightning does not count the beginning of an epoch that a resumed run begins with, and would lose one at the next
    resumption.
    """
    epoch = progress["current"]["processed"]
    for counts in (progress["total"], progress["current"]):
        counts |= {"ready": epoch + 1, "started": epoch + 1, "processed": epoch, "completed": epoch}


def _random_state(device: torch.device) -> dict[str, Any]:
    """States of all global random generators, as what ``torch.load`` reads without running code."""
    name, keys, *rest = np.random.get_state()
    state = {
        "seed": torch.initial_seed(),
        "torch": torch.get_rng_state(),
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *rest],
        "python": random.getstate(),
    }
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def _set_random_state(state: dict[str, Any], device: torch.device) -> None:
    # whoever resumes with another seed wants other numbers
    if state["seed"] != torch.initial_seed():
        return
    torch.set_rng_state(state["torch"].cpu())
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
