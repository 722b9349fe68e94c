"""The best constant answer: one shape for every object, whatever its images show.

A method that learns from images has to beat this one by a clear margin. What is constant is trained by the losses of
the methods: occupancy logits by the cross-entropy of voxels, whose optimum is the mean of the training voxels, or
points by the Chamfer distance.

Letters: B objects, R voxels along an axis, N points.
"""

from typing import Literal

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn

from losses.points import chamfer
from losses.voxels import voxel_cross_entropy
from methods.base import Method
from methods.objects import check_voxel_resolution
from ops.schedules import Schedule
from ops.types import ObjectBatch, Reconstruction, Shape
from ops.voxels import shape_from_voxels


class MeanShape(Method):
    """One grid of occupancies, or one set of points, for all objects.

    Args:
        optimizer: makes the optimizer.
        lr_schedule: factor on the learning rate for every progress.
        max_steps: length of the run; linked to trainer.max_steps.
        representation: what the shape is made of.
        voxel_resolution: voxels along an axis.
        threshold: occupancy from which a voxel belongs to the shape.
        num_points: points of the set.
    """

    def __init__(
        self,
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=0.1),
        lr_schedule: Schedule | None = None,
        max_steps: int = 300,
        representation: Literal["voxels", "points"] = "voxels",
        voxel_resolution: int = 32,
        threshold: float = 0.3,
        num_points: int = 1024,
    ) -> None:
        super().__init__(optimizer, lr_schedule, max_steps)
        if not 0 < threshold < 1:
            raise ValueError(f"threshold: {threshold}, expected an occupancy between 0 and 1")
        self.representation, self.voxel_resolution, self.threshold = representation, voxel_resolution, threshold
        if representation == "voxels":
            constant = torch.zeros(voxel_resolution, voxel_resolution, voxel_resolution)
        else:
            constant = torch.rand(num_points, 3) - 0.5
        self.constant = nn.Parameter(constant)

    @property
    def reads(self) -> frozenset[str]:
        """What the loss compares with, and no image."""
        return frozenset({"voxels" if self.representation == "voxels" else "surface_points"})

    def training_step(self, batch: ObjectBatch, batch_idx: int) -> Tensor:
        """One batch of objects, all answered alike."""
        if self.representation == "voxels":
            check_voxel_resolution(batch["voxels"], self.voxel_resolution, type(self).__name__)
            loss = voxel_cross_entropy(self.constant.expand_as(batch["voxels"]), batch["voxels"], reduction="mean")
        else:
            truth = batch["surface_points"]
            to_truth, to_points = chamfer(self.constant.expand(len(truth), -1, -1), truth, squared=True)
            loss = ((to_truth + to_points) / 2).mean()
        self.log_training(batch_idx, {"loss": loss})
        return loss

    def validation_step(self, batch: ObjectBatch, batch_idx: int) -> Reconstruction:
        """The shape, as often as there are objects."""
        return self.test_step(batch, batch_idx)

    def test_step(self, batch: ObjectBatch, batch_idx: int) -> Reconstruction:
        """The shape in each object's dataset frame and unit, and its occupancies."""
        output: Reconstruction = {"shapes": self._shapes_in_dataset_frame(batch)}
        if self.representation == "voxels":
            output["voxels"] = self.constant.sigmoid().expand(len(output["shapes"]), -1, -1, -1)
        return output

    @torch.no_grad()
    def reconstruct(self, batch: ObjectBatch) -> list[Shape]:
        """The same shape for every object."""
        constant = self.constant.detach().cpu()
        is_voxels = self.representation == "voxels"
        shape = shape_from_voxels(constant.sigmoid(), self.threshold) if is_voxels else Shape(constant)
        return [shape] * len(batch["object_index"])
