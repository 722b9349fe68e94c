"""How much of its volume a reconstruction shares with the truth: intersection over union, of voxels and of meshes."""

import math

import torch
from torch import Tensor

from metrics.per_object import PerObjectMetric
from ops.containment import contains
from ops.types import ObjectBatch, Reconstruction


def intersection_over_union(prediction: Tensor, truth: Tensor) -> float:
    """Share of what either of two bool tensors of one shape has that both have; 1 where both have nothing."""
    union = (prediction | truth).sum().item()
    return (prediction & truth).sum().item() / union if union else 1.0


class VoxelIoU(PerObjectMetric):
    """Intersection over union of predicted and true voxels, at several thresholds and at one chosen on validation.

    - ``voxel_iou_0_4``: of the voxels whose probability is above 0.4; the same for every threshold.
    - ``voxel_iou_chosen``: at the threshold that ``choose_threshold`` found, or that was given, which itself is
      ``voxel_iou_chosen_threshold``; NaN as long as there is none. A threshold that is chosen on the objects it is then
      scored on flatters; Pix2Vox's tables have the best of four on the test set.
    - ``voxel_cross_entropy``: mean over voxels, the "loss" in the tables of 3D-R2N2 (arXiv:1604.00449).

    A reconstruction without ``voxels`` has none of these scores.

    Args:
        thresholds: probabilities above which a voxel is taken for occupied; 3D-R2N2 reports 0.4.
        chosen_threshold: one that an earlier validation chose.
    """

    needs = frozenset({"voxels"})
    unit = "shares; the cross entropy in nats"
    output = "voxels"
    """Key of the Reconstruction that is scored."""
    chosen_threshold: Tensor

    def __init__(self, thresholds: list[float] | None = None, chosen_threshold: float | None = None) -> None:
        super().__init__()
        self.thresholds = [0.2, 0.3, 0.4, 0.5] if thresholds is None else thresholds
        given = [] if chosen_threshold is None else [chosen_threshold]
        if not self.thresholds or not all(0 <= t < 1 for t in [*self.thresholds, *given]):
            raise ValueError(f"thresholds: {self.thresholds}, {chosen_threshold}, expected probabilities below 1")
        # a buffer: it outlives resets and goes into the state dict
        value = math.nan if chosen_threshold is None else chosen_threshold
        self.register_buffer("chosen_threshold", torch.tensor(value, dtype=torch.float64))
        at_thresholds = [f"voxel_iou_{t:g}".replace(".", "_") for t in self.thresholds]
        self.columns = (*at_thresholds, "voxel_iou_chosen", "voxel_iou_chosen_threshold", "voxel_cross_entropy")

    def score(self, reconstruction: Reconstruction, batch: ObjectBatch, i: int) -> dict[str, float]:
        """Scores of object ``i`` of the batch."""
        if "voxels" not in reconstruction:
            return dict.fromkeys(self.columns, math.nan)
        probabilities = reconstruction["voxels"][i].float()
        truth = batch["voxels"][i].bool().to(probabilities.device)
        if probabilities.shape != truth.shape:
            raise ValueError(
                f"Object {int(batch['object_index'][i])}: predicted voxels of shape {tuple(probabilities.shape)} but "
                f"true ones of {tuple(truth.shape)}; set the data's voxel_resolution to what the method predicts"
            )
        chosen = self.chosen_threshold.item()
        values = [intersection_over_union(probabilities > t, truth) for t in self.thresholds]
        values.append(math.nan if math.isnan(chosen) else intersection_over_union(probabilities > chosen, truth))
        # probabilities round to 0 and 1 in float32, and one such voxel would be all of the mean
        likelihood = torch.where(truth, probabilities, 1 - probabilities).double().clamp_min(1e-7)
        return dict(zip(self.columns, [*values, chosen, -likelihood.log().mean().item()], strict=True))

    def choose_threshold(self) -> float:
        """Remember the threshold whose mean over the objects scored so far is greatest, the smallest of equals.

        To be called at the end of validation, where the state is synced. Without any object the choice stays as it is.

        Returns:
            The remembered threshold, NaN where none has ever been.
        """
        rows = list(self.rows().values())
        names = self.columns[: len(self.thresholds)]
        means = [sum(row[name] for row in rows) / len(rows) for name in names] if rows else []
        if means and not any(map(math.isnan, means)):
            best = max(means)
            self.chosen_threshold.fill_(min(t for t, mean in zip(self.thresholds, means, strict=True) if mean == best))
        return self.chosen_threshold.item()


class VolumeIoU(PerObjectMetric):
    """``volume_iou``: intersection over union of a mesh and the truth, at the dataset's query points.

    As Occupancy Networks (arXiv:1812.03828) measures it: the share, among points spread evenly over the volume, of
    those in both among those in either. An empty mesh scores 0, and 1 where no query point is inside of the truth. A
    point set has no such score. The mesh should be watertight; ``ops/containment.py`` says what is inside where not.
    """

    needs = frozenset({"query_points", "query_occupancy"})
    columns = ("volume_iou",)
    unit = "a share"

    def score(self, reconstruction: Reconstruction, batch: ObjectBatch, i: int) -> dict[str, float]:
        """Score of object ``i`` of the batch."""
        shape = reconstruction["shapes"][i]
        if shape.faces is None:
            return {"volume_iou": math.nan}
        points = batch["query_points"][i].double().cpu()
        if "normalized_to_dataset" in batch:
            matrix = batch["normalized_to_dataset"][i].double().cpu()
            points = points @ matrix[:3, :3].T + matrix[:3, 3]
        truth = batch["query_occupancy"][i].bool().cpu()
        return {"volume_iou": intersection_over_union(contains(shape, points), truth)}
