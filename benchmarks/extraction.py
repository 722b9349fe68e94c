"""How much does block-wise extraction save against one dense call of marching cubes?

    python -m benchmarks.extraction                       evaluations and seconds, block-wise / dense, at 128, 256, 512
    python -m benchmarks.extraction --resolution 2048     block-wise alone, with the peak of memory

The field is analytic and cheap; a network's cost is in the evaluations, so their ratio is what counts there.
"""

import argparse
import resource
import time
from collections.abc import Callable

import mcubes
import numpy as np
import torch
from torch import Tensor

from benchmarks.machine import machine
from ops.isosurface import extract_surface
from ops.meshes import euler_characteristic, is_watertight


class CountedField:
    """A torus joined with a sphere, about as much surface as an object in the unit sphere has; counts its points."""

    def __init__(self) -> None:
        self.num_points = 0

    def __call__(self, points: Tensor) -> Tensor:
        self.num_points += len(points)
        points = points - points.new_tensor([0.0137, 0.0071, -0.0193])  # no lattice point on the surface
        ring = torch.stack([points[:, :2].norm(dim=-1) - 0.6, points[:, 2]], dim=-1).norm(dim=-1) - 0.2
        return torch.minimum(ring, points.norm(dim=-1) - 0.35)


def dense(field: CountedField, resolution: int) -> int:
    """Number of faces from one call of marching cubes on all values."""
    axis = torch.linspace(-1, 1, resolution + 1)
    plane = torch.cartesian_prod(axis, axis)
    values = np.empty([resolution + 1] * 3, np.float32)
    for i, x in enumerate(axis):
        values[i] = field(torch.cat([x.expand(len(plane), 1), plane], dim=1)).view(resolution + 1, -1).numpy()
    return len(mcubes.marching_cubes(values, 0)[1])


def timed(extract: Callable[[CountedField], int]) -> tuple[float, int, int]:
    """Seconds, faces and evaluations of one run; seconds of processor time, which other programs disturb least."""
    field, start = CountedField(), time.process_time()
    num_faces = extract(field)
    return time.process_time() - start, num_faces, field.num_points


def compare(resolution: int, repeats: int) -> None:
    """Print one line of the table, of the fastest run of each side; the sides take turns."""
    runs = [
        (
            timed(lambda field: len(extract_surface(field, resolution).faces)),
            timed(lambda field: dense(field, resolution)),
        )
        for _ in range(repeats)
    ]
    (blocks, faces, evaluations), (whole, num_faces, all_evaluations) = (min(side) for side in zip(*runs, strict=True))
    # slivers at lattice points on the surface are collapsed in one and not in the other
    assert abs(num_faces - faces) < 1e-3 * num_faces, (num_faces, faces)
    share = evaluations / all_evaluations
    print(
        f"{resolution:6d}^3  {faces:10,d} faces   evaluations {share:6.2%} of dense   "
        f"{blocks:6.2f} s of processor time against {whole:6.2f}: ratio {whole / blocks:5.1f}"
    )


def alone(resolution: int) -> None:
    """Print size, time, memory and topology of one block-wise extraction."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    field, start = CountedField(), time.perf_counter()
    shape = extract_surface(field, resolution)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    mesh = sum(t.numel() * t.element_size() for t in (shape.vertices, shape.faces))
    share = field.num_points / (resolution + 1) ** 3
    print(
        f"{resolution:6d}^3  {len(shape.faces):10,d} faces   evaluations {share:6.2%} of dense   {seconds:.1f} s\n"
        f"        peak memory {peak / 2**20:.2f} GiB, of which {before / 2**20:.2f} before the start and "
        f"{mesh / 2**30:.2f} the mesh; all values alone would be {4 * (resolution + 1) ** 3 / 2**30:.1f} GiB"
    )
    print(f"        watertight: {is_watertight(shape)}, Euler characteristic {euler_characteristic(shape)}")


def main() -> None:
    """Extract block by block and densely, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", type=int, help="only this one, block-wise alone; ru_maxrss is in KiB on Linux")
    parser.add_argument("--repeats", type=int, default=3, help="of the comparison, of which the fastest counts")
    arguments = parser.parse_args()
    print(machine("cpu"))
    if arguments.resolution:
        alone(arguments.resolution)
    else:
        for resolution in (128, 256, 512):
            compare(resolution, arguments.repeats)


if __name__ == "__main__":
    main()
