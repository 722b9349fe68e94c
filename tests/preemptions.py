"""Twenty preemptions at random moments of SLURM jobs over two nodes: ``python -m tests.preemptions --times 20``.

Each job is sent SIGUSR1 once, at a moment drawn from its whole life: while it starts, trains, validates, or extracts
meshes in a validation. It has to come back by itself, go on at the step that it saved, and end with the weights of a
job that was left alone. One line a job is printed; the exit status says whether all did.
"""

import argparse
import random
import re
import sys
import tempfile
import time
from pathlib import Path

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from tests.slurm_cluster import INSTALL, SlurmCluster, missing_programs
from tests.small_runs import ROOT, SMALL_MODEL, saved, small_place, write_config

CALLBACKS = [
    {"class_path": "callbacks.checkpoint.Checkpoint", "init_args": {"every_n_train_steps": 50}},
    {"class_path": "tests.preemptions.Phases"},
    {"class_path": "callbacks.preemption.Preemption"},
    {"class_path": "callbacks.score.Score", "init_args": {"metrics": [
        {"class_path": "metrics.surface.SurfaceScore", "init_args": {"num_points": 500}},
        {"class_path": "metrics.images.ViewScore"}]}},
]  # fmt: skip


class Phases(Callback):
    """Writes down when a run on the first rank comes to which phase, in ``phases.txt`` of the working directory."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._note(trainer, f"{stage} set up")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._note(trainer, "training")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._note(trainer, "validating")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._note(trainer, "training")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._note(trainer, "testing")

    def _note(self, trainer: Trainer, phase: str) -> None:
        if trainer.is_global_zero:
            with open("phases.txt", "a", encoding="utf-8") as file:
                file.write(f"{time.time()} {phase}\n")


class Place:
    """Working directory of one job, and what its runs have written down."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = small_place(folder)
        data = {
            "image_size": 48,
            "num_surface_points": 2000,
            "rays_per_batch": 128,
            "root": str(folder.parent / "data"),
        }
        model = SMALL_MODEL | {"mesh_resolution": 256, "eval_chunk_size": 512}
        settings = {"max_steps": 600, "val_check_interval": 60}
        write_config(folder, "small", "neuralangelo_demo", model, data, CALLBACKS, **settings)

    def phases(self) -> list[tuple[float, str]]:
        """Times and names."""
        path = self.folder / "phases.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(float(time), name) for time, name in (line.split(" ", 1) for line in lines)]

    def output(self) -> str:
        """What its jobs have printed."""
        return "".join(path.read_text() for path in sorted(self.folder.glob("slurm-*.out")))


def preempt_fit(cluster: SlurmCluster, place: Place, times: int, draw: random.Random) -> list[str]:
    """Send a fit over two nodes a signal in each of its first starts; what became of each."""
    job = cluster.submit("configs/slurm/fit.sbatch", "small.yaml", cwd=place.folder, PYTHONPATH=str(ROOT))
    report = []
    for number in range(times):
        cluster.wait_for(job, lambda n=number: int(cluster.facts(job)["Restarts"]) == n, f"start number {number + 1}")
        cluster.wait_for(job, lambda: cluster.facts(job)["JobState"] == "RUNNING", "its start")
        phase = draw.choice(["starting", "training", "training", "validating", "validating"])
        if phase == "starting":
            time.sleep(draw.uniform(0, 8))
        else:
            begun = len(place.phases())
            cluster.wait_for(job, lambda p=phase, b=begun: p in [name for _, name in place.phases()[b:]], f"a {phase}")
            time.sleep(draw.uniform(0, 4 if phase == "training" else 0.4))
        came = place.phases()[-1][1] if place.phases() else "starting"
        cluster.signal(job, "USR1")
        cluster.wait_for(job, lambda n=number: int(cluster.facts(job)["Restarts"]) == n + 1, "its return", 120)
        found = re.findall(r"saved step (\d+)", place.output())
        report.append(f"{phase} (then {came}): saved step {found[-1] if len(found) == number + 1 else 'none, LOST'}")
        print(f"  {report[-1]}", flush=True)
    state = cluster.wait(job, 600)["JobState"]
    resumed = re.findall(r"resumed from step (\d+)", place.output())
    saves = re.findall(r"saved step (\d+)", place.output())
    report.append("ended and resumed where saved" if state == "COMPLETED" and resumed == saves else f"{state}, LOST")
    return report


def preempt_test(cluster: SlurmCluster, place: Place, draw: random.Random) -> str:
    """Send a sweep's task a signal while it extracts the mesh for its test."""
    submitted = cluster.say(
        sys.executable, "sweep.py", "submit", "--config", "small.yaml", "--vary", "data.init_args.scene", "--scans",
        "statue", "--name", "sweep", "--trainer.max_steps", "60", cwd=place.folder, PYTHONPATH=str(ROOT),
    )  # fmt: skip
    array, table = re.search(r"array (\d+) does 1 scans, then job (\d+)", submitted).groups()
    task = f"{array}_0"
    cluster.wait_for(task, lambda: "testing" in [name for _, name in place.phases()], "a test")
    time.sleep(draw.uniform(0, 2))
    cluster.signal(task, "USR1")
    cluster.wait_for(task, lambda: cluster.facts(task)["Restarts"] == "1", "its return", 120)
    state = cluster.wait(table, 600)["JobState"]
    tests = [name for _, name in place.phases()].count("testing")
    is_well = state == "COMPLETED" and tests == 2 and "| mean of 1 | of 1 |" in place.output()
    return f"extracting: requeued, {'tested again and gathered' if is_well else 'LOST'}"


def main() -> int:
    """Do it; 0 if nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20, help="preemptions")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    given = parser.parse_args()
    if missing_programs():
        sys.exit(f"SLURM is not installed: {INSTALL}")
    draw = random.Random(given.seed)
    num_tests = given.times // 5
    lost, done = 0, 0
    with tempfile.TemporaryDirectory() as folder, SlurmCluster(Path(folder, "cluster")) as cluster:
        straight = Place(Path(folder, "straight"))
        job = cluster.submit("configs/slurm/fit.sbatch", "small.yaml", cwd=straight.folder, PYTHONPATH=str(ROOT))
        assert cluster.wait(job, 600)["JobState"] == "COMPLETED", straight.output()
        weights = saved(straight.folder / "runs/small/version_0/checkpoints/last.ckpt")["state_dict"]
        while done < given.times - num_tests:
            times = min(4, given.times - num_tests - done)
            place = Place(Path(folder, f"fit{done}"))
            report = preempt_fit(cluster, place, times, draw)
            ends = sorted(
                place.folder.glob("runs/small/version_*/checkpoints/last.ckpt"), key=lambda p: p.stat().st_mtime
            )
            own = saved(ends[-1])["state_dict"]
            is_equal = all(torch.equal(own[name], weight) for name, weight in weights.items())
            report[-1] += f", weights {'equal' if is_equal else 'differ, LOST'}"
            print(f"job preempted {times} times: {report[-1]}", flush=True)
            lost += sum("LOST" in line for line in report)
            done += times
        for number in range(num_tests):
            line = preempt_test(cluster, Place(Path(folder, f"test{number}")), draw)
            print(line, flush=True)
            lost += "LOST" in line
    print(
        f"{given.times - lost} of {given.times} preemptions resumed where they had saved and ended as the straight run"
    )
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
