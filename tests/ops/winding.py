"""How often a mesh winds around points, from the solid angles of its faces: slow, and of no kin to ray casting."""

import torch
from torch import Tensor

from ops.types import Shape


def winding_numbers(shape: Shape, points: Tensor) -> Tensor:
    """(N,) float64, by van Oosterom and Strackee (1983): 1 inside of a closed mesh, 0 outside."""
    corners = shape.vertices.double()[shape.faces]
    numbers = []
    for chunk in points.double().split(200):
        a, b, c = (corners[None] - chunk[:, None, None]).unbind(2)
        x, y, z = (v.norm(dim=-1) for v in (a, b, c))
        volume = (a * torch.linalg.cross(b, c)).sum(-1)
        base = x * y * z + (a * b).sum(-1) * z + (b * c).sum(-1) * x + (c * a).sum(-1) * y
        numbers.append(2 * torch.atan2(volume, base).sum(1) / (4 * torch.pi))
    return torch.cat(numbers)
