"""Shapes as files: one PLY an object and beside it what is needed to read it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.rank_zero import rank_zero_info
from torch import Tensor

from callbacks.export import Export, file_contents, first_camera, remove_exports, up_axis
from callbacks.results import file_name, gathered, object_ids, results_folder, write_whole
from ops.types import ObjectBatch, Shape


class SaveShapes(Callback):
    """Writes every tested or predicted shape as a binary PLY, in the dataset's own frame and unit.

    Beside ``<object>.ply`` lies ``<object>.json`` with the object's name, sizes, bounding box, its
    ``normalized_to_dataset``, which way is up and where the first camera stood. An empty shape writes nothing;
    after ``predict`` it makes the command fail.

    A second one with a folder of its own writes more formats, ``python main.py predict --trainer.callbacks+
    callbacks.save.SaveShapes --trainer.callbacks.folder export --trainer.callbacks.formats '[obj, glb]'``. A method
    with a ``color_field``, (n, 3) points in the normalised frame -> (n, 3) sRGB, has its textures from there.

    Args:
        folder: name of the folder in the run's folder.
        **kwargs: What else is written, see ``Export``.
    """

    def __init__(self, folder: str = "shapes", **kwargs: Any) -> None:
        self.folder = folder
        self.export = Export(**kwargs)
        self._path: Path | None = None
        self._saved: set[int] = set()
        self._empty: dict[int, str] = {}

    @property
    def state_key(self) -> str:
        return self._generate_state_key(folder=self.folder)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(trainer)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self._save(outputs, batch, getattr(pl_module, "color_field", None))

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self._save(outputs, batch, getattr(pl_module, "color_field", None))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._empty:
            names = ", ".join(name for _, name in sorted(self._empty.items()))
            total = len(self._empty) + len(self._saved)
            message = (
                f"{len(self._empty)} of {total} objects came out empty and were not written: {names}; "
                "train longer, or look at what the method says about its field"
            )
            raise SystemExit(message if trainer.is_global_zero else 1)

    def _start(self, trainer: Trainer) -> None:
        folder = results_folder(trainer)
        self._path = None if folder is None else folder / self.folder
        self._saved, self._empty = set(), {}
        if self._path is not None and trainer.is_global_zero:
            shutil.rmtree(self._path / ".names", ignore_errors=True)
            (self._path / ".names").mkdir(parents=True)
        trainer.strategy.barrier("SaveShapes")

    def _save(self, outputs: Any, batch: ObjectBatch, color_field: Callable[[Tensor], Tensor] | None) -> None:
        shapes = outputs["shapes"]
        to_dataset = batch.get("normalized_to_dataset", [None] * len(shapes))
        rows = zip(shapes, batch["object_index"].tolist(), object_ids(batch), to_dataset, strict=True)
        for i, (shape, index, object_id, matrix) in enumerate(rows):
            shape = self.export.prepared(shape, batch, i)
            if shape.is_empty:
                self._empty[index] = object_id
            else:
                self._saved.add(index)
            if self._path is None:
                continue
            stem = self._path / _claimed(self._path / ".names", object_id, index)
            cameras = {"up": up_axis(batch, i), "first_camera": first_camera(batch, i)}
            _write(shape, stem, object_id, index, matrix, cameras)
            remove_exports(stem)
            if not shape.is_empty:
                self.export.write(shape, stem, _in_dataset_frame(color_field, matrix), up_axis(batch, i))
                if "voxels" in outputs:
                    self.export.write_voxels(outputs["voxels"][i], stem, matrix)

    def _finish(self, trainer: Trainer) -> None:
        ranks = gathered((self._saved, self._empty))
        self._saved = set().union(*(saved for saved, _ in ranks))
        self._empty = {index: name for _, empty in ranks for index, name in empty.items()}
        if self._path is None:
            return
        if trainer.is_global_zero:
            shutil.rmtree(self._path / ".names")
        empty = f"; {len(self._empty)} came out empty and were not written" if self._empty else ""
        rank_zero_info(f"{len(self._saved)} shapes in {self._path}{empty}")


def _in_dataset_frame(
    color_field: Callable[[Tensor], Tensor] | None, to_dataset: Tensor | None
) -> Callable[[Tensor], Tensor] | None:
    """A colour field of the normalised frame as one of the dataset's, on whatever device the matrix is."""
    if color_field is None:
        return None
    to_normalized = torch.linalg.inv(torch.eye(4).double() if to_dataset is None else to_dataset.double())

    def colors(points: Tensor) -> Tensor:
        # doubles: DTU is 600 mm from its origin, and a texel is a tenth of one
        moved = points.to(to_normalized) @ to_normalized[:3, :3].T + to_normalized[:3, 3]
        return color_field(moved.float())

    return colors


def ply_bytes(shape: Shape) -> bytes:
    """A binary little-endian PLY: float32 positions, uint8 colours where the shape has them, triangles if a mesh."""
    return file_contents(shape, "ply", "shape")[".ply"]


def _write(
    shape: Shape, stem: Path, object_id: str, index: int, to_dataset: Tensor | None, cameras: dict[str, Tensor | None]
) -> None:
    ply, description = (stem.with_name(f"{stem.name}{extension}") for extension in (".ply", ".json"))
    if shape.is_empty:
        # of an earlier run, and no longer what the method makes of this object
        ply.unlink(missing_ok=True)
        description.unlink(missing_ok=True)
        return
    write_whole(ply, ply_bytes(shape))
    facts = {
        "object_index": index,
        "object_id": object_id,
        "frame": "the dataset's own frame and unit; normalized_to_dataset maps the unit sphere of training into it",
        "normalized_to_dataset": None if to_dataset is None else to_dataset.tolist(),
        **{name: None if vector is None else vector.tolist() for name, vector in cameras.items()},
        "num_vertices": len(shape.vertices),
        "num_faces": 0 if shape.faces is None else len(shape.faces),
        "bounding_box": [shape.vertices.amin(0).tolist(), shape.vertices.amax(0).tolist()],
    }
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in facts.items())
    write_whole(description, f"{{\n{lines}\n}}\n")


def _claimed(claims: Path, object_id: str, index: int) -> str:
    """A file name that no other object of this run has on any rank, the same for a repeated object.

    The claim is a symbolic link because making one is atomic together with what it says, also between machines.
    """
    name = file_name(object_id)
    while True:
        try:
            os.symlink(str(index), claims / name)
            return name
        except FileExistsError:
            if os.readlink(claims / name) == str(index):
                return name
            name = f"{name}_{index}"
