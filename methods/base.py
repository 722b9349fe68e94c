"""What every method is: an optimizer, a step, and the verb ``reconstruct``."""

import tomllib
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor

from ops.schedules import Schedule
from ops.types import ObjectBatch, Reconstruction, Renders, Shape

VERSION: str = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["version"]
"""Version of the project; a checkpoint says which one wrote it."""
MAX_NAMED = 3
DEFAULT_LOG_EVERY = 50


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
        self.changed_settings: list[str] = []
        """Where the configuration differs from that of the checkpoint's run; main.py fills it in, for an error."""
        self.terms: dict[str, Tensor] = {}
        """What the last training step's loss is made of, by the names under which it is logged."""
        self._loaded_step = 0

    @property
    def reads(self) -> frozenset[str]:
        """Batch keys that training needs; ``"rays"`` stands for all of a RayBatch that is always there."""
        raise NotImplementedError

    @property
    def step(self) -> int:
        """Optimizer steps taken, also under ``test`` and ``predict``, where Lightning's ``global_step`` is 0."""
        return max(self.global_step, self._loaded_step)

    def log_training(
        self, batch_idx: int, terms: Mapping[str, Tensor], others: Mapping[str, float | Tensor] | None = None
    ) -> None:
        """Log a training step where that is due: Lightning's ``log`` would take as long as a tenth of a short step.

        Args:
            batch_idx: number of the batch in its epoch; the first one is always logged.
            terms: what the loss is made of, and the loss itself; the bar shows them, too.
            others: what is only written.
        """
        self.terms = {f"train/{name}": term.detach() for name, term in terms.items()}
        every = (self._trainer.log_every_n_steps or DEFAULT_LOG_EVERY) if self._trainer is not None else 1
        # loggers write in the steps after which a whole number of intervals has passed
        if batch_idx == 0 or (self.global_step + 1) % every == 0:
            self.log_dict(self.terms, prog_bar=True)
            if others:
                self.log_dict({f"train/{name}": value for name, value in others.items()})

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
        """Note which method of which version of the project wrote the checkpoint."""
        checkpoint |= {"method": self._name, "version": VERSION}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the step; refuse the checkpoint of another method or of the future before its weights are tried.

        Raises:
            ValueError: the checkpoint was written by another method, or by a newer version of the project.
        """
        written_by, version = checkpoint.get("method", self._name), checkpoint.get("version", VERSION)
        if written_by != self._name:
            raise ValueError(
                f"checkpoint: written by {written_by}, but the model is {self._name}; "
                "give the config that the checkpoint was trained with (config.yaml in its run folder)"
            )
        if _numbers(version) > _numbers(VERSION):
            raise ValueError(
                f"checkpoint: written by version {version} of the project, but this is {VERSION}; update the project"
            )
        self._loaded_step = checkpoint["global_step"]

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights.

        Raises:
            ValueError: they are of other sizes than the model's; it names the first ones.
        """
        try:
            return super().load_state_dict(state_dict, strict=strict, assign=assign)
        except RuntimeError as error:
            misfits = _misfits(state_dict, self.state_dict())
            if not misfits:
                raise
            more = f" and {len(misfits) - MAX_NAMED} more" if len(misfits) > MAX_NAMED else ""
            changed = f" Settings that differ: {'; '.join(self.changed_settings)}." if self.changed_settings else ""
            raise ValueError(
                f"checkpoint: its weights do not fit {self._name}: {'; '.join(misfits[:MAX_NAMED])}{more}.{changed} "
                "Give the config that it was trained with (config.yaml in its run folder), or train anew"
            ) from error

    @property
    def _name(self) -> str:
        return f"{type(self).__module__}.{type(self).__qualname__}"

    def _shapes_in_dataset_frame(self, batch: ObjectBatch) -> list[Shape]:
        shapes = self.reconstruct(batch)
        matrices: list[Tensor] | Tensor = batch.get("normalized_to_dataset", [torch.eye(4)] * len(shapes))
        return [shape.transformed(matrix) for shape, matrix in zip(shapes, matrices, strict=True)]


def _numbers(version: str) -> list[int]:
    # a third number stands for repairs, which leave checkpoints as they are
    return [int(number) for number in version.split(".")[:2]]


def _misfits(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """What differs between two sets of weights: sizes, names that only one of them has."""
    misfits = [
        f"{name} is {tuple(given[name].shape)} in the checkpoint but {tuple(own[name].shape)} in the model"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    misfits += [f"{name} is missing from the checkpoint" for name in own if name not in given]
    return misfits + [f"{name} is only in the checkpoint" for name in given if name not in own]
