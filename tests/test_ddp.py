"""Two processes that train together: the same weights from different data, and no waiting for the dead."""

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import yaml
from pytorch_lightning.strategies import DDPStrategy
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

from datamodules.rays import RayDataset
from datamodules.synthetic import SyntheticScene
from main import main
from methods.neuralangelo import Neuralangelo
from tests.ranks import on_ranks, printed
from tests.small_runs import ROOT, SMALL_MODEL, small_place, write_config

DDP = str(ROOT / "configs/overlays/ddp.yaml")
OBJECTS = {"objects_per_category": 10, "categories": ["chair", "solid"], "pictures": 3, "batch_size": 2,
           "eval_batch_size": 2, "eval_surface_points": 500, "eval_query_points": 500}  # fmt: skip
METHODS = {
    "r2n2_shapes": {"encoder_channels": [4] * 6, "decoder_channels": [4] * 4, "grid_channels": 4, "threshold": 0.1},
    "psgn_shapes": {"width": 2, "noise_size": 4, "min_of": 2},
    "onet_shapes": {"image_width": 4, "hidden_size": 16, "threshold": 0.1, "coarse_resolution": 8},
    "imnet_autoencoder_shapes": {"threshold": 0.01, "coarse_resolution": 8},
}
# what comes and goes within a run, of which DDP must not wait for gradients that are not there
OPTIONS = {
    "late patches, sparse points for a while": {
        "mask_weight": 0.1, "patch_weight": 0.5, "patch_size": 5, "sparse_weight": 1.0,
        "patch_schedule": {"class_path": "ops.schedules.RiseAndFall", "init_args": {"start": 0.4, "full": 0.6}},
        "sparse_schedule": {"class_path": "ops.schedules.RiseAndFall",
                            "init_args": {"start": 0.0, "full": 0.1, "fall": 0.3, "end": 0.5}},
    },
    "codes, a background network, sleeping levels": {
        "appearance_size": 4, "exposure": "affine", "num_images": 42, "background": "nerf++", "initial_levels": 1,
        "background_hidden_size": 16, "background_layers": 3, "mask_weight": 0.0, "level_fraction": 0.2,
        "num_background_samples": 4,
    },
    "no cached lattice, analytic normals": {
        "occupancy_resolution": 0, "gradient": "analytic", "num_coarse_samples": 8, "num_fine_samples": 4,
        "num_rounds": 1,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = small_place(tmp_path_factory.mktemp("place"))
    callbacks = [
        {"class_path": "callbacks.checkpoint.Checkpoint", "init_args": {"every_n_train_steps": 3}},
        {"class_path": "callbacks.preemption.Preemption"},
        {"class_path": "callbacks.score.Score", "init_args": {"metrics": [
            {"class_path": "metrics.surface.SurfaceScore", "init_args": {"num_points": 500}},
            {"class_path": "metrics.images.ViewScore"}]}},
        {"class_path": "callbacks.save.SaveShapes"},
    ]  # fmt: skip
    data = {"root": str(folder / "data")}
    for name, sizes in METHODS.items():
        write_config(folder, name, name, sizes, OBJECTS | data, callbacks, max_steps=6, val_check_interval=6)
    for name in ("neuralangelo", "unlucky", "patient"):
        scene = {"image_size": 32, "num_surface_points": 2000, "rays_per_batch": 64, "root": str(folder / "data")}
        sizes = {"max_steps": 6, "val_check_interval": 6}
        write_config(folder, name, "neuralangelo_demo", SMALL_MODEL, scene, callbacks, **sizes)
    return folder


def _fit(rank: int, config: str, *arguments: str) -> None:
    """Fit, and leave what this rank ended with and began with."""
    cli = main(["fit", "--config", config, "--config", DDP, "--trainer.devices", "2", *arguments])
    batch = next(iter(cli.trainer.train_dataloader))
    metrics = {name: float(value) for name, value in cli.trainer.callback_metrics.items() if name.startswith("val/")}
    drawn = {key: value for key, value in batch.items() if isinstance(value, torch.Tensor)}
    # what batch normalisation keeps becomes that of the first rank with the next step, and is saved by that one
    weights = {name: weight for name, weight in cli.model.state_dict().items() if "running_" not in name}
    torch.save({"weights": weights, "batch": drawn, "metrics": metrics}, f"{Path(config).stem}.{rank}.pt")


def _ranks_of(place: Path, name: str) -> list[dict[str, Any]]:
    return [torch.load(place / f"{name}.{rank}.pt", weights_only=True) for rank in (0, 1)]


def _assert_same_weights(ranks: list[dict[str, Any]]) -> None:
    for name, weight in ranks[0]["weights"].items():
        assert torch.equal(weight, ranks[1]["weights"][name]), name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*METHODS, "neuralangelo"])
