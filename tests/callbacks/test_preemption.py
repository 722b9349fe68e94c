"""Signals at chosen moments of a run in this process; tests/test_slurm.py sends them to a real SLURM's jobs."""

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from callbacks.checkpoint import Checkpoint
from callbacks.preemption import Preemption
from callbacks.requeue import LEFT_EARLY
from tests.callbacks import toy


class Line(LightningModule):
    """A weight that remembers every batch it has seen, and how often it was validated at which step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))
        self.validated: list[tuple[int, int]] = []

    def training_step(self, batch, batch_idx):
        return (self.weight - batch).square().sum()

    def validation_step(self, batch, batch_idx):
        self.validated.append((self.global_step, batch_idx))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)


class SignalAt(Callback):
    """Sends SIGUSR1 to this process at one call of one hook."""

    def __init__(self, hook: str, step: int, batch: int = 0) -> None:
        self.step, self.batch = step, batch
        setattr(self, hook, self._send)

    def _send(self, trainer: Trainer, *arguments: Any) -> None:
        batch = arguments[-1] if isinstance(arguments[-1], int) else 0
        if trainer.global_step == self.step and batch == self.batch and not trainer.sanity_checking:
            os.kill(os.getpid(), signal.SIGUSR1)


def _fit(folder: Path, callbacks: list[Callback], checkpoint: Path | None = None, **kwargs: Any) -> Line:
    settings = {"max_steps": 10, "val_check_interval": 5, "check_val_every_n_epoch": None} | kwargs
    trainer = toy.trainer(folder, [Checkpoint(4), Preemption(), *callbacks], num_sanity_val_steps=0, **settings)
    model = Line()
    loaders = DataLoader(torch.ones(20, 2)), DataLoader(torch.zeros(3, 1))
    trainer.fit(model, *loaders, ckpt_path=checkpoint)
    return model


# when the signal comes; the step that is saved; whether a validation of that step has to begin again
MOMENTS = {
    "in a step": (SignalAt("on_train_batch_start", 3, 3), 4, False),
    "before a validation": (SignalAt("on_validation_start", 5), 5, True),
    "in a validation": (SignalAt("on_validation_batch_start", 5, 1), 5, True),
    "at the end of a validation": (SignalAt("on_validation_end", 5), 6, False),
    "in the last validation": (SignalAt("on_validation_batch_start", 10, 2), 10, True),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_asked_to_leave_saves_and_ends_as_the_straight_one(moment, tmp_path, caplog):
    sender, step, is_cut_off = MOMENTS[moment]
    straight = _fit(tmp_path / "straight", [])
    with pytest.raises(SystemExit) as stop:
        _fit(tmp_path / "asked", [sender])
    assert stop.value.code == LEFT_EARLY
    checkpoint = tmp_path / "asked/run/test/checkpoints/last.ckpt"
    assert torch.load(checkpoint, weights_only=True)["global_step"] == step
    with caplog.at_level("INFO"):
        resumed = _fit(tmp_path / "resumed", [], checkpoint)
    assert f"resumed from step {step} of {checkpoint}" in caplog.text
    assert torch.equal(resumed.weight, straight.weight)
    # all batches of a validation that was cut off again, and nothing else twice
    assert resumed.validated == [entry for entry in straight.validated if entry[0] > step - is_cut_off]
    last = torch.load(tmp_path / "resumed/run/test/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 10


def test_a_validation_at_the_end_of_an_epoch_begins_again_too(tmp_path):
    every_epoch = {"val_check_interval": 1.0, "check_val_every_n_epoch": 1, "limit_train_batches": 4}
    straight = _fit(tmp_path / "straight", [], **every_epoch)
    assert {step for step, _ in straight.validated} == {4, 8}
    with pytest.raises(SystemExit):
        _fit(tmp_path / "asked", [SignalAt("on_validation_batch_start", 4, 1)], **every_epoch)
    resumed = _fit(tmp_path / "resumed", [], tmp_path / "asked/run/test/checkpoints/last.ckpt", **every_epoch)
    assert resumed.validated == straight.validated
    assert torch.equal(resumed.weight, straight.weight)


def test_a_checkpoint_is_never_of_half_an_accumulated_step(tmp_path):
    twice = {"accumulate_grad_batches": 2, "val_check_interval": 20}
    straight = _fit(tmp_path / "straight", [], **twice)
    with pytest.raises(SystemExit):
        _fit(tmp_path / "asked", [SignalAt("on_train_batch_start", 3, 6)], **twice)
    checkpoint = tmp_path / "asked/run/test/checkpoints/last.ckpt"
    progress = torch.load(checkpoint, weights_only=True)["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    assert progress["total"]["processed"] == 8  # asked in the seventh batch, which is half of the fourth step
    resumed = _fit(tmp_path / "resumed", [], checkpoint, **twice)
    assert torch.equal(resumed.weight, straight.weight)


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """A stand-in for SLURM's program, which writes down what it is told and succeeds until told otherwise."""
    program = tmp_path / "bin/scontrol"
    program.parent.mkdir()
    told = tmp_path / "told.txt"
    program.write_text(f'#!/bin/sh\necho "$@" >> {told}\necho "it is over" >&2\nexit ${{REFUSE:-0}}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return told


@pytest.mark.parametrize(
    ("job", "name"), [({"JOB_ID": "77"}, "77"), ({"JOB_ID": "79", "ARRAY_JOB_ID": "77", "ARRAY_TASK_ID": "2"}, "77_2")]
)
def test_a_job_is_requeued_by_the_name_of_its_task(job, name, scontrol, tmp_path, monkeypatch, caplog):
    for key, value in job.items():
        monkeypatch.setenv(f"SLURM_{key}", value)
    with pytest.raises(SystemExit), caplog.at_level("INFO"):
        _fit(tmp_path, [SignalAt("on_train_batch_start", 3, 3)])
    assert scontrol.read_text() == f"requeue {name}\n"
    assert f"saved step 4; job {name} is in the queue again" in caplog.text
    recorded = json.loads((tmp_path / "run/test/environment.json").read_text())["slurm"]
    assert recorded["job_id"] == job["JOB_ID"]


def test_a_job_that_cannot_be_requeued_says_what_to_do(scontrol, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("REFUSE", "1")
    with pytest.raises(SystemExit) as stop, caplog.at_level("INFO"):
        _fit(tmp_path, [SignalAt("on_train_batch_start", 3, 3)])
    assert stop.value.code == LEFT_EARLY
    assert "scontrol requeue 77 failed: it is over; was the job submitted with --requeue?" in caplog.text


def test_signals_before_the_run_listens_wait_for_it(tmp_path):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})  # as main.py does under SLURM
    # not to the process: threads of earlier tests, which do not block it, would take it
    signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
    with pytest.raises(SystemExit):
        _fit(tmp_path, [])
    assert torch.load(tmp_path / "run/test/checkpoints/last.ckpt", weights_only=True)["global_step"] == 1
