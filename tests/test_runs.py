"""Whole runs of Neuralangelo on the embedded scene: killed and resumed, fitted and tested, on one and on two ranks."""

import csv
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import trimesh
import yaml

from main import main
from tests.toy_run import differing, logged, state

ROOT = Path(__file__).parents[1]
STEPS = 40


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a config of the embedded scene that takes a second or two to fit."""
    folder = tmp_path_factory.mktemp("place")
    config = yaml.safe_load((ROOT / "configs/neuralangelo_demo.yaml").read_text())
    config["model"]["init_args"] |= {
        "log2_table_size": 12, "sdf_hidden_size": 32, "color_hidden_size": 32, "occupancy_resolution": 24,
        "occupancy_every": 8, "mesh_resolution": 48, "finest_resolution": 64,
    }  # fmt: skip
    config["data"]["init_args"] |= {
        "image_size": 32, "num_surface_points": 2000, "rays_per_batch": 128, "root": str(folder / "data")
    }  # fmt: skip
    config["trainer"] |= {"max_steps": STEPS, "val_check_interval": 20, "enable_progress_bar": False}
    (folder / "small.yaml").write_text(yaml.safe_dump(config))
    config["trainer"]["callbacks"] = [
        {"class_path": "callbacks.checkpoint.Checkpoint", "init_args": {"every_n_train_steps": 7}},
        {"class_path": "callbacks.save.SaveShapes"},
    ]
    (folder / "often.yaml").write_text(yaml.safe_dump(config))
    config["model"]["init_args"] |= {
        "appearance_size": 4, "exposure": "gain", "num_images": 64, "patch_weight": 0.5, "mask_weight": 0.1
    }  # fmt: skip
    config["trainer"] |= {"max_steps": 9, "val_check_interval": 6, "log_every_n_steps": 1}
    config["trainer"]["callbacks"].insert(0, {"class_path": "callbacks.signals.StopOnSignal"})
    (folder / "everything.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture(scope="module")
def straight(place) -> Path:
    """The run that was left alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        main(["fit", "--config", "small.yaml", "--run_name", "straight"])
        main(["test", "--run_root", "runs/straight"])
    return place / "runs/straight/version_0"


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True, map_location="cpu")["state_dict"]


def _assert_equal(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> None:
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        assert torch.equal(weight, others[name]), name


def _environment(**changes: str) -> dict[str, str]:
    # as many threads as here, where an earlier test may have changed it: sums depend on it in their last bits
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())} | changes


def test_a_run_killed_and_resumed_ends_as_the_one_left_alone(place, straight, monkeypatch):
    arguments = ["--config", "often.yaml", "--run_name", "killed"]
    process = subprocess.Popen(
        [sys.executable, ROOT / "main.py", "fit", *arguments],
        cwd=place, env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    checkpoint = place / "runs/killed/version_0/checkpoints/last.ckpt"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    step = torch.load(checkpoint, weights_only=True)["global_step"]
    assert 0 < step < STEPS

    monkeypatch.chdir(place)
    main(["fit", *arguments, "--ckpt_path", "last"])
    _assert_equal(_weights(place / "runs/killed/version_1"), _weights(straight))
    main(["test", "--run_root", "runs/killed"])
    meshes = [run / "test/shapes/statue.ply" for run in (straight, place / "runs/killed/version_1")]
    assert meshes[0].read_bytes() == meshes[1].read_bytes()


def test_a_run_with_masks_patches_and_codes_stopped_twice_ends_as_the_one_left_alone(place, monkeypatch):
    monkeypatch.chdir(place)
    main(["fit", "--config", "everything.yaml", "--run_name", "left_alone"])
    alone = place / "runs/left_alone/version_0"
    for number, (step, in_validation) in enumerate([("4", "false"), ("6", "true"), ("0", "false")]):
        told = ["--trainer.callbacks.step", step, "--trainer.callbacks.in_validation", in_validation]
        command = ["fit", "--config", "everything.yaml", "--trainer.callbacks+", "tests.interrupt.Interrupt", *told]
        with pytest.raises(SystemExit, match="143") if step != "0" else nullcontext():
            main(command + (["--ckpt_path", "last"] if number else []))
    runs = [place / f"runs/everything/version_{number}" for number in range(3)]
    assert differing(state(runs[-1] / "checkpoints/last.ckpt"), state(alone / "checkpoints/last.ckpt")) == []
    assert [row for run in runs for row in logged(run)] == logged(alone)
    assert {"train/patch", "train/mask"} <= logged(alone)[0].keys()


def test_test_scores_the_mesh_of_the_trained_step(place, straight, monkeypatch):
    monkeypatch.chdir(place)
    cli = main(["test", "--ckpt_path", str(straight / "checkpoints/last.ckpt")])
    assert cli.model.step == STEPS
    assert cli.model.coarse_to_fine.active_levels(cli.model.step) == 8  # step 0 would mesh with four
    (row,) = csv.DictReader((straight / "test/objects.csv").open())
    mesh = trimesh.load(straight / "test/shapes/statue.ply", process=False)
    assert int(row["num_vertices"]) == len(mesh.vertices) > 100
    # in the dataset's frame: millimetres about (120, -40, 610), not the unit sphere
    assert abs(mesh.vertices.mean(0) - [120, -40, 610]).max() < 85
    assert float(row["f_score_2pct"]) > 0
    assert {"psnr_db", "ssim"} <= row.keys()


def test_validation_scores_held_out_views_during_the_run(straight):
    rows = list(csv.DictReader((straight / "metrics.csv").open()))
    scored = [row for row in rows if row.get("val/psnr_db")]
    assert [int(row["step"]) for row in scored] == [19, 39]
    assert all(float(row["val/psnr_db"]) > 5 for row in scored)
    assert (straight / "panels").is_dir()
