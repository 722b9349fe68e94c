"""Every benchmark that this machine can run, one after the other, in sizes that take a quarter of an hour on two cores.

    python -m benchmarks.all                       make bench
    python -m benchmarks.all --minutes 60          for a slower machine
    python -m benchmarks.all --only growth.rays    one or some

A benchmark that would start after the time is up is skipped, and one that runs over it is ended; both are said. The
documented figures come from each script's own command line, without the sizes given here.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.machine import machine

ROOT = Path(__file__).parents[1]

BENCHMARKS: dict[str, list[str]] = {
    "hash_grid": ["--cases", "demo", "--repeats", "3"],
    "neuralangelo_step": ["--repeats", "3"],
    "time_to_quality": ["--scenes", "statue", "--steps", "250"],
    "extraction": ["--resolution", "512"],
    "mise": ["--steps", "1", "2", "--fields", "sphere", "chair"],
    "chamfer": ["--points", "1024", "4096", "--repeats", "2"],
    "earth_movers": ["--points", "256", "--repeats", "1"],
    "image_loading": ["--repeats", "2"],
    "point_loading": ["--repeats", "2"],
    "rendering": ["--cases", "demo", "--repeats", "5"],
    "ray_loading": ["--rays", "512", "4096", "--sizes", "200", "800", "--workers", "0", "--batches", "50"],
    "optimizer": ["--rows", "18", "--features", "2", "--shares", "0.01", "0.1", "--repeats", "3"],
    "shape_steps": ["--methods", "r2n2", "psgn", "--batch_size", "2", "--rounds", "1"],
    "shape_loading": ["--small", "--methods", "onet", "--workers", "0"],
    "growth.rays": ["--sizes", "64", "256", "1024", "--repeats", "2"],
    "growth.levels": ["--repeats", "2"],
    "growth.table_size": ["--sizes", "4096", "65536", "1048576", "--repeats", "1"],
    "growth.samples": ["--sizes", "8", "16", "32", "64", "--repeats", "2"],
    "growth.images": ["--sizes", "64", "256", "1024", "--repeats", "2"],
    "growth.extraction": ["--sizes", "64", "128", "256", "512"],
    "growth.objects": ["--repeats", "1"],
    "growth.ranks": ["--repeats", "1"],
    "startup": ["--repeats", "1"],
}
"""Modules of this folder and their arguments, in the order in which they run: what says most comes first."""

ON_CUDA: dict[str, list[str]] = {
    "hash_grid": ["--device", "cuda"],
    "neuralangelo_step": ["--preset", "faithful", "--device", "cuda"],
    "rendering": ["--device", "cuda"],
    "optimizer": ["--device", "cuda"],
    "chamfer": ["--device", "cuda"],
    "earth_movers": ["--device", "cuda", "--batch", "32"],
    "shape_steps": ["--device", "cuda"],
}
"""What runs beside it where there is a GPU."""

LEFT_OUT = {
    "speed_ups": "trains for a minute a row: python benchmarks/speed_ups.py",
    "alternatives": "trains for minutes each: python benchmarks/alternatives.py",
    "peers": "needs checkouts of public code: python -m benchmarks.peers --help",
    "supervision": "needs a scan of DTU: python benchmarks/supervision.py --root DTU",
}


def run(name: str, words: Sequence[str], seconds: float) -> str:
    """Run one benchmark, which prints by itself, and say how it went in a word or two."""
    print(f"\n=== python -m benchmarks.{name} {' '.join(words)}", flush=True)
    start = time.monotonic()
    try:
        done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *words], cwd=ROOT, timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"ended after {seconds:.0f} s: the time is up"
    took = f"{time.monotonic() - start:.0f} s"
    return took if done.returncode == 0 else f"failed with status {done.returncode} after {took}"


def main() -> None:
    """Run them, and say at the end what ran how long and what did not, and why."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=14.5, help="for all of them together")
    parser.add_argument("--only", nargs="+", choices=list(BENCHMARKS), default=list(BENCHMARKS))
    arguments = parser.parse_args()
    deadline = time.monotonic() + 60 * arguments.minutes
    has_gpu = torch.cuda.is_available()
    print(f"{machine('cuda' if has_gpu else 'cpu')}; at most {arguments.minutes:g} minutes")
    report = {}
    for name in arguments.only:
        for where, listed in (("", BENCHMARKS), (" on the GPU", ON_CUDA)):
            if name not in listed:
                continue
            left = deadline - time.monotonic()
            if listed is ON_CUDA and not has_gpu:
                report[name + where] = "skipped: there is no CUDA device"
            elif left <= 0:
                report[name + where] = "skipped: the time is up; --minutes gives more"
            else:
                report[name + where] = run(name, listed[name], left)
    print("\n=== what ran")
    for name, outcome in {**report, **{name: f"left out: {why}" for name, why in LEFT_OUT.items()}}.items():
        print(f"{name:32}{outcome}")
    if any(outcome.startswith("failed") for outcome in report.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
