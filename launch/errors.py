"""What goes wrong for reasons that a user can do something about, in one sentence each.

Our own errors are ``ValueError`` and say it themselves; those of torch and Lightning are put into words here.
"""

import os
import re
import traceback
from collections.abc import Callable

PORT_IN_USE = (
    "port {} (MASTER_PORT), by which the processes of a run meet, is in use, perhaps by another run on this machine; "
    "set MASTER_PORT to a free one, or unset it"
)

LOADER_KILLED = (
    "a process that loads data was killed, most likely because memory ran out; set --data.init_args.num_workers lower "
    "or make room, then go on with --ckpt_path last"
)

_REMEDIES: list[tuple[str, Callable[[re.Match[str]], str]]] = [
    (
        r"No supported gpu backend found|Trainer\(accelerator='(?:gpu|cuda)'|CUDAAccelerator.* can not run",
        lambda _: (
            "trainer.accelerator asks for a GPU, but torch finds none here; set --trainer.accelerator cpu or auto, "
            "or see that `nvidia-smi` lists one and that torch was installed for CUDA"
        ),
    ),
    (
        r"You requested gpu: (\[.*?\])[\s\S]*only has: (\[.*?\])",
        lambda match: f"trainer.devices asks for GPUs {match[1]}, but there are {match[2]}; ask for fewer",
    ),
    (
        r"EADDRINUSE|[Aa]ddress already in use",
        lambda match: PORT_IN_USE.format(_port(match.string)),
    ),
    (
        r"DataLoader worker \(pid.*?\) (?:is killed by signal: Killed|exited unexpectedly)",
        lambda match: f"{match[0]}: {LOADER_KILLED}",
    ),
    (
        r"DataLoader worker \(pid.*?\) is killed by signal: Bus error",
        lambda match: (
            f"{match[0]}: shared memory (/dev/shm) ran out; set --data.init_args.num_workers lower or give it more room"
        ),
    ),
]


def plain_error(error: BaseException) -> str | None:
    """The error as a sentence for the user; ``None`` where it is a fault of the program, which a traceback shows."""
    text = str(error)
    for pattern, sentence in _REMEDIES:
        if not isinstance(error, ValueError) and (match := re.search(pattern, text)):
            return sentence(match)
    if isinstance(error, ConnectionError | EOFError) and _comes_from_loader(error):
        return LOADER_KILLED
    if not isinstance(error, ValueError):
        return None
    # a process that loads data sends its whole traceback
    return text.rsplit("\nValueError: ", 1)[-1].strip() if text.startswith("Caught ValueError in ") else text


def plain_usage_error(text: str) -> str:
    """jsonargparse's message about an argument, shortened to what is wrong where it says so."""
    match = re.search(
        r'Parser key "(\w+)":[\s\S]*class_path \'([\w.]+)\':\s+(?:[\s\S]*?)Option \'([\w.]+)\' is not', text
    )
    if match is None:
        return text
    key, class_path, option = match.groups()
    name = class_path.rsplit(".", 1)[-1]
    return (
        f"--{key}.init_args.{option}: {class_path} has no argument {option!r}; "
        f"`python main.py fit --{key}.help {class_path}` lists what {name} has"
    )


def _comes_from_loader(error: BaseException) -> bool:
    # what a process had made when it was killed cannot be fetched from it any more
    frames = traceback.walk_tb(error.__traceback__)
    return any("torch/utils/data/" in frame.f_code.co_filename.replace("\\", "/") for frame, _ in frames)


def _port(text: str) -> str:
    match = re.search(r"port: (\d+)", text)
    return match[1] if match else os.environ.get("MASTER_PORT", "")
