"""Whole runs of methods that learn from many objects: fitted, resumed, and tested on one rank and on two."""

import csv
from pathlib import Path

import pytest
import torch
import yaml

from main import main
from tests.ranks import on_ranks, printed

ROOT = Path(__file__).parents[1]
SMALL = {
    "r2n2_shapes": {"encoder_channels": [4] * 6, "decoder_channels": [4] * 4, "grid_channels": 4, "threshold": 0.1},
    "psgn_shapes": {"width": 2, "noise_size": 4, "min_of": 2},
    "onet_shapes": {"image_width": 4, "hidden_size": 16, "threshold": 0.1, "coarse_resolution": 8},
    "imnet_autoencoder_shapes": {"threshold": 0.01, "coarse_resolution": 8},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a small config of every method, on a few procedural objects."""
    folder = tmp_path_factory.mktemp("place")
    for name, sizes in SMALL.items():
        config = yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text())
        config["model"]["init_args"] |= sizes
        config["data"]["init_args"] |= {
            "root": str(folder / "data"), "objects_per_category": 10, "categories": ["chair", "solid"], "pictures": 3,
            "batch_size": 4, "eval_batch_size": 3, "eval_surface_points": 500, "eval_query_points": 500,
        }  # fmt: skip
        config["trainer"] = {
            "accelerator": "cpu", "max_steps": 8, "val_check_interval": 4, "check_val_every_n_epoch": None,
            "enable_progress_bar": False,
            "callbacks": [
                {"class_path": "callbacks.checkpoint.Checkpoint", "init_args": {"every_n_train_steps": 3}},
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
@pytest.mark.parametrize("name", SMALL)
def test_resumed_run_ends_and_tests_as_the_straight_one(name, place, monkeypatch):
    monkeypatch.chdir(place)
    main(["fit", "--config", f"{name}.yaml"])
    straight = place / f"runs/{name}/version_0"
    main(["fit", "--config", f"{name}.yaml", "--ckpt_path", str(straight / "checkpoints/step6.ckpt")])
    resumed = place / f"runs/{name}/version_1"
    weights = [torch.load(run / "checkpoints/last.ckpt", weights_only=True) for run in (straight, resumed)]
    assert weights[0]["global_step"] == weights[1]["global_step"] == 8
    for key, value in weights[0]["state_dict"].items():
        assert torch.equal(value, weights[1]["state_dict"][key]), key
    for run in (straight, resumed):
        main(["test", "--ckpt_path", str(run / "checkpoints/last.ckpt")])
    assert _rows(straight) == _rows(resumed)
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
