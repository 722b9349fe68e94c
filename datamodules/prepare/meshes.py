"""Make training data from watertight meshes: query points with occupancy, surface samples, voxels, in ONet's layout.

``python -m datamodules.prepare.meshes --root MESHES --output TREE`` reads ``<category>/<model>.obj`` (.off, .ply, .stl)
or ``<category>/<model>/**/*.obj`` and writes what ``ShapeNet`` reads. Pictures, where there are any, go beside it as
``<category>/<model>/img_choy2016``.

The inside of a mesh is defined only where it is watertight. ShapeNet's own meshes mostly are not; Occupancy Networks
fused depth images of them into new ones. What is not watertight is skipped, and said.
"""

import argparse
import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import trimesh
from torch import Tensor

from datamodules.binvox import write_binvox
from datamodules.splits import SYNSETS
from ops.meshes import is_watertight, sample_surface, signed_volume
from ops.types import Shape

SUFFIXES = (".obj", ".off", ".ply", ".stl")
# Occupancy Networks: uniform in the unit cube and a tenth more
QUERY_EDGE = 1.1
REPORT_FILE = "prepared.csv"


@dataclass(frozen=True)
class Prepared:
    """What became of one mesh; ``skipped`` says why it was left out and is empty where it was not."""

    category: str
    model: str
    skipped: str


def prepare_meshes(
    root: Path, output: Path, *, num_points: int = 100_000, resolution: int = 32, seed: int = 0
) -> list[Prepared]:
    """Prepare every mesh below a folder.

    Args:
        root: ``<category>/<model>.<suffix>`` or ``<category>/<model>/**/<file>.<suffix>``.
        output: the tree to write; models that are there already are kept.
        num_points: query points, and surface samples, of each model.
        resolution: edge of the grid of voxels, occupied where their centre is inside.
        seed: of the samples; a model's depend on it and on the model's name alone.

    Returns:
        What became of each mesh, also written to ``prepared.csv``.

    Raises:
        ValueError: there are no meshes.
    """
    files = find_meshes(root)
    report = []
    for (category, model), path in files.items():
        folder = output / category / model
        reason = ""
        if not (folder / "model.binvox").is_file():
            try:
                _prepare(path, folder, num_points, resolution, _generator_seed(seed, category, model))
            except ValueError as error:
                reason = str(error)
        report.append(Prepared(category, model, reason))
    output.mkdir(parents=True, exist_ok=True)
    with (output / REPORT_FILE).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["category", "model", "skipped"])
        writer.writerows([row.category, row.model, row.skipped] for row in report)
    return report


def find_meshes(root: Path) -> dict[tuple[str, str], Path]:
    """(synset, model) -> file, sorted; of several files in a model's folder the first by name.

    Raises:
        ValueError: none, or a category that has no WordNet number and is none itself.
    """
    synset_of = {name: synset for synset, name in SYNSETS.items()}
    found: dict[tuple[str, str], Path] = {}
    for path in sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES):
        parts = path.relative_to(root).parts
        if len(parts) < 2:
            continue
        category = synset_of.get(parts[0], parts[0])
        if not (category.isdigit() and len(category) == 8):
            raise ValueError(
                f"{root}: {parts[0]}/ is no category; expected eight digits (ShapeNet's synset) or one of "
                f"{', '.join(synset_of)}"
            )
        found.setdefault((category, path.stem if len(parts) == 2 else parts[1]), path)
    if not found:
        raise ValueError(f"{root}: no meshes; expected <category>/<model>.obj or another of {', '.join(SUFFIXES)}")
    return found


def _generator_seed(seed: int, category: str, model: str) -> int:
    return int(np.random.SeedSequence([seed, *category.encode(), *model.encode()]).generate_state(1)[0])


def _prepare(path: Path, folder: Path, num_points: int, resolution: int, seed: int) -> None:
    from ops.containment import contains

    shape, location, scale = read_mesh(path)
    generator = torch.Generator().manual_seed(seed)
    surface, normals = sample_surface(shape, num_points, generator)
    queries = (torch.rand(num_points, 3, generator=generator, dtype=torch.float64) - 0.5) * QUERY_EDGE
    # rounded first, so that the occupancy is that of the points as they are kept
    queries = queries.half().double()
    axis = -0.5 + (torch.arange(resolution, dtype=torch.float64) + 0.5) / resolution
    voxels = contains(shape, torch.cartesian_prod(axis, axis, axis)).reshape([resolution] * 3)
    frame = {"loc": location.numpy(), "scale": np.float64(scale)}
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "pointcloud.npz", points=surface.half().numpy(), normals=normals.half().numpy(), **frame)
    occupancy = np.packbits(contains(shape, queries).numpy())
    np.savez(folder / "points.npz", points=queries.half().numpy(), occupancies=occupancy, **frame)
    # last, since it marks the model as done
    write_binvox(folder / "model.binvox", voxels.numpy(), scale)


def read_mesh(path: Path, *, may_be_open: bool = False) -> tuple[Shape, Tensor, float]:
    """A watertight mesh, centred and scaled to a longest edge of 1, its faces turned outwards.

    Args:
        path: its file.
        may_be_open: take a mesh that is not watertight, too.

    Returns:
        The mesh in float64, and ``location`` (3,) and ``scale``, which lead back: ``scale * x + location``.

    Raises:
        ValueError: it cannot be read, is empty or flat, or is not watertight.
    """
    try:
        mesh = trimesh.load(path, force="mesh", process=False)
    except (OSError, ValueError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"cannot be read ({error})") from error
    if len(mesh.faces) == 0:
        raise ValueError("has no faces")
    # files repeat a vertex for each normal and texture coordinate it has
    mesh.merge_vertices(merge_tex=True, merge_norm=True)
    faces = torch.from_numpy(np.array(mesh.faces, dtype=np.int64))
    # only those that lost a corner in merging: one without area still closes the surface
    faces = faces[(faces != faces.roll(1, dims=1)).all(1)]
    low, high = np.asarray(mesh.bounds, dtype=np.float64)
    scale = float((high - low).max())
    if not np.isfinite(scale) or scale <= 0:
        raise ValueError("has no extent or vertices that are not finite")
    location = torch.from_numpy((low + high) / 2)
    vertices = (torch.from_numpy(np.array(mesh.vertices, dtype=np.float64)) - location) / scale
    shape = Shape(vertices, faces)
    if not may_be_open and not is_watertight(shape):
        raise ValueError("is not watertight")
    if signed_volume(shape) < 0:
        shape = Shape(shape.vertices, shape.faces.flip(1))
    return shape, location, scale


def main() -> None:
    """Make query points, surface samples and voxels from watertight meshes."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--root", required=True, type=Path, help="<category>/<model>.obj, or folders of models")
    parser.add_argument("--output", required=True, type=Path, help="tree to write, in Occupancy Networks' layout")
    parser.add_argument("--num_points", type=int, default=100_000)
    parser.add_argument("--resolution", type=int, default=32, help="of the voxels")
    parser.add_argument("--seed", type=int, default=0)
    arguments = vars(parser.parse_args())
    report = prepare_meshes(**arguments)
    skipped = [row for row in report if row.skipped]
    print(f"prepared {len(report) - len(skipped)} of {len(report)} meshes; {arguments['output'] / REPORT_FILE}")
    for row in skipped[:20]:
        print(f"  skipped {row.category}/{row.model}: {row.skipped}")
    if len(skipped) > 20:
        print(f"  and {len(skipped) - 20} more")


if __name__ == "__main__":
    main()
