"""Jobs of a real SLURM of two nodes: training over both, preemption, a lost node, a dead process, a sweep."""

import csv
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm_cluster import INSTALL, SlurmCluster, missing_programs
from tests.small_runs import assert_equal_weights, saved, small_place

pytestmark = pytest.mark.skipif(
    bool(missing_programs()),
    reason=f"SLURM is not installed; to run these: {INSTALL} && python -m pytest tests/test_slurm.py",
)
FIT = ("configs/slurm/fit.sbatch", "small.yaml")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = small_place(tmp_path_factory.mktemp("place"))
    # of another run, and no checkpoint at all: whoever picks it up fails
    (folder / "hpc_ckpt_7.ckpt").write_bytes(b"stale")
    return folder


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[SlurmCluster]:
    with SlurmCluster(tmp_path_factory.mktemp("slurm") / "cluster") as cluster:
        yield cluster
    assert cluster.leftovers() == []


@pytest.fixture(scope="module")
def straight(cluster, place) -> tuple[str, Path]:
    """The job that is left alone, and its run."""
    job = cluster.submit(*FIT, "--run_name", "straight", cwd=place)
    return job, place / "runs/straight/version_0"


@pytest.fixture(scope="module")
def sweep(cluster, place, straight) -> tuple[str, str]:
    """Numbers of the array and of the job that gathers."""

    said = cluster.say(
        sys.executable, "sweep.py", "submit", "--config", "small.yaml", "--vary", "data.init_args.scene",
        "--scans", "statue", "nothing", "--name", "sweep", "--trainer.max_steps", "40",
        "--sbatch=--cpus-per-task=1", cwd=place,
    )  # fmt: skip
    return re.search(r"array (\d+) does 2 scans, then job (\d+) writes runs/sweep/table\.md", said).groups()


def test_a_preempted_and_then_lost_job_ends_as_the_one_left_alone(cluster, place, straight, sweep):
    job = cluster.submit(*FIT, "--run_name", "moved", cwd=place)
    runs = place / "runs/moved"
    checkpoints = [runs / f"version_{k}/checkpoints/last.ckpt" for k in range(3)]
    cluster.wait_for(job, checkpoints[0].exists, "a checkpoint of its first start")
    cluster.signal(job, "USR1")
    cluster.wait_for(job, checkpoints[1].exists, "a checkpoint of its second start")
    cluster.requeue(job)  # without a warning, as when a node is lost
    facts = cluster.wait(job)
    output = (place / f"slurm-{job}.out").read_text()
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "2"), output
    asked, lost = (saved(checkpoint)["global_step"] for checkpoint in checkpoints[:2])
    assert f"SIGUSR1: saved step {asked}; job {job} is in the queue again" in output
    assert f"resumed from step {asked} of runs/moved/version_0/checkpoints/last.ckpt" in output
    assert f"resumed from step {lost} of runs/moved/version_1/checkpoints/last.ckpt" in output
    assert 0 < asked < lost < 300

    assert cluster.wait(straight[0])["JobState"] == "COMPLETED"
    assert_equal_weights(checkpoints[2], straight[1] / "checkpoints/last.ckpt")
    assert (place / f"slurm-{straight[0]}.out").read_text().count("starting at step 0") == 1


def test_a_process_that_dies_ends_the_job(cluster, place, straight):
    job = cluster.submit(*FIT, "--run_name", "dying", "--trainer.max_steps", "100000", cwd=place)
    cluster.wait_for(job, (place / "runs/dying/version_0/checkpoints/last.ckpt").exists, "a checkpoint")
    second = max(cluster.processes(job, rank=1))
    os.kill(second, signal.SIGKILL)
    # SLURM gives the others KillWait seconds, 20 here, before it kills them
    facts = cluster.wait(job, timeout=60)
    assert facts["JobState"] == "FAILED"
    assert facts["Restarts"] == "0"


def test_an_array_sweeps_the_scans_and_a_job_after_it_gathers_them(cluster, place, sweep):
    array, table = sweep
    assert cluster.wait(table)["JobState"] == "FAILED"  # since a scan has no scores
    folder = place / "runs/sweep"
    rows = {row["scan"]: row for row in csv.DictReader((folder / "table.csv").open())}
    assert (rows["statue"]["status"], rows["nothing"]["status"]) == ("finished", "failed")
    assert float(rows["statue"]["f_score_2pct"]) > 0
    text = (folder / "table.md").read_text()
    assert "| mean of 1 | of 2 |" in text
    assert "- nothing: failed, see runs/sweep/logs/nothing.log" in text
    assert "nothing" in (folder / "logs/nothing.log").read_text().splitlines()[-1]
    assert f"{place}" not in text
    assert cluster.facts(f"{array}_0")["JobState"] == "COMPLETED"
