"""Checkpoints as files: written whole or not at all, read as data only, and refused with a reason."""

import fcntl
import os
import shutil
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning_fabric.plugins import CheckpointIO
from torch import Tensor


class CheckpointFiles(CheckpointIO):
    """How the trainer writes and reads every checkpoint.

    A file is written under another name beside its own and moved there when it is on the disk, so that a kill at any
    moment leaves what was there before. What killed writes leave behind is removed by the next write to that folder.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Raises:
            ValueError: there is no room for it or the folder cannot be written to; older checkpoints are untouched.
        """
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(path.parent)
            with temporary.open("wb") as file:
                _claim(file.fileno())
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
                os.replace(temporary, path)
            _sync_folder(path.parent)
        # torch makes a RuntimeError of what the disk says
        except (OSError, RuntimeError) as error:
            raise ValueError(_why_not_written(path, checkpoint, error)) from error
        finally:
            if path.parent.is_dir():
                temporary.unlink(missing_ok=True)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = lambda storage, location: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint; code in it is never run, whatever ``weights_only`` says.

        Raises:
            ValueError: it is missing, incomplete or no checkpoint of a run; the message offers the newest whole one.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"--ckpt_path {path}: no such file{_offer(path)}")
        content = _content(path, map_location)
        missing = [key for key in ("state_dict", "global_step") if not isinstance(content, dict) or key not in content]
        if missing:
            raise ValueError(
                f"--ckpt_path {path}: it has no {' and no '.join(missing)}, so it is no checkpoint of a run, perhaps "
                "weights of somebody else's; expected a file that `python main.py fit` wrote. Weights to start from "
                "are named by an argument of the model, if it takes any"
            )
        return content

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint if it is there."""
        Path(path).unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writes left in a folder, but nothing that a living process is writing."""
    for leftover in folder.glob(".*.ckpt.*.tmp"):
        try:
            with leftover.open("rb") as file:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                leftover.unlink(missing_ok=True)
        # locked by its writer, removed by somebody else, or on a file system without locks
        except OSError:
            continue


def link_whole(path: Path, link: Path) -> None:
    """Make ``link`` another name of the file ``path``, or a copy where the file system has but one name a file.

    At any moment ``link`` is what it was or what it becomes.
    """
    temporary = link.with_name(f".{link.name}.{uuid.uuid4().hex}.tmp")
    try:
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)
        os.replace(temporary, link)
    except OSError as error:
        raise ValueError(
            f"{link} could not be written ({error.strerror}); {path} is whole and is the newest"
        ) from error
    finally:
        # where both were the same file already, moving one onto the other does nothing
        temporary.unlink(missing_ok=True)


def newest_whole(besides: Path) -> Path | None:
    """The newest complete checkpoint that is not the file ``besides``: of its folder, or else of the runs beside it."""
    there = besides.is_file()
    for found in (besides.parent.glob("*.ckpt"), besides.parent.parent.parent.glob(f"*/{besides.parent.name}/*.ckpt")):
        others = [path for path in found if path.is_file() and not (there and path.samefile(besides))]
        # of two names of one file, the one that says the step
        others.sort(key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)
        if (whole := next((path for path in others if zipfile.is_zipfile(path)), None)) is not None:
            return whole
    return None


def _content(path: Path, map_location: Callable[..., Any] | None) -> Any:
    with path.open("rb") as file:
        start = file.read(4)
    # a file that lost its content in a power cut may be all zeros
    if not start.strip(b"\0") or (start == b"PK\x03\x04" and not zipfile.is_zipfile(path)):
        raise ValueError(f"--ckpt_path {path}: it is incomplete, {path.stat().st_size:,} bytes long{_offer(path)}")
    if start != b"PK\x03\x04":
        raise ValueError(f"--ckpt_path {path}: it is no checkpoint, it begins with {start!r}{_offer(path)}")
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except UnpicklingError as error:
        raise ValueError(
            f"--ckpt_path {path}: it holds more than weights and numbers, and unpacking it could run any code, so it "
            "is not read; expected a file that `python main.py fit` wrote"
        ) from error
    except (RuntimeError, EOFError, KeyError, OSError) as error:
        raise ValueError(f"--ckpt_path {path}: it is damaged ({str(error).splitlines()[0]}){_offer(path)}") from error


def _offer(path: Path) -> str:
    other = newest_whole(path)
    if other is None:
        return f", and there is no other checkpoint in or beside {path.parent}/"
    return f"; a whole one is {other}: type the same command with --ckpt_path {other}"


def _why_not_written(path: Path, checkpoint: dict[str, Any], error: Exception) -> str:
    # torch hides the disk's own word behind one about positions in the file
    cause = error if isinstance(error, OSError) else error.__context__
    word = cause.strerror if isinstance(cause, OSError) else str(error).splitlines()[0]
    folder = next(folder for folder in path.parents if folder.is_dir())
    free = shutil.disk_usage(folder).free
    last = newest_whole(path)
    kept = "no checkpoint was written before" if last is None else f"the last good checkpoint is {last}"
    return (
        f"checkpoint {path} could not be written ({word}); it takes {_megabytes(_num_bytes(checkpoint))}, and "
        f"{folder} has {_megabytes(free)} free; {kept}. Make room or choose another --run_root, then go on with "
        "--ckpt_path"
    )


def _num_bytes(content: Any) -> int:
    """Bytes of all tensors in nested dicts, lists and tuples."""
    if isinstance(content, Tensor):
        return content.untyped_storage().nbytes()
    if isinstance(content, dict):
        content = list(content.values())
    return sum(map(_num_bytes, content)) if isinstance(content, list | tuple) else 0


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def _claim(descriptor: int) -> None:
    # the lock goes with the process, however it ends, and so tells leftovers from what is being written
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return


def _sync_folder(folder: Path) -> None:
    # the new name, too, should survive a power cut
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