def test_ranks_end_with_the_same_weights_and_scores_from_different_data(name, place):
    assert on_ranks(_fit, place, f"{name}.yaml") == [0, 0], printed(place)
    ranks = _ranks_of(place, name)
    _assert_same_weights(ranks)
    key = "origins" if name == "neuralangelo" else "object_index"
    assert not torch.equal(ranks[0]["batch"][key], ranks[1]["batch"][key])
    assert ranks[0]["metrics"] == pytest.approx(ranks[1]["metrics"], nan_ok=True)
    assert ranks[0]["metrics"]
    # one process scores the same weights alike: every object once, however they are shared out
    checkpoint = place / f"runs/{name}/version_0/checkpoints/last.ckpt"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        alone = ["--trainer.devices", "1", "--trainer.strategy", "auto"]
        cli = main(["validate", "--ckpt_path", str(checkpoint), *alone])
    for key, value in ranks[0]["metrics"].items():
        assert float(cli.trainer.callback_metrics[key]) == pytest.approx(value, rel=1e-4, nan_ok=True), key


@pytest.fixture(scope="module")
def scan(place) -> Path:
    """One scan in the layout of NeuS with points that its photographs saw."""
    scene = SyntheticScene(num_views=42, image_size=32, num_surface_points=500, root=str(place / "data"))
    scene.write_neus_layout(place / "dtu_scan24")
    (place / "dtu_scan24/sfm_pts").mkdir()
    numpy.save(place / "dtu_scan24/sfm_pts/points.npy", scene.load_scene().surface_points.numpy())
    return place


@pytest.mark.parametrize("option", OPTIONS)
def test_ranks_survive_what_comes_and_goes_within_a_run(option, scan):
    data = {"root": str(scan), "scan": 24, "rays_per_batch": 64, "eval_downscale": 1}
    write_config(
        scan, "option", "neuralangelo_dtu", SMALL_MODEL | {"num_levels": 6, "features_per_level": 2} | OPTIONS[option],
        data, [], max_steps=10, limit_val_batches=0,
    )  # fmt: skip
    assert on_ranks(_fit, scan, "option.yaml") == [0, 0], printed(scan)
    _assert_same_weights(_ranks_of(scan, "option"))


def _unlucky_fit(rank: int) -> None:
    whole = RayDataset.batch

    def off(self: RayDataset, index: int) -> Any:
        batch = whole(self, index)
        return batch | {"directions": -batch["directions"]} if rank == 1 and index % 2 else batch

    RayDataset.batch = off
    _fit(rank, "unlucky.yaml", "--trainer.limit_val_batches", "0")


def test_a_rank_whose_rays_all_miss_waits_for_nobody_and_nobody_for_it(place):
    assert on_ranks(_unlucky_fit, place) == [0, 0], printed(place)
    _assert_same_weights(_ranks_of(place, "unlucky"))


