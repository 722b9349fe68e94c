import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from datamodules.scene import check_scene, object_batch
from datamodules.scene_module import split_views
from tests.datamodules.toy import HEIGHT, WIDTH, ToyData, make_scene


def test_a_sound_scene_passes() -> None:
    check_scene(make_scene())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: {"camera_to_world": s.camera_to_world[:4], "intrinsics": s.intrinsics[:4]},
            "5 images but 4 cameras",
        ),
        (lambda s: {"masks": s.masks[:, 1:]}, "each image needs a mask of its own size"),
        (lambda s: {"image_sizes": torch.tensor([[HEIGHT, WIDTH + 1]] * 5)}, "image_sizes .* a width up to 16"),
        (lambda s: {"intrinsics": with_entry(s.intrinsics, (2, 0, 0), torch.nan)}, "camera of 2.png .* not finite"),
        (lambda s: {"camera_to_world": with_entry(s.camera_to_world, (3, 0, 3), torch.inf)}, "3.png .* not finite"),
        (lambda s: {"intrinsics": with_entry(s.intrinsics, (1, 1, 1), 0.0)}, "camera of 1.png is singular"),
        (lambda s: {"camera_to_world": with_entry(s.camera_to_world, (1, 0), 0.0)}, "camera of 1.png is singular"),
        (
            lambda s: {"camera_to_world": moved(s.camera_to_world, 0.2)},
            "all 5 cameras are inside the unit sphere.*scale_mat.*from inside",
        ),
        (lambda s: {"camera_to_world": moved(s.camera_to_world, -1.0)}, "no ray .* meets the unit sphere.*scale_mat"),
    ],
    ids=["counts", "masks", "sizes", "nan", "inf", "no focal length", "no rotation", "inside", "looking away"],
)
def test_a_broken_scene_is_refused_by_name(change, message: str) -> None:
    scene = make_scene()
    with pytest.raises(ValueError, match=f"toy: .*{message}"):
        check_scene(dataclasses.replace(scene, **change(scene)))


def with_entry(tensor: Tensor, index: tuple[int, ...], value: float) -> Tensor:
    tensor = tensor.clone()
    tensor[index] = value
    return tensor


def moved(poses: Tensor, factor: float) -> Tensor:
    poses = poses.clone()
    poses[:, :3, 3] *= factor
    return poses


def test_one_camera_inside_or_one_looking_away_is_no_error() -> None:
    scene = make_scene()
    for factor in (0.2, -1.0):
        poses = scene.camera_to_world.clone()
        poses[0, :3, 3] *= factor
        check_scene(dataclasses.replace(scene, camera_to_world=poses))


def test_a_small_far_sphere_between_grid_points_is_still_seen() -> None:
    scene = make_scene()
    check_scene(dataclasses.replace(scene, camera_to_world=moved(scene.camera_to_world, 200.0)))


