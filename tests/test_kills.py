"""Kills at random moments: of a process that writes checkpoints, and of a run that is taken up again and again."""

import os
import random
import re
import signal
import socket
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from callbacks.checkpoint import Checkpoint
from callbacks.checkpoint_file import CheckpointFiles
from launch.runs import newest_checkpoint
from tests.killed_run import fit_as_rank, fit_on, started, write_for_ever
from tests.toy_run import Noisy, differing, fit, logged, state

TROUBLES = {
    "nan": (
        1,
        1,
        r"ValueError: step 3: train/prior is nan.*number_\d, number_\d \(on rank 1\); the last good ",
    ),
    "full disk": (1, 1, r"ValueError: checkpoint .*step3\.ckpt could not be written \(No space left on device\)"),
    # the first process, which started the others on one machine, speaks for all of them
    "signal": (143, 0, r"stopped by SIGTERM at step 3, saved as .*last\.ckpt"),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_two_processes_stop_together_whichever_has_trouble(tmp_path, trouble):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [started(fit_as_rank, tmp_path, rank, port, trouble) for rank in (0, 1)]
    for process in processes:
        process.join(120)
    alive = [process for process in processes if process.is_alive()]
    for process in alive:
        process.kill()
    assert not alive, "a process was left waiting for the other"
    *statuses, message = TROUBLES[trouble]
    said = (tmp_path / "said").read_text()
    assert [process.exitcode for process in processes] == statuses, said
    assert len(re.findall(message, said)) == (1 if trouble == "signal" else 2)
    saved = torch.load(newest_checkpoint(tmp_path), weights_only=True)
    assert saved["global_step"] == (3 if trouble == "signal" else 2)
    assert len(saved["random_states"]) == 2


def _wait_for(path: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.002)


def test_a_kill_while_a_checkpoint_is_written_leaves_a_whole_one(tmp_path):
    chance = random.Random(0)
    interrupted = 0
    for _ in range(25):
        process = started(write_for_ever, tmp_path)
        before = set(tmp_path.glob("*"))
        while not (tmp_path / "last.ckpt").exists() or set(tmp_path.glob("*")) == before:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.03))
        process.kill()
        process.join()
        interrupted += bool(list(tmp_path.glob(".*.tmp")))
        for name in ("last.ckpt", "step1.ckpt"):
            content = CheckpointFiles().load_checkpoint(tmp_path / name)
            assert (content["state_dict"]["weight"] == content["global_step"]).all()
        assert len(list(tmp_path.glob(".*.tmp"))) <= 1  # the next write removes what a killed one leaves
    assert interrupted > 5


@pytest.mark.filterwarnings("ignore")
def test_fifty_kills_lose_nothing_that_was_saved_and_change_nothing(tmp_path):
    chance = random.Random(1)
    runs, reached = tmp_path / "runs", 0
    runs.mkdir()
    (saves := runs / "saved").touch()
    for kill in range(50):
        size = saves.stat().st_size
        process = started(fit_on, runs, 1_000_000)
        # one in five at any moment of its start, the others in a step, a write or a validation after the first save
        while kill % 5 and saves.stat().st_size == size:
            process.join(0.002)
            assert process.is_alive()
        process.join(chance.uniform(0, 0.1 if kill % 5 else 0.5))
        os.kill(process.pid, chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
        process.join()
        saved = [int(line) for line in saves.read_text().split()]
        found = list(runs.glob("**/last.ckpt"))
        before, reached = reached, torch.load(newest_checkpoint(runs), weights_only=True)["global_step"] if found else 0
        assert reached >= max(saved, default=0) >= before, f"kill {kill}"
    assert reached >= 80
    steps = reached + 5
    fit_on(runs, steps)
    arguments = {"max_steps": steps, "val_check_interval": 5}
    straight = fit(tmp_path / "straight", None, [Checkpoint(1000)], partial(Noisy, width=16), **arguments)
    assert differing(state(newest_checkpoint(runs)), state(straight / "checkpoints/last.ckpt")) == []
    # but for a row that a kill tore
    rows = [tuple(row.items()) for run in runs.glob("version_*") for row in logged(run)[:-1]]
    assert set(rows) <= {tuple(row.items()) for row in logged(straight)}
    assert not list(runs.glob("**/.*.tmp"))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_told_to_stop_saves_where_it_stands_and_says_so(tmp_path, number, status):
    process = started(fit_on, tmp_path, 1_000_000)
    _wait_for(tmp_path / "saved")
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == status
    said = (tmp_path / "said").read_text()
    step = int(re.search(rf"stopped by {number.name} at step (\d+), saved as .*last.ckpt; .*--ckpt_path last", said)[1])
    assert torch.load(newest_checkpoint(tmp_path), weights_only=True)["global_step"] == step
    assert "Traceback" not in said
    assert int(logged(tmp_path / "version_0")[-1]["step"]) >= step - 2
