import itertools
import time

import pytest
import torch
from torch.utils.data import DataLoader

from datamodules.rays import RayDataset, foreground_pixels
from datamodules.scene import Scene
from ops.cameras import project
from tests.datamodules.toy import HEIGHT, WIDTH, make_scene

ALL_RAYS = frozenset({"rays", "ray_masks", "sparse_points"})


def first_batches(dataset: RayDataset, count: int, num_workers: int = 0) -> list[dict]:
    return list(itertools.islice(DataLoader(dataset=dataset, batch_size=None, num_workers=num_workers), count))


def assert_same(first: list[dict], second: list[dict]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            assert torch.equal(one[key], other[key]), key


@pytest.mark.parametrize("images_per_batch", [1, 2, None])
def test_a_ray_reprojects_to_the_centre_of_the_pixel_whose_colour_it_has(images_per_batch: int | None) -> None:
    scene = make_scene()
    dataset = RayDataset(scene, [0, 2, 3], ALL_RAYS, rays_per_batch=64, images_per_batch=images_per_batch)
    for index in range(4):
        batch = dataset.batch(index)
        assert set(batch["image_index"].tolist()) <= {0, 2, 3}
        if images_per_batch is not None:
            assert len(batch["image_index"].unique()) == images_per_batch
        # the picture spells (view, row, column) in its colours
        spelt = (batch["colors"] * 255).round().long()
        assert torch.equal(spelt[:, 0], batch["image_index"])
        points = batch["origins"] + 2 * batch["directions"]
        for i, view in enumerate(batch["image_index"]):
            pixel, _ = project(points[i : i + 1], scene.intrinsics[view], scene.camera_to_world[view])
            assert torch.allclose(pixel[0], spelt[i, [2, 1]] + 0.5, atol=1e-3)
            assert batch["ray_masks"][i] == scene.masks[view, spelt[i, 1], spelt[i, 2]] / 255


@pytest.mark.parametrize("images_per_batch", [1, 3, None])
@pytest.mark.parametrize("num_points", [8, 1024])
def test_every_sparse_point_is_visible_in_an_image_of_its_batch(images_per_batch: int | None, num_points: int) -> None:
    scene = make_scene()
    dataset = RayDataset(
        scene, [0, 1, 3, 4], ALL_RAYS, images_per_batch=images_per_batch, sparse_points_per_batch=num_points
    )
    for index in range(8):
        batch = dataset.batch(index)
        views = batch["image_index"].unique().tolist()
        point_numbers = (batch["sparse_points"][:, 0] / 0.001).round().long().tolist()
        visible = set().union(*(range(10 * view, 10 * view + 15) for view in views))
        assert set(point_numbers) <= visible
        # all of them where there are few, and no more than asked for where there are many
        assert num_points == 8 or sorted(point_numbers) == sorted(visible)
        assert len(point_numbers) <= num_points


def test_only_what_is_read_is_in_a_batch() -> None:
    batch = RayDataset(make_scene(), [0, 1]).batch(0)
    assert set(batch) == {"origins", "directions", "colors", "image_index"}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stream_started_at_a_batch_continues_the_straight_one(num_workers: int) -> None:
    dataset = RayDataset(make_scene(), [0, 1, 2], ALL_RAYS, rays_per_batch=8)
    straight = first_batches(dataset, 7)
    dataset.start_at(3)
    assert_same(first_batches(dataset, 4, num_workers), straight[3:])


def test_the_number_of_workers_does_not_change_the_stream() -> None:
    dataset = RayDataset(make_scene(), [0, 1, 2], ALL_RAYS, rays_per_batch=8)
    assert_same(first_batches(dataset, 5, num_workers=2), first_batches(dataset, 5))


def test_seeds_ranks_and_batches_all_draw_different_rays() -> None:
    draws = [
        RayDataset(make_scene(), [0, 1], rays_per_batch=32, images_per_batch=None, seed=seed, rank=rank, num_ranks=2)
        for seed in (0, 1)
        for rank in (0, 1)
    ]
    directions = [dataset.batch(index)["directions"] for dataset in draws for index in (0, 1)]
    for one, other in itertools.combinations(directions, 2):
        assert not torch.equal(one, other)


@pytest.mark.parametrize(("images_per_batch", "num_ranks"), [(1, 1), (2, 1), (1, 2), (3, 2)])
def test_a_round_visits_every_photograph_equally_often(images_per_batch: int, num_ranks: int) -> None:
    views = [0, 1, 2, 4]
    visits = torch.zeros(5, dtype=torch.int64)
    for rank in range(num_ranks):
        dataset = RayDataset(
            make_scene(), views, rays_per_batch=12, images_per_batch=images_per_batch, rank=rank, num_ranks=num_ranks
        )
        for index in range(12 // images_per_batch // num_ranks):  # three rounds of four photographs, all ranks together
            visits += torch.bincount(dataset.batch(index)["image_index"], minlength=5)
    assert visits[views].unique().numel() == 1
    assert visits[3] == 0


def test_the_foreground_share_comes_from_the_dilated_mask() -> None:
    scene = make_scene()
    dataset = RayDataset(scene, [0, 1, 2], rays_per_batch=400, foreground_share=0.5, mask_margin=1)
    _, row, column = (dataset.batch(0)["colors"] * 255).round().long().unbind(dim=-1)
    inside = (row >= 3) & (row < 9) & (column >= 4) & (column < 10)
    assert inside[:200].all()
    pixels = set(zip(row[:200].tolist(), column[:200].tolist(), strict=True))
    assert len(pixels) == 36  # every pixel of the 4x4 square dilated by one
    assert 0.1 < inside[200:].float().mean() < 0.3  # 36 of 192 pixels


def test_foreground_pixels_are_those_near_a_foreground_pixel() -> None:
    masks = (torch.rand(3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0)) > 0.95).byte() * 255
    masks[1] = 0
    pixels, offsets = foreground_pixels(masks, 2)
    for view in range(3):
        expected = [
            y * WIDTH + x
            for y in range(HEIGHT)
            for x in range(WIDTH)
            if (masks[view, max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3] > 127).any()
        ]
        assert pixels[offsets[view] : offsets[view + 1]].tolist() == expected


@pytest.mark.parametrize("foreground_share", [0.0, 0.5])
def test_drawing_does_not_touch_pixels_that_are_not_drawn(foreground_share: float) -> None:
    # 1600 times the pixels may not cost even five times the time
    def seconds(scene: Scene) -> float:
        dataset = RayDataset(scene, [0, 1, 2], rays_per_batch=256, foreground_share=foreground_share)
        times = []
        for index in range(30):
            start = time.perf_counter()
            dataset.batch(index)
            times.append(time.perf_counter() - start)
        return min(times)

    large = torch.zeros(5, 40 * HEIGHT, 40 * WIDTH, 3, dtype=torch.uint8)
    assert seconds(make_scene(images=large, masks=large[..., 0] + 255)) < 5 * seconds(make_scene())


@pytest.mark.parametrize("foreground_share", [0.0, 0.5])
def test_photographs_of_different_sizes_are_drawn_evenly_and_padding_never(foreground_share: float) -> None:
    sizes = torch.tensor([[HEIGHT, WIDTH], [5, 7], [HEIGHT, 6], [3, WIDTH], [HEIGHT, WIDTH]])
    masks = make_scene().masks.clone()
    for view, (height, width) in enumerate(sizes.tolist()):
        masks[view, 2, 3] = 255
        masks[view, height:], masks[view, :, width:] = 0, 0
    scene = make_scene(image_sizes=sizes, masks=masks)
    dataset = RayDataset(
        scene, [1, 2, 3], rays_per_batch=3000, foreground_share=foreground_share, mask_margin=9, images_per_batch=3
    )
    spelt = (dataset.batch(0)["colors"] * 255).round().long()
    for view in (1, 2, 3):
        pixels = spelt[spelt[:, 0] == view][:, 1:]
        height, width = sizes[view].tolist()
        assert len(pixels) == 1000
        assert pixels.amax(0).tolist() == [height - 1, width - 1]
        counts = torch.bincount(pixels[:, 0] * width + pixels[:, 1], minlength=height * width)
        # every pixel is as likely, since the dilated masks fill these photographs
        assert counts.float().std() < 2.5 * counts.float().mean().sqrt()
    batch = RayDataset(scene, [1], rays_per_batch=50).batch(0)
    points = batch["origins"] + 2 * batch["directions"]
    pixels, _ = project(points, scene.intrinsics[1], scene.camera_to_world[1])
    assert torch.allclose(pixels.floor().long().float(), (batch["colors"] * 255).round()[:, [2, 1]])
