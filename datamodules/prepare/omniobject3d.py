"""Make training data from OmniObject3D's scans: surface samples, query points with occupancy, voxels.

``python -m datamodules.prepare.omniobject3d --root OmniObject3D --categories apple toy_train`` writes, for each scan,
``<root>/prepared/<category>/<object>.npz``, which ``OmniObject3D`` reads (and makes itself where it is missing). What
is done is kept, so it can be stopped and started again.

The inside of a scan is defined where it is watertight. Whether all of OmniObject3D's are is not documented; which are
not is noted in ``prepared.csv``. Their occupancy is that of points whose vertical line meets the scan an odd number of
times both above and below.
"""

import argparse
import csv
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_info

from datamodules.omniobject3d_files import FoundObject, find_objects
from datamodules.prepare.meshes import QUERY_EDGE, read_mesh
from ops.meshes import is_watertight, sample_surface

REPORT_FILE = "prepared.csv"
RESOLUTIONS = (32, 64)
FOLDER = "prepared"


@dataclass(frozen=True)
class PreparedScan:
    """What became of one scan; ``problem`` says why there is nothing of it."""

    category: str
    object_id: str
    watertight: bool
    problem: str


def prepare_scans(
    objects: Sequence[FoundObject], output: Path, *, num_points: int = 100_000, seed: int = 0
) -> dict[tuple[str, str], PreparedScan]:
    """Prepare the scans of objects that are not prepared yet.

    Args:
        objects: those to prepare; such without a scan are passed over.
        output: folder to write into.
        num_points: surface samples, and query points, of each.
        seed: of the samples; an object's depend on it and on the object's name alone.

    Returns:
        What became of each scan that the folder knows, by category and name.
    """
    done = read_report(output)
    missing = [
        found
        for found in objects
        if "raw_scans" in found.paths and (found.category, found.object_id) not in done
    ]  # fmt: skip
    if not missing:
        return done
    output.mkdir(parents=True, exist_ok=True)
    rank_zero_info(f"OmniObject3D: preparing {len(missing)} scans, once, into {output}")
    report = output / REPORT_FILE
    is_new = not report.exists()
    with report.open("a", newline="") as file:
        writer = csv.writer(file)
        if is_new:
            writer.writerow(PreparedScan.__dataclass_fields__)
        for number, found in enumerate(missing, start=1):
            row = _prepared(found, output, num_points, seed)
            writer.writerow(astuple(row))
            file.flush()
            done[row.category, row.object_id] = row
            if number % 50 == 0:
                rank_zero_info(f"OmniObject3D: prepared {number} of {len(missing)} scans")
    return done


def read_report(output: Path) -> dict[tuple[str, str], PreparedScan]:
    """What became of the scans of a folder; those whose file is gone are left out.

    Raises:
        ValueError: the report is not one.
    """
    path = output / REPORT_FILE
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    if not rows or rows[0] != list(PreparedScan.__dataclass_fields__) or any(len(row) != 4 for row in rows[1:]):
        raise ValueError(f"{path} is damaged; remove it, and the scans are prepared again")
    known = [PreparedScan(category, name, flag == "True", problem) for category, name, flag, problem in rows[1:]]
    return {
        (row.category, row.object_id): row
        for row in known
        if row.problem or prepared_file(output, row.category, row.object_id).is_file()
    }


def prepared_file(output: Path, category: str, object_id: str) -> Path:
    """Where what is made of a scan lies."""
    return output / category / f"{object_id}.npz"


def _prepared(found: FoundObject, output: Path, num_points: int, seed: int) -> PreparedScan:
    try:
        arrays, watertight = scan_arrays(found, num_points, seed)
    except ValueError as error:
        return PreparedScan(found.category, found.object_id, False, str(error))
    path = prepared_file(output, found.category, found.object_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")
    with partial.open("wb") as file:
        np.savez(file, **arrays)
    partial.replace(path)
    return PreparedScan(found.category, found.object_id, watertight, "")


def scan_arrays(found: FoundObject, num_points: int, seed: int) -> tuple[dict[str, np.ndarray], bool]:
    """What is made of a scan, and whether it is watertight.

    Returns:
        ``surface_points``, ``surface_normals`` and ``query_points``, (N, 3) float16 in the frame in which the scan is
        centred and its longest edge 1; ``query_occupancy`` and ``voxels_<R>``, packed bits; ``location`` (3,) and
        ``scale``, which lead back to the scan's frame; ``largest_coordinate`` of the scan there.

    Raises:
        ValueError: the scan cannot be read, or is empty.
    """
    from ops.containment import contains

    shape, location, scale = read_mesh(found.paths["raw_scans"], may_be_open=True)
    name = f"{found.category}/{found.object_id}".encode()
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, *name]).generate_state(1)[0]))
    surface, normals = sample_surface(shape, num_points, generator)
    # rounded first, so that the occupancy is that of the points as they are kept
    queries = ((torch.rand(num_points, 3, generator=generator, dtype=torch.float64) - 0.5) * QUERY_EDGE).half()
    arrays = {
        "surface_points": surface.half().numpy(),
        "surface_normals": normals.half().numpy(),
        "query_points": queries.numpy(),
        "query_occupancy": np.packbits(contains(shape, queries.double()).numpy()),
        "location": location.numpy(),
        "scale": np.float64(scale),
        "largest_coordinate": np.float64((shape.vertices * scale + location).abs().max()),
    }
    for resolution in RESOLUTIONS:
        axis = -0.5 + (torch.arange(resolution, dtype=torch.float64) + 0.5) / resolution
        arrays[f"voxels_{resolution}"] = np.packbits(contains(shape, torch.cartesian_prod(axis, axis, axis)).numpy())
    return arrays, is_watertight(shape)


def main() -> None:
    """Make surface samples, query points and voxels from OmniObject3D's scans."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--root", required=True, type=Path, help="folder of raw_scans/")
    parser.add_argument("--output", type=Path, help="folder to write; <root>/prepared where not given")
    parser.add_argument("--categories", nargs="*", help="names such as apple; all where not given")
    parser.add_argument("--num_points", type=int, default=100_000, help="of each kind and scan")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    objects = [
        found
        for found in find_objects(arguments.root)
        if "raw_scans" in found.paths and (not arguments.categories or found.category in arguments.categories)
    ]
    output = arguments.output or arguments.root / FOLDER
    done = prepare_scans(objects, output, num_points=arguments.num_points, seed=arguments.seed)
    rows = [done[found.category, found.object_id] for found in objects]
    print(f"{len(rows)} scans in {output}, {sum(row.watertight for row in rows)} of them watertight")
    for row in [row for row in rows if row.problem][:20]:
        print(f"  left out {row.category}/{row.object_id}: {row.problem}")


if __name__ == "__main__":
    main()
