"""When checkpoints are written, and that a run that goes on from one is the run that was left alone."""

import shutil

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from torch.utils.data import DataLoader

from callbacks.checkpoint import BestCheckpoint, Checkpoint
from tests.toy_run import Noisy, differing, fit, logged, state


class Line(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        return (self.weight - batch).square().sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("keep_all", [False, True])
@pytest.mark.parametrize("max_steps", [3, 10, 11])
def test_last_checkpoint_is_that_of_the_last_step_and_the_one_before_it_stays(tmp_path, max_steps, keep_all):
    trainer = Trainer(
        max_steps=max_steps, accelerator="cpu", logger=False, default_root_dir=tmp_path, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Checkpoint(every_n_train_steps=4, keep_all=keep_all)],
    )  # fmt: skip
    trainer.fit(Line(), DataLoader(torch.ones(100, 1)))
    saved = {path.name: torch.load(path, weights_only=True)["global_step"] for path in tmp_path.glob("**/*.ckpt")}
    assert saved.pop("last.ckpt") == max_steps
    written = [step for step in (4, 8) if step < max_steps] + [max_steps]
    assert saved == {f"step{step}.ckpt": step for step in (written if keep_all else written[-2:])}
    folder = tmp_path / "checkpoints"
    assert (folder / "last.ckpt").samefile(folder / f"step{max_steps}.ckpt")  # takes no room


class KeepEveryState(Checkpoint):
    """Keeps what a later save of the same step replaces: the checkpoint from before a validation."""

    def _write(self, trainer: Trainer) -> None:
        super()._write(trainer)
        when = "in" if trainer.validating and not self._has_validated else f"after_{self._num_validations}"
        path = self.folder / f"step{trainer.global_step}.ckpt"
        shutil.copy(path, self.folder / f"state{trainer.global_step}_{when}_validations.ckpt")


class SaveInValidation(Callback):
    """Saves when some validations begin and in the middle of others, as somebody does who is told that time is up."""

    def on_validation_start(self, trainer, pl_module):
        if trainer.global_step % 4 != 0:
            trainer.checkpoint_callback.save_now(trainer)

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 1 and trainer.global_step % 4 == 0:
            trainer.checkpoint_callback.save_now(trainer)


SCHEDULES = {
    "validation within and at the end of epochs": {},
    "validation at the end of epochs": {"val_check_interval": 3, "check_val_every_n_epoch": 1, "max_steps": 6},
    "gradients that accumulate": {"accumulate_grad_batches": 2, "val_check_interval": 4},
    "no validation": {"limit_val_batches": 0, "max_steps": 5},
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_run_resumed_from_any_state_goes_on_as_the_straight_one(tmp_path, name):
    arguments = SCHEDULES[name]
    straight = fit(tmp_path / "straight", callbacks=[Checkpoint(1)], **arguments)
    stopped = fit(tmp_path / "stopped", callbacks=[SaveInValidation(), KeepEveryState(1, True)], **arguments)
    rows, end = logged(straight), state(straight / "checkpoints/last.ckpt")
    checkpoints = sorted((stopped / "checkpoints").glob("state*"))
    assert len({checkpoint.name[:6] for checkpoint in checkpoints}) == arguments.get("max_steps", 8)
    for checkpoint in checkpoints:
        resumed = fit(tmp_path / checkpoint.stem, checkpoint, [Checkpoint(1)], **arguments)
        if not (resumed / "checkpoints/last.ckpt").is_file():  # there was nothing left to do
            assert state(checkpoint)[".global_step"] == end[".global_step"]
            continue
        assert differing(state(resumed / "checkpoints/last.ckpt"), end) == [], checkpoint.name
        step, is_pending = (
            torch.load(checkpoint, weights_only=True)[k] for k in ("global_step", "is_validation_pending")
        )
        later = logged(resumed)
        assert later == rows[-len(later) :], checkpoint.name
        # losses of all later steps, and every validation that was not made yet, once
        if "gradients" not in name:
            assert len(later) == sum(int(row["step"]) >= step for row in rows) + is_pending, checkpoint.name


def test_the_validation_of_the_last_step_is_made_up_for(tmp_path):
    stopped = fit(tmp_path / "stopped", callbacks=[KeepEveryState(1, True)])
    resumed = fit(tmp_path / "resumed", stopped / "checkpoints/state8_after_3_validations.ckpt")
    assert logged(resumed) == logged(stopped)[-1:]
    assert "val/score" in logged(resumed)[0]
    # nobody trains longer for it, also where nobody validates any more
    resumed = fit(
        tmp_path / "unvalidated", stopped / "checkpoints/state8_after_3_validations.ckpt", limit_val_batches=0
    )
    assert logged(resumed) == []
    assert not list(resumed.glob("checkpoints/step9*"))


def test_another_seed_on_resuming_is_not_overruled_by_the_checkpoint(tmp_path, monkeypatch):
    first = fit(tmp_path, max_steps=2)
    drawn = []
    monkeypatch.setattr(Noisy, "on_train_start", lambda self: drawn.append(torch.rand(()).item()))
    import tests.toy_run as toy_run

    for seed in (0, 0, 1):
        monkeypatch.setattr(toy_run, "seed_everything", lambda *_, seed=seed, **__: torch.manual_seed(seed))
        fit(tmp_path, first / "checkpoints/last.ckpt", max_steps=3)
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_best_score_outlives_a_resumption(tmp_path, monkeypatch):
    scores = iter([0.5, 0.9, 0.7, 0.8])
    monkeypatch.setattr(Noisy, "validation_step", lambda self, batch, i: None)
    monkeypatch.setattr(Noisy, "on_validation_epoch_end", lambda self: self.log("val/iou", next(scores)))
    callbacks = [BestCheckpoint("val/iou"), Checkpoint(1, keep_all=True)]
    first = fit(tmp_path, callbacks=callbacks, max_steps=4)
    assert torch.load(first / "checkpoints/best.ckpt", weights_only=True)["global_step"] == 4
    callbacks = [BestCheckpoint("val/iou"), Checkpoint(1, keep_all=True)]
    second = fit(tmp_path, first / "checkpoints/last.ckpt", callbacks, max_steps=8)
    assert not (second / "checkpoints/best.ckpt").exists()  # 0.7 and 0.8 are worse than what the first run had
    assert (first / "checkpoints/best.ckpt").exists()
    assert callbacks[0].best_model_score == pytest.approx(0.9)


def test_an_interval_of_no_steps_is_refused():
    with pytest.raises(ValueError, match="every_n_train_steps is 0, expected at least 1"):
        Checkpoint(0)
