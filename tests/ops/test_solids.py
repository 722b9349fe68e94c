import math

import numpy as np
import pytest
import torch

from ops.cameras import look_at
from ops.solids import Part, Solid, box, ellipsoid, frustum, turn

WHITE = (1.0, 1.0, 1.0)
TILT = turn(0, 25) @ turn(2, -40)
PARTS = {
    "box": box((0.1, -0.2, 0.05), (0.2, 0.1, 0.3), WHITE, TILT),
    "ellipsoid": ellipsoid((-0.1, 0.1, 0.2), (0.3, 0.12, 0.2), WHITE, TILT),
    "cylinder": frustum((0.1, -0.3, 0), (-0.1, 0.3, 0.2), 0.15, 0.15, WHITE),
    "cone": frustum((0, -0.3, 0.1), (0.2, 0.3, 0), 0.3, 0.05, WHITE),
}
VOLUMES = {
    "box": 8 * 0.2 * 0.1 * 0.3,
    "ellipsoid": 4 / 3 * math.pi * 0.3 * 0.12 * 0.2,
    "cylinder": math.pi * 0.15**2 * math.sqrt(0.04 + 0.36 + 0.04),
    "cone": math.pi / 3 * math.sqrt(0.04 + 0.36 + 0.01) * (0.3**2 + 0.3 * 0.05 + 0.05**2),
}
_LENGTHS = {"cylinder": math.sqrt(0.04 + 0.36 + 0.04), "cone": math.sqrt(0.04 + 0.36 + 0.01)}
AREAS = {
    "box": 8 * (0.2 * 0.1 + 0.1 * 0.3 + 0.3 * 0.2),
    # Thomsen's approximation, within 1.1 %
    "ellipsoid": 4
    * math.pi
    * (sum((a * b) ** 1.6075 for a, b in ((0.3, 0.12), (0.12, 0.2), (0.2, 0.3))) / 3) ** (1 / 1.6075),
    "cylinder": 2 * math.pi * 0.15 * (0.15 + _LENGTHS["cylinder"]),
    "cone": math.pi * (0.3**2 + 0.05**2 + 0.35 * math.hypot(_LENGTHS["cone"], 0.25)),
}
UNION = list(PARTS.values())


@pytest.fixture(params=[*PARTS, "union"])
def solid(request: pytest.FixtureRequest) -> Solid:
    return Solid.of(UNION if request.param == "union" else [PARTS[request.param]])


@pytest.mark.parametrize("name", PARTS)
def test_the_share_of_points_inside_is_the_volume(name: str) -> None:
    points = np.random.default_rng(0).uniform(-0.6, 0.6, (1_000_000, 3))
    share = Solid.of([PARTS[name]]).contains(points).mean()
    assert share * 1.2**3 == pytest.approx(VOLUMES[name], rel=0.02)


def test_a_union_holds_what_any_part_holds(solid: Solid) -> None:
    points = np.random.default_rng(0).uniform(-0.6, 0.6, (5000, 3))
    parts = [Solid.of([part]) for part in UNION]
    expected = np.any([part.contains(points) for part in parts], axis=0)
    assert np.array_equal(Solid.of(UNION).contains(points), expected)
    assert np.array_equal(solid.level(torch.from_numpy(points)).numpy() < 0, solid.contains(points))


def test_surface_samples_lie_on_the_surface_and_normals_lead_out(solid: Solid) -> None:
    points, normals = (torch.from_numpy(a) for a in solid.sample_surface(4000, np.random.default_rng(0)))
    assert solid.level(points).abs().max() < 1e-12
    assert torch.allclose(normals.norm(dim=1), torch.ones(4000, dtype=torch.float64))
    assert (solid.level(points + 1e-7 * normals) > 0).all()
    assert (solid.level(points - 1e-7 * normals) < 0).all()


@pytest.mark.parametrize("name", PARTS)
def test_even_samples_of_one_part_give_its_area_by_the_divergence_theorem(name: str) -> None:
    # the flux of x through a closed surface is three times its volume, and the mean over the surface that over its area
    solid = Solid.of([PARTS[name]])
    points, normals = solid.sample_surface(200_000, np.random.default_rng(0))
    area = 3 * VOLUMES[name] / ((points - solid.centers[0]) * normals).sum(1).mean()
    assert area == pytest.approx(AREAS[name], rel=0.01)
    assert abs(normals.mean(0)).max() < 5e-3  # a closed surface's normals cancel