@pytest.mark.parametrize(
    ("scene", "reads", "message"),
    [
        (make_scene(), {"rays", "voxels"}, "R2N2 reads 'voxels', which ToyData does not have; .*: .*ShapeNet, Syn"),
        (
            make_scene(masks=None),
            {"rays", "ray_masks"},
            "R2N2 reads 'ray_masks', which toy does not have; .*DTU, .*Synth",
        ),
        (make_scene(sparse_points=None), {"rays", "sparse_points"}, "reads 'sparse_points', which toy .*: DTU"),
    ],
)
def test_reading_what_is_not_there_names_method_dataset_key_and_others(scene, reads: set[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ToyData(scene, reads=reads, reader="R2N2").setup()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"held_out": [1, 9]}, r"held-out views \[9\] do not exist, there are 5"),
        ({"held_out": [-1]}, r"held-out views \[-1\] do not exist"),
        ({"held_out": 1}, "every n-th view needs n >= 2"),
        ({"held_out": [0, 1, 2, 3, 4]}, "all 5 views are held out"),
        ({"images_per_batch": 6}, "images_per_batch is 6, but there are 5 training views"),
        ({"images_per_batch": 4, "held_out": [0, 1]}, "images_per_batch is 4, but there are 3 training views"),
        ({"foreground_share": 1.5}, "foreground_share is 1.5, expected a share between 0 and 1"),
        ({"foreground_share": 0.5, "toy": make_scene(masks=None)}, "foreground_share is 0.5, but there are no masks"),
        (
            {
                "foreground_share": 0.5,
                "toy": make_scene(masks=make_scene().masks * torch.tensor([1, 1, 0, 1, 1])[:, None, None].byte()),
            },
            "the mask of 2.png is empty",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ToyData(**arguments).setup()


def test_held_out_views_are_never_trained_on() -> None:
    assert split_views("toy", 7, [5, 1]) == ([0, 2, 3, 4, 6], [1, 5])
    assert split_views("toy", 7, 3) == ([1, 2, 4, 5], [0, 3, 6])
    assert split_views("toy", 3, None) == ([0, 1, 2], [])
    data = ToyData(held_out=2, images_per_batch=None, rays_per_batch=300)
    data.setup()
    assert next(iter(data.train_dataloader()))["image_index"].unique().tolist() == [1, 3]


def test_validation_shows_the_first_held_out_views_and_test_all() -> None:
    data = ToyData(held_out=2, val_views=1)
    data.setup()
    shown = [
        next(iter(loader)) for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader())
    ]
    assert [batch["image_index"].tolist() for batch in shown] == [[[0]], [[0, 2, 4]], [[0, 2, 4]]]
    for batch in shown:
        views = batch["image_index"][0]
        assert torch.equal(batch["images"][0, :, 0] * 255, views[:, None, None].expand(-1, HEIGHT, WIDTH).float())
        assert torch.equal(batch["camera_to_world"][0], data.scene.camera_to_world[views])
        assert batch["masks"].shape == (1, len(views), HEIGHT, WIDTH)
        assert batch["object_id"] == ["toy"]
        assert batch["object_index"].tolist() == [0]


def test_without_held_out_views_there_are_cameras_and_truth_but_no_photographs() -> None:
    data = ToyData(make_scene(surface_points=torch.rand(10, 3)))
    data.setup()
    batch = next(iter(data.test_dataloader()))
    assert not {"images", "masks", "image_sizes"} & set(batch)
    assert batch["image_index"].tolist() == [[0, 1, 2, 3, 4]]
    assert torch.equal(batch["camera_to_world"][0], data.scene.camera_to_world)
    assert batch["surface_points"].shape == (1, 10, 3)


def test_a_smaller_view_sees_the_same_world() -> None:
    full, half = object_batch(make_scene(), [1, 3]), object_batch(make_scene(), [1, 3], downscale=2)
    assert half["images"].shape == (1, 2, 3, HEIGHT // 2, WIDTH // 2)
    # the pixel (x, y) covers the four around the corner (2x + 1, 2y + 1)
    assert torch.allclose(half["images"][0, 0, 2, 0], (torch.arange(WIDTH // 2) * 2 + 0.5) / 255)
    assert torch.allclose(half["intrinsics"][..., :2, :] * 2, full["intrinsics"][..., :2, :])
    assert torch.equal(half["intrinsics"][..., 2, :], full["intrinsics"][..., 2, :])


def test_a_method_that_reads_no_rays_trains_on_the_training_views() -> None:
    data = ToyData(reads={"images"}, held_out=2)
    data.setup()
    assert next(iter(data.train_dataloader()))["image_index"].tolist() == [[1, 3]]


@pytest.mark.parametrize("of_model", [True, False])
def test_a_room_is_one_for_the_data_and_for_the_method(of_model: bool) -> None:
    data = ToyData(make_scene(inside_out=not of_model), reader="Room")
    data.trainer = SimpleNamespace(lightning_module=SimpleNamespace(inside_out=of_model))
    with pytest.raises(ValueError, match=f"toy: inside_out is {not of_model} of the data but {of_model} of Room; set"):
        data.setup()
