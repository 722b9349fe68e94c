import json
import os
import threading
import time
from pathlib import Path

import pytest

from launch import cluster


@pytest.fixture(autouse=True)
def _no_slurm(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("SLURM_", "LOCAL_RANK", "BOTTEGA_"))]:
        monkeypatch.delenv(name)


def _run(runs: Path, version: int, job: str | None, age: float) -> str:
    """A run with a checkpoint that is ``age`` seconds old."""
    folder = runs / f"version_{version}"
    checkpoint = folder / "checkpoints/last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    os.utime(checkpoint, (time.time() - age,) * 2)
    if job is not None:
        (folder / "environment.json").write_text(json.dumps({"slurm": {"job_id": job}}))
    return str(checkpoint)


def test_a_job_goes_on_with_its_own_newest_checkpoint_only(tmp_path, monkeypatch, capsys):
    first, second = _run(tmp_path, 0, "7", 30), _run(tmp_path, 1, "7", 20)
    other = _run(tmp_path, 2, "8", 10)
    unknown = _run(tmp_path, 3, None, 5)
    (tmp_path / "version_4").mkdir()
    (tmp_path / "version_4/environment.json").write_text('{"slurm": null}')
    assert first != second
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert cluster.own_checkpoint(tmp_path) == second
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert cluster.own_checkpoint(tmp_path) == other
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    assert cluster.own_checkpoint(tmp_path) is None
    assert f"no checkpoint of job 9 below {tmp_path}/; starting at step 0" in capsys.readouterr().out
    monkeypatch.delenv("SLURM_JOB_ID")
    assert cluster.own_checkpoint(tmp_path) == unknown


@pytest.mark.parametrize("choice", ["runs/a/version_0/checkpoints/last.ckpt", None])
def test_all_processes_of_a_job_take_what_the_first_one_decides(choice, tmp_path, monkeypatch):
    for name, value in {"JOB_ID": "7", "STEP_ID": "0", "NTASKS": "2", "PROCID": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    taken = []

    def never() -> str:
        raise AssertionError("only the first process decides")

    waiting = threading.Thread(target=lambda: taken.append(cluster.first_process_decides(tmp_path, never)))
    waiting.start()
    time.sleep(0.3)
    assert waiting.is_alive()
    # the first process, in an earlier start of the same job and in this one
    earlier = {"SLURM_PROCID": "0", "SLURM_RESTART_COUNT": "1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in earlier.items():
            patch.setenv(name, value)
        cluster.first_process_decides(tmp_path, lambda: "of another start")
    assert waiting.is_alive()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_PROCID", "0")
        assert cluster.first_process_decides(tmp_path, lambda: choice) == choice
    waiting.join(5)
    assert taken == [choice]


def test_a_process_whose_first_one_is_nowhere_says_what_to_check(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "WAIT_SECONDS", 0.3)
    for name, value in {"JOB_ID": "7", "STEP_ID": "0", "NTASKS": "2", "PROCID": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(ValueError, match=r"7\.0\.0\.json: the first process should have.*file system that all nodes"):
        cluster.first_process_decides(tmp_path, lambda: None)


def test_processes_that_the_first_one_starts_do_not_look_again(tmp_path, monkeypatch):
    assert cluster.first_process_decides(tmp_path, lambda: "first.ckpt") == "first.ckpt"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert cluster.first_process_decides(tmp_path, lambda: "newer.ckpt") == "first.ckpt"


def test_lightning_leaves_requeueing_to_us_and_stale_checkpoints_alone(tmp_path, monkeypatch):
    assert cluster.trainer_settings(tmp_path) == {}
    monkeypatch.setenv("SLURM_NTASKS", "1")
    settings = cluster.trainer_settings(tmp_path)
    assert settings["plugins"].auto_requeue is False
    assert settings["default_root_dir"] == str(tmp_path)
