import torch

from ops.cameras import look_at, pixel_centers, pixel_rays
from ops.scenes import SCENES, sphere
from ops.sphere_tracing import march


def image_rays(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    pose = look_at(torch.tensor([1.2, -2.2, 1.4]), torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
    intrinsics = torch.tensor([[1.4 * size, 0, size / 2], [0, 1.4 * size, size / 2], [0, 0, 1.0]])
    return pixel_rays(pixel_centers(size, size), intrinsics, pose)


def test_rays_meet_a_ball_where_the_quadratic_says() -> None:
    origins, directions = image_rays(40)
    center = torch.tensor([0.1, 0.2, -0.1])
    relative = origins - center
    half = -(relative * directions).sum(-1)
    discriminant = half**2 - (relative.square().sum(-1) - 0.25)
    expected = torch.where(discriminant > 0, half - discriminant.clamp(min=0).sqrt(), torch.inf)
    found = march(
        lambda p: sphere(p, (0.1, 0.2, -0.1), 0.5), origins, directions, torch.zeros(1600), torch.full((1600,), 9.0)
    )
    clear = discriminant.abs() > 1e-3  # not grazing
    assert torch.equal(found.isfinite()[clear], expected.isfinite()[clear])
    hits = clear & expected.isfinite()
    assert hits.sum() > 250
    assert (found - expected)[hits].abs().max() < 1e-3


def test_a_cone_never_starts_its_rays_behind_what_they_would_hit() -> None:
    size, edge = 64, 8
    for scene in SCENES.values():
        origins, directions = image_rays(size)
        near, far = torch.full((size**2,), 1.5), torch.full((size**2,), 4.5)
        exact = march(scene.sdf, origins, directions, near, far)
        blocks = directions.reshape(size // edge, edge, size // edge, edge, 3)
        axes = torch.nn.functional.normalize(blocks.mean(dim=(1, 3)), dim=-1)
        spread = (blocks - axes[:, None, :, None]).norm(dim=-1).max().item() * 1.01
        axes = axes.reshape(-1, 3)
        starts = march(scene.sdf, origins[: len(axes)], axes, near[: len(axes)], far[: len(axes)], spread=spread)
        starts = starts.reshape(size // edge, 1, size // edge, 1).expand(-1, edge, -1, edge).reshape(-1)
        hits = exact.isfinite()
        assert hits.sum() > 300
        assert (starts[hits] <= exact[hits] + 1e-4).all()
        assert starts.isinf().float().mean() > 0.05  # whole blocks are known to be empty


def test_an_interval_that_is_empty_meets_nothing() -> None:
    origins, directions = image_rays(4)
    found = march(lambda p: sphere(p, (0, 0, 0), 0.5), origins, directions, torch.zeros(16), torch.zeros(16))
    assert found.isinf().all()
