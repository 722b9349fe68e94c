"""Triton kernels compiled for a GPU where there is none."""

import os
import subprocess
import sys
from pathlib import Path


def printed_by(code: str, cache: Path) -> list[str]:
    """Lines that Python code prints which compiles kernels, with an empty cache, to compile in earnest.

    In a process of its own, as the interpreter may be on in this one.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        env=environment | {"TRITON_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()
