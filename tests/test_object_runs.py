"""Whole runs of methods that learn from many objects: fitted, resumed, and tested on one rank and on two."""

import csv
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import yaml

from main import main
from methods.imnet import IMNetAutoencoder
from tests.ranks import on_ranks, printed
from tests.toy_run import differing, logged, state

ROOT = Path(__file__).parents[1]
SMALL = {
    "r2n2_shapes": {"encoder_channels": [4] * 6, "decoder_channels": [4] * 4, "grid_channels": 4, "threshold": 0.1},
    "psgn_shapes": {"width": 2, "noise_size": 4, "min_of": 2},
    "onet_shapes": {"image_width": 4, "hidden_size": 16, "threshold": 0.1, "coarse_resolution": 8},
    "imnet_autoencoder_shapes": {"threshold": 0.01, "coarse_resolution": 8},
}
RESUMED_ONLY = {"imnet_shapes": {"autoencoder": "autoencoder.pt", "image_width": 4}}
AUTOENCODER_SIZES = ("code_size", "voxel_resolution", "encoder_width", "decoder_width")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a small config of every method, on a few procedural objects."""
    folder = tmp_path_factory.mktemp("place")
    for name, sizes in (SMALL | RESUMED_ONLY).items():
        config = yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text())
        config["model"]["init_args"] |= sizes
        if name == "imnet_shapes":
            sizes = {name: config["model"]["init_args"][name] for name in AUTOENCODER_SIZES}
            torch.save(IMNetAutoencoder(**sizes).state_dict(), folder / "autoencoder.pt")
        config["data"]["init_args"] |= {
            "root": str(folder / "data"), "objects_per_category": 10, "categories": ["chair", "solid"], "pictures": 3,
            "batch_size": 4, "eval_batch_size": 3, "eval_surface_points": 500, "eval_query_points": 500,
        }  # fmt: skip
        config["trainer"] = {
            "accelerator": "cpu", "max_steps": 8, "val_check_interval": 4, "check_val_every_n_epoch": None,
            "enable_progress_bar": False, "log_every_n_steps": 1,
            "callbacks": [
                {"class_path": "callbacks.signals.StopOnSignal"},
                {"class_path": "callbacks.checkpoint.Checkpoint", "init_args": {"every_n_train_steps": 5}},
                {"class_path": "callbacks.score.Score", "init_args": {"metrics": [
                    {"class_path": "metrics.surface.SurfaceScore", "init_args": {"num_points": 500}}]}},
                {"class_path": "callbacks.save.SaveShapes"},
            ],
        }  # fmt: skip
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return folder


def _rows(run: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((run / "test/objects.csv").open()))


@pytest.mark.filterwarnings("ignore:Empty surface")
@pytest.mark.parametrize("name", [*SMALL, *RESUMED_ONLY])
def test_a_run_stopped_again_and_again_ends_and_tests_as_the_straight_one(name, place, monkeypatch):
    monkeypatch.chdir(place)
    main(["fit", "--config", f"{name}.yaml", "--run_name", f"{name}_straight"])
    straight = place / f"runs/{name}_straight/version_0"
    # at the border of an epoch of three batches, in the validation after the next step, and then not again
    stops = [["3", "false"], ["4", "true"], ["0", "false"]]
    for number, (step, in_validation) in enumerate(stops):
        told = ["--trainer.callbacks.step", step, "--trainer.callbacks.in_validation", in_validation]
        command = ["fit", "--config", f"{name}.yaml", "--trainer.callbacks+", "tests.interrupt.Interrupt", *told]
        ends = pytest.raises(SystemExit, match="143") if step != "0" else nullcontext()
        with ends:
            main(command + (["--ckpt_path", "last"] if number else []))
    runs = [place / f"runs/{name}/version_{number}" for number in range(len(stops))]
    assert differing(state(runs[-1] / "checkpoints/last.ckpt"), state(straight / "checkpoints/last.ckpt")) == []
    assert [row for run in runs for row in logged(run)] == logged(straight)  # every loss and validation, once
    if name in RESUMED_ONLY:
        return
    for run in (straight, runs[-1]):
        main(["test", "--ckpt_path", str(run / "checkpoints/last.ckpt")])
    assert _rows(straight) == _rows(runs[-1])
    assert len(_rows(straight)) == 4
    assert not all(row["is_empty"] == "True" for row in _rows(straight))


def _main(rank: int, arguments: list[str]) -> None:
    main(arguments)


@pytest.mark.parametrize("name", SMALL)
def test_two_ranks_score_every_object_as_one_does(name, place, monkeypatch):
    monkeypatch.chdir(place)
    main(["fit", "--config", f"{name}.yaml", "--run_name", f"{name}_ranks"])
    run = place / f"runs/{name}_ranks/version_0"
    arguments = ["test", "--ckpt_path", str(run / "checkpoints/last.ckpt")]
    main(arguments)
    alone = _rows(run)
    (run / "test/objects.csv").unlink()
    ddp = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    assert on_ranks(_main, place, arguments + ddp) == [0, 0], printed(place)
    together = _rows(run)
    assert [row["object_id"] for row in together] == [row["object_id"] for row in alone]
    for row, other in zip(alone, together, strict=True):
        assert float(row["chamfer_l1"]) == pytest.approx(float(other["chamfer_l1"]), rel=1e-3)
