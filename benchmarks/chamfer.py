"""How fast is the Chamfer loss against SciPy's kd-tree, which it uses on CPU, and against all pairs at once?

    python -m benchmarks.chamfer                     1024, 4096 and 16384 points a side, then 100 000
    python -m benchmarks.chamfer --device cuda       the kernel against pairs in chunks, and all pairs at once

All compute both directions; the loss is timed with its gradient as well, which the kd-tree alone does not give. The
sides take turns within one run, so that a busy machine slows all, and the fastest of the repeats counts. The dense side
is left out where it would take more than ``--dense-limit`` GiB.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from scipy.spatial import cKDTree
from torch import Tensor

from benchmarks.machine import machine
from losses.points import chamfer, nearest_by_pairs


def sphere_points(count: int, seed: int, device: str) -> Tensor:
    """(1, N, 3) points on a rough sphere, as two surfaces that a network brings together have."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.nn.functional.normalize(torch.randn(1, count, 3, generator=generator), dim=-1)
    return (0.5 * points + 0.01 * torch.randn(1, count, 3, generator=generator)).to(device)


def kd_tree(x: Tensor, y: Tensor) -> float:
    """Both directions by SciPy, mean plus mean, squared."""
    a, b = x[0].numpy(), y[0].numpy()
    return (cKDTree(b).query(a, workers=-1)[0] ** 2).mean() + (cKDTree(a).query(b, workers=-1)[0] ** 2).mean()


def dense(x: Tensor, y: Tensor) -> float:
    """Both directions from one matrix of all distances."""
    distances = torch.cdist(x, y).square()
    return (distances.amin(2).mean() + distances.amin(1).mean()).item()


def ours(x: Tensor, y: Tensor) -> float:
    """The loss."""
    return sum(chamfer(x, y)).item()


def chunked(x: Tensor, y: Tensor) -> float:
    """Both directions from distances of one chunk of pairs after another, as where there is no kernel."""
    total = 0.0
    for a, b in ((x, y), (y, x)):
        nearest = b.gather(1, nearest_by_pairs(a, b)[..., None].expand(-1, -1, 3))
        total += (a - nearest).square().sum(2).mean().item()
    return total


def ours_with_gradient(x: Tensor, y: Tensor) -> float:
    """The loss and its gradient by one side."""
    x = x.clone().requires_grad_()
    loss = sum(chamfer(x, y))
    loss.backward()
    return loss.item()


def seconds(work: Callable[[Tensor, Tensor], float], x: Tensor, y: Tensor) -> tuple[float, float]:
    """Wall time and result of one call; results are numbers, so a GPU is done when they are there."""
    start = time.perf_counter()
    result = work(x, y)
    return time.perf_counter() - start, result


def peak_mib(work: Callable[[Tensor, Tensor], float], x: Tensor, y: Tensor) -> float:
    """Memory that a call takes at its peak on top of what was held before; NaN where it cannot be known."""
    if x.is_cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work(x, y)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak so far
    except OSError:
        return float("nan")
    before = _process_mib("VmRSS")
    work(x, y)
    return _process_mib("VmHWM") - before


def compare(count: int, device: str, repeats: int, dense_limit: float) -> None:
    """Print one line a side: the fastest time, what it is to the loss alone, and the peak of memory."""
    x, y = sphere_points(count, 0, device), sphere_points(count, 1, device)
    sides: dict[str, Callable[[Tensor, Tensor], float]] = {"chamfer": ours, "chamfer with gradient": ours_with_gradient}
    if device == "cpu":
        sides["scipy kd-tree"] = kd_tree
    else:
        sides["chunked torch"] = chunked
    gib = 3 * 4 * count**2 / 2**30  # distances, their squares, and what cdist keeps aside
    if gib <= dense_limit:
        sides["dense cdist"] = dense
    times: dict[str, float] = dict.fromkeys(sides, float("inf"))
    results = {}
    for _ in range(repeats):
        for name, work in sides.items():
            duration, results[name] = seconds(work, x, y)
            times[name] = min(times[name], duration)
    print(f"\n{count:,} points a side")
    for name, work in sides.items():
        assert abs(results[name] / results["chamfer"] - 1) < 1e-3, results
        ratio, memory = times[name] / times["chamfer"], peak_mib(work, x, y)
        print(f"    {name:24}{1e3 * times[name]:10.1f} ms{ratio:9.2f} times chamfer's{memory:10.0f} MiB at the peak")
    if gib > dense_limit:
        print(f"    {'dense cdist':24} left out: about {gib:.0f} GiB")


def main() -> None:
    """Time every way at every size and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, nargs="+", default=[1024, 4096, 16384, 100_000])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dense-limit", type=float, default=4.0, help="GiB")
    arguments = parser.parse_args()
    print(f"{machine(arguments.device)}, fastest of {arguments.repeats}")
    for count in arguments.points:
        compare(count, arguments.device, arguments.repeats, arguments.dense_limit)


def _process_mib(key: str) -> float:
    """A size from Linux's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


if __name__ == "__main__":
    main()
