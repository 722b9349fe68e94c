"""A callback that tells its own run to stop, at a moment that a test chooses."""

import os
import signal
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer


class Interrupt(Callback):
    """Sends SIGTERM to this process in a step, or in the first batch of the validation after it.

    Args:
        step: that step; none for 0.
        in_validation: whether validation is awaited.
    """

    def __init__(self, step: int = 0, in_validation: bool = False) -> None:
        self.step, self.in_validation = step, in_validation

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step + 1 == self.step and not self.in_validation:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self.step and self.in_validation:
            os.kill(os.getpid(), signal.SIGTERM)
