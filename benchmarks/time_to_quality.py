"""How good the CPU demo's reconstruction is after how many seconds of training.

    python benchmarks/time_to_quality.py                              statue and knot, for 250, 500 and 1000 steps
    python benchmarks/time_to_quality.py --scenes knot --steps 3000

Every row is a run of its own, since the schedules stretch over a run's length: fit and test of the shipped
configs/neuralangelo_demo.yaml as the command line runs them, without validation, in a temporary folder. Seconds are the
wall's, of training alone. The first step of the process, which compiles kernels or loads them from their cache, is
taken in a run of one step before and printed apart. Scores are those of `test`: F-scores within shares of the diagonal
of the truth's bounding box, Chamfer distance in the scene's mm, PSNR over the held-out views.
"""

import argparse
import io
import logging
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

# idle OpenMP threads of torch otherwise spin and take the cores from the hash grid's; before torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from pytorch_lightning import Callback, LightningModule, Trainer

from benchmarks.machine import machine
from main import main as run

CONFIG = ROOT / "configs/neuralangelo_demo.yaml"
COLUMNS = {"f_score_1pct": "F 1 %", "f_score_0_5pct": "F 0.5 %", "chamfer_l1": "Chamfer mm", "psnr_db": "PSNR dB"}


class Clock(Callback):
    """Wall seconds between the first and the last moment of training."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start."""
        self.start = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop; what a GPU still has to do counts."""
        pl_module.s_var.item()
        self.seconds = time.perf_counter() - self.start


def fit(scene: str, steps: int, image_size: int, device: str, folder: Path, flags: Sequence[str] = ()) -> float:
    """Wall seconds of training of one run, whose checkpoint is the newest below the folder then; flags come last."""
    fit = ["fit", "--config", str(CONFIG), "--run_root", str(folder / "runs"), f"--trainer.max_steps={steps}"]
    data = {"scene": scene, "image_size": image_size, "root": folder / "data"}
    quiet = ["--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=false"]
    quiet.append("--trainer.enable_model_summary=false")
    with redirect_stdout(io.StringIO()):
        cli = run(
            [
                *[*fit, *(f"--data.init_args.{name}={value}" for name, value in data.items()), *quiet],
                f"--trainer.accelerator={'gpu' if device == 'cuda' else 'cpu'}",
                f"--trainer.callbacks+={Clock.__module__}.Clock",
                *flags,
            ]
        )
    return next(callback for callback in cli.trainer.callbacks if isinstance(callback, Clock)).seconds


def score(folder: Path) -> dict[str, float]:
    """Scores of the newest run below the folder."""
    with redirect_stdout(io.StringIO()):
        cli = run(["test", "--run_root", str(folder / "runs")])
    return {name: float(cli.trainer.callback_metrics[f"test/{name}"]) for name in COLUMNS}


def main() -> None:
    """Parse the command line, run, print one row a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", nargs="+", choices=["statue", "knot"], default=["statue", "knot"])
    parser.add_argument("--steps", nargs="+", type=int, default=[250, 500, 1000], help="lengths of the runs")
    parser.add_argument("--image_size", type=int, default=160, help="of the photographs, in pixels")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments = parser.parse_args()

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    sizes = arguments.image_size, arguments.device
    print(f"{machine(arguments.device)}\n{CONFIG.relative_to(ROOT)}, photographs of {arguments.image_size} pixels")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        print(f"first step of the process, compilation included: {fit(arguments.scenes[0], 1, *sizes, folder):.1f} s")
        print(f"{'scene':8}{'steps':>8}{'training s':>12}" + "".join(f"{title:>12}" for title in COLUMNS.values()))
        for scene in arguments.scenes:
            for steps in arguments.steps:
                seconds = fit(scene, steps, *sizes, folder)
                values = "".join(f"{value:12.3f}" for value in score(folder).values())
                print(f"{scene:8}{steps:8d}{seconds:12.1f}{values}", flush=True)


if __name__ == "__main__":
    main()
