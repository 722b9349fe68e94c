"""OmniObject3D's Chamfer distance, after ``tools/mesh_eval.py`` of its repository.

Restated: both meshes become points of even density, as in DTU's evaluation; the mean distance each way leaves out what
is farther than ``max_dist``; the score is the mean of the two. Nothing is culled, masked or aligned. The scan is
brought into the frame of the rendered views first: times ``scale``, then its y axis upwards along z.
"""

import warnings

import numpy as np
import torch
from torch import Tensor

from metrics.dtu import mean_below
from metrics.per_object import PerObjectMetric
from metrics.surface import true_surface
from ops.nearest import nearest_distances
from ops.thinning import even_points
from ops.types import ObjectBatch, Reconstruction, Shape


class OmniObject3DScore(PerObjectMetric):
    """``omniobject3d_accuracy``, ``omniobject3d_completeness`` and their mean ``omniobject3d_chamfer``.

    The truth's points are thinned as those of the mesh. The tool samples the scan itself, and so does ``python -m
    metrics.evaluate``; a dataset's samples have to be as dense as ``density`` for the same numbers, or it is said.

    The tool gives 0, the best score, to a mesh that it cannot read; here an empty shape, and a side without any
    distance below ``max_dist``, scores ``max_dist``. The tool thins in a random order that differs from run to run.

    Args:
        density: distance between points, in the unit of the rendered views, where an object is about 1 long.
        max_dist: distances from here on are left out of the means.
        seed: together with ``object_index`` it fixes the order of the thinning.
    """

    needs = frozenset({"surface_points"})
    unit = "the unit of transforms.json, the frame of the rendered views"
    columns = ("omniobject3d_accuracy", "omniobject3d_completeness", "omniobject3d_chamfer")

    def __init__(self, density: float = 0.002, max_dist: float = 0.1, seed: int = 0) -> None:
        super().__init__()
        self.density, self.max_dist, self.seed = density, max_dist, seed

    def score(self, reconstruction: Reconstruction, batch: ObjectBatch, i: int) -> dict[str, float]:
        """Scores of object ``i`` of the batch."""
        shape, index = reconstruction["shapes"][i], int(batch["object_index"][i])
        if shape.is_empty:
            return dict.fromkeys(self.columns, self.max_dist)
        generators = [np.random.default_rng([self.seed, index, side]) for side in (0, 1)]
        points = torch.from_numpy(even_points(shape, self.density, generators[0]))
        truth = torch.from_numpy(even_points(Shape(true_surface(batch, i)[0]), self.density, generators[1]))
        self._warn_if_sparse(truth, index)
        accuracy = mean_below(nearest_distances(points, truth)[0].numpy(), self.max_dist)
        completeness = mean_below(nearest_distances(truth, points)[0].numpy(), self.max_dist)
        return dict(zip(self.columns, [accuracy, completeness, (accuracy + completeness) / 2], strict=True))

    def _warn_if_sparse(self, truth: Tensor, index: int) -> None:
        # between thinned samples of a dense surface the nearest neighbour is 1 to 1.5 densities away
        some = truth[:2000]
        gaps = torch.cdist(some, truth).topk(min(2, len(truth)), largest=False).values[:, -1]
        if gaps.median() > 2 * self.density:
            warnings.warn(
                f"OmniObject3DScore: the truth of object {index} has points {gaps.median():.2g} apart where the "
                f"protocol has {self.density:g}; the accuracy comes out too large. Load more surface points, or score "
                f"the file with python -m metrics.evaluate",
                stacklevel=3,
            )


def scan_in_view_frame(scan: Shape, scale: float) -> Shape:
    """A raw scan in the frame of the rendered views: scaled, and (x, y, z) -> (x, -z, y).

    Args:
        scan: as ``Scan.obj`` has it, y up.
        scale: of the frames in ``transforms.json``.
    """
    matrix = torch.tensor([[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)
    matrix[:3] *= scale
    return Shape(scan.vertices.double(), scan.faces, scan.vertex_colors).transformed(matrix)
