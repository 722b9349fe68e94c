"""Run a function over many rows in pieces that fit into memory."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class ChunkSize:
    """Rows handed over at once, in a form that several calls can share, so that they learn of a small memory once.

    Attributes:
        rows: rows in a chunk; halved by ``map_chunks`` when memory runs out.
        floor: fewest rows to try.
    """

    rows: int
    floor: int = 256
    has_warned: bool = False


def map_chunks(
    fn: Callable[..., Tensor | dict[str, Tensor]], *tensors: Tensor, chunk_size: int | ChunkSize
) -> Tensor | dict[str, Tensor]:
    """``fn(*tensors)`` for a ``fn`` that treats rows independently, evaluated a chunk of rows at a time.

    When memory runs out the chunk is halved and tried again, with one warning. Pass one ``ChunkSize`` to several calls
    to keep what was learnt.

    Args:
        fn: (n, ...) tensors -> a (n, ...) tensor or a dict of them.
        tensors: (N, ...) each, with equal N; N = 0 calls ``fn`` once with no rows.
        chunk_size: most rows at once.

    Returns:
        The results joined along the first axis.

    Raises:
        ValueError: for a chunk size below 1 or tensors of different lengths.
        RuntimeError: when memory does not suffice for the smallest chunk; the original error is its cause.
    """
    size = chunk_size if isinstance(chunk_size, ChunkSize) else ChunkSize(chunk_size)
    if size.rows < 1:
        raise ValueError(f"chunk_size: {size.rows}, expected at least 1 row")
    if len({len(t) for t in tensors}) != 1:
        raise ValueError(f"map_chunks: tensors have {[len(t) for t in tensors]} rows, expected equal numbers")
    parts, start, total = [], 0, len(tensors[0])
    while start < total or not parts:
        rows = min(size.rows, max(total - start, 1))
        part, error = _attempt(fn, [t[start : start + rows] for t in tensors])
        if error is None:
            parts.append(part)
            start += rows
        else:
            _shrink(size, rows, error)
    if isinstance(parts[0], dict):
        return {k: torch.cat([p[k] for p in parts]) for k in parts[0]}
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _attempt(fn: Callable, tensors: list[Tensor]) -> tuple[Tensor | dict[str, Tensor] | None, BaseException | None]:
    try:
        return fn(*tensors), None
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        # the traceback holds fn's frames, and with them the memory that the next attempt needs
        return None, error.with_traceback(None)


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # what torch's CPU allocators say on Windows and on Linux; they have no type of their own
    return any(text in str(error) for text in ("not enough memory", "can't allocate memory"))


def _shrink(size: ChunkSize, rows: int, error: BaseException) -> None:
    if rows <= size.floor:
        raise RuntimeError(
            f"Out of memory with only {rows} rows in a chunk (floor {size.floor}). Free memory of the device, choose a "
            f"smaller model or run on another device."
        ) from error
    size.rows = max(rows // 2, min(size.floor, rows))
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if not size.has_warned:
        size.has_warned = True
        warnings.warn(f"Out of memory with {rows} rows in a chunk; going on with smaller chunks", stacklevel=3)
