import math

import pytest
import torch

from ops.scenes import SCENES, bowl, capsule, disc, rounded_box, smooth_union, sphere, torus

PRIMITIVES = {
    "sphere": lambda p: sphere(p, (0.1, 0, 0), 0.4),
    "capsule": lambda p: capsule(p, (-0.3, 0, 0), (0.3, 0.2, 0.1), 0.1),
    "torus": lambda p: torus(p, (0, 0.1, 0), 1, 0.4, 0.1),
    "rounded_box": lambda p: rounded_box(p, (0, 0, 0), (0.3, 0.2, 0.1), 0.05),
    "disc": lambda p: disc(p, (0, 0, 0.1), 0.4, 0.1),
    "bowl": lambda p: bowl(p, (0, 0, 0), 0.4, 0.05),
    "smooth union": lambda p: smooth_union(sphere(p, (-0.2, 0, 0), 0.2), sphere(p, (0.2, 0, 0), 0.25), 0.2),
}


@pytest.mark.parametrize("name", [*PRIMITIVES, *SCENES])
def test_a_field_never_changes_faster_than_distance(name: str) -> None:
    field = PRIMITIVES.get(name) or SCENES[name].sdf
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(100_000, 3, generator=generator, dtype=torch.float64) * 2 - 1
    for scale in (0.3, 0.01, 1e-4):
        others = points + scale * torch.randn(points.shape, generator=generator, dtype=torch.float64)
        assert ((field(points) - field(others)).abs() <= (points - others).norm(dim=-1) * (1 + 1e-6)).all()


@pytest.mark.parametrize(
    ("name", "outside", "distance"),
    [
        ("sphere", (0.1, 0, 1.0), 0.6),
        ("capsule", (0.6, 0.4, 0.2), math.sqrt(0.09 + 0.04 + 0.01) - 0.1),
        ("torus", (0, 0.1, 0), 0.3),
        ("rounded_box", (0.6, 0.6, 0.1), math.hypot(0.35, 0.45, 0.05) - 0.05),
        ("disc", (0.7, 0, 0.6), 0.5),
        ("bowl", (0, 0, -0.2), 0.15),
    ],
)
def test_distances_outside_are_exact(name: str, outside: tuple[float, ...], distance: float) -> None:
    value = PRIMITIVES[name](torch.tensor([outside], dtype=torch.float64))
    assert value.item() == pytest.approx(distance, abs=1e-12)


@pytest.mark.parametrize("name", SCENES)
def test_a_scene_fits_its_ball_and_has_an_inside(name: str) -> None:
    points = torch.rand(200_000, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    inside = points[SCENES[name].sdf(points) < 0]
    assert 0.005 < len(inside) / len(points) < 0.1
    assert inside.norm(dim=-1).max() < SCENES[name].radius
    assert SCENES[name].parts(points).argmin(dim=-1).unique().numel() == len(SCENES[name].palette)
