"""Score a mesh that any program made: ``python -m metrics.evaluate MESH --truth TRUTH [--protocol ...]``.

============================= ======================================================================================
protocol                      truth
============================= ======================================================================================
``surface``                   a mesh, or points: .ply, .npz (``points``, ``normals``), .npy, .xyz
``dtu``                       folder of the official evaluation data, with ``--scan``; ``--views`` for culling
``omniobject3d``              ``Scan.obj``, with ``--transforms`` of the rendered views
``tanks_and_temples``         ``<scene>.ply``, with ``--tanks_and_temples.scene`` and ``.crop``
============================= ======================================================================================

Beside the mesh, or at ``--output``, it writes ``<mesh>_<protocol>.json``, which says what the numbers are, and the row
as ``.csv``. The mesh has to be in the frame and unit of the truth; ``--alignment`` brings it there.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jsonargparse import ArgumentParser
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from metrics.dtu import DTUScore
from metrics.dtu_files import read_truth, read_views
from metrics.omniobject3d import OmniObject3DScore, scan_in_view_frame
from metrics.per_object import PerObjectMetric
from metrics.record import FACTS, Row, json_text, record, table_text
from metrics.shape_files import POINTS, read_shape, read_surface_points
from metrics.surface import SurfaceScore
from metrics.tanks_and_temples import TanksAndTemplesScore
from ops.thinning import even_points
from ops.types import ObjectBatch, Shape

PROTOCOLS: dict[str, type[PerObjectMetric]] = {
    "surface": SurfaceScore,
    "dtu": DTUScore,
    "omniobject3d": OmniObject3DScore,
    "tanks_and_temples": TanksAndTemplesScore,
}


def evaluate(
    shape: Shape,
    truth: Path,
    metric: PerObjectMetric,
    *,
    name: str = "mesh",
    scan: int | None = None,
    views: Path | None = None,
    transforms: Path | None = None,
) -> Row:
    """Score one shape.

    Args:
        shape: in the frame and unit of the truth.
        truth: see the module.
        metric: one of ``PROTOCOLS``.
        name: of the shape.
        scan: number of the DTU scan.
        views: folder with ``mask/`` and ``cameras_sphere.npz`` of the DTU scan, which culling needs.
        transforms: ``transforms.json`` of the OmniObject3D views, which has the scan's scale.

    Returns:
        The row, facts and scores.

    Raises:
        ValueError: nothing to score, or the truth is missing or broken.
    """
    if shape.is_empty:
        raise ValueError(f"{name}: a mesh with no faces to score ({len(shape.vertices)} vertices)")
    if isinstance(metric, DTUScore):
        batch = _dtu_batch(truth, metric, scan, views)
    elif isinstance(metric, OmniObject3DScore):
        scan_shape = scan_in_view_frame(read_shape(truth), _scale(transforms))
        points = even_points(scan_shape, metric.density, np.random.default_rng([metric.seed, 2]))
        batch = ObjectBatch(surface_points=torch.from_numpy(points)[None])
    else:
        batch = _surface_batch(truth, metric)
    batch["object_index"], batch["object_id"] = torch.tensor([0]), [name]
    metric.update({"shapes": [shape]}, batch)
    num_faces = 0 if shape.faces is None else len(shape.faces)
    facts = dict(zip(FACTS, (0, name, "", "", False, len(shape.vertices), num_faces), strict=True))
    return facts | metric.rows()[0]


def _surface_batch(truth: Path, metric: PerObjectMetric) -> ObjectBatch:
    if isinstance(metric, TanksAndTemplesScore):
        # the toolbox reads points from whatever the file holds
        is_mesh_file = truth.suffix.lower() not in POINTS
        points = read_shape(truth).vertices if is_mesh_file else read_surface_points(truth, 0, torch.Generator())[0]
        return ObjectBatch(surface_points=points[None])
    # another stream than that of the shape, or a mesh would be 0 from itself; the generator keeps 32 bits of a seed
    generator = torch.Generator().manual_seed(metric.seed + 2**31)
    points, normals = read_surface_points(truth, metric.num_points, generator)
    return ObjectBatch(surface_points=points[None], **({} if normals is None else {"surface_normals": normals[None]}))


def _dtu_batch(truth: Path, metric: DTUScore, scan: int | None, views: Path | None) -> ObjectBatch:
    if scan is None:
        raise ValueError("dtu: no --scan; give the number of the scan")
    if metric.culling != "none" and views is None:
        raise ValueError(
            f"dtu: culling {metric.culling!r} needs the masks and cameras of the scan; give --views <folder with mask/ "
            f"and cameras_sphere.npz>, or --dtu.culling none"
        )
    points, observation = read_truth(truth, scan)
    if views is not None:
        observation |= read_views(views)
    return ObjectBatch(surface_points=points[None], observations=[observation])


def _scale(transforms: Path | None) -> float:
    if transforms is None:
        raise ValueError("omniobject3d: no --transforms; give the transforms.json of the rendered views")
    if not transforms.is_file():
        raise ValueError(f"omniobject3d: there is no {transforms}")
    try:
        return float(json.loads(transforms.read_text())["frames"][0]["scale"])
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"omniobject3d: {transforms} has no frames[0].scale ({type(error).__name__})") from error


def read_alignment(path: Path) -> torch.Tensor:
    """A (4, 4) float64 matrix: a text file, a .npy, ``normalized_to_dataset`` of a .json, ``scale_mat_0`` of a .npz.

    Raises:
        ValueError: no such file, or no such matrix in it.
    """
    if not path.is_file():
        raise ValueError(f"alignment: there is no {path}")
    try:
        if path.suffix == ".json":
            matrix = np.array(json.loads(path.read_text())["normalized_to_dataset"], dtype=np.float64)
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                matrix = file["scale_mat_0"].astype(np.float64)
        else:
            matrix = np.load(path, allow_pickle=False) if path.suffix == ".npy" else np.loadtxt(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"alignment: {path} holds no matrix ({type(error).__name__}: {error})") from error
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise ValueError(f"alignment: {path} holds an array of shape {matrix.shape}, expected (4, 4) finite numbers")
    return torch.from_numpy(matrix.astype(np.float64))


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m metrics.evaluate", description="Score a mesh that any program made.")
    parser.add_argument("mesh", type=Path, help="the mesh: .ply, .obj, .glb, .stl, .off; or points as .ply")
    parser.add_argument("--truth", type=Path, required=True, help="a mesh, points, or DTU's folder of evaluation data")
    parser.add_argument("--protocol", type=Literal[tuple(PROTOCOLS)], default="surface")
    parser.add_argument("--alignment", type=Path | None, default=None, help="4x4 matrix that is applied to the mesh")
    parser.add_argument("--scan", type=int | None, default=None, help="dtu: number of the scan")
    parser.add_argument("--views", type=Path | None, default=None, help="dtu: folder with mask/ and cameras_sphere.npz")
    parser.add_argument("--transforms", type=Path | None, default=None, help="omniobject3d: transforms.json")
    parser.add_argument("--output", type=Path | None, default=None, help="file of results, .json; a .csv beside it")
    for name, protocol in PROTOCOLS.items():
        parser.add_class_arguments(protocol, name)
    return parser


def main(args: list[str] | None = None) -> Row:
    """Score a mesh, print the scores and write them; returns what was written."""
    parser = _parser()
    given = parser.parse_args(args)
    metric: Any = parser.instantiate(given)[given.protocol]
    shape = read_shape(given.mesh)
    if given.alignment is not None:
        shape = shape.transformed(read_alignment(given.alignment))
    row = evaluate(
        shape,
        given.truth,
        metric,
        name=given.mesh.stem,
        scan=given.scan,
        views=given.views,
        transforms=given.transforms,
    )
    names = ("mesh", "truth", "alignment", "scan", "views", "transforms")
    given_files = {key: given[key] for key in names if given[key] is not None}
    inputs = {key: value if isinstance(value, int) else str(value) for key, value in given_files.items()}
    facts = {"inputs": inputs, **record([metric], [row])}
    output = given.output or given.mesh.with_name(f"{given.mesh.stem}_{given.protocol}.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json_text(facts))
    output.with_suffix(".csv").write_text(table_text([row], list(metric.columns)))
    _print(row, metric, output)
    return facts


def _print(row: Row, metric: PerObjectMetric, output: Path) -> None:
    settings = ", ".join(f"{key} {value}" for key, value in metric.facts["settings"].items() if value is not None)
    table = Table("score", row["object_id"], box=SIMPLE_HEAD, pad_edge=False)
    for column in metric.columns:
        if row[column] == row[column]:
            table.add_row(column, f"{row[column]:.5g}")
    console = Console()
    console.print(table)
    console.print(f"{metric.facts['protocol']}: {settings}\nunit: {metric.unit}\nwrote {output}", soft_wrap=True)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        if os.environ.get("BOTTEGA_TRACEBACK"):
            raise
        sys.exit(f"error: {error}")
