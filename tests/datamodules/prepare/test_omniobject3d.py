import csv
from pathlib import Path

import numpy as np
import pytest

from datamodules.omniobject3d_files import FoundObject, find_objects
from datamodules.prepare.omniobject3d import prepare_scans, read_report

CUBE = """v 10 0 0
v 14 0 0
v 14 2 0
v 10 2 0
v 10 0 2
v 14 0 2
v 14 2 2
v 10 2 2
f 1 3 2
f 1 4 3
f 5 6 7
f 5 7 8
f 1 2 6
f 1 6 5
f 3 4 8
f 3 8 7
f 1 5 8
f 1 8 4
f 2 3 7
f 2 7 6
"""


@pytest.fixture
def box(tmp_path: Path) -> Path:
    """A box of 4 x 2 x 2 off the origin, as a scan."""
    folder = tmp_path / "raw_scans/box/box_001/Scan"
    folder.mkdir(parents=True)
    (folder / "Scan.obj").write_text(CUBE)
    return tmp_path


def arrays_of(root: Path) -> dict[str, np.ndarray]:
    with np.load(root / "prepared/box/box_001.npz", allow_pickle=False) as file:
        return dict(file)


def test_a_box_is_known_in_closed_form(box: Path) -> None:
    (row,) = prepare_scans(find_objects(box), box / "prepared", num_points=500).values()
    assert row.watertight
    arrays = arrays_of(box)
    assert arrays["location"].tolist() == [12, 1, 1]
    assert arrays["scale"] == 4
    assert arrays["largest_coordinate"] == 14
    half = np.array([0.5, 0.25, 0.25])
    points = arrays["query_points"].astype(np.float64)
    occupancy = np.unpackbits(arrays["query_occupancy"], count=500).astype(bool)
    clear = np.abs(np.abs(points) - half).min(1) > 1e-3
    np.testing.assert_array_equal(occupancy[clear], (np.abs(points) < half).all(1)[clear])
    for resolution in (32, 64):
        voxels = np.unpackbits(arrays[f"voxels_{resolution}"], count=resolution**3)
        assert voxels.sum() == resolution**3 // 4
    surface, normals = arrays["surface_points"].astype(np.float64), arrays["surface_normals"].astype(np.float64)
    assert np.abs((np.abs(surface) - half).max(1)).max() < 1e-3
    assert ((surface * normals).sum(1) > 0.2).all()  # outward


def test_what_is_done_is_kept_and_what_is_gone_is_made_again(box: Path) -> None:
    objects = find_objects(box)
    prepare_scans(objects, box / "prepared", num_points=50)
    before = arrays_of(box)
    (box / "prepared/box/box_001.npz").touch()
    stamp = (box / "prepared/box/box_001.npz").stat().st_mtime_ns
    prepare_scans(objects, box / "prepared", num_points=50)
    assert (box / "prepared/box/box_001.npz").stat().st_mtime_ns == stamp
    (box / "prepared/box/box_001.npz").unlink()
    prepare_scans(objects, box / "prepared", num_points=50)
    for name, values in arrays_of(box).items():
        np.testing.assert_array_equal(values, before[name])


def test_open_and_broken_scans_are_noted(box: Path) -> None:
    (box / "raw_scans/box/box_001/Scan/Scan.obj").write_text(CUBE.replace("f 1 3 2\n", ""))
    empty = box / "raw_scans/box/box_002/Scan"
    empty.mkdir(parents=True)
    (empty / "Scan.obj").write_text("v 0 0 0\n")
    done = prepare_scans([*find_objects(box), FoundObject("box_003", "box")], box / "prepared", num_points=50)
    assert not done["box", "box_001"].watertight
    assert done["box", "box_001"].problem == ""
    assert done["box", "box_002"].problem
    assert ("box", "box_003") not in done
    assert read_report(box / "prepared") == done
    with (box / "prepared/prepared.csv").open() as file:
        assert [row["object_id"] for row in csv.DictReader(file)] == ["box_001", "box_002"]


def test_a_damaged_report_is_named(box: Path) -> None:
    (box / "prepared").mkdir()
    (box / "prepared/prepared.csv").write_text("something else\n")
    with pytest.raises(ValueError, match=r"prepared\.csv is damaged; remove it"):
        prepare_scans(find_objects(box), box / "prepared")
