"""DTU's protocol as the surface papers run it: accuracy and completeness in mm, after ``jzhangbs/DTUeval-python``.

Restated: the mesh becomes points of even density, of which those in the volume that the scanner observed are measured
against the scan, and the scan above the ground plane against the mesh. No step aligns anything.
"""

import math
import warnings
from typing import Literal

import numba
import numpy as np
import torch

from metrics.per_object import PerObjectMetric
from metrics.surface import true_surface
from ops.culling import CULLINGS, cull
from ops.nearest import nearest_distances
from ops.types import ObjectBatch, Observation, Reconstruction, Shape

FILES = {
    "volume": "ObsMask/ObsMask{N}_10.mat",
    "volume_bounds": "ObsMask/ObsMask{N}_10.mat",
    "volume_step": "ObsMask/ObsMask{N}_10.mat",
    "plane": "ObsMask/Plane{N}.mat",
    "masks": "mask/*.png",
    "projections": "cameras_sphere.npz",
}
MOST_SAMPLES = 2 * 10**8  # 8 square metres at DTU's density, 5 GB; an object has 5 million
MISMATCH = 5.0  # mm; a median this large is not a reconstruction in its place


class DTUScore(PerObjectMetric):
    """``dtu_<culling>_accuracy_mm``, ``..._completeness_mm`` and their mean ``..._overall_mm``.

    The culling is in the names because numbers of different variants do not compare. The thinning is greedy in a random
    order, upstream with another seed each time; it moves the result by about 0.01 %. An empty shape, before or after
    culling, scores ``max_dist`` throughout, and so does a side without any distance below ``max_dist``.

    Args:
        culling: what is cut from the mesh before it is measured; ``ops/culling.py`` has the table.
        density: distance between points of the mesh, mm.
        patch: how far below the volume points still count towards completeness, mm; above it is twice as far.
        max_dist: distances from here on are left out of the means, mm.
        seed: together with ``object_index`` it fixes the order of the thinning.
    """

    needs = frozenset({"surface_points", "observations"})

    def __init__(
        self,
        culling: Literal["none", "neus", "neuralwarp", "geoneus", "monosdf", "2dgs"] = "neuralwarp",
        density: float = 0.2,
        patch: float = 60.0,
        max_dist: float = 20.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if culling != "none" and culling not in CULLINGS:
            raise ValueError(f"culling: {culling!r}, expected one of {['none', *CULLINGS]}")
        self.culling, self.density, self.patch, self.max_dist, self.seed = culling, density, patch, max_dist, seed
        self.columns = tuple(f"dtu_{culling}_{score}_mm" for score in ("accuracy", "completeness", "overall"))

    def score(self, reconstruction: Reconstruction, batch: ObjectBatch, i: int) -> dict[str, float]:
        """Scores of object ``i`` of the batch."""
        index = int(batch["object_index"][i])
        name = batch["object_id"][i] if "object_id" in batch else f"object {index}"
        shape, observation = reconstruction["shapes"][i], batch["observations"][i]
        self._check(observation, name)
        worst = self.max_dist, self.max_dist
        if shape.is_empty:
            return self._row(*worst)
        truth = true_surface(batch, i)[0].numpy()
        warn_of_boxes(shape, observation, name)
        if self.culling != "none":
            shape = cull(shape, observation, CULLINGS[self.culling])
        if shape.is_empty:
            return self._row(*worst)
        points = even_points(shape, self.density, np.random.default_rng([self.seed, index]))
        accuracy, completeness, median = distances_to_scan(points, truth, observation, self.patch, self.max_dist)
        if median > MISMATCH:
            warnings.warn(f"{name}: frame mismatch? The median distance to the scan is {median:.1f} mm", stacklevel=2)
        return self._row(accuracy, completeness)

    def _row(self, accuracy: float, completeness: float) -> dict[str, float]:
        return dict(zip(self.columns, [accuracy, completeness, (accuracy + completeness) / 2], strict=True))

    def _check(self, observation: Observation, name: str) -> None:
        needed = [k for k in FILES if self.culling != "none" or k not in ("masks", "projections")]
        missing = [k for k in needed if k not in observation]
        if missing:
            files = ", ".join(dict.fromkeys(FILES[k] for k in missing))
            raise ValueError(
                f"DTUScore: {name} lacks {', '.join(missing)}; expected from {files} of DTU's evaluation data "
                f"(SampleSet.zip). Put the files there, or leave DTUScore out of the callback's metrics"
            )


def distances_to_scan(
    points: np.ndarray, scan: np.ndarray, observation: Observation, patch: float, max_dist: float
) -> tuple[float, float, float]:
    """Accuracy, completeness and the untruncated median of the accuracy's distances (NaN without any).

    Args:
        points: (N, 3) of the reconstruction, evenly spread, mm.
        scan: (M, 3), mm.
        observation: ``volume``, ``volume_bounds``, ``volume_step`` and ``plane``.
        patch: see ``DTUScore``.
        max_dist: see ``DTUScore``.
    """
    bounds = observation["volume_bounds"].cpu().numpy().astype(np.float64)
    # twice the patch above only: so has it the reference, and so have all published numbers
    near = points[((points >= bounds[0] - patch) & (points < bounds[1] + 2 * patch)).all(1)]
    volume = observation["volume"].cpu().numpy()
    seen = near[in_volume(near, volume, bounds[0], float(observation["volume_step"]))]
    plane = observation["plane"].cpu().numpy().astype(np.float64).reshape(4)
    above = scan[scan @ plane[:3] + plane[3] > 0]
    to_scan, to_mesh = _distances(seen, scan), _distances(above, near)
    median = float(np.median(to_scan)) if len(to_scan) else math.nan
    return _mean_below(to_scan, max_dist), _mean_below(to_mesh, max_dist), median


def in_volume(points: np.ndarray, volume: np.ndarray, lowest: np.ndarray, step: float) -> np.ndarray:
    """Which points (N, 3) lie nearest to a true voxel of ``volume``, whose voxel 0 is centred at ``lowest``."""
    index = np.rint((points - lowest) / step).astype(np.int64)
    result = ((index >= 0) & (index < volume.shape)).all(1)
    result[result] = volume[tuple(index[result].T)]
    return result


def even_points(shape: Shape, density: float, generator: np.random.Generator) -> np.ndarray:
    """Points (N, 3) on a mesh, or of a point set, no two of them within ``density`` of each other."""
    points = shape.vertices.double().cpu().numpy()
    if shape.faces is not None:
        corners = points[shape.faces.cpu().numpy()]
        points = np.concatenate([points, lattice_points(corners, density)])
    points = points[generator.permutation(len(points))]
    return points[thinned(points, density)]


def lattice_points(corners: np.ndarray, density: float) -> np.ndarray:
    """Points on triangles (F, 3, 3), on a lattice along two of their edges with ``density``^2 of area a point.

    Edges of lengths l1 and l2 that span twice the area A are divided into floor(l / step) parts, where
    step = density sqrt(l1 l2 / A); a point is in the middle of each of the lattice's cells and inside the triangle.
    Triangles without area get none, and neither do those shorter than a step.
    """
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = np.linalg.norm(np.cross(first, second), axis=1)
    if area.sum() / 2 > MOST_SAMPLES * density**2:
        raise ValueError(
            f"A mesh of {area.sum() / 2:.3g} mm^2 has more than {MOST_SAMPLES:.0e} points {density} mm apart; check that "
            f"it is in the dataset's frame, in mm"
        )
    corners, first, second, area = (x[area > 0] for x in (corners, first, second, area))
    lengths = np.stack([np.linalg.norm(first, axis=1), np.linalg.norm(second, axis=1)], axis=1)
    parts = np.floor(lengths / (density * np.sqrt(lengths.prod(1) / area))[:, None])
    return _fill_lattice(np.ascontiguousarray(corners[:, 0]), first, second, parts)


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
    """Which points (N, 3) stay if, in their order, each that is left removes all others within ``radius``; (N,) bool."""
    # a hair wider than the radius, so that rounding moves no neighbour two cells away
    cells = np.floor((points - points.min(0)) / (radius * (1 + 1e-6))).astype(np.int64) + 1
    size = cells.max(0) + 2
    if np.prod(size.astype(np.float64)) > 2.0**62:
        raise ValueError(f"Points that spread over {np.ptp(points, axis=0)} cannot be thinned to {radius}")
    return _thin(points, cells, size, radius * radius, 2 ** math.ceil(math.log2(2 * len(points) + 1)))


@numba.njit(cache=True)
def _thin(points: np.ndarray, cells: np.ndarray, size: np.ndarray, square: float, slots: int) -> np.ndarray:
    # a hash table by linear probing: cell -> its last kept point; before[point] -> the one kept before it in that cell
    names = np.full(slots, -1, np.int64)
    last = np.empty(slots, np.int32)
    before = np.full(len(points), -1, np.int32)
    keep = np.ones(len(points), np.bool_)
    for n in range(len(points)):
        for neighbour in range(27):
            # the own cell first, where most of the removers are
            k = (neighbour + 13) % 27
            x, y, z = cells[n, 0] + k // 9 - 1, cells[n, 1] + k // 3 % 3 - 1, cells[n, 2] + k % 3 - 1
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
            name = (cells[n, 0] * size[1] + cells[n, 1]) * size[2] + cells[n, 2]
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


def warn_of_boxes(shape: Shape, observation: Observation, name: str) -> None:
    """Warn where the bounding box of a shape does not meet the observed volume."""
    low, high = shape.vertices.amin(0).double().cpu(), shape.vertices.amax(0).double().cpu()
    bounds = observation["volume_bounds"].double().cpu()
    if bool(((low > bounds[1]) | (high < bounds[0])).any()):
        boxes = [[[round(x, 1) for x in corner.tolist()] for corner in box] for box in ((low, high), bounds)]
        warnings.warn(
            f"{name}: frame mismatch: the mesh fills {boxes[0]} and the observed volume {boxes[1]} (mm); was the mesh "
            f"brought into the dataset's frame?",
            stacklevel=3,
        )


def _distances(queries: np.ndarray, points: np.ndarray) -> np.ndarray:
    return nearest_distances(torch.from_numpy(queries), torch.from_numpy(points))[0].numpy()


def _mean_below(distances: np.ndarray, max_dist: float) -> float:
    distances = distances[distances < max_dist]
    return float(distances.mean()) if len(distances) else max_dist
