"""Points of even density on a surface, as DTU's evaluation takes them: a lattice on each triangle, thinned greedily."""

import math

import numba
import numpy as np

from ops.types import Shape

MOST_SAMPLES = 2 * 10**8  # 5 GB; at DTU's 0.2 mm it is 8 square metres, where an object has a fortieth
CHUNK = 2**17  # faces at once, so that what a face needs on the way is not held for millions of them


def even_points(shape: Shape, density: float, generator: np.random.Generator) -> np.ndarray:
    """Points (N, 3) on a mesh, or of a point set, no two of them within ``density`` of each other.

    Memory grows with the vertices and with the area, by about 150 bytes a vertex, and hardly with the faces.
    """
    points = shape.vertices.double().cpu().numpy()
    if shape.faces is not None:
        faces, pieces, area = shape.faces.cpu().numpy(), [points], 0.0
        for start in range(0, len(faces), CHUNK):
            corners = points[faces[start : start + CHUNK]]
            area += _check_area(corners, area, density)
            pieces.append(lattice_points(corners, density))
        points = np.concatenate(pieces)
        del pieces
    points = points[generator.permutation(len(points))]
    return points[thinned(points, density)]


def lattice_points(corners: np.ndarray, density: float) -> np.ndarray:
    """Points on triangles (F, 3, 3), on a lattice along two of their edges with ``density``^2 of area a point.

    Edges of lengths l1 and l2 that span twice the area A are divided into floor(l / step) parts, where
    step = density sqrt(l1 l2 / A); a point is in the middle of each of the lattice's cells and inside the triangle.
    Triangles without area get none, and neither do those shorter than a step.
    """
    _check_area(corners, 0.0, density)
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = np.linalg.norm(np.cross(first, second), axis=1)
    corners, first, second, area = (x[area > 0] for x in (corners, first, second, area))
    lengths = np.stack([np.linalg.norm(first, axis=1), np.linalg.norm(second, axis=1)], axis=1)
    parts = np.floor(lengths / (density * np.sqrt(lengths.prod(1) / area))[:, None])
    return _fill_lattice(np.ascontiguousarray(corners[:, 0]), first, second, parts)


def _check_area(corners: np.ndarray, before: float, density: float) -> float:
    """The area of triangles (F, 3, 3); refuses it where it, with what was ``before``, is too large to be meant."""
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1).sum() / 2
    if before + area > MOST_SAMPLES * density**2:
        raise ValueError(
            f"A mesh of area {before + area:.3g} or more has over {MOST_SAMPLES:.0e} points {density} apart; check "
            f"that it is in the frame and unit that the density is meant for"
        )
    return area


@numba.njit(cache=True)
def _fill_lattice(corner: np.ndarray, first: np.ndarray, second: np.ndarray, parts: np.ndarray) -> np.ndarray:
    num_points = 0
    points = np.empty((0, 3))
    for is_filling in (False, True):
        if is_filling:
            points = np.empty((num_points, 3))
        num_points = 0
        for f in range(len(corner)):
            if parts[f, 0] < 1 or parts[f, 1] < 1:
                continue
            # one more cell than parts: it can still have its middle inside by rounding, and the reference has it
            for i in range(int(parts[f, 0]) + 1):
                a = (i + 0.5) / parts[f, 0]
                for j in range(int(parts[f, 1]) + 1):
                    b = (j + 0.5) / parts[f, 1]
                    if a + b >= 1:
                        break
                    if is_filling:
                        points[num_points] = corner[f] + a * first[f] + b * second[f]
                    num_points += 1
    return points


def thinned(points: np.ndarray, radius: float) -> np.ndarray:
    """Which points (N, 3) stay, (N,) bool, if in their order each that is left removes all others within ``radius``."""
    if len(points) == 0:
        return np.ones(0, bool)
    # a hair wider than the radius, so that rounding moves no neighbour two cells away
    lowest, edge = points.min(0), radius * (1 + 1e-6)
    size = np.floor((points.max(0) - lowest) / edge).astype(np.int64) + 3
    if np.prod(size.astype(np.float64)) > 2.0**62:
        raise ValueError(f"Points that spread over {np.ptp(points, axis=0)} cannot be thinned to {radius}")
    slots = 2 ** math.ceil(math.log2(1.5 * len(points) + 1))
    return _thin(np.ascontiguousarray(points), lowest, edge, size, radius * radius, slots)


@numba.njit(cache=True)
def _thin(
    points: np.ndarray, lowest: np.ndarray, edge: float, size: np.ndarray, square: float, slots: int
) -> np.ndarray:
    # a hash table by linear probing: cell -> its last kept point; before[point] -> the one kept before it in that cell
    names = np.full(slots, -1, np.int64)
    last = np.empty(slots, np.int32)
    before = np.full(len(points), -1, np.int32)
    keep = np.ones(len(points), np.bool_)
    cell = np.empty(3, np.int64)
    for n in range(len(points)):
        for axis in range(3):
            cell[axis] = int(np.floor((points[n, axis] - lowest[axis]) / edge)) + 1
        for neighbour in range(27):
            # the own cell first, where most of the removers are
            k = (neighbour + 13) % 27
            x, y, z = cell[0] + k // 9 - 1, cell[1] + k // 3 % 3 - 1, cell[2] + k % 3 - 1
            slot = _slot(names, (x * size[1] + y) * size[2] + z)
            other = last[slot] if names[slot] >= 0 else -1
            while other >= 0:
                a, b, c = (
                    points[n, 0] - points[other, 0],
                    points[n, 1] - points[other, 1],
                    points[n, 2] - points[other, 2],
                )
                if a * a + b * b + c * c <= square:
                    keep[n] = False
                    break
                other = before[other]
            if not keep[n]:
                break
        if keep[n]:
            name = (cell[0] * size[1] + cell[1]) * size[2] + cell[2]
            slot = _slot(names, name)
            if names[slot] == name:
                before[n] = last[slot]
            names[slot], last[slot] = name, n
    return keep


@numba.njit(cache=True, inline="always")
def _slot(names: np.ndarray, name: int) -> int:
    # Fibonacci hashing: neighbouring cells must not share runs of slots
    slot = ((name * 0x9E3779B97F4A7C1) >> 20) & (len(names) - 1)
    while names[slot] != name and names[slot] >= 0:
        slot = (slot + 1) & (len(names) - 1)
    return slot
