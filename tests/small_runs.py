"""A folder that looks like the checkout, with configs of runs that take seconds, for tests in other processes."""

from pathlib import Path
from typing import Any

import torch
import yaml

ROOT = Path(__file__).parents[1]
SMALL_MODEL = {
    "log2_table_size": 12, "sdf_hidden_size": 32, "color_hidden_size": 32, "occupancy_resolution": 24,
    "occupancy_every": 8, "mesh_resolution": 48, "finest_resolution": 64,
}  # fmt: skip


def small_place(folder: Path) -> Path:
    """Links to the checkout's programs and configs, and ``small.yaml``: Neuralangelo on the embedded scene."""
    for name in ("main.py", "sweep.py", "configs"):
        (folder / name).symlink_to(ROOT / name)
    data = {"image_size": 32, "num_surface_points": 2000, "rays_per_batch": 128, "root": str(folder / "data")}
    write_config(folder, "small", "neuralangelo_demo", SMALL_MODEL, data, [
        {"class_path": "callbacks.checkpoint.Checkpoint", "init_args": {"every_n_train_steps": 5}},
        {"class_path": "callbacks.preemption.Preemption", "init_args": {"every_seconds": 0.2}},
        {"class_path": "callbacks.score.Score", "init_args": {"metrics": [
            {"class_path": "metrics.surface.SurfaceScore", "init_args": {"num_points": 500}},
            {"class_path": "metrics.images.ViewScore"}]}},
        {"class_path": "callbacks.save.SaveShapes"},
    ])  # fmt: skip
    return folder


def write_config(
    folder: Path,
    name: str,
    base: str,
    model: dict[str, Any],
    data: dict[str, Any],
    callbacks: list[Any],
    **trainer: Any,
) -> None:
    """A shipped config with other sizes and callbacks, on the CPU and without a bar."""
    config = yaml.safe_load((ROOT / f"configs/{base}.yaml").read_text())
    config["model"]["init_args"] |= model
    config["data"]["init_args"] |= data
    config["trainer"] = {
        "accelerator": "cpu", "max_steps": 300, "val_check_interval": 100, "check_val_every_n_epoch": None,
        "enable_progress_bar": False, "callbacks": callbacks,
    } | trainer  # fmt: skip
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))


def saved(checkpoint: Path) -> dict[str, Any]:
    """What is in a checkpoint."""
    return torch.load(checkpoint, weights_only=True, map_location="cpu")


def assert_equal_weights(checkpoint: Path, other: Path) -> None:
    """The same weights, bit for bit."""
    weights, others = saved(checkpoint)["state_dict"], saved(other)["state_dict"]
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        assert torch.equal(weight, others[name]), name
