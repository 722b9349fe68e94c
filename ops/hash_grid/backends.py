"""Which implementation of the hash encoding runs, and why another one cannot."""

import importlib
import logging
from functools import lru_cache
from types import ModuleType
from typing import Literal, cast, get_args

import torch

from ops.hash_grid.autograd import Kernels

logger = logging.getLogger("bottega")

Backend = Literal["auto", "reference", "numba", "triton"]

_MODULES = {"numba": "ops.hash_grid.numba_cpu", "triton": "ops.hash_grid.triton_gpu"}


def check_installed(backend: str) -> None:
    """Raise a ValueError unless the backend is known and its library can be imported."""
    if backend not in get_args(Backend):
        raise ValueError(f"Hash grid: backend is {backend!r}, expected one of {', '.join(get_args(Backend))}.")
    if backend in _MODULES and isinstance(found := _import(backend), ImportError):
        raise ValueError(
            f"Hash grid: backend {backend!r} needs the library {backend}, which cannot be imported ({found}). "
            f"Install it (pip install {backend}) or set backend to 'auto'."
        )


def choose_kernels(backend: str, device: torch.device, dtype: torch.dtype) -> Kernels | None:
    """Kernels that run on tensors of this device and dtype; ``None`` is the reference, which runs on all.

    Raises:
        ValueError: If a backend was asked for by name and does not run there.
    """
    name = _automatic(device.type, dtype) if backend == "auto" else backend
    if name == "reference":
        return None
    if obstacle := _obstacle(name, device.type, dtype):
        raise ValueError(f"Hash grid: backend {name!r} {obstacle}. Set backend to 'auto' or 'reference'.")
    return cast(Kernels, _import(name))


@lru_cache  # one choice, and one line in the log, for each kind of tensor
def _automatic(device_type: str, dtype: torch.dtype) -> str:
    name = {"cpu": "numba", "cuda": "triton"}.get(device_type)
    if name is None:
        reason = f"there is no faster one for device {device_type}"
    elif isinstance(found := _import(name), ImportError):
        reason = f"{name}, which is many times faster, cannot be imported: {found}"
    elif obstacle := _obstacle(name, device_type, dtype):
        reason = f"{name}, which is many times faster, {obstacle}"
    else:
        logger.info("Hash grid: %s tensors of %s use the %s backend.", device_type, dtype, name)
        return name
    logger.warning("Hash grid: %s tensors of %s use the reference backend (%s).", device_type, dtype, reason)
    return "reference"


def _obstacle(name: str, device_type: str, dtype: torch.dtype) -> str | None:
    """Why an installed backend does not run on such tensors."""
    if name == "numba" and device_type != "cpu":
        return f"runs on CPU tensors only, but the table is on {device_type}"
    if name == "triton" and device_type != "cuda" and not _is_interpreted():
        return (
            f"runs on CUDA tensors only, but the table is on {device_type} (TRITON_INTERPRET=1 emulates it for tests)"
        )
    if dtype not in (torch.float32, torch.float64):
        return f"computes in float32 or float64, but the table is {dtype}"
    return None


def _is_interpreted() -> bool:
    import triton

    return bool(triton.knobs.runtime.interpret)


@lru_cache
def _import(name: str) -> ModuleType | ImportError:
    try:
        return importlib.import_module(_MODULES[name])
    except ImportError as error:
        return error