def test_samples_are_uniform_over_a_union() -> None:
    # two cubes, one through the other: known free areas
    solid = Solid.of([box((0, 0, 0), (0.2, 0.2, 0.2), WHITE), box((0.2, 0, 0), (0.2, 0.1, 0.1), WHITE)])
    points, _ = solid.sample_surface(100_000, np.random.default_rng(0))
    second = (abs(points[:, 1:]) <= 0.1 + 1e-9).all(1) & (points[:, 0] > 0.2 + 1e-9)
    first_area, second_area = 6 * 0.4**2 - 0.2**2, 4 * 0.2 * 0.2 + 0.2**2
    assert second.mean() == pytest.approx(second_area / (first_area + second_area), abs=0.005)


def test_bounds_are_tight(solid: Solid) -> None:
    points, _ = solid.sample_surface(50_000, np.random.default_rng(0))
    low, high = solid.bounds()
    assert (points >= low - 1e-12).all()
    assert (points <= high + 1e-12).all()
    assert abs(points.min(0) - low).max() < 0.01
    assert abs(points.max(0) - high).max() < 0.01


def test_a_normalized_solid_is_centred_with_longest_edge_one(solid: Solid) -> None:
    low, high = solid.normalized().bounds()
    assert np.allclose(low, -high)
    assert (high - low).max() == pytest.approx(1)


def test_voxels_are_the_occupancy_of_cell_centres(solid: Solid) -> None:
    voxels = solid.voxels(8)
    for i, j, k in np.random.default_rng(0).integers(8, size=(50, 3)):
        center = -0.5 + (np.array([[i, j, k]]) + 0.5) / 8
        assert voxels[i, j, k] == solid.contains(center)[0]


def test_pictures_show_what_rays_meet(solid: Solid) -> None:
    size = 24
    intrinsics = np.array([[26.0, 0, 12], [0, 26.0, 12], [0, 0, 1]])
    eye = torch.tensor([1.1, 0.7, 1.0], dtype=torch.float64)
    pose = look_at(eye, torch.zeros(3, dtype=torch.float64), torch.tensor([0, 1.0, 0], dtype=torch.float64)).numpy()
    picture = solid.render(intrinsics, pose, size, samples=1)
    # a slow march along the ray of every pixel's centre
    rows, columns = np.mgrid[:size, :size]
    directions = np.stack([(columns + 0.5 - 12) / 26, (rows + 0.5 - 12) / 26, np.ones((size, size))], axis=-1)
    directions = directions @ pose[:3, :3].T
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    steps = np.linspace(0.5, 2.8, 1500)[:, None, None, None]
    inside = solid.contains((pose[:3, 3] + steps * directions).reshape(-1, 3)).reshape(1500, size, size).any(0)
    assert 30 < inside.sum() < size**2 / 2
    # a ray may graze between two steps
    assert (inside != (picture[..., 3] == 255)).mean() < 0.005
    assert set(np.unique(picture[..., 3])) == {0, 255}


def test_more_samples_a_pixel_give_coverage_and_straight_colours() -> None:
    solid = Solid.of([box((0, 0, 0), (0.5, 0.3, 0.2), (0.8, 0.4, 0.2))])
    intrinsics = np.array([[26.0, 0, 12.2], [0, 26.0, 11.9], [0, 0, 1]])
    eye = torch.tensor([0, 0, 1.5], dtype=torch.float64)
    pose = look_at(eye, torch.zeros(3, dtype=torch.float64), torch.tensor([0, 1.0, 0], dtype=torch.float64)).numpy()
    picture = solid.render(intrinsics, pose, 24, samples=4).astype(float)
    # one face, seen from the front, with one shade: an edge's colour is that of the middle, only its coverage differs
    seen = picture[..., 3] > 0
    assert len(np.unique(picture[seen][:, :3], axis=0)) == 1
    assert picture[..., 3].sum() / 255 == pytest.approx((26 / 1.3) ** 2 * 1.0 * 0.6, rel=0.03)


def test_the_nearer_part_hides_the_further_one() -> None:
    near = Part(0, (0.2, 0.2, 0.1), (0, 0, 0.4), (1.0, 0.0, 0.0), np.eye(3))
    far = Part(1, (0.3, 0.3, 0.3), (0, 0, -0.3), (0.0, 1.0, 0.0), np.eye(3))
    pose = look_at(torch.tensor([0, 0, 2.0]), torch.zeros(3), torch.tensor([0, 1.0, 0])).numpy()
    for parts in ([near, far], [far, near]):
        picture = Solid.of(parts).render(np.array([[20.0, 0, 10], [0, 20.0, 10], [0, 0, 1]]), pose, 20)
        assert picture[10, 10, 0] > 50
        assert picture[10, 10, 1] == 0
