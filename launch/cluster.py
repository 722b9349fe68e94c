"""What ``main.py`` has to know about several processes, under SLURM and without it."""

import json
import os
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning_fabric.plugins.environments import SLURMEnvironment

from launch.errors import PORT_IN_USE
from launch.runs import is_first_process

WAIT_SECONDS = 180
"""How long a process waits for what the first one decides: a shared file system shows it late."""


def own_checkpoint(runs: Path) -> str | None:
    """The newest last.ckpt of this SLURM job's runs, of any run where there is no SLURM; ``None`` where there is none.

    A requeued job keeps its number, so that it finds what it saved, and no job goes on with another one's work unasked.
    """
    job = os.environ.get("SLURM_JOB_ID")
    found = [
        path
        for path in runs.glob("**/checkpoints/last.ckpt")
        if job is None or _job_of(path.parents[1] / "environment.json") == job
    ]
    whose = "" if job is None else f" of job {job}"
    if not found:
        print(f"fit: no checkpoint{whose} below {runs}/; starting at step 0")
        return None
    return str(max(found, key=lambda path: path.stat().st_mtime))


def _job_of(environment: Path) -> str | None:
    if not environment.is_file():
        return None
    job = json.loads(environment.read_text(encoding="utf-8")).get("slurm") or {}
    return None if job.get("job_id") is None else str(job["job_id"])


def first_process_decides(runs: Path, decide: Callable[[], str | None]) -> str | None:
    """What the first process of a job decides, in all of them; they have no other connection yet.

    Raises:
        ValueError: the first process has not decided for ``WAIT_SECONDS``.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0" and "BOTTEGA_CHECKPOINT" in os.environ:
        return os.environ["BOTTEGA_CHECKPOINT"] or None  # this process was started by the first one
    if int(os.environ.get("SLURM_NTASKS", "1")) == 1 or "SLURM_STEP_ID" not in os.environ:
        choice = decide()
        os.environ["BOTTEGA_CHECKPOINT"] = choice or ""
        return choice
    step = ".".join(os.environ.get(f"SLURM_{name}", "0") for name in ("JOB_ID", "RESTART_COUNT", "STEP_ID"))
    decision = runs / ".slurm" / f"{step}.json"
    if os.environ["SLURM_PROCID"] == "0":
        choice = decide()
        decision.parent.mkdir(parents=True, exist_ok=True)
        unfinished = decision.with_suffix(".tmp")
        unfinished.write_text(json.dumps(choice), encoding="utf-8")
        unfinished.replace(decision)
        return choice
    deadline = time.monotonic() + WAIT_SECONDS
    while not decision.is_file():
        if time.monotonic() > deadline:
            raise ValueError(
                f"{decision}: the first process should have written here within {WAIT_SECONDS} s from which checkpoint "
                "to go on; is --run_root on a file system that all nodes share?"
            )
        time.sleep(0.2)
    return json.loads(decision.read_text(encoding="utf-8"))


def trainer_settings(runs: Path) -> dict[str, Any]:
    """Arguments that keep Lightning's own requeueing out of the way under SLURM; none elsewhere.

    It waits for other ranks inside a signal handler, which may take forever; and it goes on from any ``hpc_ckpt_*``
    file in its root folder, whosever it is, so that folder is the run's, where nothing writes one.
    """
    if not SLURMEnvironment.detect():
        return {}
    return {"plugins": SLURMEnvironment(auto_requeue=False), "default_root_dir": str(runs)}


def check_port(strategy: str) -> None:
    """Refuse to start processes that could not find each other and would wait for half an hour.

    Raises:
        ValueError: the port that ``MASTER_PORT`` names is in use.
    """
    port = os.environ.get("MASTER_PORT", "")
    is_started_by_us = is_first_process() and not os.environ.keys() & {"LOCAL_RANK", "RANK", "SLURM_PROCID"}
    if not (port.isdigit() and is_started_by_us and re.search("ddp|fsdp", strategy, re.IGNORECASE)):
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(port)))
        except OSError as error:
            raise ValueError(PORT_IN_USE.format(port)) from error
