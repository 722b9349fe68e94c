"""Every YAML that is shipped is instantiated and takes a step, on small synthetic data in the layout it asks for."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from datamodules.prepare.shapenet_layouts import write_imnet, write_onet, write_r2n2
from datamodules.synthetic import SyntheticScene
from datamodules.synthetic_objects import ProceduralObjects
from main import main
from methods.imnet import IMNetAutoencoder
from tests.datamodules.toy_photos import write_scene

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted(path for path in (ROOT / "configs").glob("*.yaml") if path.stem != "defaults")
# tests/test_ddp.py has those for several processes
OVERLAYS = sorted(path for path in (ROOT / "configs/overlays").glob("*.yaml") if not path.stem.startswith("ddp"))


SMALL_SHAPES = {"root": "synthetic", "objects_per_category": 10, "pictures": 5, "picture_size": 137}
SMALL_DATA = {
    "datamodules.dtu.DTU": {"root": "."},
    "datamodules.photos.Photos": {"root": "photos"},
    "datamodules.synthetic.SyntheticScene": {"root": ".", "image_size": 32, "num_surface_points": 500},
    "datamodules.synthetic.SyntheticObjects": SMALL_SHAPES | {"batch_size": 3, "categories": "[chair, solid]"},
    "datamodules.shapenet.ShapeNet": {"batch_size": 3, "eval_batch_size": 3, "categories": "null", "num_workers": 0},
}
SMALL_MODEL = {
    # the published table of 365 M parameters would be most of the time here
    "methods.neuralangelo.Neuralangelo": {"log2_table_size": 12, "occupancy_every": 1000},
    "methods.mean_shape.MeanShape": {},
    "methods.r2n2.R2N2": {
        "encoder_channels": "[4, 4, 4, 4, 4, 4]", "decoder_channels": "[4, 4, 4, 4]", "grid_channels": 4,
    },
    "methods.psgn.PSGN": {"width": 2},
    "methods.onet.OccupancyNetwork": {"image_width": 4, "hidden_size": 16, "voxel_width": 4, "point_hidden_size": 16},
    "methods.imnet.IMNetAutoencoder": {"encoder_width": 4, "decoder_width": 4},
    "methods.imnet.IMNetSVR": {"encoder_width": 4, "decoder_width": 4, "image_width": 4},
}  # fmt: skip


@pytest.fixture(scope="module")
def small_data(tmp_path_factory) -> Path:
    """A folder with one small scan in the NeuS layout, as many views as a DTU scan's held-out ones need, and points."""
    folder = tmp_path_factory.mktemp("small")
    scene = SyntheticScene(num_views=42, image_size=32, num_surface_points=500, root=str(folder))
    scene.write_neus_layout(folder / "dtu_scan24")
    (folder / "dtu_scan24/sfm_pts").mkdir()
    np.save(folder / "dtu_scan24/sfm_pts/points.npy", scene.load_scene().surface_points.numpy())
    if find_spec("pycolmap"):
        write_scene(scene.load_scene(), folder / "photos")
    return folder


@pytest.fixture(scope="module")
def small_shapes(small_data) -> Path:
    """The same folder with a few procedural objects in the layouts of ShapeNet."""
    objects = ProceduralObjects(["chair", "solid"], 10, num_views=24, num_surface_points=500, num_query_points=500)
    write_r2n2(objects, small_data / "shapenet_r2n2")
    write_onet(objects, small_data / "shapenet_onet")
    if find_spec("h5py"):
        write_imnet(objects, small_data / "shapenet_imnet")
    return small_data


def _arguments(part: str, sizes: dict[str, object]) -> list[str]:
    return [f"--{part}.init_args.{name}={value}" for name, value in sizes.items()]


def _autoencoder(sizes: dict[str, object], folder: Path) -> Path:
    """Weights of the autoencoder that regression of these sizes needs."""
    shared = ("code_size", "voxel_resolution", "encoder_width", "decoder_width")
    model = IMNetAutoencoder(**{name: sizes[name] for name in shared if name in sizes})
    torch.save(model.state_dict(), folder / "autoencoder.pt")
    return folder / "autoencoder.pt"


def _step(config: Path, folder: Path, *overlays: Path) -> None:
    content = yaml.safe_load(config.read_text())
    model, data = (content[part]["class_path"] for part in ("model", "data"))
    sizes = dict(SMALL_DATA[data])
    sizes["root"] = folder / sizes.get("root", Path(content["data"]["init_args"].get("root", ".")).name)
    model_sizes = dict(SMALL_MODEL[model])
    if model == "methods.imnet.IMNetSVR":
        model_sizes["autoencoder"] = _autoencoder(content["model"]["init_args"] | model_sizes, folder)
    files = [argument for path in (config, *overlays) for argument in ("--config", str(path))]
    small = [*_arguments("data", sizes), *_arguments("model", model_sizes)]
    trainer = ["--trainer.max_steps=1", "--trainer.accelerator=cpu", "--trainer.limit_val_batches=0"]
    cli = main(["fit", *files, *small, *trainer])
    assert cli.trainer.global_step == 1
    assert cli.trainer.callback_metrics["train/loss"].isfinite()


@pytest.mark.parametrize("config", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiment_takes_a_step(config, small_data, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    if "imnet" in config.stem and config.stem.endswith("shapenet"):
        pytest.importorskip("h5py", reason="IM-Net's files are HDF5")
    if config.stem.endswith("photos"):
        pytest.importorskip("pycolmap", reason="sparse points come from structure from motion")
    _step(config, request.getfixturevalue("small_shapes") if config.stem.endswith("shapenet") else small_data)
    assert (tmp_path / f"runs/{config.stem}/version_0/config.yaml").is_file()


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_overlay_fits_over_the_faithful_experiment(overlay, small_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if overlay.stem == "tensorboard":
        pytest.importorskip("tensorboard")
    _step(ROOT / "configs/neuralangelo_dtu.yaml", small_data, overlay)


def test_two_cores_are_enough_for_photographs_without_masks(small_data, tmp_path, monkeypatch):
    pytest.importorskip("pycolmap")
    monkeypatch.chdir(tmp_path)
    _step(ROOT / "configs/neuralangelo_photos.yaml", small_data, ROOT / "configs/overlays/cpu.yaml")


def test_experiments_name_model_and_data_in_full_and_do_no_arithmetic():
    for path in EXPERIMENTS:
        content = yaml.safe_load(path.read_text())
        for part in ("model", "data"):
            assert content[part]["class_path"].count(".") == 2, path
        assert "${" not in path.read_text(), path
