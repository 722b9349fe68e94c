"""Checkpoints while a run goes on, and of its very end."""

from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint


class Checkpoint(ModelCheckpoint):
    """``checkpoints/last.ckpt`` every so many steps and at the end of the run.

    Lightning's own leaves the end out where the run's length is no multiple of the interval.

    Args:
        every_n_train_steps: steps between checkpoints.
        keep_all: keep every one beside last.ckpt, not only the newest.
    """

    def __init__(self, every_n_train_steps: int = 1000, keep_all: bool = False) -> None:
        super().__init__(
            filename="step{step}",
            auto_insert_metric_name=False,
            every_n_train_steps=every_n_train_steps,
            save_top_k=-1 if keep_all else 1,
            save_last=True,
        )
        self._is_cut_off = False
        self._end: int | None = None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take nothing over: a resumed run has a folder of its own, and what an earlier one saved stays as it is."""

    def save_now(self, trainer: Trainer) -> None:
        """Save ``last.ckpt`` as the run stands, on every rank; a validation that it is in has to begin again."""
        self._is_cut_off = trainer.validating
        self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let a validation that is cut off look as if its first batch had just been begun."""
        if self._is_cut_off:
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            progress |= {"total": begun, "current": begun, "is_last_batch": False}
            checkpoint["is_validation_pending"] = True

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let a run that was cut off in its last validation make up for it: Lightning would take it for done."""
        step = checkpoint["global_step"]
        if checkpoint.get("is_validation_pending") and step == trainer.max_steps:
            self._end, trainer.fit_loop.epoch_loop.max_steps = step, step + 1

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if self._end is not None:
            self._end, trainer.fit_loop.epoch_loop.max_steps = None, self._end

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Save what the run has come to."""
        super().on_train_end(trainer, pl_module)
        if self._last_global_step_saved != trainer.global_step and not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
