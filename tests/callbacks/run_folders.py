"""Folders of runs as training and testing leave them, made in milliseconds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
import yaml
from PIL import Image

from callbacks.results import file_name
from callbacks.save import ply_bytes
from metrics.record import FACTS
from ops.types import Shape


def ball(radius: float = 1.0, offset: float = 0.0, subdivisions: int = 2) -> Shape:
    """A sphere about (offset, offset, offset), red on one side and blue on the other."""
    mesh = trimesh.creation.icosphere(subdivisions, radius)
    vertices = torch.tensor(mesh.vertices, dtype=torch.float32)
    red = (vertices[:, :1] > 0).float()
    colors = torch.cat([0.1 + 0.8 * red, 0.1 + 0 * red, 0.9 - 0.8 * red], 1)
    return Shape(vertices + offset, torch.tensor(mesh.faces), colors)


def write_run(
    folder: Path,
    objects: dict[str, dict[str, float]],
    *,
    shapes: dict[str, Shape] | None = None,
    panels: list[str] | None = None,
    losses: list[float] | None = None,
    settings: dict[str, Any] | None = None,
    environment: dict[str, Any] | None = None,
    record: dict[str, Any] | None = None,
) -> Path:
    """A run with a training and a test.

    Args:
        folder: of the run.
        objects: scores by name.
        shapes: by the object's name; one of no shape is empty.
        panels: names of objects that have pictures.
        losses: ``train/loss`` of the steps 0, 10, 20, ...
        settings: more of config.yaml.
        environment: of ``fit``.
        record: scores.json; ``None`` writes a plain one.
    """
    test = folder / "test"
    (test / "shapes").mkdir(parents=True)
    (test / "panels").mkdir()
    config = {"seed_everything": 0, "model": {"class_path": "methods.toy.Toy"}} | (settings or {})
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    rows = [f"{10 * k},{loss}," for k, loss in enumerate(losses or [])]
    (folder / "metrics.csv").write_text("\n".join(["step,train/loss,val/iou", *rows]) + "\n")
    scores = list(dict.fromkeys(score for values in objects.values() for score in values))
    lines = [",".join([*FACTS, *scores])]
    for index, (name, values) in enumerate(objects.items()):
        shape = (shapes or {}).get(name)
        is_empty = shapes is not None and shape is None
        cells = [index, f'"{name}"', "odd" if index % 2 else "even", "toy/test", is_empty, 4, 4]
        lines.append(",".join(map(str, [*cells, *(values.get(score, "") for score in scores)])))
        if shape is not None:
            write_shape(test / "shapes", index, name, shape)
        if name in (panels or []):
            for kind, size in (("views", (320, 240)), ("shape", (480, 120))):
                pixels = np.random.default_rng(index).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
                path = test / "panels" / f"test_{file_name(name)}_{kind}.png"
                Image.fromarray(pixels).save(path)
    (test / "objects.csv").write_text("\n".join(lines) + "\n")
    plain = {"method": "methods.toy.Toy", "steps": 100, "protocols": []}
    (test / "scores.json").write_text(json.dumps(plain if record is None else plain | record))
    if environment is not None:
        (folder / "environment.json").write_text(json.dumps(environment))
    return folder


def write_shape(folder: Path, index: int, name: str, shape: Shape) -> None:
    """A .ply and its description as SaveShapes writes them."""
    center, size = shape.vertices.mean(0), shape.vertices.std().item()
    facts = {
        "object_index": index,
        "object_id": name,
        "up": [0.0, 0.0, 1.0],
        "first_camera": (center + size * torch.tensor([0.0, -5.0, 1.0])).tolist(),
        "num_vertices": len(shape.vertices),
        "num_faces": 0 if shape.faces is None else len(shape.faces),
    }
    (folder / f"{file_name(name)}.ply").write_bytes(ply_bytes(shape))
    (folder / f"{file_name(name)}.json").write_text(json.dumps(facts))
