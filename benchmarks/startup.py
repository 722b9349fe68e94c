"""How long until something happens: the help, and the first training step, and what dominates.

    python -m benchmarks.startup                     three turns each, and the first step with and without caches
    python -m benchmarks.startup --small             one turn each, without the first step

Every command is a process of its own. Imports are those of ``main.py --help``, by ``python -X importtime``, which
slows them somewhat: in ``with what it needs`` an import counts with all that it was the first to import.
"""

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from benchmarks.machine import machine

ROOT = Path(__file__).parents[1]
# the first step's own time is Lightning's business: what a user waits for is the whole command of a single step
FIRST_STEP = [
    *["main.py", "fit", "--config", "configs/neuralangelo_demo.yaml", "--trainer.max_steps=1"],
    *["--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=false", "--trainer.logger=false"],
]
COMMANDS = {
    "python -c 'import torch'": ["-c", "import torch"],
    "python -c 'import pytorch_lightning'": ["-c", "import pytorch_lightning"],
    "python -c 'import main'": ["-c", "import main"],
    "main.py --help": ["main.py", "--help"],
    "main.py fit --help": ["main.py", "fit", "--help"],
}


def command_seconds(words: list[str], **environment: str) -> tuple[float, float]:
    """Wall and processor time of one Python process and of those that it starts.

    Raises:
        SystemExit: it failed; with what it said.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def imports_of(words: list[str]) -> list[tuple[str, float, float]]:
    """(module, seconds of its own, seconds with what it imports) of everything that a process imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *words], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = re.findall(r"^import time:\s+(\d+) \|\s+(\d+) \|\s+(\S+)$", done.stderr, re.MULTILINE)
    return [(name, int(own) / 1e6, int(whole) / 1e6) for own, whole, name in lines]


def show_imports(words: list[str], count: int = 12) -> None:
    """Print the packages that take most themselves, and the modules that take most with what they import."""
    imports = imports_of(words)
    packages: defaultdict[str, float] = defaultdict(float)
    for name, own, _ in imports:
        packages[name.split(".")[0]] += own
    modules = {name: whole for name, _, whole in imports}
    print(f"\n{sum(packages.values()):.2f} s of imports")
    print(f"{'package':24}{'own s':>8}   {'module':44}{'with what it needs':>20}")
    by_own = sorted(packages.items(), key=lambda item: -item[1])[:count]
    by_whole = sorted(modules.items(), key=lambda item: -item[1])[:count]
    for (package, own), (module, whole) in zip(by_own, by_whole, strict=True):
        print(f"{package:24}{own:8.2f}   {module:44}{whole:20.2f}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="one turn each, and no training step")
    parser.add_argument("--repeats", type=int, default=3, help="turns, of which the fastest counts")
    arguments = parser.parse_args()
    repeats = 1 if arguments.small else arguments.repeats
    print(f"{machine('cpu')}, fastest of {repeats}\n{'':52}{'wall s':>8}{'CPU s':>8}")
    times: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for _ in range(repeats):
        for name, words in COMMANDS.items():
            times[name].append(command_seconds(words))
    if not arguments.small:
        with tempfile.TemporaryDirectory() as folder:
            words = [*FIRST_STEP, "--run_root", folder, f"--data.init_args.root={folder}/data"]
            turns = [("photographs made, kernels compiled", "first"), ("kernels compiled", "second")]
            for name, cache in [*turns, *[("both at hand", "second")] * repeats]:
                seconds = command_seconds(words, NUMBA_CACHE_DIR=f"{folder}/{cache}")
                times[f"fit of one step, {name}"].append(seconds)
    for name, turns in times.items():
        wall, cpu = map(min, zip(*turns, strict=True))
        print(f"{name:52}{wall:8.2f}{cpu:8.2f}")
    show_imports(COMMANDS["main.py --help"])


if __name__ == "__main__":
    main()
