"""Shapes and tested objects as Weights & Biases shows them."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from PIL import Image

from callbacks.results import file_name
from metrics.record import FACTS
from metrics.shape_files import linear_from_srgb
from ops.simplify import fewer_points, simplified
from ops.types import Shape

MAX_FACES = 100_000
"""Of a mesh in W&B: about 2 MB a shape, which a browser turns without effort."""
MAX_POINTS = 20_000


def object3d(shape: Shape, object_id: str, folder: Path) -> Any:
    """A ``wandb.Object3D``: a mesh with its colours as GLB, of at most ``MAX_FACES`` faces; points as a cloud.

    Args:
        shape: not empty.
        object_id: its caption.
        folder: for the GLB, which has to stay until the object is logged.
    """
    import wandb

    if shape.faces is None:
        return wandb.Object3D(_cloud(shape), caption=object_id)
    path = folder / f"{file_name(object_id)}.glb"
    path.write_bytes(matt_glb(simplified(shape, MAX_FACES)))
    return wandb.Object3D(str(path), caption=object_id)


def objects_table(objects_csv: Path, panels: dict[str, Image.Image], shapes: dict[str, Shape]) -> Any:
    """A ``wandb.Table`` of all tested objects: facts and scores, and picture and shape of those that were drawn.

    Shapes are clouds of their vertices there: W&B's tables hold no meshes.

    Args:
        objects_csv: one row an object, as ``callbacks.score`` writes it.
        panels: object_id -> picture.
        shapes: object_id -> shape.
    """
    import wandb

    with objects_csv.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    facts = [name for name in ("object_id", "category", "is_empty", "num_vertices", "num_faces") if name in rows[0]]
    scores = [name for name in rows[0] if name not in FACTS]
    table = wandb.Table(columns=[*facts, "picture", "shape", *scores], allow_mixed_types=True)
    for row in rows:
        name = row["object_id"]
        picture = wandb.Image(panels[name]) if name in panels else None
        shape = wandb.Object3D(_cloud(shapes[name]), caption=name) if name in shapes else None
        table.add_data(
            *(row[fact] for fact in facts),
            picture,
            shape,
            *(float(row[score]) if row[score] else None for score in scores),
        )
    return table


def matt_glb(shape: Shape) -> bytes:
    """A mesh about its centre as GLB, with normals and a matt material: without one, viewers take it for a metal."""
    vertices = shape.vertices.detach().cpu().double()
    mesh = trimesh.Trimesh((vertices - vertices.mean(0)).numpy(), shape.faces.cpu().numpy(), process=False)
    if shape.vertex_colors is not None:
        colors = shape.vertex_colors.detach().cpu().double().clamp(0, 1).numpy()
        # glTF's colours are light, and trimesh takes floats under names with an underscore only
        mesh.vertex_attributes["_COLOR_0"] = linear_from_srgb(colors).astype(np.float32)

    def finish(tree: dict[str, Any]) -> None:
        matt = {"metallicFactor": 0.0, "roughnessFactor": 1.0}
        tree["materials"] = [{"pbrMetallicRoughness": matt, "doubleSided": True}]
        primitive = tree["meshes"][0]["primitives"][0]
        primitive["material"] = 0
        if "_COLOR_0" in primitive["attributes"]:
            primitive["attributes"]["COLOR_0"] = primitive["attributes"].pop("_COLOR_0")

    return trimesh.exchange.gltf.export_glb(trimesh.Scene(mesh), include_normals=True, tree_postprocessor=finish)


def _cloud(shape: Shape) -> Any:
    """(n, 6) positions and colours in [0, 255] of at most ``MAX_POINTS`` vertices."""
    shape = fewer_points(Shape(shape.vertices, None, shape.vertex_colors), MAX_POINTS)
    vertices = shape.vertices.detach().cpu()
    colors = torch.full_like(vertices, 0.7) if shape.vertex_colors is None else shape.vertex_colors.detach().cpu()
    return torch.cat([vertices, colors * 255], -1).double().numpy()
