"""How much faster are training points read than by loading the npz files, as Occupancy Networks' loader does?

    python -m benchmarks.point_loading                    procedural objects in ONet's layout, 100 000 points each
    python -m benchmarks.point_loading --root ShapeNet    a tree of your own in that layout

Each side reads 2048 query points and 2048 surface samples, with occupancy and normals, of one object after the other,
from a warm page cache. The samples must agree bit for bit.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.machine import machine
from datamodules.object_source import ObjectSource
from datamodules.packed import PackedObjects, pack
from datamodules.prepare.shapenet_layouts import write_onet
from datamodules.shapenet_trees import ONetTree
from datamodules.synthetic_objects import ProceduralObjects

NUM_DRAWN = 2048
Sample = tuple[np.ndarray, ...]


def official(folder: Path, generator: np.random.Generator) -> Sample:
    """Whole files are read and unpacked, then rows are drawn; without the noise that is added to all 100 000 points."""
    with np.load(folder / "points.npz", allow_pickle=False) as file:
        points = file["points"].astype(np.float32)
        occupancy = np.unpackbits(file["occupancies"])[: len(points)].astype(np.float32)
    with np.load(folder / "pointcloud.npz", allow_pickle=False) as file:
        surface, normals = file["points"].astype(np.float32), file["normals"].astype(np.float32)
    rows = generator.integers(len(points), size=NUM_DRAWN)
    on_surface = generator.integers(len(surface), size=NUM_DRAWN)
    return points[rows], occupancy[rows] > 0, surface[on_surface], normals[on_surface]


def ours(source: ObjectSource, index: int, generator: np.random.Generator) -> Sample:
    """What ``ObjectDataModule`` does, less its noise."""
    rows = generator.integers(source.num_query_points(index, None), size=NUM_DRAWN)
    points, occupancy = source.queries(index, None, rows)
    on_surface = generator.integers(source.num_surface_points(index), size=NUM_DRAWN)
    surface, normals = source.surface(index, on_surface)
    return points.astype(np.float32), occupancy, surface.astype(np.float32), normals.astype(np.float32)


def seconds(read: Callable[[int, np.random.Generator], Sample], num_objects: int, repeats: int) -> float:
    """Seconds an object, of the fastest of some rounds."""
    rounds = []
    for _ in range(repeats):
        start = time.perf_counter()
        for index in range(num_objects):
            read(index, np.random.default_rng([0, index]))
        rounds.append((time.perf_counter() - start) / num_objects)
    return min(rounds)


def main() -> None:
    """Read the same samples in every way, check that they agree, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="a tree in ONet's layout; procedural objects where not given")
    parser.add_argument("--repeats", type=int, default=5, help="rounds, of which the fastest counts")
    arguments = parser.parse_args()
    print(f"{machine('cpu')}, numpy {np.__version__}")
    with tempfile.TemporaryDirectory() as scratch:
        root = arguments.root or Path(scratch) / "tree"
        if arguments.root is None:
            points = {"num_surface_points": 100_000, "num_query_points": 100_000}
            write_onet(ProceduralObjects(["chair", "lamp"], 20, 1, **points), root)
        tree = ONetTree(root)
        pack(tree, Path(scratch) / "packed")
        packed = PackedObjects(Path(scratch) / "packed")
        folders = [path.parent for path in sorted(root.glob("*/*/points.npz"))]
        readers = {
            "npz files, loaded whole": lambda index, generator: official(folders[index], generator),
            "the tree, by ShapeNet": lambda index, generator: ours(tree, index, generator),
            "packed, by ShapeNet": lambda index, generator: ours(packed, index, generator),
        }
        for index in range(len(folders)):
            first, *others = (read(index, np.random.default_rng([0, index])) for read in readers.values())
            assert all(np.array_equal(a, b) for other in others for a, b in zip(first, other, strict=True))
        print(f"{len(folders)} objects; all samples agree bit for bit")
        times = {name: seconds(read, len(folders), arguments.repeats) for name, read in readers.items()}
        reference = next(iter(times.values()))
        for name, value in times.items():
            print(f"{name:26s} {1e3 * value:8.3f} ms an object   ratio {reference / value:5.1f}")


if __name__ == "__main__":
    main()
