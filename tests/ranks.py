"""Functions on several ranks at once, in processes forked from one that has imported everything: seconds become tenths.

A rank sees what ``torchrun`` would tell it, so that ``main.main`` in it trains with the others.
"""

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PRELOADED = ["main", "methods.neuralangelo", "methods.onet", "methods.r2n2", "methods.psgn", "methods.imnet",
             "datamodules.synthetic", "datamodules.dtu", "callbacks.score", "callbacks.save", "metrics.surface",
             "metrics.images"]  # fmt: skip


def on_ranks(
    function: Callable[..., None],
    folder: Path,
    *arguments: Any,
    first_only: bool = False,
    num_ranks: int = 2,
    timeout: float = 300,
) -> list[int | None]:
    """Call ``function(rank, *arguments)`` in ``folder`` on every rank and wait for them.

    Args:
        function: importable, and so at the top of its module.
        folder: working directory; ``rank<k>.txt`` in it holds what rank k printed.
        arguments: picklable.
        first_only: wait for the first rank only, and end the others when it has ended.
        num_ranks: processes.
        timeout: seconds after which they are killed.

    Returns:
        Exit status of every rank, as of ``subprocess``.
    """
    for path in folder.glob("rank*.txt"):
        path.unlink()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    processes = [
        context.Process(target=_rank, args=(rank, num_ranks, port, str(folder), function, arguments))
        for rank in range(num_ranks)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + timeout
    for rank, process in enumerate(processes):
        process.join(0 if first_only and rank else max(deadline - time.monotonic(), 0.1))
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def printed(folder: Path) -> str:
    """What the ranks have printed, for the message of an assertion."""
    return "\n".join(f"{path.name}:\n{path.read_text()[-3000:]}" for path in sorted(folder.glob("rank*.txt")))


def _rank(
    rank: int, num_ranks: int, port: int, folder: str, function: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    os.chdir(folder)
    output = os.open(f"rank{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    facts = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks}
    facts |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    os.environ.update({name: str(value) for name, value in facts.items()})
    sys.argv[1:] = []
    function(rank, *arguments)
