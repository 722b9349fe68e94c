"""Samples of the exact surface of an analytic scene."""

import math

import mcubes
import numpy as np
import torch
from torch import Tensor

from ops.scenes import AnalyticScene


def sample_analytic_surface(
    scene: AnalyticScene, num_points: int, generator: torch.Generator, resolution: int = 256
) -> tuple[Tensor, Tensor]:
    """Points on the very surface, uniform by area (to second order in the grid's spacing), and their normals.

    Args:
        scene: whose surface.
        num_points: how many.
        generator: of the draw.
        resolution: cells along an edge of the grid on which the areas are measured; a multiple of 8.

    Returns:
        ``points`` and unit outward ``normals``, each (num_points, 3) float64.
    """
    vertices, faces = mcubes.marching_cubes(_sampled_field(scene, resolution).numpy(), 0.0)
    vertices = torch.from_numpy(vertices) * (2 / resolution) - 1
    corners = vertices[torch.from_numpy(faces.astype(np.int64))]  # (F, 3, 3)
    edges = corners[:, 1:] - corners[:, :1]
    areas = torch.linalg.cross(edges[:, 0], edges[:, 1]).norm(dim=-1)
    # a few more than asked for: those that start across a crease may not settle on the surface
    num_drawn = num_points + num_points // 50 + 16
    uniform = torch.rand(num_drawn, 3, generator=generator, dtype=torch.float64)
    face = torch.searchsorted(areas.cumsum(0), uniform[:, 0] * areas.sum()).clamp(max=len(areas) - 1)
    root = uniform[:, 1].sqrt()
    weights = torch.stack([1 - root, root * (1 - uniform[:, 2]), root * uniform[:, 2]], dim=-1)
    points = _newton((corners[face] * weights[..., None]).sum(dim=1), scene)
    points = points[scene.sdf(points).abs() < 1e-9]
    if len(points) < num_points:
        raise ValueError(f"only {len(points)} of {num_drawn} samples settled on the analytic surface")
    return points[:num_points], scene.normals(points[:num_points])


def _newton(points: Tensor, scene: AnalyticScene, num_steps: int = 6) -> Tensor:
    for _ in range(num_steps):
        points = points.detach().requires_grad_()
        value = scene.sdf(points)
        (gradient,) = torch.autograd.grad(value.sum(), points)
        points = points - (value / gradient.square().sum(dim=-1))[:, None] * gradient
    return points.detach()


def _sampled_field(scene: AnalyticScene, resolution: int, block: int = 8) -> Tensor:
    # values at the vertices of a grid over [-1, 1]^3, exact near the surface and of the right sign elsewhere
    edge = 2 / resolution
    starts = torch.arange(0, resolution + 1, block)
    origins = torch.cartesian_prod(starts, starts, starts)
    middle = scene.sdf((origins + (block - 1) / 2) * edge - 1)
    # the field is 1-Lipschitz: a block whose middle is further from zero than a corner and a cell is far has no surface
    near = middle.abs() <= math.sqrt(3) * ((block - 1) / 2 + 1) * edge
    inner = torch.arange(block)
    within = torch.cartesian_prod(inner, inner, inner)
    values = middle[:, None].expand(-1, block**3).clone()
    for group in near.nonzero()[:, 0].split(256):
        values[group] = scene.sdf((origins[group, None] + within) * edge - 1)
    n = len(starts)
    grid = values.reshape(n, n, n, block, block, block).permute(0, 3, 1, 4, 2, 5).reshape((n * block,) * 3)
    return grid[: resolution + 1, : resolution + 1, : resolution + 1].contiguous()
