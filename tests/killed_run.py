"""What a process does that is going to be killed; forked from one that has imported everything already."""

import errno
import multiprocessing
import os
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

# a process that was forked from one with running threads may wait for them for good
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.killed_run", "tests.toy_run"])


def started(function: Any, folder: Path, *arguments: Any) -> BaseProcess:
    """A process that runs a function of this file on a folder; what it says goes to the file ``said`` there."""
    process = CONTEXT.Process(target=_run, args=(function, folder, *arguments))
    process.start()
    return process


def _run(function: Any, folder: Path, *arguments: Any) -> None:
    descriptor = os.open(folder / "said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    function(folder, *arguments)


def write_for_ever(folder: Path) -> None:
    """Write one checkpoint over the other, some megabytes each."""
    from callbacks.checkpoint_file import CheckpointFiles, link_whole

    torch.set_num_threads(1)
    for step in range(1, 1_000_000):
        content = {"state_dict": {"weight": torch.full((500_000,), float(step))}, "global_step": step}
        CheckpointFiles().save_checkpoint(content, folder / "step1.ckpt")
        link_whole(folder / "step1.ckpt", folder / "last.ckpt")


def fit_on(runs: Path, steps: int) -> None:
    """Go on from the newest checkpoint, if there is one, and note in a file what was saved for certain."""
    from callbacks.checkpoint import Checkpoint
    from callbacks.signals import StopOnSignal
    from launch.runs import newest_checkpoint
    from tests.toy_run import Noisy, fit

    class Noted(Checkpoint):
        def _write(self, trainer: Any) -> None:
            super()._write(trainer)
            descriptor = os.open(runs / "saved", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(descriptor, f"{trainer.global_step}\n".encode())
            os.close(descriptor)

    torch.set_num_threads(1)
    checkpoint = newest_checkpoint(runs) if list(runs.glob("**/last.ckpt")) else None
    callbacks = [StopOnSignal(), Noted(2)]
    fit(runs, checkpoint, callbacks, partial(Noisy, width=16), max_steps=steps, val_check_interval=5)


def fit_as_rank(folder: Path, rank: int, port: int, trouble: str) -> None:
    """One of two processes that train together, of which one has trouble at step 3."""
    os.environ |= {"LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(port)
    from callbacks import checkpoint_file
    from callbacks.checkpoint import Checkpoint
    from callbacks.finite import StopAtNonFinite
    from callbacks.signals import StopOnSignal
    from tests.interrupt import Interrupt
    from tests.toy_run import Noisy, fit

    torch.set_num_threads(1)
    callbacks: list[Any] = [StopAtNonFinite(3), StopOnSignal(), Checkpoint(1, keep_all=True)]
    model = partial(Noisy, bad_step=2 if trouble == "nan" and rank == 1 else -1, bad="nan")
    if trouble == "signal" and rank == 1:
        callbacks.insert(0, Interrupt(3))
    if trouble == "full disk":
        write = torch.save

        def write_until_full(content: Any, *arguments: Any, **keywords: Any) -> None:
            if isinstance(content, dict) and content.get("global_step") == 3:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write(content, *arguments, **keywords)

        checkpoint_file.torch.save = write_until_full
    fit(folder / "runs", None, callbacks, model, max_steps=50, devices=2, strategy="ddp")
