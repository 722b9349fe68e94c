import json
import subprocess
from pathlib import Path

import pytest
import torch

from callbacks.environment import COMMAND_VARIABLE, Environment, environment, git_state, slurm_job
from tests.callbacks.toy import ToyMethod, loader, trainer


def test_the_folder_of_a_run_says_what_it_ran_with(tmp_path, monkeypatch):
    monkeypatch.setenv(COMMAND_VARIABLE, "fit --config 'my config.yaml'")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    run = trainer(tmp_path, [Environment()], max_steps=1)
    monkeypatch.delenv("SLURM_JOB_ID")
    method = ToyMethod()
    run.fit(method, loader(2))
    facts = json.loads((tmp_path / "run/test/environment.json").read_text())
    assert facts["command"] == ["python", "main.py", "fit", "--config", "my config.yaml"]
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["hardware"]["cores"] >= 1
    assert facts["slurm"] is None
    assert facts["continues"] is None

    run.save_checkpoint(tmp_path / "a.ckpt")
    trainer(tmp_path, [Environment()], max_steps=2).fit(method, loader(2), ckpt_path=tmp_path / "a.ckpt")
    facts = json.loads((tmp_path / "run/test/environment.json").read_text())
    assert facts["continues"] == str(tmp_path / "a.ckpt")


def test_a_slurm_job_is_named_with_its_restarts_and_its_place_in_an_array(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert slurm_job() == {"job_id": "12", "restart_count": 0, "array_task_id": None}
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7")
    assert environment()["slurm"] == {"job_id": "12", "restart_count": 3, "array_task_id": 7}


def test_the_revision_is_that_of_the_checkout_itself_and_says_whether_it_was_changed(tmp_path):
    def git(*arguments: str) -> None:
        subprocess.run(["git", "-C", tmp_path, *arguments], check=True, capture_output=True)

    assert git_state(tmp_path) == (None, None)
    git("init")
    (tmp_path / "file").write_text("a")
    git("add", "file")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-m", "a")
    revision, is_dirty = git_state(tmp_path)
    assert len(revision) == 40
    assert is_dirty is False
    (tmp_path / "file").write_text("b")
    assert git_state(tmp_path) == (revision, True)
    # a folder in somebody's checkout has no revision of its own
    (tmp_path / "inner").mkdir()
    assert git_state(tmp_path / "inner") == (None, None)


@pytest.mark.parametrize("kwargs", [{"logger": False}, {"fast_dev_run": True}])
def test_nothing_is_written_where_there_is_no_run(tmp_path, monkeypatch, kwargs):
    monkeypatch.chdir(tmp_path)
    trainer(tmp_path / "unused", [Environment()], max_steps=1, **kwargs).fit(ToyMethod(), loader(2))
    assert not list(Path(tmp_path).rglob("environment.json"))
