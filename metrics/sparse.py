"""How far triangulated points of the photographs are from a surface that may never have seen them."""

import torch

from metrics.per_object import PerObjectMetric
from ops.closest import point_to_mesh_distances
from ops.types import ObjectBatch, Reconstruction


class SparsePointScore(PerObjectMetric):
    """Distance from structure-from-motion points to the reconstructed surface, in the dataset's unit.

    One direction only: a surface that fills space scores well, so read it beside pictures and held-out views. The
    points carry noise of their own, which the median forgives.

    - ``sparse_points_median``, ``sparse_points_p90``: median and 90th percentile of the distances.
    - ``sparse_points_within_1pct``: share nearer than 1 % of the diagonal of the points' bounding box.

    An empty shape scores the diagonal of the points' bounding box, and a share of 0.
    """

    needs = frozenset({"sparse_points"})
    unit = "the dataset's unit; within_1pct is a share"
    columns = ("sparse_points_median", "sparse_points_p90", "sparse_points_within_1pct")

    def score(self, reconstruction: Reconstruction, batch: ObjectBatch, i: int) -> dict[str, float]:
        """Scores of object ``i`` of the batch."""
        shape = reconstruction["shapes"][i]
        points = batch["sparse_points"][i].double().cpu()
        if "normalized_to_dataset" in batch:
            matrix = batch["normalized_to_dataset"][i].double().cpu()
            points = points @ matrix[:3, :3].T + matrix[:3, 3]
        diagonal = (points.amax(0) - points.amin(0)).norm()
        if shape.is_empty:
            return dict(zip(self.columns, (diagonal.item(), diagonal.item(), 0.0), strict=True))
        distances = point_to_mesh_distances(points, shape)
        median, p90 = torch.quantile(distances, torch.tensor([0.5, 0.9], dtype=torch.float64)).tolist()
        within = (distances <= 0.01 * diagonal).double().mean().item()
        return dict(zip(self.columns, (median, p90, within), strict=True))
