"""How much does the auction save against SciPy's exact assignment, and how far from the best does it end?

    python -m benchmarks.earth_movers                          256, 1024 and 2048 points a side, epsilon 0.01
    python -m benchmarks.earth_movers --epsilon 0.001 --points 1024
    python -m benchmarks.earth_movers --device cuda --batch 32      the GPU's auction of a batch against the CPU's

Cases: two samples of one sphere, what a trained network is compared with; a small cloud inside of it, as an untrained
network gives; and two shapes apart. Both run on one thread, one object at a time, in turns within one run; the fastest
of the repeats counts. The auction promises an excess of at most epsilon.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.machine import machine
from ops.assignment import auction_assignment, exact_assignment


def sphere_points(count: int, seed: int) -> Tensor:
    """(1, N, 3) points spread evenly over the unit sphere."""
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(1, count, 3, generator=generator), dim=-1)


CASES: dict[str, Callable[[int], tuple[Tensor, Tensor]]] = {
    "same surface": lambda count: (sphere_points(count, 0), sphere_points(count, 1)),
    "untrained": lambda count: (0.02 * sphere_points(count, 0), sphere_points(count, 1)),
    "apart": lambda count: (0.3 * sphere_points(count, 0), sphere_points(count, 1) + 0.2),
}


def total(x: Tensor, y: Tensor, assignment: Tensor) -> float:
    """Sum of the distances between partners."""
    return (x[0] - y[0, assignment[0]]).double().norm(dim=1).sum().item()


def compare(case: str, count: int, epsilon: float, repeats: int) -> None:
    """Print one line of the table."""
    x, y = CASES[case](count)
    exact_s = auction_s = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        exact = exact_assignment(x, y)
        middle = time.perf_counter()
        auction = auction_assignment(x, y, epsilon)
        end = time.perf_counter()
        exact_s, auction_s = min(exact_s, middle - start), min(auction_s, end - middle)
    assert torch.equal(auction[0].sort().values, torch.arange(count)), "not a bijection"
    excess = total(x, y, auction) / total(x, y, exact) - 1
    assert excess <= epsilon, (excess, epsilon)
    print(
        f"{count:6d} points, {case:14} SciPy {1e3 * exact_s:8.1f} ms   auction {1e3 * auction_s:7.1f} ms: "
        f"{exact_s / auction_s:5.1f} times faster, {excess:8.4%} above the best"
    )


def compare_devices(case: str, count: int, batch: int, epsilon: float, repeats: int) -> None:
    """Print one line: a batch of turned copies by the GPU's auction, and by the CPU's with all of its threads."""
    generator = torch.Generator().manual_seed(0)
    turns = torch.linalg.qr(torch.randn(batch, 3, 3, generator=generator)).Q
    x, y = (points @ turns for points in CASES[case](count))
    seconds = {"cuda": float("inf"), "cpu": float("inf")}
    for _ in range(repeats):
        for device in seconds:
            pair = x.to(device), y.to(device)
            start = time.perf_counter()
            auction_assignment(*pair, epsilon).cpu()
            seconds[device] = min(seconds[device], time.perf_counter() - start)
    print(
        f"{count:6d} points, {case:14} {batch} objects: CPU {1e3 * seconds['cpu']:8.1f} ms   GPU "
        f"{1e3 * seconds['cuda']:8.1f} ms: {seconds['cpu'] / seconds['cuda']:5.1f} times faster"
    )


def main() -> None:
    """Time both ways on every pair of sets and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, nargs="+", default=[256, 1024, 2048])
    parser.add_argument("--epsilon", type=float, default=0.01)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--batch", type=int, default=32, help="objects, where the device is a GPU")
    arguments = parser.parse_args()
    print(f"{machine(arguments.device)}, epsilon {arguments.epsilon:g}, fastest of {arguments.repeats}")
    auction_assignment(sphere_points(8, 0), sphere_points(8, 1))  # compiles, or loads from its cache
    for count in arguments.points:
        for case in CASES:
            if arguments.device == "cuda":
                compare_devices(case, count, arguments.batch, arguments.epsilon, arguments.repeats)
            else:
                compare(case, count, arguments.epsilon, arguments.repeats)


if __name__ == "__main__":
    main()
