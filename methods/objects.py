"""What methods that learn one network over many objects share: initial weights, randomness and what they may be fed."""

from abc import abstractmethod
from typing import Any

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor

from methods.base import Method
from ops.schedules import Schedule
from ops.types import ObjectBatch, Shape


class ObjectMethod(Method):
    """A method whose network has seen many objects before it is shown a new one.

    Subclasses write ``load_initial_weights`` beside what every method writes.

    Args:
        optimizer: makes the optimizer of all parameters.
        lr_schedule: factor on the learning rate for every progress; constant where not given.
        max_steps: length of the run that schedules are a fraction of.
    """

    def __init__(self, optimizer: OptimizerCallable, lr_schedule: Schedule | None = None, max_steps: int = -1) -> None:
        super().__init__(optimizer, lr_schedule, max_steps)
        self._has_initial_weights = False

    @abstractmethod
    def load_initial_weights(self) -> None:
        """Load the files that the arguments name, before the first step of a run."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Weights of a checkpoint stand for all others; the files that it once started from need not exist."""
        super().on_load_checkpoint(checkpoint)
        self._has_initial_weights = True

    def on_fit_start(self) -> None:
        """Load initial weights, unless there are some already."""
        self._start()

    def on_validation_start(self) -> None:
        """As for fit."""
        self._start()

    def on_test_start(self) -> None:
        """As for fit."""
        self._start()

    def on_predict_start(self) -> None:
        """As for fit."""
        self._start()

    def _start(self) -> None:
        if not self._has_initial_weights:
            self.load_initial_weights()
        self._has_initial_weights = True

    def step_generator(self) -> torch.Generator:
        """Randomness of a training step, on the method's device.

        It is a function of run, step and rank alone: a resumed run draws as a straight one, two ranks differently.
        """
        generator = torch.Generator(self.device)
        return generator.manual_seed(hash((torch.initial_seed(), self.global_step, self.global_rank)) % 2**63)


def object_generators(batch: ObjectBatch, num_objects: int) -> list[torch.Generator]:
    """Randomness of a reconstruction, on the CPU: a function of ``object_index``, not of the batch it came in."""
    indices = batch["object_index"].tolist() if "object_index" in batch else range(num_objects)
    return [torch.Generator().manual_seed(index) for index in indices]


def in_dataset_frame(shapes: list[Shape], batch: ObjectBatch) -> list[Shape]:
    """Shapes of the batch's objects, from the normalised frame into the dataset's own frame and unit."""
    if "normalized_to_dataset" not in batch:
        return shapes
    return [shape.transformed(matrix) for shape, matrix in zip(shapes, batch["normalized_to_dataset"], strict=True)]


def single_view(batch: ObjectBatch) -> Tensor:
    """(B, 3, H, W): the one image of each object, or the first of several.

    Raises:
        ValueError: in training there are several, of which all but the first would have been read for nothing.
    """
    images = batch["images"]
    if images.shape[1] != 1 and torch.is_grad_enabled():
        raise ValueError(
            f"num_views: the batch has {images.shape[1]} views of each object, but the method learns from one; "
            "set --data.init_args.num_views=1"
        )
    return images[:, 0]


def check_image_size(images: Tensor, size: int, reader: str) -> None:
    """Refuse images of another size than a network with fully connected layers was made for.

    Raises:
        ValueError: (..., H, W) ``images`` are not ``size`` x ``size``.
    """
    height, width = images.shape[-2:]
    if (height, width) != (size, size):
        raise ValueError(
            f"{reader}: images are {height}x{width} pixels, but the network was made for {size}x{size}; "
            f"set --data.init_args.image_size={size}, or the model's image_size before training"
        )


def check_voxel_resolution(voxels: Tensor, resolution: int, reader: str) -> None:
    """Refuse voxels of another resolution than the network works at.

    Raises:
        ValueError: (B, R, R, R) ``voxels`` have another R.
    """
    if voxels.shape[-1] != resolution:
        raise ValueError(
            f"{reader}: voxels are {voxels.shape[-1]}^3, but the network was made for {resolution}^3; "
            f"set --data.init_args.voxel_resolution={resolution}"
        )
