"""Analytic scenes: coloured things that are known exactly, to test and to show reconstruction with.

Every primitive is a ``Field`` of its points: negative inside, exactly zero on the surface, and never further from zero
than the point is from the surface (Lipschitz constant 1), so that sphere tracing cannot step through anything. Unions
are minima and intersections maxima, which keep the bound.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Point = tuple[float, float, float]


def sphere(points: Tensor, center: Point, radius: float) -> Tensor:
    """A ball of ``radius`` about ``center``."""
    return (points - points.new_tensor(center)).norm(dim=-1) - radius


def capsule(points: Tensor, start: Point, end: Point, radius: float) -> Tensor:
    """A rod of ``radius`` with round ends from ``start`` to ``end``."""
    axis = points.new_tensor(end) - points.new_tensor(start)
    relative = points - points.new_tensor(start)
    along = (relative @ axis / (axis @ axis)).clamp(0, 1)
    return (relative - along[..., None] * axis).norm(dim=-1) - radius


def torus(points: Tensor, center: Point, axis: int, major: float, minor: float) -> Tensor:
    """A ring of radius ``major`` and thickness ``minor`` about coordinate axis number ``axis``."""
    relative = points - points.new_tensor(center)
    others = [i for i in range(3) if i != axis]
    return torch.hypot(relative[..., others].norm(dim=-1) - major, relative[..., axis]) - minor


def rounded_box(points: Tensor, center: Point, half: Point, radius: float) -> Tensor:
    """A box of half edges ``half`` whose edges are rounded by ``radius``."""
    outside = (points - points.new_tensor(center)).abs() - (points.new_tensor(half) - radius)
    return outside.clamp(min=0).norm(dim=-1) + outside.amax(dim=-1).clamp(max=0) - radius


def disc(points: Tensor, center: Point, radius: float, half_height: float) -> Tensor:
    """An upright cylinder."""
    relative = points - points.new_tensor(center)
    outside = torch.stack([relative[..., :2].norm(dim=-1) - radius, relative[..., 2].abs() - half_height], dim=-1)
    return outside.clamp(min=0).norm(dim=-1) + outside.amax(dim=-1).clamp(max=0)


def bowl(points: Tensor, center: Point, radius: float, thickness: float) -> Tensor:
    """The lower half of a hollow ball of outer ``radius``."""
    shell = sphere(points, center, radius - thickness / 2).abs() - thickness / 2
    return torch.maximum(shell, points[..., 2] - center[2])


def trefoil(points: Tensor, center: Point, major: float, minor: float, tube: float) -> Tensor:
    """A (2, 3) torus knot about the y axis whose sections with half planes through that axis are discs of ``tube``."""
    relative = points - points.new_tensor(center)
    ring = torch.hypot(relative[..., 0], relative[..., 2])
    turn = torch.atan2(relative[..., 2], relative[..., 0])
    # the half plane at this turn meets the knot twice, half a winding apart
    cosine, sine = minor * torch.cos(1.5 * turn), minor * torch.sin(1.5 * turn)
    out, up = ring - major, relative[..., 1]
    section = torch.minimum(torch.hypot(out - cosine, up - sine), torch.hypot(out + cosine, up + sine)) - tube
    # a disc moves by 1.5 * minor for every radian, so by 1.5 * minor / ring for every unit of length: without bound on
    # the axis. Hence the distance to the ring that holds the knot rules outside, and the sections within it only
    margin = 0.03
    slope = math.hypot(1, 1.5 * minor / (major - minor - tube - margin / 2))
    to_ring = torch.hypot(out, up) - (minor + tube)
    return torch.maximum(to_ring, torch.minimum(section / slope, margin - to_ring))


def smooth_union(first: Tensor, second: Tensor, width: float) -> Tensor:
    """Two fields joined by a fillet, blended where they differ by less than ``width`` (polynomial smooth minimum)."""
    blend = (1 - (first - second).abs() / width).clamp(min=0)
    return torch.minimum(first, second) - blend.square() * (width / 4)


def _knot_parts(points: Tensor) -> Tensor:
    base = torch.maximum(
        disc(points, (0, 0, -0.68), 0.40, 0.08), -sphere(points, (0, 0, -0.12), 0.60)
    )  # a dish, hollowed by a ball
    knot = trefoil(points, (0, 0, 0.14), 0.46, 0.15, 0.075)
    post = capsule(points, (0, 0.08, -0.69), (0, 0.08, -0.44), 0.045)
    rods = torch.minimum(
        capsule(points, (-0.36, -0.12, -0.62), (-0.52, -0.16, 0.52), 0.022),
        capsule(points, (0.36, 0.12, -0.62), (0.52, 0.16, 0.52), 0.022),
    )
    rings = torch.minimum(
        torus(points, (-0.52, -0.16, 0.58), 0, 0.075, 0.022), torus(points, (0.52, 0.16, 0.58), 0, 0.075, 0.022)
    )
    return torch.stack([base, smooth_union(knot, post, 0.06), torch.minimum(rods, rings)], dim=-1)


def _statue_parts(points: Tensor) -> Tensor:
    plinth = torch.minimum(
        rounded_box(points, (0, 0, -0.70), (0.34, 0.34, 0.07), 0.01),
        rounded_box(points, (0, 0, -0.60), (0.27, 0.27, 0.05), 0.01),
    )
    legs = torch.minimum(
        capsule(points, (-0.12, 0.02, -0.55), (-0.07, 0, -0.16), 0.062),
        capsule(points, (0.13, -0.05, -0.55), (0.07, 0, -0.16), 0.062),
    )
    body = smooth_union(capsule(points, (0, 0, -0.10), (0, 0.01, 0.14), 0.125), legs, 0.06)
    body = smooth_union(body, sphere(points, (0, 0, 0.37), 0.10), 0.08)
    akimbo = torch.minimum(
        capsule(points, (-0.11, 0, 0.19), (-0.33, -0.02, 0.06), 0.042),
        capsule(points, (-0.33, -0.02, 0.06), (-0.12, -0.02, -0.10), 0.036),
    )
    raised = torch.minimum(
        capsule(points, (0.11, 0, 0.19), (0.28, -0.04, 0.10), 0.042),
        capsule(points, (0.28, -0.04, 0.10), (0.33, -0.16, 0.24), 0.036),
    )
    body = smooth_union(body, torch.minimum(akimbo, raised), 0.04)
    staff = torch.minimum(
        capsule(points, (0.31, -0.16, -0.66), (0.34, -0.16, 0.58), 0.020),
        torus(points, (0.34, -0.16, 0.66), 1, 0.07, 0.020),
    )
    vessel = bowl(points, (0, 0, 0.66), 0.20, 0.035)
    return torch.stack([plinth, body, torch.minimum(staff, vessel)], dim=-1)


@dataclass(frozen=True)
class AnalyticScene:
    """A thing inside the ball of ``radius`` about the origin, known exactly.

    Attributes:
        parts: (..., 3) points -> (..., K) fields of its parts; the thing is their union.
        palette: K pairs of sRGB colours between which the pattern of a part goes.
        frequency: of the finest pattern, radians a unit of length.
        gloss: share of a white highlight, which moves with the eye.
        radius: of a ball about the origin that holds it.
    """

    parts: Callable[[Tensor], Tensor]
    palette: tuple[tuple[Point, Point], ...]
    frequency: float
    gloss: float
    radius: float = 0.91

    def sdf(self, points: Tensor) -> Tensor:
        """The thing as a ``Field``: exact sign and zero, magnitude a lower bound of the distance."""
        return self.parts(points).amin(dim=-1)

    def normals(self, points: Tensor) -> Tensor:
        """Unit directions in which the field grows, (N, 3): the outward normals where points are on the surface."""
        with torch.inference_mode(False), torch.enable_grad():
            points = points.detach().clone().requires_grad_()
            (gradient,) = torch.autograd.grad(self.sdf(points).sum(), points)
        return torch.nn.functional.normalize(gradient, dim=-1)

    def albedo(self, points: Tensor) -> Tensor:
        """Painted colour of points near the surface, (N, 3) points -> (N, 3) sRGB in [0, 1]."""
        palette = points.new_tensor(self.palette)[self.parts(points).argmin(dim=-1)]
        # three scales, each bent by the next coarser one: no place looks like another
        bend = torch.sin(points[:, [1, 2, 0]] * 3.1 + 0.7)
        coarse = torch.sin(points * (0.25 * self.frequency) + 2 * bend).sum(dim=-1)
        fine = torch.sin(points[:, [2, 0, 1]] * self.frequency + 3 * bend).sum(dim=-1)
        blend = (0.5 + 0.22 * coarse + 0.14 * fine).clamp(0, 1)[:, None]
        return palette[:, 0] * (1 - blend) + palette[:, 1] * blend

    def shade(self, points: Tensor, directions: Tensor) -> Tensor:
        """Colour of surface points seen along unit ``directions``, each (N, 3), in [0, 1]."""
        normals = self.normals(points)
        key_light = torch.nn.functional.normalize(points.new_tensor((0.5, -0.6, 0.8)), dim=0)
        fill_light = torch.nn.functional.normalize(points.new_tensor((-0.7, 0.6, 0.1)), dim=0)
        light = 0.35 + 0.5 * (normals @ key_light).clamp(min=0) + 0.25 * (normals @ fill_light).clamp(min=0)
        halfway = torch.nn.functional.normalize(key_light - directions, dim=-1)
        highlight = (normals * halfway).sum(dim=-1).clamp(min=0).pow(24)
        return (self.albedo(points) * light[:, None] + self.gloss * highlight[:, None]).clamp(0, 1)


SCENES: dict[str, AnalyticScene] = {
    "knot": AnalyticScene(
        _knot_parts,
        palette=(
            ((0.25, 0.28, 0.34), (0.62, 0.62, 0.58)),
            ((0.80, 0.22, 0.12), (0.98, 0.78, 0.30)),
            ((0.10, 0.38, 0.42), (0.35, 0.80, 0.72)),
        ),
        frequency=34.0,
        gloss=0.15,
    ),
    "statue": AnalyticScene(
        _statue_parts,
        palette=(
            ((0.38, 0.22, 0.14), (0.74, 0.52, 0.34)),
            ((0.45, 0.50, 0.58), (0.95, 0.92, 0.84)),
            ((0.20, 0.22, 0.55), (0.62, 0.45, 0.85)),
        ),
        frequency=42.0,
        gloss=0.0,
    ),
}
"""By name. They differ on purpose: a smooth, glossy, knotted tube; a matt figure of many joints, edges and gaps."""