def _watched_fit(rank: int) -> None:
    written = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if (writes or event in ("os.mkdir", "os.rename", "os.symlink")) and "/runs/" in f"/{arguments[0]}":
            written.append(f"{event} {arguments[0]}")

    sys.addaudithook(watch)
    main(["fit", "--config", "neuralangelo.yaml", "--config", DDP, "--run_name", "watched", "--trainer.devices", "2"])
    Path(f"written.{rank}.txt").write_text("\n".join(written))


def test_only_the_first_rank_writes_into_the_run(place):
    assert on_ranks(_watched_fit, place) == [0, 0], printed(place)
    assert "checkpoints" in (place / "written.0.txt").read_text()
    assert (place / "written.1.txt").read_text() == ""


def _fit_with_one_that_sleeps(rank: int) -> None:
    step = Neuralangelo.training_step

    def sleepy(self: Neuralangelo, batch: Any, batch_idx: int) -> Any:
        if rank == 1 and batch_idx == 3:
            Path("asleep").touch()
            time.sleep(600)
        return step(self, batch, batch_idx)

    Neuralangelo.training_step = sleepy
    _fit(rank, "patient.yaml", "--trainer.strategy.init_args.timeout", "0:00:10")


def test_a_rank_waits_for_another_one_no_longer_than_the_time_out(place):
    assert on_ranks(_fit_with_one_that_sleeps, place, first_only=True)[0] == 1, printed(place)
    assert (place / "asleep").exists(), printed(place)
    assert "imed out" in (place / "rank0.txt").read_text()


def test_a_rank_that_is_killed_ends_the_run(place):
    arguments = ["fit", "--config", "small.yaml", "--config", DDP, "--run_name", "killed", "--trainer.devices", "2"]
    process = subprocess.Popen(
        [sys.executable, ROOT / "main.py", *arguments, "--trainer.max_steps", "100000"], cwd=place,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (place / "runs/killed/version_0/checkpoints/last.ckpt").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (second,) = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
    os.kill(second, signal.SIGKILL)
    assert process.wait(60) != 0


def _fit_in_half(rank: int, config: str) -> None:
    # bfloat16, which the overlay takes, travels between GPUs only, and so does any hook with Lightning
    def register(strategy: DDPStrategy) -> None:
        strategy.model.register_comm_hook(None, fp16_compress_hook)

    DDPStrategy._register_ddp_hooks = register
    _fit(rank, config, "--run_name", "half", "--trainer.limit_val_batches", "0")


@pytest.mark.parametrize("name", ["onet_shapes", "neuralangelo"])
def test_gradients_in_half_precision_lead_almost_the_same_way(name, place):
    whole = _ranks_of(place, name)[0]["weights"]
    assert on_ranks(_fit_in_half, place, f"{name}.yaml") == [0, 0], printed(place)
    ranks = _ranks_of(place, name)
    _assert_same_weights(ranks)
    start = _initial_weights(place, name)
    way, half_way = (
        torch.cat([(weights[key] - start[key]).flatten() for key in start]) for weights in (whole, ranks[0]["weights"])
    )
    assert not torch.equal(way, half_way)
    assert torch.nn.functional.cosine_similarity(way, half_way, dim=0) > 0.9


def _initial_weights(place: Path, name: str) -> dict[str, torch.Tensor]:
    """Parameters before any step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        cli = main(["fit", "--config", f"{name}.yaml", "--trainer.limit_train_batches", "0", "--run_name", "start"])
    return {key: weight.detach() for key, weight in cli.model.named_parameters()}


def test_half_precision_is_the_overlays_only_difference(place):
    overlays = [yaml.safe_load((ROOT / f"configs/overlays/{name}.yaml").read_text()) for name in ("ddp", "ddp_half")]
    strategies = [overlay["trainer"]["strategy"] for overlay in overlays]
    hook = strategies[1]["init_args"].pop("ddp_comm_hook")
    assert strategies[0] == strategies[1]
    module, _, function = hook.rpartition(".")
    assert callable(getattr(importlib.import_module(module), function))
