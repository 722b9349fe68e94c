import logging

import pytest
from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities.rank_zero import rank_zero_info

from callbacks.checkpoint import Checkpoint
from callbacks.environment import COMMAND_VARIABLE
from callbacks.summary import Summary, resume_command
from tests.callbacks.toy import ToyMethod, loader, trainer


class ToyData(LightningDataModule):
    """Knows what it is."""

    def describe(self) -> str:
        return "toys: 4 training objects"

    def describe_batch(self) -> str:
        return "2 objects"

    def train_dataloader(self):
        return loader(4)

    val_dataloader = test_dataloader = train_dataloader


def test_a_fit_says_in_ten_lines_what_it_does_and_what_to_type_next(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(COMMAND_VARIABLE, "fit --config toys.yaml")
    run = trainer(tmp_path, [Summary(), Checkpoint()], max_steps=4, val_check_interval=2, check_val_every_n_epoch=None)
    run.fit(ToyMethod(), datamodule=ToyData())
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert len(lines) <= 10
    assert lines["method"] == "ToyMethod, 1 parameters; SGD, learning rate 0.1"
    assert lines["data"] == "toys: 4 training objects"
    assert lines["length"] == "4 steps of 2 objects; validation every 2"
    assert lines["device"].startswith("cpu, ")
    assert lines["folder"] == "run/test"
    assert lines["resume"] == "python main.py fit --config toys.yaml --ckpt_path last"
    assert lines["dashboard"] == "python -m callbacks.report run/test"
    assert lines["done"].startswith("step 4 after 0:00:0")
    assert lines["test"] == "python main.py test --ckpt_path run/test/checkpoints/last.ckpt"


def test_a_resumed_fit_and_a_test_name_their_checkpoint(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    method = ToyMethod()
    method.__dict__.pop("step")  # then the trainer's counts
    first = trainer(tmp_path, [], max_steps=2)
    first.fit(method, datamodule=ToyData())
    first.save_checkpoint("two.ckpt")
    trainer(tmp_path, [Summary()], max_steps=4).fit(method, datamodule=ToyData(), ckpt_path="two.ckpt")
    assert "continues  step 2 of two.ckpt" in capsys.readouterr().out
    tester = trainer(tmp_path, [Summary()])
    tester.test(method, datamodule=ToyData(), ckpt_path="two.ckpt", verbose=False)
    assert "weights    step" in capsys.readouterr().out


def test_without_a_logger_it_says_that_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = trainer(tmp_path / "unused", [Summary()], logger=False, max_steps=1, enable_checkpointing=False)
    run.fit(ToyMethod(), datamodule=ToyData())
    out = capsys.readouterr().out
    assert "nothing is written" in out
    assert "resume" not in out


def test_lightnings_own_remarks_are_left_out_and_ours_are_not(tmp_path):
    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    said, handler = [], Kept()
    logger = logging.getLogger("pytorch_lightning")
    logger.addHandler(handler)
    try:
        trainer(tmp_path, [Summary(), Summary()], max_steps=1).fit(ToyMethod(), datamodule=ToyData())
        rank_zero_info("statue: 81% of the rays meet the unit sphere")
    finally:
        logger.removeHandler(handler)
    assert said == ["statue: 81% of the rays meet the unit sphere"]


@pytest.mark.parametrize(
    "given",
    [
        ["fit", "--config", "a b.yaml"],
        ["fit", "--config", "a b.yaml", "--ckpt_path", "old.ckpt"],
        ["fit", "--ckpt_path=old.ckpt", "--config", "a b.yaml"],
    ],
)
def test_the_command_that_goes_on_can_be_pasted_into_a_shell(given):
    assert resume_command(given) == "python main.py fit --config 'a b.yaml' --ckpt_path last"
