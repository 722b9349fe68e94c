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

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take nothing over: a resumed run has a folder of its own, and what an earlier one saved stays as it is."""

    def save_now(self, trainer: Trainer) -> None:
        """Save ``last.ckpt`` as the run stands; every rank has to ask."""
        self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Save what the run has come to."""
        super().on_train_end(trainer, pl_module)
        if self._last_global_step_saved != trainer.global_step and not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
