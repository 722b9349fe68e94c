"""Shapes of objects in a page, as text that its viewer takes: simplified, turned upright, framed alike for all runs."""

import base64
import gzip
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from callbacks.page.glb import glb_bytes
from callbacks.runs import Run
from metrics.shape_files import read_shape
from ops.simplify import fewer_points, simplified
from ops.types import Shape

MOST_FACES, FEWEST_FACES = 60_000, 1_500
MOST_POINTS, FEWEST_POINTS = 4096, 512
FACES_PER_POINT = 5
LARGEST_FILE = 2**30
BYTES_PER_FACE = 16  # of base64: 10 to 12 without colours, 13 to 17 with them

ObjectKey = tuple[str, str]
"""``object_index`` and ``object_id`` as a table of objects has them."""


@dataclass(frozen=True)
class ShapeFile:
    """A .ply and what lies beside it."""

    path: Path
    facts: dict[str, Any]

    @property
    def num_faces(self) -> int:
        return int(self.facts.get("num_faces") or 0)

    @property
    def cost(self) -> int:
        """Faces in the page of the whole shape; a point needs about as much room as five."""
        return self.num_faces or FACES_PER_POINT * min(int(self.facts.get("num_vertices") or 0), MOST_POINTS)


@dataclass(frozen=True)
class Model:
    """A shape in the page.

    Attributes:
        text: base64 of a gzipped GLB.
        shown: faces, or points, in the page.
        total: those of the file.
        is_points: whether it is a point set.
        orbit: azimuth and polar angle of the first look at it, as the viewer has them.
    """

    text: str
    shown: int
    total: int
    is_points: bool
    orbit: str


def shape_files(run: Run) -> dict[ObjectKey, ShapeFile]:
    """Files of a run's shapes by object.

    Raises:
        ValueError: a description is broken.
    """
    files = {}
    for path in sorted(run.results.glob("*/*.json")):
        ply = path.with_suffix(".ply")
        if not ply.is_file():
            continue
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: is no JSON ({error}); test again") from error
        if isinstance(facts, dict) and {"object_index", "object_id"} <= facts.keys():
            files.setdefault((str(facts["object_index"]), str(facts["object_id"])), ShapeFile(ply, facts))
    return files


def faces_allowed(costs: list[int], room: int) -> int:
    """The largest number of faces a shape that all shapes together can have in ``room`` bytes of text.

    A shape with fewer leaves its part to the others.
    """
    left = room // BYTES_PER_FACE
    costs = sorted(costs)
    for k, cost in enumerate(costs):
        share = left // (len(costs) - k)
        if cost >= share:
            return min(share, MOST_FACES)
        left -= cost
    return MOST_FACES


def spread(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` indices, evenly over all: datasets list objects by category."""
    return list(range(count)) if count <= most else sorted({k * count // most for k in range(most)})


def models_of_object(files: list[ShapeFile | None], max_faces: int) -> list[Model | None]:
    """The shapes that several runs made of one object, in one frame, so that they can be turned together.

    Args:
        files: of every run, ``None`` where it has none.
        max_faces: of each in the page.

    Raises:
        ValueError: a file is broken.
    """
    wholes = [
        None if file is None or file.path.stat().st_size > LARGEST_FILE else read_shape(file.path) for file in files
    ]
    shapes = [None if whole is None or whole.is_empty else _reduced(whole, max_faces) for whole in wholes]
    existing = [shape for shape in shapes if shape is not None]
    if not existing:
        return [None] * len(files)
    lows, highs = zip(*(_box(shape.vertices) for shape in existing), strict=True)
    # the middle ones of several runs: one that diverged must not make the others small
    low, high = torch.stack(lows).median(0).values, torch.stack(highs).median(0).values
    center, radius = (low + high) / 2, (high - low).norm().item() / 2 or 1.0
    turn, orbit = _upright([file.facts for file in files if file is not None], center)
    models: list[Model | None] = []
    for shape, whole in zip(shapes, wholes, strict=True):
        if shape is None:
            models.append(None)
            continue
        placed = Shape(((shape.vertices.double() - center) / radius) @ turn.T, shape.faces, shape.vertex_colors)
        is_points = placed.faces is None
        content = glb_bytes(placed)
        # no time stamp, so that the same run gives the same page
        text = base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()
        counts = [len(one.vertices if is_points else one.faces) for one in (shape, whole)]
        models.append(Model(text, *counts, is_points, orbit))
    return models


def _reduced(shape: Shape, max_faces: int) -> Shape:
    if shape.faces is None:
        return fewer_points(shape, min(MOST_POINTS, max(max_faces // FACES_PER_POINT, FEWEST_POINTS)))
    few = simplified(shape, max_faces)
    return shape if few.is_empty else few


def _box(vertices: Tensor) -> tuple[Tensor, Tensor]:
    """Corners without the farthest half a percent of the vertices on each side."""
    some = vertices[:: max(1, len(vertices) // 100_000)].double()
    return some.quantile(0.005, dim=0), some.quantile(0.995, dim=0)


def _upright(facts: list[dict[str, Any]], center: Tensor) -> tuple[Tensor, str]:
    """Rotation (3, 3) that takes the object's up to y and its first camera, levelled, to z; and where that looks from.

    Of runs that do not say, as before ``up`` was written, y is up.
    """
    unknown = torch.eye(3, dtype=torch.float64), "30deg 75deg"
    known = next((one for one in facts if one.get("up") and one.get("first_camera")), None)
    if known is None:
        return unknown
    up = F.normalize(torch.tensor(known["up"], dtype=torch.float64), dim=0)
    front = F.normalize(torch.tensor(known["first_camera"], dtype=torch.float64) - center, dim=0)
    right = torch.linalg.cross(up, front)
    if not right.norm() > 1e-6:  # seen from straight above, any side is the front
        return unknown
    right = F.normalize(right, dim=0)
    # not from below, also where the camera was there: a pedestal would hide what stands on it
    polar = min(max(math.degrees(math.acos(max(-1.0, min(1.0, float(up @ front))))), 30.0), 80.0)
    return torch.stack([right, up, torch.linalg.cross(right, up)]), f"0deg {polar:.1f}deg"
