"""What feeds what: every method beside every dataset. ``python cross_table.py`` prints the README's table.

It is read off the classes: what a method reads, and what a dataset may have. Nothing is opened. A method that reads
rays sees one scene of a dataset, any other one its objects; so most datasets have two readers.
"""

import importlib
from dataclasses import dataclass
from functools import cache

import torch

from datamodules.base import DataModule
from methods.base import Method


@dataclass(frozen=True)
class Readers:
    """Class paths of a dataset's DataModules; ``None`` where there is none of that kind."""

    scene: str | None
    objects: str | None


METHODS: dict[str, tuple[str, dict[str, object]]] = {
    "Neuralangelo": ("methods.neuralangelo.Neuralangelo", {}),
    "Neuralangelo, masks": ("methods.neuralangelo.Neuralangelo", {"mask_weight": 0.1}),
    "Neuralangelo, sparse points": ("methods.neuralangelo.Neuralangelo", {"sparse_weight": 1.0}),
    "3D-R2N2": ("methods.r2n2.R2N2", {}),
    "PSGN": ("methods.psgn.PSGN", {}),
    "Occupancy Networks, image": ("methods.onet.OccupancyNetwork", {"conditioned_on": "image"}),
    "Occupancy Networks, points": ("methods.onet.OccupancyNetwork", {"conditioned_on": "points"}),
    "Occupancy Networks, voxels": ("methods.onet.OccupancyNetwork", {"conditioned_on": "voxels"}),
    "Occupancy Networks, nothing": ("methods.onet.OccupancyNetwork", {"conditioned_on": "nothing"}),
    "IM-Net, autoencoder": ("methods.imnet.IMNetAutoencoder", {}),
    "IM-Net, image": ("methods.imnet.IMNetSVR", {}),
}
DATASETS: dict[str, Readers] = {
    "synthetic": Readers("datamodules.synthetic.SyntheticScene", "datamodules.synthetic.SyntheticObjects"),
    "ShapeNet": Readers("datamodules.one_object.OneObject", "datamodules.shapenet.ShapeNet"),
    "OmniObject3D": Readers("datamodules.omniobject3d.OmniObject3DScene", "datamodules.omniobject3d.OmniObject3D"),
    "DTU": Readers("datamodules.dtu.DTU", "datamodules.dtu_objects.DTUObjects"),
    "photos": Readers("datamodules.photos.Photos", None),
    "own pictures": Readers(None, "datamodules.image_folder.ImageFolder"),
}
"""A dataset more is a line here, and one in ``settings_of`` of its test; a method likewise."""
PREDICT_ONLY = {"datamodules.image_folder.ImageFolder"}


def class_of(path: str) -> type:
    """The class that a class path names."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


@cache
def reads_of(method: str) -> frozenset[str]:
    """Keys that a method of the table needs; the network is laid out without memory for its weights."""
    path, settings = METHODS[method]
    made: type[Method] = class_of(path)
    with torch.device("meta"):
        return made(**settings).reads


def reader_of(method: str, dataset: str) -> str:
    """Class path of the DataModule that would feed the method."""
    scene, objects = DATASETS[dataset].scene, DATASETS[dataset].objects
    return scene or objects if "rays" in reads_of(method) else objects or scene


def missing_keys(method: str, dataset: str) -> list[str]:
    """Keys that the method reads and no copy of the dataset has, sorted; nothing where it can train."""
    reader: type[DataModule] = class_of(reader_of(method, dataset))
    return sorted(reads_of(method) - reader.provides)


def cell(method: str, dataset: str) -> str:
    """One cell of the table."""
    if reader_of(method, dataset) in PREDICT_ONLY:
        return "predict" if "images" in reads_of(method) else "reads no images"
    missing = missing_keys(method, dataset)
    return f"no {', '.join(f'`{key}`' for key in missing)}" if missing else "yes"


def table() -> str:
    """The table as Markdown."""
    rows = [["", *DATASETS], ["---"] * (len(DATASETS) + 1)]
    rows += [[method, *(cell(method, dataset) for dataset in DATASETS)] for method in METHODS]
    for kind in ("scene", "objects"):
        paths = [getattr(readers, kind) for readers in DATASETS.values()]
        rows.append([f"*read as {kind} by*", *(f"`{path.rpartition('.')[2]}`" if path else "-" for path in paths)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    print(table())
