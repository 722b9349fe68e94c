"""How many evaluations and how much time does MISE save against a dense lattice?

    python -m benchmarks.mise                     at 64, 128 and 256, for three fields
    python -m benchmarks.mise --coarse 16         with another coarse lattice
    python -m benchmarks.mise --fields --batch 8  only: the networks' objects together and one by one

Fields: a sphere, a chair of boxes, and a random decoder of Occupancy Networks' width (five residual blocks of 256) that
deforms a ball; the decoder's dense lattice at 256 is left out, as it takes minutes. Dense is one call of marching cubes
on all values. Evaluations are what counts for a network, and the decoder's seconds show that nothing else does. The
sides take turns within one run, and the fastest of the repeats counts.

``--batch`` objects, each a ball that the full decoders of Occupancy Networks and of IM-Net make of a code of its own,
are then extracted in three ways: together, one after another, and one after another with 100,000 points a call. All
evaluate the same points, so that the rest is what calls and caches cost; ``--device cuda`` is where calls cost most.
"""

import argparse
import time
from collections.abc import Callable

import mcubes
import torch
from torch import Tensor, nn

from benchmarks.machine import machine
from methods.imnet import ImplicitDecoder
from methods.occupancy_networks import ConditionalDecoder
from ops.chunks import map_chunks
from ops.mise import CHUNK_SIZE, ObjectsField, extract_mise, extract_mise_batch, field_of
from ops.object_groups import map_groups
from ops.types import Field

BOUNDS = 0.55


class CountedField:
    """A field that counts its points."""

    def __init__(self, field: Field) -> None:
        self.field, self.num_points = field, 0

    def __call__(self, points: Tensor) -> Tensor:
        self.num_points += len(points)
        return self.field(points)


def sphere(points: Tensor) -> Tensor:
    """A sphere of radius 0.35, off the lattice."""
    return (points - points.new_tensor([0.0131, 0.0072, -0.0193])).norm(dim=-1) - 0.35


def chair(points: Tensor) -> Tensor:
    """A seat, a back and four legs of boxes, as high as the unit cube."""
    boxes = [((0.0, 0.0, 0.0), (0.25, 0.25, 0.03)), ((0.0, 0.22, 0.25), (0.25, 0.03, 0.25))]
    boxes += [((0.22 * x, 0.22 * y, -0.25), (0.03, 0.03, 0.25)) for x in (-1, 1) for y in (-1, 1)]
    centers, halves = (points.new_tensor(side) for side in zip(*boxes, strict=True))
    offsets = (points[:, None] - centers - 0.0071).abs() - halves
    return (offsets.clamp_min(0).norm(dim=-1) + offsets.amax(-1).clamp_max(0)).amin(-1)


