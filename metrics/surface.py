"""How far a reconstructed surface is from the true one: accuracy, completeness, Chamfer distance, F-score, normals.

Definitions after Occupancy Networks (arXiv:1812.03828, supplementary) and Tanks and Temples (Knapitsch et al. 2017).
"""

import math
from typing import Literal

import torch
from torch import Tensor

from metrics.per_object import PerObjectMetric
from ops.meshes import sample_surface
from ops.nearest import nearest_distances
from ops.types import ObjectBatch, Reconstruction, Shape


def chamfer_l1(to_truth: Tensor, to_prediction: Tensor) -> float:
    """Mean of the two directions' mean Euclidean distances, as ONet has it; neither Manhattan nor a sum."""
    return 0.5 * (to_truth.mean() + to_prediction.mean()).item()


def chamfer_l2(to_truth: Tensor, to_prediction: Tensor) -> float:
    """Mean of the two directions' mean *squared* distances, in the unit squared."""
    return 0.5 * (to_truth.square().mean() + to_prediction.square().mean()).item()


def f_score(to_truth: Tensor, to_prediction: Tensor, threshold: float) -> tuple[float, float, float]:
    """F-score, precision and recall at a distance.

    Args:
        to_truth: (N,) distances from the prediction's points to the truth.
        to_prediction: (M,) distances from the truth's points to the prediction.
        threshold: in the unit of the distances; a point exactly as far counts as near.

    Returns:
        The harmonic mean of precision and recall, 0 where both are; precision, the share of predicted points near the
        truth; recall, the share of true points near the prediction.
    """
    precision = (to_truth <= threshold).double().mean().item()
    recall = (to_prediction <= threshold).double().mean().item()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0, precision, recall


def normal_consistency(normals: Tensor, others: Tensor, nearest: Tensor) -> float:
    """Mean absolute cosine between the normals (N, 3) of points and those (M, 3) of their nearest neighbours (N,)."""
    return (normals * others[nearest]).sum(1).abs().mean().item()


EXTENTS = ("diagonal", "longest_edge")


def threshold_name(threshold: float, extent: str = "diagonal") -> str:
    """0.01 -> ``1pct``, 0.005 -> ``0_5pct``; of the longest edge ``1pct_of_edge``."""
    return f"{100 * threshold:g}pct".replace(".", "_") + "_of_edge" * (extent == "longest_edge")


class SurfaceScore(PerObjectMetric):
    """Surface distances of a shape, from one seeded sample of it and one search in each direction.

    Everything is in the dataset's frame and unit. A point set stands for itself, without sampling.

    - ``accuracy``, ``completeness``: mean Euclidean distance from prediction to truth, and from truth to prediction.
    - ``chamfer_l1``, ``chamfer_l2``: mean of the two directions, of the distances and of their squares.
    - ``f_score_1pct``, ``precision_1pct``, ``recall_1pct``: within 1 % of the diagonal of the truth's bounding box; the
      same for every threshold. ``f_score_1pct_of_edge``: within 1 % of its longest edge, as Convolutional
      Occupancy Networks (arXiv:2003.04618) count, whose objects have a longest edge of 1.
    - ``normal_consistency``: mean absolute cosine with the nearest neighbour's normal, mean of the two directions;
      NaN where the shape is a point set or the truth has no normals.

    An empty shape scores as the worst: distances are the diagonal of the truth's bounding box, the rest is 0.

    Args:
        num_points: samples of a predicted mesh; of a point set at most as many points.
        thresholds: of the F-score, as shares of an extent of the truth's bounding box.
        extents: which: its ``diagonal``, its ``longest_edge``, or both.
        seed: together with ``object_index`` it fixes the sample, so that a score does not depend on the batch.
    """

    needs = frozenset({"surface_points"})
    unit = (
        "distances in the dataset's unit, chamfer_l2 in its square; F-score, precision and recall are shares; "
        "normal_consistency is a cosine"
    )

    def __init__(
        self,
        num_points: int = 100_000,
        thresholds: list[float] | None = None,
        extents: list[Literal["diagonal", "longest_edge"]] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if num_points < 1:
            raise ValueError(f"num_points: {num_points}, expected at least 1")
        self.num_points = num_points
        self.thresholds = [0.005, 0.01, 0.02] if thresholds is None else thresholds
        self.extents = ["diagonal"] if extents is None else extents
        if not self.extents or not set(self.extents) <= set(EXTENTS):
            raise ValueError(f"extents: {self.extents}, expected some of {list(EXTENTS)}")
        self.seed = seed
        names = [threshold_name(t, extent) for extent in self.extents for t in self.thresholds]
        scores = [f"{score}_{name}" for name in names for score in ("f_score", "precision", "recall")]
        self.columns = ("accuracy", "completeness", "chamfer_l1", "chamfer_l2", *scores, "normal_consistency")

    def score(self, reconstruction: Reconstruction, batch: ObjectBatch, i: int) -> dict[str, float]:
        """Scores of object ``i`` of the batch."""
        shape = reconstruction["shapes"][i]
        truth, truth_normals = true_surface(batch, i)
        box = truth.amax(0) - truth.amin(0)
        diagonal = box.norm().item()
        lengths = {"diagonal": diagonal, "longest_edge": box.max().item()}
        distances = [t * lengths[extent] for extent in self.extents for t in self.thresholds]
        has_normals = shape.faces is not None and truth_normals is not None
        if shape.is_empty:
            values = [diagonal, diagonal, diagonal, diagonal**2, *[0.0] * 3 * len(distances)]
            return dict(zip(self.columns, [*values, 0.0 if has_normals else math.nan], strict=True))
        generator = torch.Generator().manual_seed(self.seed + int(batch["object_index"][i]))
        points, normals = sample_surface(_double(shape), self.num_points, generator)
        to_truth, nearest_truth = nearest_distances(points, truth)
        to_prediction, nearest_prediction = nearest_distances(truth, points)
        values = [
            to_truth.mean().item(),
            to_prediction.mean().item(),
            chamfer_l1(to_truth, to_prediction),
            chamfer_l2(to_truth, to_prediction),
            *(v for distance in distances for v in f_score(to_truth, to_prediction, distance)),
        ]
        consistency = math.nan
        if has_normals:
            consistency = 0.5 * normal_consistency(normals, truth_normals, nearest_truth)
            consistency += 0.5 * normal_consistency(truth_normals, normals, nearest_prediction)
        return dict(zip(self.columns, [*values, consistency], strict=True))


def true_surface(batch: ObjectBatch, i: int) -> tuple[Tensor, Tensor | None]:
    """Truth of object ``i``, from the normalised frame into the dataset's, in double precision and on the CPU.

    Returns:
        ``points`` (N, 3) in the dataset's unit, and unit ``normals`` (N, 3) or ``None`` where the dataset has none.
    """
    points = batch["surface_points"][i].double().cpu()
    normals = batch["surface_normals"][i].double().cpu() if "surface_normals" in batch else None
    if "normalized_to_dataset" in batch:
        matrix = batch["normalized_to_dataset"][i].double().cpu()
        points = points @ matrix[:3, :3].T + matrix[:3, 3]
        if normals is not None:
            # a similarity turns normals as it turns directions
            normals = torch.nn.functional.normalize(normals @ matrix[:3, :3].T, dim=1)
    return points, normals


def _double(shape: Shape) -> Shape:
    return Shape(shape.vertices.double().cpu(), None if shape.faces is None else shape.faces.cpu())
