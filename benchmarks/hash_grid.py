"""How much faster the fast backend of the hash grid is than the reference, on this machine.

    python benchmarks/hash_grid.py                   # CPU: numba against the reference
    python benchmarks/hash_grid.py --device cuda     # GPU: triton against the reference
    python benchmarks/hash_grid.py --cases demo --repeats 15

Cases are the sizes of the CPU demo, points as its training step lays them out, and a larger table of independent random
points. ``--points``, ``--levels``, ``--features`` and ``--log2-table-size`` replace a case's own numbers. Both backends
take turns within one run, so that a busy machine slows both, and the median of the repeats is reported.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

# torch's OpenMP threads otherwise spin after every operation and take the cores from the fast backend's threads; it has
# to be set before torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor

from benchmarks.machine import machine
from ops.hash_grid.grid import HashGrid


@dataclass(frozen=True)
class Case:
    """Sizes of one comparison; ``on_rays`` lays the points out as (rays x samples, centre and four taps)."""

    name: str
    points: int
    levels: int
    features: int
    log2_table_size: int
    base_resolution: int
    finest_resolution: int
    on_rays: bool
    target: float  # times faster, forward + backward, on CPU


CASES = [
    Case("demo", 81_920, 8, 2, 16, 16, 256, on_rays=True, target=15.0),
    Case("large", 1_000_000, 16, 8, 19, 32, 2048, on_rays=False, target=2.0),
]


def points_of(case: Case) -> Tensor:
    """(..., 3) points: 16 samples along chords of the unit ball with taps a quarter cell away, or uniform in a cube."""
    generator = torch.Generator().manual_seed(0)
    if not case.on_rays:
        return torch.rand(case.points, 3, generator=generator) * 2 - 1
    num_rays = max(case.points // (16 * 5), 1)
    ends = torch.nn.functional.normalize(torch.randn(2, num_rays, 1, 3, generator=generator), dim=-1)
    along = (torch.arange(16) + torch.rand(num_rays, 16, generator=generator)).unsqueeze(-1) / 16
    centers = (ends[0] + along * (ends[1] - ends[0])).reshape(-1, 1, 3)
    quarter_cell = 0.25 * 2 * 2.0 / (case.finest_resolution - 1)  # of the finest level, bound 2
    taps = torch.tensor([[0, 0, 0], [1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]]) * quarter_cell / 3**0.5
    return centers + taps


def milliseconds(work: Callable[[], object], device: str) -> float:
    """Wall time of one call, until the GPU is done with it."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e3


def peak_memory_mib(work: Callable[[], object], device: str) -> float:
    """Memory that one call takes at its peak, on top of what was held before; NaN where it cannot be known.

    On CPU it is the process's, so that a few MiB which the allocator kept from earlier calls do not show.
    """
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak so far
    except OSError:
        return float("nan")
    before = _process_mib("VmRSS")
    work()
    return _process_mib("VmHWM") - before


def compare(case: Case, device: str, repeats: int) -> None:
    """Print times of forward and of forward + backward (to the table) of both backends, and their ratios."""
    points = points_of(case).to(device)
    sizes = case.levels, case.features, case.log2_table_size, case.base_resolution, case.finest_resolution
    fast = "triton" if device == "cuda" else "numba"
    grids = {backend: HashGrid(*sizes, backend=backend).to(device) for backend in (fast, "reference")}
    weights = torch.randn(*points.shape[:-1], grids[fast].num_output_features, device=device)

    def forward(backend: str) -> None:
        with torch.no_grad():
            grids[backend](points)

    def forward_backward(backend: str) -> None:
        grids[backend].table.grad = None
        grids[backend](points).backward(weights)

    print(
        f"\n{case.name}: {points.shape[:-1].numel():,} points {tuple(points.shape)}, {case.levels} levels of "
        f"{case.features} features, {case.base_resolution} to {case.finest_resolution}, "
        f"2^{case.log2_table_size} entries"
    )
    first_call_ms = milliseconds(lambda: forward_backward(fast), device)
    print(f"first call of {fast}, compiling or loading from its cache: {first_call_ms / 1e3:.1f} s")
    times: dict[tuple[str, str], list[float]] = {}
    for _ in range(repeats):
        for step in (forward, forward_backward):
            for backend in grids:
                measured = milliseconds(lambda step=step, backend=backend: step(backend), device)
                times.setdefault((step.__name__, backend), []).append(measured)
    medians = {key: statistics.median(values) for key, values in times.items()}
    print(f"{'':20}{'forward ms':>12}{'+ backward ms':>16}{'peak MiB':>12}")
    for backend in grids:
        for grid in grids.values():
            grid.table.grad = None
        memory = peak_memory_mib(lambda backend=backend: forward_backward(backend), device)
        row = medians["forward", backend], medians["forward_backward", backend], memory
        print(f"{backend:20}{row[0]:12.1f}{row[1]:16.1f}{row[2]:12.0f}")
    ratios = [medians[name, "reference"] / medians[name, fast] for name in ("forward", "forward_backward")]
    print(f"{'times faster':20}{ratios[0]:12.1f}{ratios[1]:16.1f}   (aimed at on CPU: {case.target:g})")


def main() -> None:
    """Parse the command line and run the cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--cases", nargs="+", choices=[case.name for case in CASES], default=[c.name for c in CASES])
    parser.add_argument("--repeats", type=int, default=7)
    for name in ("points", "levels", "features", "log2-table-size"):
        parser.add_argument(f"--{name}", type=int)
    arguments = parser.parse_args()

    print(
        f"{machine(arguments.device)}, OMP_WAIT_POLICY={os.environ['OMP_WAIT_POLICY']}, median of {arguments.repeats}"
    )
    changes = {name: getattr(arguments, name) for name in ("points", "levels", "features", "log2_table_size")}
    changes = {name: value for name, value in changes.items() if value is not None}
    for case in CASES:
        if case.name in arguments.cases:
            compare(replace(case, **changes), arguments.device, arguments.repeats)


def _process_mib(key: str) -> float:
    """A size from Linux's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


if __name__ == "__main__":
    main()
