"""What every method is: an optimizer, a step, and the verb ``reconstruct``."""

from abc import abstractmethod
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor

from ops.schedules import Schedule
from ops.types import ObjectBatch, Reconstruction, Renders, Shape


class Method(LightningModule):
    """A reconstruction method. Subclasses write ``training_step`` and ``reconstruct``, and ``render`` if they can.

    Args:
        optimizer: makes the optimizer of all parameters.
        lr_schedule: factor on the learning rate for every progress; constant where not given.
        max_steps: length of the run that schedules are a fraction of; main.py links it to ``trainer.max_steps``.
    """

    def __init__(self, optimizer: OptimizerCallable, lr_schedule: Schedule | None = None, max_steps: int = -1) -> None:
        super().__init__()
        self.optimizer, self.lr_schedule, self.max_steps = optimizer, lr_schedule, max_steps
        self._loaded_step = 0

    @property
    def reads(self) -> frozenset[str]:
        """Batch keys that training needs; ``"rays"`` stands for all of a RayBatch that is always there."""
        raise NotImplementedError

    @property
    def step(self) -> int:
        """Optimizer steps taken, also under ``test`` and ``predict``, where Lightning's ``global_step`` is 0."""
        return max(self.global_step, self._loaded_step)

    @abstractmethod
    def reconstruct(self, batch: ObjectBatch) -> list[Shape]:
        """One shape for each object of the batch, in the normalised frame."""

    def render(self, batch: ObjectBatch) -> Renders:
        """The views of the batch as the method sees them; nothing where it renders none."""
        return {}

    def test_step(self, batch: ObjectBatch, batch_idx: int) -> Reconstruction:
        """Shapes in the dataset's frame and unit, and the held-out views."""
        return {"shapes": self._shapes_in_dataset_frame(batch), "renders": self.render(batch)}

    def predict_step(self, batch: ObjectBatch, batch_idx: int) -> Reconstruction:
        """Shapes in the dataset's frame and unit."""
        return {"shapes": self._shapes_in_dataset_frame(batch)}

    def configure_optimizers(self) -> dict[str, Any]:
        """The optimizer, and its schedule as a function of progress alone."""
        optimizer = self.optimizer(self.parameters())
        if self.lr_schedule is None:
            return {"optimizer": optimizer}
        if self.max_steps <= 0:
            raise ValueError(f"lr_schedule needs the length of the run: set trainer.max_steps (it is {self.max_steps})")
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.lr_schedule(step / self.max_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note which method wrote the checkpoint."""
        checkpoint["method"] = self._name

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the step; refuse the checkpoint of another method before its weights are tried.

        Raises:
            ValueError: the checkpoint was written by another method.
        """
        written_by = checkpoint.get("method", self._name)
        if written_by != self._name:
            raise ValueError(
                f"checkpoint: written by {written_by}, but the model is {self._name}; "
                "give the config that the checkpoint was trained with (config.yaml in its run folder)"
            )
        self._loaded_step = checkpoint["global_step"]

    @property
    def _name(self) -> str:
        return f"{type(self).__module__}.{type(self).__qualname__}"

    def _shapes_in_dataset_frame(self, batch: ObjectBatch) -> list[Shape]:
        shapes = self.reconstruct(batch)
        matrices: list[Tensor] | Tensor = batch.get("normalized_to_dataset", [torch.eye(4)] * len(shapes))
        return [shape.transformed(matrix) for shape, matrix in zip(shapes, matrices, strict=True)]
