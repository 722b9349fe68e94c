"""How the time until a collection is open grows with its objects.

    python -m benchmarks.growth.objects
    python -m benchmarks.growth.objects --small --plot objects.svg

Empty folders in the layout of 3D-R2N2, thirteen categories, in a temporary folder; opened as a training opens them,
listing, split and all. ``first`` has never seen the collection, ``again`` finds what the first wrote into the cache
folder (see datamodules/listing.py). Names are in the memory of the operating system, as the folders were just made: a
disk that is far away adds to the first time what it takes to answer for each folder that is looked into.
"""

import atexit
import os
import shutil
import tempfile
import time
from pathlib import Path

from benchmarks.growth.axis import Growth, Turn, run
from datamodules.listing import SETTLED_SECONDS
from datamodules.shapenet import ShapeNet
from datamodules.splits import SYNSETS


def write_tree(root: Path, num_objects: int) -> None:
    """Folders of so many objects, which look as if nothing had changed for a while."""
    synsets = list(SYNSETS)
    for part in ("ShapeNetRendering", "ShapeNetVox32"):
        for synset in synsets:
            (root / part / synset).mkdir(parents=True)
        for k in range(num_objects):
            os.mkdir(root / part / synsets[k % len(synsets)] / f"{k:032x}")
        past = time.time() - 2 * SETTLED_SECONDS
        for synset in synsets:
            os.utime(root / part / synset, (past, past))


def prepare(num_objects: int) -> Turn:
    """A turn that opens a collection of so many objects without a cache and then with it."""
    folder = Path(tempfile.mkdtemp(prefix="bottega-objects-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_tree(folder / "data", num_objects)

    def opened() -> float:
        data = ShapeNet(str(folder / "data"), reads={"voxels"})
        start = time.perf_counter()
        data.setup("fit")
        seconds = time.perf_counter() - start
        assert len(data.source.objects) == num_objects
        return seconds

    def turn() -> dict[str, float]:
        shutil.rmtree(folder / "cache", ignore_errors=True)
        usual = os.environ.get("XDG_CACHE_HOME")
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        try:
            return {"first s": opened(), "again s": opened()}
        finally:
            del os.environ["XDG_CACHE_HOME"]
            if usual is not None:
                os.environ["XDG_CACHE_HOME"] = usual

    return turn


GROWTH = Growth(
    title="Opening a collection of objects, 3D-R2N2's layout",
    axis="objects",
    sizes=(500, 5_000, 50_000),
    small=(26, 130),
    prepare=prepare,
    plotted=("first s", "again s"),
    unit="seconds",
    repeats=3,
)

if __name__ == "__main__":
    run(GROWTH, description=__doc__)
