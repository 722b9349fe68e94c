"""One object of a collection, as a scene of rays."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from datamodules.one_object import OneObject, over_background, posed
from datamodules.prepare.shapenet_layouts import write_r2n2
from datamodules.shapenet import ShapeNet
from main import main
from ops.cameras import project
from tests.datamodules.toy_objects import ToyObjects, small_objects

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def r2n2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("r2n2")
    write_r2n2(small_objects(("chair", "solid"), 2, num_views=24, picture_size=137), folder)
    return folder


def test_choys_24_views_of_one_model_are_a_scene_with_masks(r2n2: Path) -> None:
    data = OneObject(ShapeNet(str(r2n2)), "chair_0001", held_out=8, reads={"rays", "ray_masks"}, rays_per_batch=64)
    data.setup()
    scene = data.scene
    assert scene.images.shape == (24, 137, 137, 3)
    assert len(data.held_out_views) == 3
    # the solid itself is inside every mask, so cameras and frame are those of the pictures
    objects = small_objects(("chair", "solid"), 2, num_views=24, picture_size=137)
    points = torch.from_numpy(objects.surface(1, slice(None))[0])
    for view in range(0, 24, 5):
        x, y = project(points, scene.intrinsics[view], scene.camera_to_world[view])[0].floor().long().T
        assert (scene.masks[view, y, x] > 0).float().mean() > 0.98
    batch = next(iter(data.train_dataloader()))
    assert batch["origins"].shape == (64, 3)
    assert batch["ray_masks"].max() == 1


def test_background_fills_what_alpha_leaves() -> None:
    pixels = torch.zeros(1, 1, 3, 4, dtype=torch.uint8)
    pixels[0, 0, 0] = torch.tensor([200, 100, 0, 255])
    pixels[0, 0, 1] = torch.tensor([200, 100, 0, 51])
    black, masks = over_background(pixels, "black")
    white, _ = over_background(pixels, "white")
    assert black[0, 0].tolist() == [[200, 100, 0], [40, 20, 0], [0, 0, 0]]
    assert white[0, 0].tolist() == [[200, 100, 0], [244, 224, 204], [255, 255, 255]]
    assert masks[0, 0].tolist() == [255, 51, 0]


def test_the_truth_of_the_collection_comes_along() -> None:
    data = OneObject(ToyObjects(eval_surface_points=100), "solid/solid_0003", background="white")
    data.setup()
    assert data.scene.surface_points.shape == (100, 3)
    assert torch.allclose(data.scene.surface_normals.norm(dim=1), torch.ones(100), atol=1e-5)
    assert data.scene.name == "solid_0003"
    assert data.scene.category == "solid"


def test_without_a_name_it_is_the_first_of_the_test_split() -> None:
    data = OneObject(ToyObjects())
    data.setup()
    assert data.scene.name == "chair_0008"


def test_cameras_moved_by_a_similarity_see_the_same() -> None:
    generator = np.random.default_rng(0)
    similarity = np.diag([3.0, 3, 3, 1]) @ np.array([[0.0, -1, 0, 4], [1, 0, 0, 5], [0, 0, 1, 6], [0, 0, 0, 1]])
    pose = np.eye(4)
    pose[:3, 3] = 0, 0, -4
    points = generator.standard_normal((20, 3)) * 0.3
    matrix = torch.tensor([[20.0, 0, 8], [0, 20, 8], [0, 0, 1]]).double()
    before, _ = project(torch.from_numpy(points), matrix, torch.from_numpy(pose))
    moved = torch.from_numpy(points @ similarity[:3, :3].T + similarity[:3, 3])
    after, depth = project(moved, matrix, torch.from_numpy(posed(similarity, pose[None])[0]))
    assert torch.allclose(before, after)
    assert (depth > 0).all()


def test_an_object_that_is_not_there_or_twice_is_named(r2n2: Path) -> None:
    with pytest.raises(
        ValueError, match=r"object_id 'chair_9': .* has none; it has .*chair/chair_0000, chair/chair_0001"
    ):
        OneObject(ShapeNet(str(r2n2)), "chair_9").setup()
    toy = small_objects(("chair",), 1)
    toy.objects = toy.objects * 2
    with pytest.raises(ValueError, match=r"object_id 'chair_0000': .* has several, chair/chair_0000, chair/chair_0000"):
        OneObject(ToyObjects(toy), "chair_0000").setup()


def test_a_collection_without_cameras_or_alpha_says_so() -> None:
    toy = small_objects(("chair",), 1)
    toy.keys = frozenset({"images", "voxels"})
    with pytest.raises(
        ValueError, match=r"Neuralangelo reads rays, but .* has images, voxels: rays need pictures with"
    ):
        OneObject(ToyObjects(toy), "chair_0000", reader="Neuralangelo").setup()
    toy = small_objects(("chair",), 1)
    straight = toy.pixels
    toy.pixels = lambda index, views: straight(index, views)[..., :3]
    with pytest.raises(
        ValueError, match="N reads 'ray_masks', which chair_0000 does not have; the collection's pictures"
    ):
        OneObject(ToyObjects(toy), "chair_0000", reads={"rays", "ray_masks"}, reader="N").setup()


def test_the_command_line_nests_a_collection_in_it(r2n2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load((ROOT / "configs/neuralangelo_dtu_fast.yaml").read_text())
    config["model"]["init_args"] |= {"log2_table_size": 8, "occupancy_resolution": 0, "grid_backend": "reference"}
    config["data"] = {
        "class_path": "datamodules.one_object.OneObject",
        "init_args": {
            "objects": {"class_path": "datamodules.shapenet.ShapeNet", "init_args": {"root": str(r2n2)}},
            "object_id": "chair_0000",
            "rays_per_batch": 32,
        },
    }
    config["trainer"] = {"max_steps": 1, "accelerator": "cpu", "limit_val_batches": 0, "callbacks": [], "logger": False}
    Path("one.yaml").write_text(yaml.safe_dump(config))
    cli = main(["fit", "--config", "one.yaml", "--trainer.enable_progress_bar=false"])
    assert cli.trainer.global_step == 1
    assert cli.datamodule.scene.name == "chair_0000"
