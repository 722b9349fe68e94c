"""A method and a dataset for the tests of callbacks, and a program that runs them, also on several ranks."""

import argparse
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader

from callbacks.save import SaveShapes
from callbacks.score import Score
from metrics.per_object import PerObjectMetric
from ops.types import ObjectBatch, Reconstruction, Shape

CORNERS = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, -1.0], [-1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]])
FACES = torch.tensor([[0, 1, 2], [0, 3, 1], [0, 2, 3], [1, 3, 2]])
COLORS = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.2, 0.4, 0.6]])
IMAGE_SIZE = (24, 32)


class ToyMethod(LightningModule):
    """Returns a tetrahedron of size ``object_index + 1``, nothing for the objects in ``empty``, and flat renders."""

    def __init__(self, empty: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.empty = empty
        self.step = 1000

    def training_step(self, batch: ObjectBatch, batch_idx: int) -> Tensor:
        self.log("train/loss", self.weight.sum() + 1)
        return self.weight.square().sum()

    def validation_step(self, batch: ObjectBatch, batch_idx: int) -> Reconstruction:
        return {"renders": _renders(batch)}

    def test_step(self, batch: ObjectBatch, batch_idx: int) -> Reconstruction:
        return {"shapes": self._shapes(batch), "renders": _renders(batch)}

    def predict_step(self, batch: ObjectBatch, batch_idx: int) -> Reconstruction:
        return {"shapes": self._shapes(batch)}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def _shapes(self, batch: ObjectBatch) -> list[Shape]:
        sizes = batch["object_index"].tolist()
        return [Shape.empty() if k in self.empty else Shape(CORNERS * (k + 1), FACES, COLORS) for k in sizes]


class Size(PerObjectMetric):
    """Largest coordinate, -1 if empty; and a score that odd objects don't have."""

    columns = ("size", "even_size")
    needs = frozenset({"surface_points"})

    def score(self, reconstruction: Reconstruction, batch: ObjectBatch, i: int) -> dict[str, float]:
        shape = reconstruction["shapes"][i]
        size = -1.0 if shape.is_empty else shape.vertices.max().item()
        return {"size": size, "even_size": size if batch["object_index"][i] % 2 == 0 else float("nan")}


class Brightness(PerObjectMetric):
    """Mean of the renders."""

    columns = ("brightness",)
    needs = frozenset({"renders", "images"})

    def score(self, reconstruction: Reconstruction, batch: ObjectBatch, i: int) -> dict[str, float]:
        return {"brightness": reconstruction["renders"]["images"][i].mean().item()}


class Outwardness(PerObjectMetric):
    """Of the few objects whose truth has normals; on two ranks they all come to the first."""

    columns = ("outwardness",)
    needs = frozenset({"surface_normals"})

    def score(self, reconstruction: Reconstruction, batch: ObjectBatch, i: int) -> dict[str, float]:
        return {"outwardness": float(batch["object_index"][i])}


class Volume(PerObjectMetric):
    """Never possible here: no toy batch has what it needs."""

    columns = ("iou",)
    needs = frozenset({"query_points", "query_occupancy"})

    def score(self, reconstruction: Reconstruction, batch: ObjectBatch, i: int) -> dict[str, float]:
        raise AssertionError("scored without what it needs")


def sample(index: int, num_views: int = 2) -> dict[str, Any]:
    """One object: category by parity, cameras on the z axis, truth on the corners."""
    pose = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))
    pose[2, 3] = 3.0
    height, width = IMAGE_SIZE
    intrinsics = torch.tensor([[40.0, 0.0, width / 2], [0.0, 40.0, height / 2], [0.0, 0.0, 1.0]])
    normals = {"surface_normals": CORNERS / 3**0.5} if index in (2, 4) else {}
    return normals | {
        "images": torch.full((num_views, 3, height, width), 0.25),
        "intrinsics": intrinsics.expand(num_views, 3, 3),
        "camera_to_world": pose.expand(num_views, 4, 4),
        "surface_points": CORNERS / 2,
        "normalized_to_dataset": torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0])),
        "object_index": torch.tensor(index),
        "object_id": f"thing/{index}",
        "category": ("even", "odd")[index % 2],
    }


def collate(samples: list[dict[str, Any]]) -> ObjectBatch:
    """Stack tensors, list names."""
    keys = set.intersection(*(set(one) for one in samples))
    columns = {key: [one[key] for one in samples] for key in sorted(keys)}
    return {key: torch.stack(v) if isinstance(v[0], Tensor) else v for key, v in columns.items()}


def loader(num_objects: int, batch_size: int = 2, without: tuple[str, ...] = ()) -> DataLoader:
    """Batches of toy objects that lack the keys in ``without``."""
    samples = [{k: v for k, v in sample(index).items() if k not in without} for index in range(num_objects)]
    return DataLoader(samples, batch_size=batch_size, collate_fn=collate)


def trainer(folder: Any, callbacks: list[Any], **kwargs: Any) -> Trainer:
    """A quiet trainer that logs to ``folder/run/test``."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    logger = CSVLogger(folder, name="run", version="test")
    return Trainer(**{**quiet, "logger": logger, "devices": 1, **kwargs}, callbacks=callbacks)


def _renders(batch: ObjectBatch) -> dict[str, Tensor]:
    images = batch["images"]
    values = (batch["object_index"].to(images) + 1).view(-1, 1, 1, 1, 1) / 10
    return {"images": torch.ones_like(images) * values, "normals": torch.zeros_like(images)}


def run(command: str, folder: Any, devices: int = 1, num_objects: int = 7, empty: tuple[int, ...] = ()) -> None:
    """Test or predict toy objects, one a batch, with every callback that works without pictures."""
    callbacks = [Score([Size(), Outwardness()]), Score([Brightness(), Volume()]), SaveShapes()]
    strategy = "ddp" if devices > 1 else "auto"
    quiet = {"test": {"verbose": False}, "predict": {"return_predictions": False}}[command]
    run = trainer(folder, callbacks, devices=devices, strategy=strategy)
    getattr(run, command)(ToyMethod(empty), loader(num_objects, batch_size=1), **quiet)


def main() -> None:
    """``run`` as a program: ``python -m tests.callbacks.toy test FOLDER --devices 2``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=("test", "predict"))
    parser.add_argument("folder")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--empty", type=int, nargs="*", default=[])
    args = parser.parse_args()
    run(args.command, args.folder, args.devices, empty=tuple(args.empty))


if __name__ == "__main__":
    main()
