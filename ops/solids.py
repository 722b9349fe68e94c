"""Solids that are known exactly: unions of boxes, ellipsoids and frustums (cylinders, cones), each placed and turned.

Occupancy is exact, surface samples are uniform by area on the union and on its very surface, pictures come from rays
that meet the parts in closed form. What this exactness rests on: every part is convex.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ops import solid_kernels
from ops.solid_kernels import BOX, ELLIPSOID, FRUSTUM

_NOBODY = -1


@dataclass(frozen=True)
class Solid:
    """The union of K convex parts.

    Attributes:
        kinds: (K,) int64, one of ``BOX``, ``ELLIPSOID``, ``FRUSTUM``.
        sizes: (K, 3) half edges of a box, half axes of an ellipsoid; of a frustum, which stands along its own y axis,
            the radius below, the radius above and half the height.
        centers: (K, 3) positions of the parts' centres.
        rotations: (K, 3, 3) part to world.
        colors: (K, 3) sRGB in [0, 1].
    """

    kinds: np.ndarray
    sizes: np.ndarray
    centers: np.ndarray
    rotations: np.ndarray
    colors: np.ndarray

    @staticmethod
    def of(parts: "list[Part]") -> "Solid":
        """The union of parts."""
        return Solid(
            np.array([part.kind for part in parts], dtype=np.int64),
            np.array([part.size for part in parts], dtype=np.float64),
            np.array([part.center for part in parts], dtype=np.float64),
            np.stack([part.rotation for part in parts]).astype(np.float64),
            np.array([part.color for part in parts], dtype=np.float64),
        )

    @property
    def _parts(self) -> tuple[np.ndarray, ...]:
        return self.kinds, self.sizes, self.centers, self.rotations

    def level(self, points: Tensor) -> Tensor:
        """The solid as a ``Field``, (..., 3) -> (...): exact sign and zero; the magnitude is no distance."""
        flat = np.ascontiguousarray(points.detach().cpu().double().reshape(-1, 3).numpy())
        out = np.empty(len(flat))
        solid_kernels.levels(flat, np.full(len(flat), _NOBODY), *self._parts, out)
        return torch.from_numpy(out).to(points).reshape(points.shape[:-1])

    def contains(self, points: np.ndarray) -> np.ndarray:
        """Which of (N, 3) points are inside, (N,) bool; evaluated in float64."""
        out = np.empty(len(points))
        solid_kernels.levels(
            np.ascontiguousarray(points, dtype=np.float64), np.full(len(points), _NOBODY), *self._parts, out
        )
        return out < 0

    def bounds(self) -> np.ndarray:
        """Lowest and highest corner of the tight axis-aligned box around the solid, (2, 3)."""
        reach = np.empty_like(self.sizes)
        low, high = np.empty_like(self.sizes), np.empty_like(self.sizes)
        for k, (kind, size, center, rotation) in enumerate(zip(*self._parts, strict=True)):
            if kind == FRUSTUM:
                # two discs, each of which reaches out by its radius times the sine of its axis' angle to the direction
                axis = rotation[:, 1]
                out = np.sqrt(np.maximum(1 - axis**2, 0))
                ends = np.stack([center - size[2] * axis, center + size[2] * axis])
                extent = np.stack([size[0] * out, size[1] * out])
                low[k], high[k] = (ends - extent).min(0), (ends + extent).max(0)
                continue
            reach[k] = abs(rotation) @ size if kind == BOX else np.linalg.norm(rotation * size, axis=1)
            low[k], high[k] = center - reach[k], center + reach[k]
        return np.stack([low.min(0), high.max(0)])

    def normalized(self) -> "Solid":
        """The solid centred at the origin with 1 as the longest edge of its box."""
        low, high = self.bounds()
        edge = (high - low).max()
        return replace(self, sizes=self.sizes / edge, centers=(self.centers - (low + high) / 2) / edge)

    def voxels(self, resolution: int) -> np.ndarray:
        """Occupancy of the cells' centres of a grid over [-0.5, 0.5]³, (R, R, R) bool indexed [x, y, z]."""
        axis = -0.5 + (np.arange(resolution) + 0.5) / resolution
        centers = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
        return self.contains(centers).reshape((resolution,) * 3)

    def sample_surface(self, num_points: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Points on the surface of the union, uniform by area, and their unit outward normals, each (N, 3) float64."""
        areas = np.array([_area(kind, size) for kind, size in zip(self.kinds, self.sizes, strict=True)])
        found: list[tuple[np.ndarray, np.ndarray]] = []
        missing = num_points
        while missing > 0:
            part = generator.choice(len(areas), size=missing + missing // 2 + 16, p=areas / areas.sum())
            points, normals = np.empty((len(part), 3)), np.empty((len(part), 3))
            for k, (kind, size, center, rotation) in enumerate(zip(*self._parts, strict=True)):
                mine = part == k
                local, outward = _sample_part(kind, size, int(mine.sum()), generator)
                points[mine], normals[mine] = local @ rotation.T + center, outward @ rotation.T
            # what lies inside another part is no surface of the union
            depth = np.empty(len(points))
            solid_kernels.levels(points, part, *self._parts, depth)
            found.append((points[depth > 0], normals[depth > 0]))
            missing -= int((depth > 0).sum())
        points, normals = (np.concatenate(arrays)[:num_points] for arrays in zip(*found, strict=True))
        return points, normals

    def render(self, intrinsics: np.ndarray, camera_to_world: np.ndarray, size: int, samples: int = 2) -> np.ndarray:
        """A picture, (size, size, 4) uint8 RGBA with straight alpha.

        Args:
            intrinsics: (3, 3) pixels, without skew.
            camera_to_world: (4, 4) OpenCV axes; the camera is outside the solid.
            size: edge in pixels.
            samples: their square is the number of rays a pixel.
        """
        out = np.empty((size, size, 4), np.uint8)
        matrices = (np.ascontiguousarray(m, dtype=np.float64) for m in (intrinsics, camera_to_world))
        solid_kernels.render(*self._parts, self.colors, *matrices, samples, out)
        return out


@dataclass(frozen=True)
class Part:
    """One convex part; see ``Solid`` for the meaning of ``size``."""

    kind: int
    size: tuple[float, float, float]
    center: tuple[float, float, float]
    color: tuple[float, float, float]
    rotation: np.ndarray


def box(center, half, color, rotation=None) -> Part:
    """A box of half edges ``half``."""
    return Part(BOX, half, center, color, np.eye(3) if rotation is None else rotation)


def ellipsoid(center, half, color, rotation=None) -> Part:
    """An ellipsoid of half axes ``half``."""
    return Part(ELLIPSOID, half, center, color, np.eye(3) if rotation is None else rotation)


def frustum(start, end, start_radius: float, end_radius: float, color) -> Part:
    """A round rod from ``start`` to ``end`` whose ends are discs: a cylinder, or a cone cut off where radii differ."""
    start, end = np.asarray(start, dtype=np.float64), np.asarray(end, dtype=np.float64)
    length = float(np.linalg.norm(end - start))
    axis = (end - start) / length
    aside = np.cross(axis, np.eye(3)[abs(axis).argmin()])
    aside /= np.linalg.norm(aside)
    rotation = np.stack([aside, axis, np.cross(aside, axis)], axis=1)
    return Part(FRUSTUM, (start_radius, end_radius, length / 2), tuple((start + end) / 2), color, rotation)


def turn(axis: int, degrees: float) -> np.ndarray:
    """(3, 3) rotation about a coordinate axis, counter-clockwise seen from its positive end."""
    angle, (i, j) = math.radians(degrees), ((axis + 1) % 3, (axis + 2) % 3)
    rotation = np.eye(3)
    rotation[i, i] = rotation[j, j] = math.cos(angle)
    rotation[j, i] = math.sin(angle)
    rotation[i, j] = -rotation[j, i]
    return rotation


def _area(kind: int, size: np.ndarray) -> float:
    a, b, c = size
    if kind == BOX:
        return 8 * (a * b + b * c + c * a)
    if kind == FRUSTUM:
        return math.pi * (a * a + b * b + (a + b) * math.hypot(2 * c, a - b))
    # the area element of the ellipsoid over the unit sphere, by quadrature that is exact to rounding for such a
    # smooth function: Gauss in the height, equal steps in the turn
    height, weights = np.polynomial.legendre.leggauss(64)
    angle = np.arange(128) * (2 * math.pi / 128)
    ring = np.sqrt(1 - height**2)[:, None]
    sphere = np.stack(np.broadcast_arrays(ring * np.cos(angle), ring * np.sin(angle), height[:, None]), axis=-1)
    return float((weights[:, None] * _stretch(sphere, size)).sum() * 2 * math.pi / 128)


def _stretch(sphere: np.ndarray, size: np.ndarray) -> np.ndarray:
    # by how much scaling the unit sphere by `size` grows its area, at points of the sphere
    return size.prod() * np.linalg.norm(sphere / size, axis=-1)


def _sample_part(kind: int, size: np.ndarray, n: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    # (n, 3) points uniform by area and normals, in the part's frame
    return (_sample_box, _sample_ellipsoid, _sample_frustum)[kind](size, n, generator)


def _sample_box(half: np.ndarray, n: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    areas = half.prod() / half
    axis = generator.choice(3, size=n, p=areas / areas.sum())
    side = generator.integers(2, size=n) * 2.0 - 1
    points, normals = generator.uniform(-1, 1, (n, 3)) * half, np.zeros((n, 3))
    points[np.arange(n), axis] = side * half[axis]
    normals[np.arange(n), axis] = side
    return points, normals


def _sample_ellipsoid(size: np.ndarray, n: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    kept, largest = np.empty((0, 3)), size.prod() / size.min()
    while len(kept) < n:
        sphere = generator.standard_normal((2 * n + 16, 3))
        sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
        kept = np.concatenate([kept, sphere[generator.random(len(sphere)) * largest < _stretch(sphere, size)]])
    normals = kept[:n] / size
    return kept[:n] * size, normals / np.linalg.norm(normals, axis=1, keepdims=True)


def _sample_frustum(size: np.ndarray, n: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    below, above, half = size
    areas = np.array([below**2, above**2, (below + above) * math.hypot(2 * half, below - above)])
    where = generator.choice(3, size=n, p=areas / areas.sum())
    angle, share = generator.uniform(0, 2 * math.pi, n), generator.random(n)
    # on the side the circumference grows linearly with the height: the inverse of its quadratic integral
    if abs(above - below) > 1e-9 * (above + below):
        along = (np.sqrt(below**2 + share * (above**2 - below**2)) - below) / (above - below)
    else:
        along = share
    radius = np.where(where == 2, below + along * (above - below), np.sqrt(share) * np.where(where == 1, above, below))
    height = np.choose(where, [-half, half, (2 * along - 1) * half])
    cosine, sine = np.cos(angle), np.sin(angle)
    points = np.stack([radius * cosine, height, radius * sine], axis=1)
    slope = (above - below) / (2 * half)
    side = np.stack([cosine, np.full(n, -slope), sine], axis=1) / math.hypot(1, slope)
    caps = np.array([[0.0, -1.0, 0.0], [0.0, 1.0, 0.0]])[np.minimum(where, 1)]
    return points, np.where((where == 2)[:, None], side, caps)
