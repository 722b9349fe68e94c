"""DTU's protocol as the surface papers run it: accuracy and completeness in mm, after ``jzhangbs/DTUeval-python``.

Restated: the mesh becomes points of even density, of which those in the volume that the scanner observed are measured
against the scan, and the scan above the ground plane against the mesh. No step aligns anything.
"""

import math
import warnings
from typing import Literal

import numpy as np
import torch

from metrics.per_object import PerObjectMetric
from metrics.surface import true_surface
from ops.culling import CULLINGS, cull
from ops.nearest import nearest_distances
from ops.thinning import even_points
from ops.types import ObjectBatch, Observation, Reconstruction, Shape

FILES = {
    "volume": "ObsMask/ObsMask{N}_10.mat",
    "volume_bounds": "ObsMask/ObsMask{N}_10.mat",
    "volume_step": "ObsMask/ObsMask{N}_10.mat",
    "plane": "ObsMask/Plane{N}.mat",
    "masks": "mask/*.png",
    "projections": "cameras_sphere.npz",
}
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
    unit = "mm"

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
        if not _overlaps(shape, observation["volume_bounds"]):
            warn_of_frame(shape, observation, name, "no overlap")
        if self.culling != "none":
            shape = cull(shape, observation, CULLINGS[self.culling])
        if shape.is_empty:
            return self._row(*worst)
        points = even_points(shape, self.density, np.random.default_rng([self.seed, index]))
        accuracy, completeness, median = distances_to_scan(points, truth, observation, self.patch, self.max_dist)
        if median > MISMATCH:
            warn_of_frame(shape, observation, name, f"the median distance to the scan is {median:.1f} mm")
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
    return mean_below(to_scan, max_dist), mean_below(to_mesh, max_dist), median


def in_volume(points: np.ndarray, volume: np.ndarray, lowest: np.ndarray, step: float) -> np.ndarray:
    """Which points (N, 3) lie nearest to a true voxel of ``volume``, whose voxel 0 is centred at ``lowest``."""
    index = np.rint((points - lowest) / step).astype(np.int64)
    result = ((index >= 0) & (index < volume.shape)).all(1)
    result[result] = volume[tuple(index[result].T)]
    return result


def warn_of_frame(shape: Shape, observation: Observation, name: str, reason: str) -> None:
    """Warn, with the bounding boxes of a shape and of the observed volume, that the two seem to be in other frames."""
    mesh = shape.vertices.amin(0).tolist(), shape.vertices.amax(0).tolist()
    boxes = [[[round(x, 1) for x in corner] for corner in box] for box in (mesh, observation["volume_bounds"].tolist())]
    warnings.warn(
        f"{name}: frame mismatch: {reason}; the mesh fills {boxes[0]} and the observed volume {boxes[1]} mm. Was the "
        f"mesh brought into the dataset's frame?",
        stacklevel=3,
    )


def _overlaps(shape: Shape, bounds: torch.Tensor) -> bool:
    vertices = shape.vertices.cpu()
    return bool(((vertices.amin(0) <= bounds[1].cpu()) & (vertices.amax(0) >= bounds[0].cpu())).all())


def _distances(queries: np.ndarray, points: np.ndarray) -> np.ndarray:
    return nearest_distances(torch.from_numpy(queries), torch.from_numpy(points))[0].numpy()


def mean_below(distances: np.ndarray, max_dist: float) -> float:
    """Mean of those distances (N,) that are below a limit; the limit where there are none."""
    distances = distances[distances < max_dist]
    return float(distances.mean()) if len(distances) else max_dist
