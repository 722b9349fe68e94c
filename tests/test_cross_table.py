"""Every method beside every dataset: it trains a step and reconstructs, or the one error says why it cannot."""

import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from pytorch_lightning import Trainer

from cross_table import DATASETS, METHODS, PREDICT_ONLY, cell, class_of, missing_keys, reader_of, reads_of, table
from datamodules.prepare.neus_layout import write_neus_layout
from datamodules.prepare.omniobject3d_layout import write_omniobject3d
from datamodules.prepare.shapenet_layouts import write_onet, write_r2n2
from datamodules.shapenet import ShapeNet
from datamodules.synthetic import SyntheticScene
from methods.imnet import IMNetAutoencoder
from tests.datamodules.toy_objects import small_objects
from tests.datamodules.toy_photos import write_scene

README = Path(__file__).parents[1] / "README.md"
MARKERS = re.compile(r"<!-- cross table: [^>]*-->\n(.*?)\n<!-- end of cross table -->", re.DOTALL)
QUERY = {"coarse_resolution": 8, "upsampling_steps": 1}
IMNET = {"code_size": 8, "voxel_resolution": 32, "encoder_width": 2, "decoder_width": 2, **QUERY}
SIZES = {
    "methods.neuralangelo.Neuralangelo": {
        "grid_backend": "reference", "num_levels": 4, "initial_levels": 2, "features_per_level": 2,
        "log2_table_size": 10, "base_resolution": 4, "finest_resolution": 16, "sdf_hidden_size": 8,
        "color_hidden_size": 8, "color_layers": 1, "background": "black", "mesh_resolution": 16,
        "num_coarse_samples": 8, "num_fine_samples": 4, "max_steps": 10,
    },
    "methods.r2n2.R2N2": {
        "image_size": 31, "encoder_channels": (2,) * 6, "feature_size": 8, "grid_channels": 2,
        "decoder_channels": (2,) * 4,
    },
    "methods.psgn.PSGN": {"width": 1, "image_size": 32},
    "methods.onet.OccupancyNetwork": {
        "code_size": 8, "hidden_size": 8, "latent_size": 4, "image_width": 2, "point_hidden_size": 8,
        "voxel_width": 1, "num_input_points": 30, **QUERY,
    },
    "methods.imnet.IMNetAutoencoder": IMNET,
    "methods.imnet.IMNetSVR": IMNET | {"image_size": 32, "image_width": 2},
}  # fmt: skip
FEW_RAYS = {"rays_per_batch": 32, "held_out": [0], "eval_downscale": 2}
FEW_OBJECTS = {
    "batch_size": 2, "eval_batch_size": 1, "num_query_points": 50, "num_surface_points": 50,
    "eval_surface_points": 50, "eval_query_points": 50,
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a little of every dataset."""
    folder = tmp_path_factory.mktemp("datasets")
    scene = SyntheticScene(num_views=6, image_size=32, num_surface_points=500, root=str(folder / "synthetic"))
    scene.setup()
    for scan in ("24", "37"):
        write_neus_layout(scene.scene, folder / f"dtu/scan{scan}")
        (folder / f"dtu/scan{scan}/sfm_pts").mkdir()
        np.save(folder / f"dtu/scan{scan}/sfm_pts/points.npy", scene.scene.surface_points[:50].numpy())
    matrix = scene.scene.normalized_to_dataset
    points = scene.scene.surface_points.double() @ matrix[:3, :3].T + matrix[:3, 3]
    (folder / "official/Points/stl").mkdir(parents=True)
    for scan in ("024", "037"):
        trimesh.PointCloud(points.numpy()).export(folder / f"official/Points/stl/stl{scan}_total.ply")
    if find_spec("pycolmap"):
        write_scene(scene.scene, folder / "photos")
        (folder / "photos/masks").mkdir()
        for view, mask in enumerate(scene.scene.masks):
            Image.fromarray(mask.numpy()).save(folder / f"photos/masks/{view:04d}.png")
    write_r2n2(small_objects(("chair",), 1, num_views=24, picture_size=137), folder / "r2n2")
    objects = small_objects(("chair",), 10, num_views=2, picture_size=40, num_points=100)
    write_onet(objects, folder / "onet")
    few = small_objects(("chair",), 4)
    write_omniobject3d(few, folder / "omniobject3d", num_views=6, image_size=40, mesh_resolution=24)
    (folder / "pictures").mkdir()
    for index in range(2):
        Image.fromarray(objects.pixels(index, [0])[0]).save(folder / f"pictures/{index}.png")
    torch.save(IMNetAutoencoder(**IMNET).state_dict(), folder / "autoencoder.pt")
    return folder


def settings_of(reader: str, method: str, place: Path) -> dict[str, object]:
    """Arguments of a DataModule on the data that ``place`` holds."""
    if reader == "datamodules.one_object.OneObject":
        return {"objects": ShapeNet(str(place / "r2n2")), **FEW_RAYS}
    if reader == "datamodules.omniobject3d.OmniObject3DScene":
        views = "videos_processed" if "sparse" in method else "blender_renders"
        return {"root": str(place / "omniobject3d"), "object_id": "chair_0001", "views": views, **FEW_RAYS}
    if reader == "datamodules.synthetic.SyntheticScene":
        made = {"num_views": 6, "image_size": 32, "num_surface_points": 500}
        return {"root": str(place / "synthetic"), **made, **FEW_RAYS}
    if reader == "datamodules.photos.Photos":
        pytest.importorskip("pycolmap")
        return {"root": str(place / "photos"), **FEW_RAYS}
    if reader == "datamodules.dtu.DTU":
        return {"root": str(place / "dtu"), "scan": 24, **FEW_RAYS}
    image_size = SIZES[METHODS[method][0]].get("image_size", 32)
    few = {**FEW_OBJECTS, "image_size": image_size}
    own = {
        "datamodules.synthetic.SyntheticObjects": {
            "root": str(place / "synthetic"), "objects_per_category": 10, "categories": ["chair"], "pictures": 2,
            "picture_size": 40,
        },
        "datamodules.shapenet.ShapeNet": {"root": str(place / "onet")},
        "datamodules.omniobject3d.OmniObject3D": {"root": str(place / "omniobject3d"), "prepared_points": 100},
        "datamodules.dtu_objects.DTUObjects": {
            "root": str(place / "dtu"), "official_root": str(place / "official"), "batch_size": 1,
        },
        "datamodules.image_folder.ImageFolder": {"root": str(place / "pictures")},
    }  # fmt: skip
    return {**few, **own[reader]}


def make(method: str, place: Path) -> torch.nn.Module:
    path, variant = METHODS[method]
    weights = {"autoencoder": str(place / "autoencoder.pt")} if path.endswith("IMNetSVR") else {}
    return class_of(path)(**(SIZES[path] | variant | weights))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("method", METHODS)
def test_a_cell_trains_and_reconstructs_or_says_why_it_cannot(method: str, dataset: str, place: Path) -> None:
    model, reader = make(method, place), reader_of(method, dataset)
    assert model.reads == reads_of(method)
    data = class_of(reader)(**settings_of(reader, method, place), reads=set(model.reads), reader=type(model).__name__)
    if cell(method, dataset) not in ("yes", "predict"):
        missing = missing_keys(method, dataset)
        why = (
            "no images, so that it cannot predict" if reader in PREDICT_ONLY else f"reads '{missing[0]}', which .* does"
        )
        with pytest.raises(ValueError, match=why):
            data.setup()
        return
    trainer = Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, limit_predict_batches=1,
    )  # fmt: skip
    if reader not in PREDICT_ONLY:
        trainer.fit(model, datamodule=data)
        assert trainer.global_step == 1
        assert trainer.callback_metrics["train/loss"].isfinite()
    (reconstruction,) = trainer.predict(model, datamodule=data)
    (shape,) = reconstruction["shapes"]
    assert shape.vertices.isfinite().all()


def test_the_table_of_the_readme_is_the_one_that_the_code_makes() -> None:
    found = MARKERS.search(README.read_text())
    assert found is not None, "README.md has no cross table between its two comments"
    assert found[1] == table(), "python cross_table.py prints the one that belongs there"


def test_a_key_that_a_dataset_loses_changes_its_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cell("PSGN", "DTU") == "yes"
    reader = class_of(reader_of("PSGN", "DTU"))
    monkeypatch.setattr(reader, "provides", reader.provides - {"surface_points"})
    assert cell("PSGN", "DTU") == "no `surface_points`"


def test_a_copy_that_lacks_what_its_dataset_may_have_says_so(place: Path, tmp_path: Path) -> None:
    copy = tmp_path / "dtu"
    shutil.copytree(place / "dtu", copy)
    shutil.rmtree(copy / "scan24/sfm_pts")
    data = class_of("datamodules.dtu.DTU")(str(copy), 24, reads={"rays", "sparse_points"}, reader="Neuralangelo")
    with pytest.raises(ValueError, match="Neuralangelo reads 'sparse_points', which scan24 does not have; triangulate"):
        data.setup()
