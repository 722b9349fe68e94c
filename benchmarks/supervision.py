"""What masks, triangulated points and patches of neighbouring photographs are worth to Neuralangelo, at one budget.

    python benchmarks/supervision.py --root data/dtu --scan 24 --steps 2000
    python benchmarks/supervision.py --root data/dtu --scan 24 --steps 2000 --cells none mask

Every cell is a run of its own, fit and test of configs/neuralangelo_dtu.yaml with configs/overlays/cpu.yaml as the
command line runs them, in a temporary folder: the same network, seed, steps and rays, drawn evenly from all pixels,
with a NeRF++ background; only the weights of the losses differ. The scan needs points (python -m datamodules.prepare.
triangulate). They are split at random: one half may be trained on, and the other, which no cell ever sees, measures how
far the mesh is from it. Seconds are the wall's, of training alone, so they depend on what else the machine does. The
table is Markdown.
"""

import argparse
import io
import logging
import os
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

# idle OpenMP threads of torch otherwise spin and take the cores from the hash grid's; before torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np

from benchmarks.machine import machine
from benchmarks.time_to_quality import Clock
from datamodules.dtu import find_scan, read_scan
from datamodules.scene import Scene
from datamodules.sparse_points import read_tracks
from datamodules.tracks import Tracks, save_tracks
from main import main as run

CONFIGS = [ROOT / f"configs/{name}.yaml" for name in ("neuralangelo_dtu", "overlays/cpu", "overlays/dtu_masks")]
COMMON = {
    "model": {
        "background": "nerf++", "background_hidden_size": 64, "background_layers": 4, "num_background_samples": 16,
        "mask_weight": 0.0, "mesh_resolution": 192,
    },
    "data": {"foreground_share": 0.0, "eval_downscale": 4},
}  # fmt: skip
MASK = {"mask_weight": 0.1}
SPARSE = {"sparse_weight": 1.0}
PATCH = {"patch_weight": 0.5, "patch_rays": 256}
CELLS = {
    "none": {},
    "mask": MASK,
    "sparse": SPARSE,
    "patch": PATCH,
    "sparse+patch": SPARSE | PATCH,
    "mask+sparse": MASK | SPARSE,
    "mask+sparse+patch": MASK | SPARSE | PATCH,
}
SCORES = {
    "psnr_db": ("PSNR dB", 2),
    "psnr_masked_db": ("PSNR in masks dB", 2),
    "sparse_points_median": ("median mm", 2),
    "sparse_points_p90": ("90 % mm", 1),
    "sparse_points_within_1pct": ("within 1 %", 3),
}


def write_halves(scene: Scene, points: Path, folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """Split triangulated points at random into two files of one half each: to train on and to measure with."""
    tracks = read_tracks(points, scene)
    matrix = scene.normalized_to_dataset.numpy()
    in_dataset = tracks.points @ matrix[:3, :3].T + matrix[:3, 3]
    tracks = Tracks(in_dataset, tracks.errors, tracks.view_offsets, tracks.view_point_index)
    is_first = np.zeros(len(tracks.points), dtype=bool)
    is_first[np.random.default_rng(seed).permutation(len(is_first))[: len(is_first) // 2]] = True
    paths = folder / "points_to_train_on.npz", folder / "points_to_measure_with.npz"
    for path, half in zip(paths, (is_first, ~is_first), strict=True):
        save_tracks(path, tracks.select(half), scene.image_names)
    return paths


def fit_and_test(
    weights: dict[str, float], steps: int, data: dict[str, object], halves: tuple[Path, Path], folder: Path
) -> dict[str, float]:
    """Scores of one cell, and its seconds of training."""
    sizes = {"model": COMMON["model"] | weights, "data": COMMON["data"] | data | {"sparse_points": halves[0]}}
    flags = [f"--{part}.init_args.{name}={value}" for part, values in sizes.items() for name, value in values.items()]
    quiet = ["--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=false"]
    quiet += ["--trainer.enable_model_summary=false", f"--trainer.callbacks+={Clock.__module__}.Clock"]
    configs = [word for path in CONFIGS for word in ("--config", str(path))]
    runs = ["--run_root", str(folder)]
    with redirect_stdout(io.StringIO()):
        fitted = run(["fit", *configs, *runs, *flags, *quiet, f"--trainer.max_steps={steps}"])
        tested = run(["test", *runs, f"--data.init_args.sparse_points={halves[1]}"])
    clock = next(callback for callback in fitted.trainer.callbacks if isinstance(callback, Clock))
    return {name: float(tested.trainer.callback_metrics[f"test/{name}"]) for name in SCORES} | {
        "seconds": clock.seconds
    }


def main() -> None:
    """Parse the command line, run, print one row a cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder with the scans, or of one scan")
    parser.add_argument("--scan", default="24", help="number or folder name")
    parser.add_argument("--steps", type=int, default=2000, help="length of every run")
    parser.add_argument("--cells", nargs="+", choices=list(CELLS), default=list(CELLS))
    parser.add_argument("--mask_weight", type=float, default=MASK["mask_weight"], help="where a cell has masks")
    parser.add_argument("--rays", type=int, default=1024, help="rays of a batch")
    parser.add_argument("--keep", type=Path, help="folder that keeps the runs; a temporary one if not given")
    arguments = parser.parse_args()

    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    scan = find_scan(arguments.root, arguments.scan)
    points = scan / "sparse_points.npz"
    if not points.is_file():
        parser.error(f"{scan} has no {points.name}: run python -m datamodules.prepare.triangulate --root {scan.parent}")
    print(f"{machine('cpu')}\n{scan.name}, {arguments.steps} steps of {arguments.rays} rays\n")
    titles = [title for title, _ in SCORES.values()]
    print(f"| supervision | {' | '.join(titles)} | training s |\n|---|{'---:|' * (len(titles) + 1)}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        halves = write_halves(read_scan(scan), points, folder)
        data = {"root": arguments.root, "scan": arguments.scan, "rays_per_batch": arguments.rays}
        for cell in arguments.cells:
            weights = dict(CELLS[cell])
            if "mask_weight" in weights:
                weights["mask_weight"] = arguments.mask_weight
            scores = fit_and_test(weights, arguments.steps, data, halves, folder / cell)
            values = [f"{scores[name]:.{digits}f}" for name, (_, digits) in SCORES.items()]
            print(f"| {cell} | {' | '.join(values)} | {scores['seconds']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
