import dataclasses

import pytest
import torch
import torch.nn.functional as F

from losses.patches import GreyPhotographs, patch_consistency, patch_loss
from ops.cameras import look_at, pixel_centers, pixel_rays
from ops.homography import Cameras

HEIGHT, WIDTH = 60, 80
NORMAL = F.normalize(torch.tensor([0.2, -0.1, 1.0]), dim=0)
OFFSET = 0.1  # the plane is NORMAL . x = OFFSET


def _texture(points):
    """Grey of the painted plane, a sum of waves that no shift or turn maps to itself."""
    waves = torch.tensor([[9.0, 4, 0], [-5, 13, 0], [17, -3, 0], [2, 21, 0]])
    return 128 + 28 * torch.sin(points @ waves.T + torch.arange(4)).sum(-1)


@pytest.fixture(scope="module")
def photographs():
    """Four photographs of a textured plane; 0 is the reference."""
    positions = torch.tensor([[0.0, 0, 3], [0.8, 0.1, 2.9], [-0.6, 0.5, 2.9], [0.2, -0.9, 2.8]])
    poses = torch.stack([look_at(p, torch.zeros(3), torch.tensor([0.0, 1, 0])) for p in positions])
    intrinsics = torch.tensor([[110.0, 0, WIDTH / 2], [0, 110, HEIGHT / 2], [0, 0, 1]]).repeat(4, 1, 1)
    images = []
    for k, pose in zip(intrinsics, poses, strict=True):
        points = _on_plane(*pixel_rays(pixel_centers(HEIGHT, WIDTH), k, pose), OFFSET)
        images.append(_texture(points).view(HEIGHT, WIDTH).round().clamp(0, 255).byte())
    return GreyPhotographs(torch.stack(images), torch.tensor([[HEIGHT, WIDTH]] * 4), Cameras(intrinsics, poses))


def _on_plane(origins, directions, offset):
    depth = (offset - origins @ NORMAL) / (directions @ NORMAL)
    return origins + depth[:, None] * directions


def _loss(photographs, offset, normal=NORMAL, sources=(1, 2, 3), pixels=None, **changes):
    if pixels is None:
        pixels = torch.tensor([[x, y] for x in (25.5, 40.5, 55.5) for y in (20.5, 30.5, 40.5)])
    cameras = photographs.cameras
    points = _on_plane(*pixel_rays(pixels, cameras.intrinsics[0], cameras.camera_to_world[0]), offset)
    count = len(pixels)
    return patch_consistency(
        points, normal.expand(count, 3), pixels, torch.zeros(count, dtype=torch.int64),
        torch.tensor(sources).expand(count, -1), photographs, **({"num_best": 3} | changes),
    )  # fmt: skip


def test_loss_is_nothing_at_the_true_surface_and_grows_as_it_is_left(photographs):
    losses = []
    for shift in (0.0, 0.02, 0.05, 0.1):
        loss, is_seen = _loss(photographs, OFFSET + shift)
        assert is_seen.all()
        losses.append(loss.mean().item())
    assert losses[0] < 0.005  # what interpolation and eight bits leave
    assert losses[0] < losses[1] < losses[2] < losses[3]
    assert losses[3] > 30 * losses[0]


@pytest.mark.parametrize("shift", [-0.03, 0.03])
def test_gradient_moves_the_plane_back(photographs, shift):
    offset = torch.tensor(OFFSET + shift, requires_grad=True)
    loss, _ = _loss(photographs, offset)
    loss.mean().backward()
    assert offset.grad.sign().item() == (1 if shift > 0 else -1)


def test_a_tilted_plane_costs_more_but_the_normal_gets_no_gradient(photographs):
    tilted = F.normalize(NORMAL + torch.tensor([0.5, 0, 0]), dim=0).requires_grad_()
    offset = torch.tensor(OFFSET, requires_grad=True)
    loss, _ = _loss(photographs, offset, normal=tilted)
    assert loss.mean() > 5 * _loss(photographs, OFFSET)[0].mean()
    loss.mean().backward()
    assert tilted.grad is None
    assert offset.grad.isfinite()


def test_exposure_of_a_photograph_does_not_matter(photographs):
    images = photographs.images.clone()
    images[1] = (0.5 * images[1].float() + 60).round().byte()
    loss, _ = _loss(dataclasses.replace(photographs, images=images), OFFSET)
    assert loss.mean() < 0.01


def test_sources_in_which_the_point_is_hidden_are_forgiven(photographs, generator):
    images = photographs.images.clone()
    images[2] = (255 * torch.rand(HEIGHT, WIDTH, generator=generator)).byte()  # something else stands in front
    hidden = dataclasses.replace(photographs, images=images)
    assert _loss(hidden, OFFSET, num_best=2)[0].max() < 0.01
    assert _loss(hidden, OFFSET, num_best=3)[0].mean() > 0.2


