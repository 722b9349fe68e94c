"""Tanks and Temples' precision, recall and F-score (Knapitsch et al., SIGGRAPH 2017), after its ``python_toolbox``.

Restated: the reconstruction is cropped by the scene's volume, refined against the scan by three rounds of iterative
closest points under a similarity, cropped again and thinned to the means of voxels of half the threshold, as is the
scan; what is nearer than the threshold counts.

What differs from the toolbox: the rough alignment, there a RANSAC over camera trajectories, has to be done before, by
``python -m metrics.evaluate --alignment`` or by the dataset's frame. Open3D's own releases give slightly different
values from each other.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from metrics.per_object import PerObjectMetric
from metrics.surface import true_surface
from ops.nearest import nearest_distances
from ops.registration import iterative_closest_points, voxel_means
from ops.types import ObjectBatch, Reconstruction, Shape

THRESHOLDS = {
    "Barn": 0.01,
    "Caterpillar": 0.005,
    "Church": 0.025,
    "Courthouse": 0.025,
    "Ignatius": 0.003,
    "Meetingroom": 0.01,
    "Truck": 0.005,
}
"""In the unit of the scans."""
MOST_POINTS = 4_000_000  # of the last round of the refinement, beyond which every k-th one is taken


@dataclass(frozen=True)
class CropVolume:
    """A prism: a polygon across one axis, between two heights along it.

    Attributes:
        polygon: (K, 3); the coordinate along ``axis`` does not matter.
        axis: 0, 1 or 2.
        lowest, highest: along the axis, both inside.
    """

    polygon: np.ndarray
    axis: int
    lowest: float
    highest: float

    def contains(self, points: np.ndarray) -> np.ndarray:
        """Which points (N, 3) are inside, (N,) bool; a polygon that crosses itself is filled by parity."""
        u, v = (axis for axis in range(3) if axis != self.axis)
        inside = np.zeros(len(points), bool)
        for a, b in zip(self.polygon, np.roll(self.polygon, -1, axis=0), strict=True):
            spans = (a[v] < points[:, v]) != (b[v] < points[:, v])
            step = b[v] - a[v] if b[v] != a[v] else 1.0
            inside ^= spans & (a[u] + (points[:, v] - a[v]) / step * (b[u] - a[u]) < points[:, u])
        heights = points[:, self.axis]
        return inside & (heights >= self.lowest) & (heights <= self.highest)


class TanksAndTemplesScore(PerObjectMetric):
    """``tanks_f_score``, ``tanks_precision`` and ``tanks_recall`` at the threshold of the scene.

    The refinement is the protocol's own: without it, or with another one, numbers do not compare. An empty shape, or
    one with nothing inside of the volume, scores 0.

    Args:
        scene: name of the scene, which sets the threshold.
        threshold: another one, for scenes that are not of the benchmark; unit of the scan.
        crop: the scene's ``<scene>.json``; null crops nothing.
        refine: whether to align by iterative closest points, as the toolbox does.
        points: what of a mesh stands for it: its ``vertices``, as the toolbox reads a file, or ``vertices_and_centers``
            of its faces, as the evaluations of 2DGS and GOF have it.
    """

    needs = frozenset({"surface_points"})
    unit = "shares; the threshold is in the unit of the scan"
    columns = ("tanks_f_score", "tanks_precision", "tanks_recall")

    def __init__(
        self,
        scene: str | None = None,
        threshold: float | None = None,
        crop: str | None = None,
        refine: bool = True,
        points: Literal["vertices", "vertices_and_centers"] = "vertices",
    ) -> None:
        super().__init__()
        if scene is not None and scene not in THRESHOLDS:
            raise ValueError(f"scene: {scene!r}, expected one of {', '.join(THRESHOLDS)}; or set threshold instead")
        self.scene, self.crop, self.refine, self.points = scene, crop, refine, points
        self.threshold = THRESHOLDS[scene] if threshold is None and scene is not None else threshold
        self.volume = None if crop is None else read_crop_volume(Path(crop))

    def score(self, reconstruction: Reconstruction, batch: ObjectBatch, i: int) -> dict[str, float]:
        """Scores of object ``i`` of the batch."""
        if self.threshold is None:
            raise ValueError(f"Tanks and Temples: no scene; set it to one of {', '.join(THRESHOLDS)}, or set threshold")
        truth = self._cropped(true_surface(batch, i)[0].numpy())
        if len(truth) == 0:
            raise ValueError(f"Tanks and Temples: no point of the truth lies in the volume of {self.crop}")
        source = self._points(reconstruction["shapes"][i])
        if self.refine:
            source = self._refined(source, truth)
        points, truth = (voxel_means(x, self.threshold / 2) for x in (self._cropped(source), truth))
        if len(points) == 0:
            return dict.fromkeys(self.columns, 0.0)
        precision, recall = (float((distances < self.threshold).mean()) for distances in _both_ways(points, truth))
        total = precision + recall
        f_score = 2 * precision * recall / total if total else 0.0
        return dict(zip(self.columns, [f_score, precision, recall], strict=True))

    def _points(self, shape: Shape) -> np.ndarray:
        points = shape.vertices.double().cpu().numpy()
        if shape.faces is None or self.points == "vertices":
            return points
        return np.concatenate([points, points[shape.faces.cpu().numpy()].mean(1)])

    def _cropped(self, points: np.ndarray) -> np.ndarray:
        return points if self.volume is None else points[self.volume.contains(points)]

    def _refined(self, source: np.ndarray, truth: np.ndarray) -> np.ndarray:
        # The toolbox hands its twenty iterations over where Open3D's ICPConvergenceCriteria takes a tolerance of the
        # error: it makes at most the default of thirty, and stops as soon as the share of partners stands still.
        tau = self.threshold
        rounds = [(tau, 80 * tau), (tau / 2, 20 * tau), (None, 2 * tau)]
        for edge, max_distance in rounds:
            pair = [_every_kth(x) if edge is None else voxel_means(x, edge) for x in (self._cropped(source), truth)]
            matrix = iterative_closest_points(*pair, max_distance, 30, 1e-6, error_tolerance=20.0)
            source = source @ matrix[:3, :3].T + matrix[:3, 3]
        return source


def read_crop_volume(path: Path) -> CropVolume:
    """Read ``<scene>.json`` of the benchmark, a selection volume as Open3D writes it.

    Raises:
        ValueError: no such file, or not such a volume.
    """
    if not path.is_file():
        raise ValueError(f"crop: there is no {path}; expected the benchmark's <scene>.json, or null to crop nothing")
    try:
        facts = json.loads(path.read_text())
        polygon = np.array(facts["bounding_polygon"], dtype=np.float64)
        axis = "XYZ".index(facts["orthogonal_axis"].upper())
        lowest, highest = float(facts["axis_min"]), float(facts["axis_max"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"crop: {path} is no selection volume ({type(error).__name__}: {error}); expected bounding_polygon, "
            f"orthogonal_axis X, Y or Z, axis_min and axis_max"
        ) from error
    if polygon.ndim != 2 or polygon.shape[1] != 3 or len(polygon) < 3 or not np.isfinite(polygon).all():
        raise ValueError(
            f"crop: the bounding_polygon of {path} has shape {polygon.shape}, expected (K >= 3, 3) numbers"
        )
    return CropVolume(polygon, axis, lowest, highest)


def _every_kth(points: np.ndarray) -> np.ndarray:
    return points[:: round(len(points) / MOST_POINTS)] if len(points) > MOST_POINTS else points


def _both_ways(points: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = torch.from_numpy(points), torch.from_numpy(truth)
    return nearest_distances(a, b)[0].numpy(), nearest_distances(b, a)[0].numpy()
