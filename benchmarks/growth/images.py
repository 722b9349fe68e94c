"""How loading a scene and drawing its rays grow with the resolution of its photographs.

    python -m benchmarks.growth.images
    python -m benchmarks.growth.images --small --plot images.svg

Sixteen photographs of the embedded scene, enlarged and written in the layout of NeuS (DTU), are read from disk as a
training reads them; then batches of 1024 rays are drawn from them.
"""

import atexit
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.growth.axis import Growth, Turn, clocks, run
from benchmarks.machine import forget_peak_memory, peak_memory_mib
from datamodules.dtu import DTU
from datamodules.synthetic import SyntheticScene

RENDERED = 32
NUM_BATCHES = 8


def write_scene(folder: Path, size: int, num_views: int = 16) -> None:
    """The embedded scene, rendered small and enlarged to size x size pixels."""
    SyntheticScene(num_views=num_views, image_size=RENDERED).write_neus_layout(folder)
    for path in (*folder.glob("image/*.png"), *folder.glob("mask/*.png")):
        with Image.open(path) as picture:
            large = picture.resize((size, size))
        large.save(path)
    with np.load(folder / "cameras_sphere.npz", allow_pickle=False) as file:
        cameras = dict(file)
    for name in cameras:
        if name.startswith("world_mat_") and "inv" not in name:
            cameras[name][:2] *= size / RENDERED
    np.savez(folder / "cameras_sphere.npz", **cameras)


def prepare(size: int) -> Turn:
    """A turn that loads the scene at that resolution and draws some batches."""
    root = Path(tempfile.mkdtemp(prefix="bottega-images-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    write_scene(root / "dtu_scan1", size)

    def turn() -> dict[str, float]:
        loading, drawing = {}, {}
        forget_peak_memory("cpu")
        before = peak_memory_mib("cpu")
        with clocks(loading, 1e3):
            data = DTU(str(root), 1, rays_per_batch=1024, reads={"rays"})
            data.setup("fit")
            batches = iter(data.train_dataloader())
        peak = peak_memory_mib("cpu") - before
        next(batches)
        with clocks(drawing, 1e3):
            for _ in range(NUM_BATCHES):
                next(batches)
        figures = {f"load {name}": value for name, value in loading.items()}
        figures |= {f"1024 rays {name}": value / NUM_BATCHES for name, value in drawing.items()}
        return figures | {"peak MiB": peak}

    return turn


GROWTH = Growth(
    title="Sixteen square photographs: loading them, and a batch of rays",
    axis="pixels along an edge",
    sizes=(64, 128, 256, 512, 1024),
    small=(32, 64),
    prepare=prepare,
    plotted=("load wall ms", "1024 rays wall ms"),
    unit="ms",
    exponent=2.0,
    repeats=3,
    remark="Pixels grow with slope 2. Peak memory is what loading adds to the process.",
)

if __name__ == "__main__":
    run(GROWTH, description=__doc__)