def test_more_sources_may_be_asked_for_than_there_are(photographs):
    assert torch.equal(_loss(photographs, OFFSET, num_best=9)[0], _loss(photographs, OFFSET, num_best=3)[0])


@pytest.mark.parametrize("reason", ["border", "flat", "grazing", "behind", "padding", "source behind"])
def test_what_cannot_be_compared_is_said_so_and_costs_nothing(photographs, reason):
    changes, there = {}, photographs
    if reason == "border":
        changes["pixels"] = torch.tensor([[3.5, 30.5]])
    if reason == "flat":
        there = dataclasses.replace(photographs, images=torch.full_like(photographs.images, 90))
    if reason == "grazing":
        changes["min_cosine"] = 0.999
        changes["sources"] = (1,)
    if reason == "behind":
        changes["normal"] = -NORMAL
    if reason == "padding":
        there = dataclasses.replace(photographs, sizes=torch.tensor([[HEIGHT, WIDTH]] + [[12, 12]] * 3))
    if reason == "source behind":
        poses = photographs.cameras.camera_to_world.clone()
        poses[1:, :3, :3] = poses[1:, :3, :3] @ torch.diag(torch.tensor([-1.0, 1, -1]))
        there = dataclasses.replace(photographs, cameras=Cameras(photographs.cameras.intrinsics, poses))
    offset = torch.tensor(OFFSET, requires_grad=True)
    loss, is_seen = _loss(there, offset, **changes)
    assert not is_seen.any()
    assert not loss.any()
    loss.sum().backward()
    assert offset.grad.item() == 0


def test_window_and_contrast_are_arguments(photographs):
    assert not _loss(photographs, OFFSET, min_contrast=100.0)[1].any()
    pixels = torch.tensor([[4.5, 30.5]])
    assert not _loss(photographs, OFFSET, pixels=pixels, patch_size=11)[1].any()
    assert _loss(photographs, OFFSET, pixels=pixels + 8, patch_size=5)[1].all()
    with pytest.raises(ValueError, match="must be odd"):
        _loss(photographs, OFFSET, patch_size=10)


def _ray_batch(photographs, pixels):
    """A batch of rays of photograph 0, and samples of the field of the true plane along them."""
    cameras, count = photographs.cameras, len(pixels)
    origins, directions = pixel_rays(pixels, cameras.intrinsics[0], cameras.camera_to_world[0])
    batch = {
        "origins": origins, "directions": directions, "pixels": pixels,
        "reference_row": torch.zeros(count, dtype=torch.int64),
        "source_rows": torch.tensor([1, 2, 3]).expand(count, -1),
        "source_images": photographs.images, "source_sizes": photographs.sizes,
        "source_intrinsics": cameras.intrinsics, "source_camera_to_world": cameras.camera_to_world,
    }  # fmt: skip
    distances = torch.linspace(2, 4, 30).expand(count, -1)
    sdf = (origins[:, None] + directions[:, None] * distances[..., None]) @ NORMAL - OFFSET
    return batch, (torch.arange(count), distances, sdf, NORMAL.expand(count, 30, 3))


def test_loss_of_a_ray_batch_is_least_for_the_true_field_and_pulls_any_other_towards_it(photographs, generator):
    pixels = torch.rand(200, 2, generator=generator) * torch.tensor([WIDTH, HEIGHT])
    batch, (index, distances, sdf, gradient) = _ray_batch(photographs, pixels)
    true = patch_loss(batch, index, distances, sdf, gradient)
    assert 0 < true < 0.005
    for shift in (-0.03, 0.03):
        moved = (sdf - shift).requires_grad_()
        loss = patch_loss(batch, index, distances, moved, gradient)
        assert loss > 5 * true
        loss.backward()
        # to move outwards the field must fall, and the other way round
        assert moved.grad.sum().sign() == (-1 if shift > 0 else 1)


def test_rays_that_miss_graze_or_are_too_many_are_not_compared(photographs):
    pixels = torch.tensor([[x + 0.5, y + 0.5] for x in range(20, 60, 4) for y in range(20, 40, 4)])
    batch, (index, distances, sdf, gradient) = _ray_batch(photographs, pixels)
    assert patch_loss(batch, index, distances, sdf.abs() + 1, gradient) == 0
    assert patch_loss(batch, index, distances, sdf, gradient, min_slope=2.0) == 0
    first = patch_loss({k: v[:7] if len(v) == 50 else v for k, v in batch.items()}, index[:7], distances[:7], sdf[:7],
                       gradient[:7])  # fmt: skip
    assert patch_loss(batch, index, distances, sdf, gradient, max_rays=7) == pytest.approx(first.item())
    # the samples may be of some of the rays only
    assert patch_loss(batch, index[:7], distances[:7], sdf[:7], gradient[:7]) == pytest.approx(first.item())
    assert patch_loss(batch | {"ray_masks": torch.zeros(50)}, index, distances, sdf, gradient) == 0
