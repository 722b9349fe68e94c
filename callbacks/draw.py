"""Pictures of what a method returned, in the run's folder, in Weights & Biases and in TensorBoard."""

import io
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer

from callbacks.panels import shape_panel, view_panel
from callbacks.results import file_name, object_ids, results_folder, training_steps, write_whole
from callbacks.score import Score
from callbacks.wandb_media import object3d, objects_table
from ops.types import Shape


class Draw(Callback):
    """Draws some objects of every validation and test as PNG files in ``panels/``, in W&B and in TensorBoard.

    At W&B a test also shows the drawn shapes to be turned, and a table of all objects with their scores.

    Args:
        max_objects: objects drawn in each validation or test, spread evenly over all: datasets list them by category.
        max_views: rows of an object's panel of views.
        size: longest edge of one picture in a panel, pixels.
    """

    def __init__(self, max_objects: int = 4, max_views: int = 4, size: int = 512) -> None:
        self.max_objects, self.max_views, self.size = max_objects, max_views, size
        self._folder: Path | None = None
        self._num_drawn = self._num_batches_seen = 0
        self._num_batches = 1.0
        self._media: dict[str, list[tuple[str, Image.Image]]] = {}
        self._shapes: dict[str, Shape] = {}

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(trainer, sum(trainer.num_val_batches))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(trainer, sum(trainer.num_test_batches))

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self._draw(trainer, f"val_step{training_steps(trainer, pl_module):06d}", outputs, batch)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self._draw(trainer, "test", outputs, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(trainer, "val", training_steps(trainer, pl_module))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(trainer, "test", training_steps(trainer, pl_module))

    def _start(self, trainer: Trainer, num_batches: float) -> None:
        folder = results_folder(trainer)
        self._folder = None if folder is None else folder / "panels"
        self._num_drawn = self._num_batches_seen = 0
        # a stream of unknown length shows its first objects
        self._num_batches = num_batches if math.isfinite(num_batches) else 1.0
        self._media, self._shapes = {}, {}

    def _draw(self, trainer: Trainer, stage: str, outputs: Any, batch: Any) -> None:
        # the first rank's objects are enough to look at
        if self._folder is None or not trainer.is_global_zero or trainer.sanity_checking:
            return
        if not isinstance(outputs, dict):
            return
        ids = object_ids(batch)
        shares = [(self._num_batches_seen + i / len(ids)) / self._num_batches for i in range(len(ids))]
        self._num_batches_seen += 1
        for i, (object_id, share) in enumerate(zip(ids, shares, strict=True)):
            # the k-th of n pictures is of the first object after k / n of all
            if self._num_drawn == self.max_objects or share < self._num_drawn / self.max_objects:
                continue
            self._num_drawn += 1
            panels = self._panels(outputs, batch, i)
            for kind, panel in panels.items():
                write_whole(self._folder / f"{stage}_{file_name(object_id)}_{kind}.png", png_bytes(panel))
                self._media.setdefault(kind, []).append((object_id, panel))
            if trainer.testing and "shape" in panels and _loggers(trainer, "WandbLogger"):
                self._shapes[object_id] = outputs["shapes"][i]

    def _panels(self, outputs: dict[str, Any], batch: Any, i: int) -> dict[str, Image.Image]:
        panels = {}
        if "images" in outputs.get("renders", {}) and "images" in batch:
            panels["views"] = view_panel(outputs["renders"], batch, i, max_views=self.max_views, size=self.size)
        if "shapes" in outputs and not outputs["shapes"][i].is_empty:
            panels["shape"] = shape_panel(outputs["shapes"][i], batch, i, size=self.size)
        return panels

    def _log(self, trainer: Trainer, stage: str, step: int) -> None:
        for logger in _loggers(trainer, "TensorBoardLogger"):
            for kind, media in self._media.items():
                for object_id, panel in media:
                    pixels = np.asarray(panel)
                    logger.experiment.add_image(f"{stage}_{kind}/{object_id}", pixels, step, dataformats="HWC")
        for logger in _loggers(trainer, "WandbLogger") if self._media else []:
            for kind, media in self._media.items():
                ids, images = zip(*media, strict=True)
                logger.log_image(f"{stage}/{kind}", list(images), step, caption=list(ids))
            if stage == "test":
                self._log_shapes(logger, step, any(isinstance(callback, Score) for callback in trainer.callbacks))
        self._media, self._shapes = {}, {}

    def _log_shapes(self, logger: Any, step: int, has_scores: bool) -> None:
        with TemporaryDirectory() as folder:
            media = {}
            if self._shapes:
                media["test/shape_3d"] = [object3d(shape, name, Path(folder)) for name, shape in self._shapes.items()]
            scores = self._folder.parent / "objects.csv"
            # that of this test: callbacks.score comes earlier in the list
            if has_scores and scores.is_file():
                panels = dict(self._media.get("shape", []))
                media["test/objects"] = objects_table(scores, panels, self._shapes)
            if media:
                logger.log_metrics(media, step)


def png_bytes(image: Image.Image) -> bytes:
    """The image as a PNG file."""
    content = io.BytesIO()
    image.save(content, format="PNG", optimize=True)
    return content.getvalue()


def _loggers(trainer: Trainer, kind: str) -> list[Any]:
    # by name: whoever does not use W&B never imports it, and it takes seconds
    return [logger for logger in trainer.loggers if type(logger).__name__ == kind]
