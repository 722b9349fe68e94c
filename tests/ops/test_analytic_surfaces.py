import math

import pytest
import torch

from ops.analytic_surfaces import sample_analytic_surface
from ops.scenes import AnalyticScene, torus


def test_surface_samples_of_a_torus_are_uniform_by_area() -> None:
    major, minor = 0.5, 0.2
    ring = AnalyticScene(lambda p: torus(p, (0, 0, 0), 2, major, minor)[..., None], (((0,) * 3, (1,) * 3),), 1.0, 0.0)
    points, normals = sample_analytic_surface(ring, 20_000, torch.Generator().manual_seed(0), resolution=64)
    radius = points[:, :2].norm(dim=-1)
    expected_normals = torch.stack(
        [points[:, 0] * (1 - major / radius), points[:, 1] * (1 - major / radius), points[:, 2]], dim=-1
    )
    assert torch.allclose(normals, expected_normals / minor, atol=1e-9)
    # the outer half of a torus is the share 1/2 + minor / (pi major) of it
    share = (radius > major).double().mean().item()
    assert share == pytest.approx(0.5 + minor / (math.pi * major), abs=4 * math.sqrt(0.25 / 20_000))
    octants = (points > 0).long() @ torch.tensor([4, 2, 1])
    assert torch.bincount(octants, minlength=8).min() > 20_000 / 8 * 0.9
