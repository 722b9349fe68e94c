"""What each speed-up is worth and what it costs: time and quality of runs that differ in one setting.

    python benchmarks/speed_ups.py                                     statue, 500 steps
    python benchmarks/speed_ups.py --scene dtu --root data/dtu --scan 24 --steps 2000
    python benchmarks/speed_ups.py --only shipped "four taps"

Every row is fit and test of a shipped config as the command line runs them, in a temporary folder, and has one setting
changed: configs/neuralangelo_demo.yaml, or configs/neuralangelo_dtu.yaml with the overlays cpu and dtu_masks, whose
triangulated points, which are not trained on, stand for the truth there. Milliseconds are the wall's, of training
alone, after a run of one step that compiles. One seed: differences of 0.02 in an F-score and of half a decibel are not
separable from chance. The table is Markdown.
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

from benchmarks.machine import machine
from benchmarks.time_to_quality import Clock
from main import main as run

CONFIGS = {
    "statue": ["neuralangelo_demo"],
    "knot": ["neuralangelo_demo"],
    "dtu": ["neuralangelo_dtu", "overlays/cpu", "overlays/dtu_masks"],
}
SCORES = {
    "synthetic": {"f_score_1pct": "F 1 %", "chamfer_l1": "Chamfer mm", "psnr_db": "PSNR dB"},
    "dtu": {
        "sparse_points_median": "points, median mm",
        "sparse_points_p90": "90 % mm",
        "psnr_masked_db": "PSNR in masks dB",
    },
}
VARIANTS = {
    "shipped": [],
    "four taps": ["--model.gradient=numerical_4"],
    "exact derivatives": ["--model.gradient=analytic"],
    "sampled without the cached SDF": ["--model.occupancy_resolution=0"],
    "features in half precision": ["--model.grid_precision=half"],
    "networks in bfloat16": ["--trainer.precision=bf16-mixed"],
    "lazy AdamW": ["--model.optimizer.class_path=ops.lazy_adamw.LazyAdamW"],
}


def fit_and_test(scene: str, steps: int, flags: list[str], folder: Path) -> tuple[float, dict[str, float]]:
    """Seconds of training, and the scores of `test`."""
    configs = [word for name in CONFIGS[scene] for word in ("--config", str(ROOT / f"configs/{name}.yaml"))]
    quiet = ["--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=false"]
    quiet += [f"--trainer.callbacks+={Clock.__module__}.Clock", f"--trainer.max_steps={steps}"]
    with redirect_stdout(io.StringIO()):
        fitted = run(["fit", *configs, "--run_root", str(folder), *quiet, *flags])
        if steps == 1:
            return 0.0, {}
        metrics = run(["test", "--run_root", str(folder)]).trainer.callback_metrics
    clock = next(callback for callback in fitted.trainer.callbacks if isinstance(callback, Clock))
    scores = SCORES["dtu" if scene == "dtu" else "synthetic"]
    return clock.seconds, {name: float(metrics[f"test/{name}"]) for name in scores}


def main() -> None:
    """Parse the command line, run, print one row a variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", choices=list(CONFIGS), default="statue")
    parser.add_argument("--root", type=Path, help="of DTU's scans, or of one scan")
    parser.add_argument("--scan", default="24", help="number or folder name")
    parser.add_argument("--steps", type=int, default=500, help="length of every run")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    arguments = parser.parse_args()
    if (arguments.scene == "dtu") != (arguments.root is not None):
        parser.error("--root goes with --scene dtu, and --scene dtu with --root")

    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    titles = SCORES["dtu" if arguments.scene == "dtu" else "synthetic"].values()
    print(f"{machine('cpu')}\n{arguments.scene}, {arguments.steps} steps\n")
    print(f"| | ms a step | {' | '.join(titles)} |\n|---|{'---:|' * (1 + len(titles))}")
    for name in arguments.only:
        with tempfile.TemporaryDirectory() as temporary:
            flags = [f"--data.init_args.scene={arguments.scene}", f"--data.init_args.root={temporary}/data"]
            if arguments.scene == "dtu":
                flags = [f"--data.init_args.root={arguments.root}", f"--data.init_args.scan={arguments.scan}"]
                flags += ["--trainer.check_val_every_n_epoch=null", "--data.init_args.eval_downscale=2"]
            flags += VARIANTS[name]
            fit_and_test(arguments.scene, 1, flags, Path(temporary) / "first")
            seconds, scores = fit_and_test(arguments.scene, arguments.steps, flags, Path(temporary) / "runs")
        values = " | ".join(f"{value:.3f}" for value in scores.values())
        print(f"| {name} | {seconds / arguments.steps * 1e3:.0f} | {values} |", flush=True)


if __name__ == "__main__":
    main()
