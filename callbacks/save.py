"""Shapes as files: one PLY an object and beside it what is needed to read it."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.rank_zero import rank_zero_info
from torch import Tensor

from callbacks.results import file_name, gathered, object_ids, results_folder, write_whole
from ops.types import ObjectBatch, Shape


class SaveShapes(Callback):
    """Writes every tested or predicted shape as a binary PLY, in the dataset's own frame and unit.

    Beside ``<object>.ply`` lies ``<object>.json`` with the object's name, sizes, bounding box and its
    ``normalized_to_dataset``. An empty shape writes nothing; after ``predict`` it makes the command fail.

    Args:
        folder: name of the folder in the run's folder.
    """

    def __init__(self, folder: str = "shapes") -> None:
        self.folder = folder
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
        self._save(outputs["shapes"], batch)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self._save(outputs["shapes"], batch)

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

    def _save(self, shapes: list[Shape], batch: ObjectBatch) -> None:
        to_dataset = batch.get("normalized_to_dataset", [None] * len(shapes))
        rows = zip(shapes, batch["object_index"].tolist(), object_ids(batch), to_dataset, strict=True)
        for shape, index, object_id, matrix in rows:
            if shape.is_empty:
                self._empty[index] = object_id
            else:
                self._saved.add(index)
            if self._path is not None:
                _write(shape, self._path / _claimed(self._path / ".names", object_id, index), object_id, index, matrix)

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


def ply_bytes(shape: Shape) -> bytes:
    """A binary little-endian PLY: float32 positions, uint8 colours where the shape has them, triangles if a mesh."""
    vertices = shape.vertices.detach().cpu().numpy()
    colors = None
    if shape.vertex_colors is not None:
        colors = (shape.vertex_colors.detach().cpu().clamp(0, 1) * 255).round().numpy().astype(np.uint8)
    if shape.faces is None:
        return trimesh.PointCloud(vertices, colors).export(file_type="ply")
    # process=True would merge and reorder vertices
    mesh = trimesh.Trimesh(vertices, shape.faces.cpu().numpy(), vertex_colors=colors, process=False)
    return mesh.export(file_type="ply")


def _write(shape: Shape, stem: Path, object_id: str, index: int, to_dataset: Tensor | None) -> None:
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
