"""Every YAML that is shipped is instantiated and takes a step, on small synthetic data in the layout it asks for."""

from pathlib import Path

import pytest
import yaml

from datamodules.synthetic import SyntheticScene
from main import main

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted(path for path in (ROOT / "configs").glob("*.yaml") if path.stem != "defaults")
OVERLAYS = sorted((ROOT / "configs/overlays").glob("*.yaml"))


@pytest.fixture(scope="module")
def small_data(tmp_path_factory) -> Path:
    """A folder with one small scan in the NeuS layout, as many views as a DTU scan's held-out ones need."""
    folder = tmp_path_factory.mktemp("small")
    scene = SyntheticScene(num_views=42, image_size=32, num_surface_points=500, root=str(folder))
    scene.write_neus_layout(folder / "dtu_scan24")
    return folder


def _step(config: Path, small_data: Path, *overlays: Path) -> None:
    data = yaml.safe_load(config.read_text())["data"]["class_path"]
    sizes = {
        "datamodules.dtu.DTU": ["--data.init_args.root", str(small_data)],
        "datamodules.synthetic.SyntheticScene": [
            f"--data.init_args.{name}={value}"
            for name, value in {"root": small_data, "image_size": 32, "num_surface_points": 500}.items()
        ],
    }[data]
    files = [argument for path in (config, *overlays) for argument in ("--config", str(path))]
    # the published table of 365 M parameters would be most of the time here
    small = ["--model.init_args.log2_table_size=12", "--model.init_args.occupancy_every=1000"]
    trainer = ["--trainer.max_steps=1", "--trainer.accelerator=cpu", "--trainer.limit_val_batches=0"]
    cli = main(["fit", *files, *sizes, *small, *trainer])
    assert cli.trainer.global_step == 1
    assert cli.trainer.callback_metrics["train/loss"].isfinite()


@pytest.mark.parametrize("config", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiment_takes_a_step(config, small_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _step(config, small_data)
    assert (tmp_path / f"runs/{config.stem}/version_0/config.yaml").is_file()


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_overlay_fits_over_the_faithful_experiment(overlay, small_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _step(ROOT / "configs/neuralangelo_dtu.yaml", small_data, overlay)


def test_experiments_name_model_and_data_in_full_and_do_no_arithmetic():
    for path in EXPERIMENTS:
        content = yaml.safe_load(path.read_text())
        for part in ("model", "data"):
            assert content[part]["class_path"].count(".") == 2, path
        assert "${" not in path.read_text(), path
