"""What a figure has to be read with: the machine, the versions, how busy it was, and the memory of this process."""

import ctypes
import os
import platform
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def machine(device: str) -> str:
    """One line: date, hardware, threads, load and versions."""
    versions = ", ".join(f"{name} {_version(name)}" for name in ("torch", "triton", "numba"))
    hardware = torch.cuda.get_device_name() if device == "cuda" else processor()
    return (
        f"{date.today()}, {hardware}, {os.cpu_count()} cores, {torch.get_num_threads()} threads "
        f"(load {os.getloadavg()[0]:.1f}), Python {platform.python_version()}, {versions}"
    )


def processor() -> str:
    """Name of the CPU as Linux gives it, else what Python knows."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def forget_peak_memory(device: str) -> None:
    """Start a new account of the peak; on Linux, memory that was freed is first given back to the system."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        # else what earlier work left in the heap would be used again, and not be seen
        if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
            libc.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mib(device: str) -> float:
    """Most memory since then: allocated on the GPU, or resident in all of this process; NaN where nobody counts."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), float("nan"))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
