"""How much faster are compiled passes than plain PyTorch, from signed distances to pixels and in placing samples?

    python benchmarks/rendering.py                     CPU: numba against plain PyTorch
    python benchmarks/rendering.py --device cuda       GPU: Triton against plain PyTorch
    python benchmarks/rendering.py --cases demo --repeats 3

Cases are the rays and samples of a step of the CPU demo and of the paper's preset. Both sides take turns and the median
of the repeats is reported: wall time on a GPU, and on a CPU the time that the process computed, which a busy machine
disturbs less. Samplers have no kernels of their own for a GPU.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest.mock import patch

# idle OpenMP threads of torch otherwise spin; before torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.machine import machine
from ops.rays import unit_sphere_intersection
from ops.rendering import composite_sections, surface_alpha
from ops.sampling import hierarchical_distances
from ops.sdf_grid import SdfGrid

CASES = {"demo": (1024, 16), "faithful": (512, 128)}
SHARPNESS, RATIO, CHANNELS = 60.0, 0.5, 7


@contextmanager
def plain() -> Iterator[None]:
    """The definitions in place of the compiled passes."""
    names = ("ops.rendering._kernels", "ops.sampling.cpu_kernels", "ops.sdf_grid.cpu_kernels")
    with patch(names[0], lambda _: None), patch(names[1], lambda _: None), patch(names[2], lambda _: None):
        yield


def rays(count: int, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Origins, directions, near and far of rays into the sphere of radius one half and past it."""
    generator = torch.Generator().manual_seed(0)
    origins = 3 * F.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    targets = F.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    targets = targets * 0.7 * torch.rand(count, 1, generator=generator) ** (1 / 3)
    origins, directions = origins.to(device), F.normalize(targets - origins, dim=-1).to(device)
    return origins, directions, *unit_sphere_intersection(origins, directions)[:2]


def works(num_rays: int, num_samples: int, device: str) -> dict[str, Callable[[], object]]:
    """What is timed."""
    generator = torch.Generator().manual_seed(0)
    shape = (num_rays, num_samples)
    origins, directions, near, far = rays(num_rays, device)
    sdf = (torch.rand(shape, generator=generator) * 0.2 - 0.1).to(device).requires_grad_()
    gradient = torch.randn(*shape, 3, generator=generator).to(device).requires_grad_()
    values = torch.rand(*shape, CHANNELS, generator=generator).to(device).requires_grad_()
    lengths = (torch.rand(shape, generator=generator) * 0.02).to(device)
    inv_s = torch.tensor(SHARPNESS, device=device, requires_grad=True)
    grid = SdfGrid(64).to(device)
    grid.update(lambda points: points.norm(dim=-1) - 0.5)
    jitter = torch.Generator(device).manual_seed(0)

    def forward() -> tuple[Tensor, Tensor]:
        return composite_sections(surface_alpha(sdf, gradient, directions, lengths, inv_s, RATIO), values)

    def forward_backward() -> None:
        pixels, log_transmittance = forward()
        (pixels.sum() + log_transmittance.sum()).backward()

    def rounds() -> Tensor:
        return hierarchical_distances(lambda distances: 1 - distances, near, far, 64, 16, 4, jitter)

    return {
        "pixels, forward": forward,
        "pixels, forward + backward": forward_backward,
        "sections by the cached SDF": lambda: grid.section_edges(
            origins, directions, near, far, num_samples, inv_s.detach(), jitter
        ),
        "four rounds, without the SDF": rounds,
    }


def milliseconds(work: Callable[[], object], device: str) -> float:
    """Of one call."""
    if device == "cpu":
        start = time.process_time()
        work()
        return (time.process_time() - start) * 1e3
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    """Parse the command line and print a table a case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--repeats", type=int, default=30)
    arguments = parser.parse_args()
    print(f"{machine(arguments.device)}, median of {arguments.repeats}")
    for case in arguments.cases:
        num_rays, num_samples = CASES[case]
        print(f"\n{case}: {num_rays} rays of {num_samples} samples")
        print(f"{'':30}{'plain ms':>10}{'compiled ms':>13}{'times faster':>14}")
        for name, work in works(num_rays, num_samples, arguments.device).items():
            sides = {"plain": plain, "compiled": nullcontext}
            times: dict[str, list[float]] = {side: [] for side in sides}
            for repeat in range(arguments.repeats + 1):
                for side, context in sides.items():
                    with context():
                        elapsed = milliseconds(work, arguments.device)
                    if repeat:  # the first call compiles
                        times[side].append(elapsed)
            slow, fast = (statistics.median(times[side]) for side in sides)
            print(f"{name:30}{slow:10.3f}{fast:13.3f}{slow / fast:14.1f}")


if __name__ == "__main__":
    main()