class Decoder(nn.Module):
    """As wide and deep as the decoder of Occupancy Networks, random, and added to the distance to a sphere."""

    def __init__(self, width: int = 256, num_blocks: int = 5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lift = nn.Linear(3, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
            for _ in range(num_blocks)
        )
        self.head = nn.Linear(width, 1)

    def forward(self, points: Tensor) -> Tensor:
        features = self.lift(8 * points)
        for block in self.blocks:
            features = features + block(features)
        return sphere(points) + 0.05 * self.head(features).squeeze(-1)


def dense(field: Field, resolution: int) -> int:
    """Number of faces from one call of marching cubes on all values."""
    axis = torch.linspace(-BOUNDS, BOUNDS, resolution + 1)
    with torch.no_grad():
        values = map_chunks(field, torch.cartesian_prod(axis, axis, axis), chunk_size=100_000)
    return len(mcubes.marching_cubes(values.view([resolution + 1] * 3).numpy(), 0)[1])


def timed(work: Callable[[], int]) -> tuple[float, int]:
    """Seconds and faces of one run; seconds of processor time, which other programs disturb least."""
    start = time.process_time()
    num_faces = work()
    return time.process_time() - start, num_faces


def compare(name: str, field: Field, coarse: int, steps: int, repeats: int, has_dense: bool) -> None:
    """Print one line of the table."""
    resolution, mise_s, dense_s = coarse * 2**steps, float("inf"), float("inf")
    num_points = faces = all_faces = 0
    for _ in range(repeats):
        counted = CountedField(field)
        duration, faces = timed(
            lambda counted=counted: len(
                extract_mise(counted, coarse_resolution=coarse, upsampling_steps=steps, bounds=BOUNDS).faces
            )
        )
        mise_s, num_points = min(mise_s, duration), counted.num_points
        if has_dense:
            duration, all_faces = timed(lambda: dense(field, resolution))
            dense_s = min(dense_s, duration)
    share = num_points / (resolution + 1) ** 3
    line = f"{resolution:4d}^3  {name:8} evaluations {num_points:9,d}, {share:6.2%} of dense   {mise_s:6.2f} s"
    if has_dense:
        # slivers at lattice points on the surface are collapsed in neither, but rounding may move a value's sign
        assert abs(all_faces - faces) <= 1e-3 * faces, (all_faces, faces)
        line += f" against {dense_s:6.2f}: {dense_s / mise_s:5.1f} times faster"
    print(f"{line}   {faces:,d} faces")


class CountedObjects:
    """The balls that a decoder makes of codes, and how often and for how many points it was called."""

    def __init__(self, decoder: nn.Module, num_objects: int, device: str) -> None:
        generator = torch.Generator().manual_seed(0)
        self.codes = torch.randn(num_objects, 256, generator=generator).to(device)
        self.radii = torch.linspace(0.2, 0.4, num_objects).to(device)
        self.decoder, self.num_points, self.num_calls = decoder.to(device), 0, 0

    def __call__(self, points: Tensor, objects: Tensor) -> Tensor:
        self.num_points, self.num_calls = self.num_points + len(points), self.num_calls + 1
        logits = map_groups(self.decoder, points, objects, self.codes)
        return points.norm(dim=-1) - self.radii[objects] + 1e-3 * logits


def one_by_one(field: ObjectsField, num_objects: int, **sizes: int) -> int:
    """Faces of all objects, extracted one after another."""
    return sum(len(extract_mise(field_of(field, k), **sizes).faces) for k in range(num_objects))


def compare_batch(name: str, decoder: nn.Module, num_objects: int, steps: int, coarse: int, device: str) -> None:
    """Print one line of each way to extract many objects."""
    sizes = {"coarse_resolution": coarse, "upsampling_steps": steps, "device": device}
    ways = {
        "together": lambda field: sum(len(shape.faces) for shape in extract_mise_batch(field, num_objects, **sizes)),
        "one by one": lambda field: one_by_one(field, num_objects, **sizes),
        f"one by one, {CHUNK_SIZE:,d} a call": lambda field: one_by_one(
            field, num_objects, chunk_size=CHUNK_SIZE, **sizes
        ),
    }
    seconds, faces = {}, {}
    for way, work in ways.items():
        field = CountedObjects(decoder, num_objects, device)
        # a GPU's work is no time of the processor
        clock = time.perf_counter if device == "cuda" else time.process_time
        start = clock()
        faces[way] = work(field)
        seconds[way] = clock() - start
        assert abs(faces[way] - faces["together"]) <= 1e-3 * faces["together"], faces
        print(
            f"{coarse * 2**steps:4d}^3  {name:6} {num_objects} objects {way:27} {seconds[way]:7.2f} s, "
            f"{seconds[way] / seconds['together']:5.2f} times together's   evaluations {field.num_points:,d} in "
            f"{field.num_calls:,d} calls"
        )


def main() -> None:
    """Extract every field coarse to fine and densely, then objects together and one by one, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coarse", type=int, default=32, help="cells of the coarse lattice along an axis")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 3], help="halvings")
    parser.add_argument("--fields", nargs="*", choices=["sphere", "chair", "decoder"])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--batch", type=int, default=0, help="objects that are extracted together; 0 for none")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="of the batch")
    parser.add_argument("--width", type=int, default=256, help="of the batch's decoders; 256 as published")
    arguments = parser.parse_args()
    print(f"{machine(arguments.device)}, fastest of {arguments.repeats}")
    fields = {"sphere": sphere, "chair": chair, "decoder": Decoder().eval()}
    for steps in arguments.steps:
        for name in fields if arguments.fields is None else arguments.fields:
            # two million points of the decoder take a minute of one core
            repeats = 1 if name == "decoder" else arguments.repeats
            has_dense = name != "decoder" or arguments.coarse * 2**steps <= 128
            compare(name, fields[name], arguments.coarse, steps, repeats, has_dense)
    if arguments.batch:
        torch.manual_seed(0)
        decoders = {
            "ONet": ConditionalDecoder(256, arguments.width).eval(),
            "IM-Net": ImplicitDecoder(256, arguments.width // 2, 0.02).eval(),
        }
        for name, decoder in decoders.items():
            compare_batch(name, decoder, arguments.batch, arguments.steps[0], arguments.coarse, arguments.device)


if __name__ == "__main__":
    main()
