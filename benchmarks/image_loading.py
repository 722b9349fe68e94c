"""How much faster are pictures read from packed files than from a tree of small ones?

    python -m benchmarks.image_loading                     procedural objects in 3D-R2N2's layout
    python -m benchmarks.image_loading --root ShapeNet     a tree of your own, in any layout that ShapeNet reads

Each side reads 5 of 24 pictures of one object after the other, decoded to pixels, from a warm page cache; a disk or a
network that is slow to open files adds to the tree's side only. The pixels must agree bit for bit.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL

from benchmarks.machine import machine
from datamodules.object_source import ObjectSource
from datamodules.packed import PackedObjects, pack
from datamodules.prepare.shapenet_layouts import write_r2n2
from datamodules.shapenet import open_shapenet
from datamodules.synthetic_objects import ProceduralObjects

NUM_VIEWS = 5


def drawn(source: ObjectSource, index: int) -> list[int]:
    """Some views of an object."""
    return np.random.default_rng(index).choice(source.num_views, NUM_VIEWS, replace=False).tolist()


def seconds(source: ObjectSource, num_objects: int, repeats: int, decode: bool) -> float:
    """Seconds a picture, of the fastest of some rounds."""
    rounds = []
    for _ in range(repeats):
        start = time.perf_counter()
        for index in range(num_objects):
            views = drawn(source, index)
            if decode:
                source.pixels(index, views)
            else:
                for view in views:
                    source.encoded_view(index, view)
        rounds.append((time.perf_counter() - start) / num_objects / NUM_VIEWS)
    return min(rounds)


def main() -> None:
    """Read the same pictures in every way, check that they agree, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="a tree; procedural objects where not given")
    parser.add_argument("--repeats", type=int, default=5, help="rounds, of which the fastest counts")
    arguments = parser.parse_args()
    print(f"{machine('cpu')}, pillow {PIL.__version__}")
    with tempfile.TemporaryDirectory() as scratch:
        root = arguments.root or Path(scratch) / "tree"
        if arguments.root is None:
            write_r2n2(ProceduralObjects(["chair", "lamp"], 20), root)
        tree = open_shapenet(root)
        sides = {"the tree": tree}
        for images in ("files", "pixels"):
            pack(tree, Path(scratch) / images, images=images)
            sides[f"packed, as {images}"] = PackedObjects(Path(scratch) / images)
        num_objects = min(len(tree.objects), 200)
        for index in range(num_objects):
            first, *others = (side.pixels(index, drawn(tree, index)) for side in sides.values())
            assert all(np.array_equal(first, other) for other in others)
        print(f"{num_objects} objects; all pixels agree bit for bit")
        for title, decode in (("decoded to pixels", True), ("the files' bytes alone", False)):
            print(title)
            shown = {name: side for name, side in sides.items() if decode or side.encoded_view(0, 0) is not None}
            times = {name: seconds(side, num_objects, arguments.repeats, decode) for name, side in shown.items()}
            for name, value in times.items():
                print(f"  {name:20s} {1e6 * value:8.1f} us a picture   ratio {times['the tree'] / value:5.1f}")


if __name__ == "__main__":
    main()
