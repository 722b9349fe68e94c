import pytest
import torch

from datamodules.rays import RayDataset, foreground_pixels
from datamodules.scene import SparsePoints
from datamodules.source_views import SourceViews, view_scores
from ops.cameras import look_at, project
from tests.datamodules.toy import HEIGHT, WIDTH, ToyData, make_scene

READS = frozenset({"rays", "source_images"})


def _on_an_arc(degrees, **changes):
    """Views that look at the origin from a circle, at these angles."""
    turns = torch.deg2rad(torch.tensor(degrees))
    positions = 3 * torch.stack([turns.cos(), turns.sin(), torch.zeros_like(turns)], dim=-1)
    poses = torch.stack([look_at(p, torch.zeros(3), torch.tensor([0.0, 0.0, 1.0])) for p in positions])
    return make_scene(len(degrees), camera_to_world=poses, **({"sparse_points": None} | changes))


def test_sources_without_points_are_those_a_little_to_the_side():
    # 5 degrees is best; 1 degree shows no depth, 60 degrees another side
    scores = view_scores(_on_an_arc([0.0, 1.0, 5.0, 20.0, 60.0]), [0, 1, 2, 3, 4])
    assert scores[0, 1:].argsort(descending=True).tolist() == [1, 2, 0, 3]
    torch.testing.assert_close(scores.diagonal(), scores.diagonal()[:1].expand(5), rtol=0.2, atol=1)


def test_what_a_smaller_photograph_does_not_show_is_not_shared():
    scene, padded = _on_an_arc([0.0, 5.0, 5.0]), _on_an_arc([0.0, 5.0, 5.0])
    object.__setattr__(padded, "image_sizes", torch.tensor([[HEIGHT, WIDTH], [HEIGHT, WIDTH], [2, 2]]))
    scores, smaller = view_scores(scene, [0, 1, 2]), view_scores(padded, [0, 1, 2])
    assert smaller[0, 1] == scores[0, 1]
    assert smaller[0, 2] < 0.2 * scores[0, 2]
    assert SourceViews(padded, [0, 2], 1).sizes.tolist() == [[HEIGHT, WIDTH], [2, 2]]


def test_cameras_inside_the_sphere_that_look_the_same_way_are_sources_of_each_other():
    positions = torch.tensor([[0.0, 0, 0], [0.1, 0, 0], [0.05, 0, 0]])
    targets = torch.tensor([[0.0, 5, 0], [0, 5, 0], [0, -5, 0]])
    up = torch.tensor([0.0, 0, 1])
    poses = torch.stack([look_at(p, t, up) for p, t in zip(positions, targets, strict=True)])
    scores = view_scores(make_scene(3, camera_to_world=poses, sparse_points=None), [0, 1, 2])
    assert scores[0, 1] > 1
    assert scores[0, 2] == 0  # it looks away


def test_sources_share_points_where_there_are_points():
    points = 0.1 * torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    # views 0 and 3 saw the same 30 points, 1 and 2 the others, although 1 stands nearest to 0
    seen = torch.cat([torch.arange(30), torch.arange(30, 60), torch.arange(30, 60), torch.arange(30)])
    sparse = SparsePoints(points, 30 * torch.arange(5), seen)
    scores = view_scores(_on_an_arc([0.0, 5.0, 10.0, 12.0], sparse_points=sparse), [0, 1, 2, 3])
    assert (scores > 0).tolist() == [
        [True, False, False, True], [False, True, True, False], [False, True, True, False], [True, False, False, True],
    ]  # fmt: skip


@pytest.mark.parametrize("images_per_batch", [1, 2, None])
def test_a_batch_carries_the_photographs_of_its_rays_and_sources_and_no_held_out_one(images_per_batch):
    scene = _on_an_arc([0.0, 4.0, 8.0, 12.0, 16.0])
    views = [0, 2, 3, 4]
    dataset = RayDataset(scene, views, READS, rays_per_batch=32, images_per_batch=images_per_batch, num_sources=2)
    for index in range(6):
        batch = dataset.batch(index)
        assert batch["source_rows"].shape == (32, 2)
        # the red of a pixel is its view, and grey keeps 0.299 of it beside row and column
        first_pixel = batch["source_images"][:, 0, 0]
        view_of_row = [int(0.299 * view + 0.5) for view in views]
        assert set(first_pixel.tolist()) <= set(view_of_row)
        assert len(batch["source_images"]) == len(batch["source_intrinsics"]) <= len(views)
        for i in range(32):
            view, row = int(batch["image_index"][i]), int(batch["reference_row"][i])
            assert torch.equal(batch["source_camera_to_world"][row], scene.camera_to_world[view])
            assert row not in batch["source_rows"][i].tolist()
            point = batch["origins"][i] + 2 * batch["directions"][i]
            pixel, _ = project(point[None], batch["source_intrinsics"][row], batch["source_camera_to_world"][row])
            torch.testing.assert_close(pixel[0], batch["pixels"][i], atol=1e-3, rtol=0)
            x, y = batch["pixels"][i].floor().long().tolist()
            expected = batch["colors"][i] @ torch.tensor([0.299, 0.587, 0.114]) * 255
            assert batch["source_images"][row, y, x].item() == pytest.approx(expected.item(), abs=0.51)
        poses = batch["source_camera_to_world"]
        assert not any(torch.equal(pose, scene.camera_to_world[1]) for pose in poses)  # held out


def test_images_of_a_batch_are_not_copied_where_it_needs_all_of_them():
    dataset = RayDataset(_on_an_arc([0.0, 4.0, 8.0]), [0, 1, 2], READS, images_per_batch=None)
    assert dataset.batch(0)["source_images"].data_ptr() == dataset.batch(1)["source_images"].data_ptr()


def test_sizes_are_those_of_the_photographs_and_sources_as_many_as_there_are():
    batch = RayDataset(make_scene(), [0, 1, 3], READS, num_sources=9).batch(0)
    assert batch["source_sizes"].tolist() == [[HEIGHT, WIDTH]] * 3
    assert batch["source_rows"].shape[1] == 2


@pytest.mark.parametrize(("views", "num_sources"), [([2], 9), ([0, 1], 0)])
def test_nothing_to_compare_with_is_refused(views, num_sources):
    with pytest.raises(ValueError, match=r"toy: source views are asked for, .* expected at least 1 of at least 2"):
        SourceViews(make_scene(), views, num_sources)


def test_any_scene_has_source_images_and_the_datamodule_passes_their_number_on():
    data = ToyData(reads=set(READS), num_sources=3, rays_per_batch=8)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert batch["source_rows"].shape == (8, 3)


def test_a_negative_margin_is_refused():
    with pytest.raises(ValueError, match="mask_margin is -1 pixels"):
        foreground_pixels(torch.zeros(1, 4, 4, dtype=torch.uint8), -1)
