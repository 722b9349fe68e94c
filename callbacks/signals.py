"""A run that is told to stop saves where it stands, says so, and ends with the status that shells expect."""

import signal
import sys
from types import FrameType
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from callbacks.checkpoint import Checkpoint

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopOnSignal(Callback):
    """Ends a fit at SIGTERM or SIGINT (Ctrl-C) after the step it is in, with a checkpoint of it.

    Processes that train together agree on the step, whichever of them was told, at the price of one number a step. A
    validation is left at once by a process that trains alone, else after its batch; the resumed run makes it anew.
    Other commands end at once. The exit status is 143 after SIGTERM, 130 after SIGINT; a second SIGINT does not wait.
    """

    def __init__(self) -> None:
        self._received = self._step_seen = 0
        self._is_training = self._may_leave = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._listen()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_training, self._step_seen = True, trainer.global_step
        self._listen()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        # between two batches whose gradients accumulate there is nothing to go on from
        if trainer.global_step != self._step_seen:
            self._step_seen = trainer.global_step
            self._stop_if_told(trainer, is_step_logged=False)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._is_training:
            self._listen()
            return
        self._may_leave = trainer.world_size == 1
        self._stop_if_told(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self._is_training:
            self._stop_if_told(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._may_leave = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, _Left):
            self._save(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._is_training = False

    def _listen(self) -> None:
        # in the place of Lightning, whose handler lets processes wait for each other for good, and which puts back what
        # was there before when a command ends
        for number in SIGNALS:
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        is_again = self._received == number == signal.SIGINT
        self._received = number
        if not self._is_training or is_again:
            print(f"stopped by {signal.Signals(number).name}", file=sys.stderr)
            raise SystemExit(128 + number)
        if self._may_leave:
            raise _Left(128 + number)
        print(f"{signal.Signals(number).name}: stopping after this step", file=sys.stderr)

    def _stop_if_told(self, trainer: Trainer, is_step_logged: bool = True) -> None:
        number = self._received
        if trainer.world_size > 1:
            told = torch.tensor(number, device=trainer.strategy.root_device)
            number = self._received = int(trainer.strategy.reduce(told, reduce_op="max"))
        if number:
            self._save(trainer)
            if not is_step_logged:  # Lightning would only now
                trainer._logger_connector.update_train_step_metrics()
            # the first process ends by itself, and would be killed if one that it started seemed to have failed
            is_started_by_first = not trainer.is_global_zero and trainer.strategy.launcher is not None
            raise SystemExit(0 if is_started_by_first else 128 + number)

    def _save(self, trainer: Trainer) -> None:
        saver = next((saver for saver in trainer.checkpoint_callbacks if isinstance(saver, Checkpoint)), None)
        saved = "without a checkpoint, as those are switched off"
        if saver is not None and not trainer.fast_dev_run:
            is_saved = saver.save_now(trainer)
            saved = "saved as" if is_saved else "and the last checkpoint is"
            saved = f"{saved} {saver.last_model_path}; the same command with --ckpt_path last goes on from there"
        if trainer.is_global_zero:
            name = signal.Signals(self._received).name
            print(f"stopped by {name} at step {trainer.global_step}, {saved}", file=sys.stderr)


class _Left(SystemExit):
    """Raised in the middle of a validation."""
