"""How much faster the fast backend of the hash grid is than the reference, on this machine.

    python benchmarks/hash_grid.py                   # CPU: numba against the reference
    python benchmarks/hash_grid.py --device cuda     # GPU: triton against the reference
    python benchmarks/hash_grid.py --cases demo --repeats 15

A second table compares ways to encode a sample and the four taps around it: in one call that shares the corners of a
cell, point by point, and as hash encodings are commonly written in PyTorch; and in tiny-cuda-nn where that is installed
and there is a GPU. Its last row says how many of the corners of five cells are really apart.

Cases are the sizes of the CPU demo, points as its training step lays them out, and a larger table of independent random
points. ``--points``, ``--levels``, ``--features`` and ``--log2-table-size`` replace a case's own numbers. Both backends
take turns within one run, so that a busy machine slows both, and the median of the repeats is reported.
"""

import argparse
import importlib
import itertools
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
from torch import Tensor, nn

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


BOUND = 2.0
# a commonly written encoding keeps several GB of intermediate results of more points
MOST_STENCIL_POINTS = 200_000

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
    return centers + torch.cat([torch.zeros(1, 3), taps_of(case)])


def taps_of(case: Case) -> Tensor:
    """(4, 3) offsets of taps, a quarter cell of the finest level long."""
    quarter_cell = 0.25 * 2 * BOUND / (case.finest_resolution - 1)
    return torch.tensor([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]]) * quarter_cell / 3**0.5


class CommonEncoding(nn.Module):
    """A hash encoding as commonly written: every level hashed, its corners looked up by advanced indexing."""

    def __init__(self, case: Case, scales: tuple[float, ...]) -> None:
        super().__init__()
        self.scales, size = scales, 2**case.log2_table_size
        self.tables = nn.ParameterList(torch.empty(size, case.features).uniform_(-1e-4, 1e-4) for _ in scales)
        self.register_buffer("corners", torch.tensor(list(itertools.product((0, 1), repeat=3))))
        self.register_buffer("primes", torch.tensor([1, 2654435761, 805459861]))

    def forward(self, points: Tensor) -> Tensor:
        """(..., 3) -> (..., levels times features)."""
        unit = ((points + BOUND) / (2 * BOUND)).clamp(0, 1)
        features = []
        for table, scale in zip(self.tables, self.scales, strict=True):
            position = unit * scale
            lower = position.floor()
            fraction = (position - lower).unsqueeze(-2)  # (..., 1, 3)
            x, y, z = ((lower.long().unsqueeze(-2) + self.corners) * self.primes).unbind(-1)  # each (..., 8)
            rows = (x ^ y ^ z) % len(table)
            weights = torch.where(self.corners.bool(), fraction, 1 - fraction).prod(dim=-1)
            features.append((table[rows] * weights.unsqueeze(-1)).sum(dim=-2))
        return torch.cat(features, dim=-1)


def tiny_cuda_nn(case: Case, device: str) -> nn.Module | None:
    """The same sizes in tiny-cuda-nn, ``None`` where it cannot be imported."""
    try:
        library = importlib.import_module("tinycudann")
    except (ImportError, OSError):  # the latter without a driver
        return None
    growth = (case.finest_resolution / case.base_resolution) ** (1 / max(case.levels - 1, 1))
    names = "n_levels", "n_features_per_level", "log2_hashmap_size", "base_resolution", "per_level_scale"
    sizes = case.levels, case.features, case.log2_table_size, case.base_resolution, growth
    settings = {"otype": "HashGrid"} | dict(zip(names, sizes, strict=True))
    return library.Encoding(3, settings, dtype=torch.float32).to(device)


def apart_corners(stencil: Tensor, scales: tuple[float, ...]) -> float:
    """Corners of (N, 1 + T, 3) points' cells that are not the same, mean over samples and levels."""
    corners = torch.tensor(list(itertools.product((0, 1), repeat=3)), device=stencil.device)
    unit = ((stencil + BOUND) / (2 * BOUND)).clamp(0, 1).unsqueeze(-2)
    counts = []
    for scale in scales:
        x, y, z = ((unit * scale).long() + corners).flatten(1, 2).unbind(-1)  # each (N, (1 + T) * 8)
        keys = ((x << 42) | (y << 21) | z).sort(dim=-1).values
        counts.append((1 + (keys.diff(dim=-1) != 0).sum(dim=-1)).float().mean().item())
    return statistics.mean(counts)


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


def compare_stencils(case: Case, device: str, repeats: int) -> None:
    """Print times of ways to encode centres with four taps around them."""
    case = replace(case, points=min(case.points, MOST_STENCIL_POINTS), on_rays=True)
    stencil, taps = points_of(case).to(device), taps_of(case).to(device)
    centers = stencil[:, 0].contiguous()
    sizes = case.levels, case.features, case.log2_table_size, case.base_resolution, case.finest_resolution
    fast = "triton" if device == "cuda" else "numba"
    grid = HashGrid(*sizes, bound=BOUND, backend=fast).to(device)
    common = CommonEncoding(case, grid.layout.scales).to(device)
    ways: dict[str, tuple[nn.Module, Callable[[], Tensor]]] = {
        f"{fast}, one call": (grid, lambda: grid.encode_stencil(centers, taps)),
        f"{fast}, each point": (grid, lambda: grid(centers.unsqueeze(1) + torch.cat([0 * taps[:1], taps]))),
        "plain PyTorch": (common, lambda: common(centers.unsqueeze(1) + torch.cat([0 * taps[:1], taps]))),
    }
    tiny = tiny_cuda_nn(case, device) if device == "cuda" else None
    if tiny is not None:
        unit = ((stencil.reshape(-1, 3) + BOUND) / (2 * BOUND)).contiguous()
        ways["tiny-cuda-nn"] = tiny, lambda: tiny(unit).view(*stencil.shape[:2], -1)
    weights = torch.randn(*stencil.shape[:2], grid.num_output_features, device=device)

    def forward(way: str) -> None:
        with torch.no_grad():
            ways[way][1]()

    def forward_backward(way: str) -> None:
        ways[way][0].zero_grad()
        ways[way][1]().backward(weights)

    times: dict[tuple[str, str], list[float]] = {}
    for turn in range(repeats + 1):
        for step, way in itertools.product((forward, forward_backward), ways):
            measured = milliseconds(lambda step=step, way=way: step(way), device)
            if turn > 0:  # not the first, which compiles
                times.setdefault((step.__name__, way), []).append(measured)
    print(f"\n{case.name}, {len(centers):,} samples with four taps{'forward ms':>12}{'+ backward ms':>16}")
    first, *_ = ways
    for way in ways:
        row = [statistics.median(times[step.__name__, way]) for step in (forward, forward_backward)]
        base = [statistics.median(times[step.__name__, first]) for step in (forward, forward_backward)]
        print(
            f"{way:20}{row[0]:12.1f}{row[1]:16.1f}   ({row[0] / base[0]:.2f} and {row[1] / base[1]:.2f} of the first)"
        )
    if tiny is None:
        print(f"{'tiny-cuda-nn':20}{'not installed' if device == 'cuda' else 'runs on GPUs only':>28}")
    corners = apart_corners(stencil[:20_000], grid.layout.scales)
    print(f"corners of a sample that are apart, mean of the levels: {corners:.1f} of {8 * stencil.shape[1]}")


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
            compare_stencils(replace(case, **changes), arguments.device, arguments.repeats)


def _process_mib(key: str) -> float:
    """A size from Linux's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


if __name__ == "__main__":
    main()
