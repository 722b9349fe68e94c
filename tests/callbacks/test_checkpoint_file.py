"""What is written to disk as a checkpoint, what happens where it cannot be, and what is refused as one."""

import errno
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Trainer

from callbacks import checkpoint_file
from callbacks.checkpoint import Checkpoint
from callbacks.checkpoint_file import CheckpointFiles, link_whole, remove_leftovers
from tests.toy_run import fit


def _content(step: int = 1, size: int = 1000) -> dict:
    return {"state_dict": {"weight": torch.full((size,), float(step))}, "global_step": step}


@pytest.fixture
def run(tmp_path) -> Path:
    """The folder of checkpoints of a run: step 1, step 2, and last.ckpt, which is step 2."""
    folder = tmp_path / "runs/it/version_0/checkpoints"
    for step in (1, 2):
        CheckpointFiles().save_checkpoint(_content(step), folder / f"step{step}.ckpt")
        os.utime(folder / f"step{step}.ckpt", (step, step))
    link_whole(folder / "step2.ckpt", folder / "last.ckpt")
    return folder


def test_a_checkpoint_cut_off_is_named_and_the_one_before_it_is_offered(run):
    for size in (1500, 100, 0, 100):
        os.truncate(run / "last.ckpt", size)
        message = rf"last\.ckpt: it is incomplete, {size:,} bytes long.*--ckpt_path {run}/step1\.ckpt$"
        with pytest.raises(ValueError, match=message):
            CheckpointFiles().load_checkpoint(run / "last.ckpt")
    (run / "step1.ckpt").unlink()
    with pytest.raises(ValueError, match="there is no other checkpoint in or beside"):
        CheckpointFiles().load_checkpoint(run / "last.ckpt")
    # that of an earlier version of the run, where this one has no other
    other = run.parents[1] / "version_1/checkpoints/step7.ckpt"
    CheckpointFiles().save_checkpoint(_content(7), other)
    with pytest.raises(ValueError, match=rf"--ckpt_path {other}$"):
        CheckpointFiles().load_checkpoint(run / "last.ckpt")


def test_what_is_no_checkpoint_is_refused_with_what_it_is(run, tmp_path):
    path = run / "other.ckpt"
    path.write_text("model:\n  class_path: x\n")
    with pytest.raises(ValueError, match=r"it is no checkpoint, it begins with b'mode'"):
        CheckpointFiles().load_checkpoint(path)
    torch.save({"conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"no state_dict and no global_step.*somebody else's"):
        CheckpointFiles().load_checkpoint(path)
    path.unlink()
    with pytest.raises(ValueError, match=r"lost\.ckpt: no such file; a whole one is .*step2\.ckpt"):
        CheckpointFiles().load_checkpoint(run / "lost.ckpt")
    shutil.copy(run / "step1.ckpt", path)
    with path.open("r+b") as file:
        file.seek(64)
        file.write(b"x" * 600)
    with pytest.raises(ValueError, match="it is damaged"):
        CheckpointFiles().load_checkpoint(path)


class Code:
    def __reduce__(self):
        return os.mkdir, ("made_by_a_checkpoint",)


def test_code_in_a_checkpoint_is_not_run_even_if_somebody_asks_for_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(_content() | {"more": Code()}, "code.ckpt")
    with pytest.raises(ValueError, match=r"holds more than weights and numbers.*so it is not read"):
        CheckpointFiles().load_checkpoint("code.ckpt", weights_only=False)
    assert not Path("made_by_a_checkpoint").exists()


def test_a_full_disk_is_named_with_the_room_it_takes_and_costs_no_checkpoint(run):
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        message = (
            r"step3\.ckpt could not be written \(File too large\); it takes 4\.0 MB, and .*checkpoints has .* MB free; "
            r"the last good checkpoint is .*step2\.ckpt"
        )
        with pytest.raises(ValueError, match=message):
            CheckpointFiles().save_checkpoint(_content(3, 1_000_000), run / "step3.ckpt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_run_on_a_full_disk_ends_with_that_error_and_its_last_checkpoint(tmp_path, monkeypatch):
    save = torch.save

    def save_until_full(content, file):
        if content["global_step"] > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(content, file)

    monkeypatch.setattr(checkpoint_file.torch, "save", save_until_full)
    with pytest.raises(ValueError, match=r"step4\.ckpt could not be written \(No space left on device\).*step3\.ckpt"):
        fit(tmp_path, callbacks=[Checkpoint(1)])
    assert CheckpointFiles().load_checkpoint(tmp_path / "version_0/checkpoints/last.ckpt")["global_step"] == 3


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"step1\.ckpt could not be written \(Not a directory\).*no checkpoint was"):
        CheckpointFiles().save_checkpoint(_content(), tmp_path / "file/checkpoints/step1.ckpt")


def test_leftovers_of_killed_writes_go_but_what_is_being_written_stays(run):
    (run / ".step9.ckpt.0.tmp").write_bytes(b"killed")
    with (run / ".step8.ckpt.1.tmp").open("wb") as file:
        checkpoint_file._claim(file.fileno())
        # another process, as locks are told apart by opened files
        remove_leftovers(run)
        assert [path.name for path in run.glob(".*")] == [".step8.ckpt.1.tmp"]
    CheckpointFiles().save_checkpoint(_content(3), run / "step3.ckpt")
    assert list(run.glob(".*")) == []


def test_where_files_have_one_name_only_the_last_checkpoint_is_a_copy(run, monkeypatch):
    def no_links(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    link_whole(run / "step1.ckpt", run / "last.ckpt")
    assert not (run / "last.ckpt").samefile(run / "step1.ckpt")
    assert CheckpointFiles().load_checkpoint(run / "last.ckpt")["global_step"] == 1
    link_whole(run / "step2.ckpt", run / "last.ckpt")
    assert list(run.glob(".*")) == []


def test_a_name_that_is_there_already_is_linked_again_without_leftovers(run):
    link_whole(run / "step2.ckpt", run / "last.ckpt")
    assert sorted(path.name for path in run.iterdir()) == ["last.ckpt", "step1.ckpt", "step2.ckpt"]


def test_every_way_to_load_a_checkpoint_refuses_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = fit(tmp_path / "runs", max_steps=1)
    content = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    torch.save(content | {"more": Code()}, "code.ckpt")
    from tests.toy_run import Noisy, Numbers

    for verb in ("fit", "validate"):
        trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[Checkpoint()])
        with pytest.raises(ValueError, match="so it is not read"):
            getattr(trainer, verb)(Noisy(), datamodule=Numbers(), ckpt_path="code.ckpt", weights_only=False)
    assert not Path("made_by_a_checkpoint").exists()
