from pathlib import Path

import numpy as np
import pytest

from datamodules.binvox import read_binvox, write_binvox


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_what_is_written_is_read_back(tmp_path: Path, share: float) -> None:
    voxels = np.random.default_rng(0).random((32, 32, 32)) < share
    write_binvox(tmp_path / "a.binvox", voxels, 0.875)
    read, scale = read_binvox(tmp_path / "a.binvox")
    assert read.dtype == bool
    assert np.array_equal(read, voxels)
    assert scale == 0.875


def test_y_runs_fastest_then_z_then_x(tmp_path: Path) -> None:
    # by hand: 2x2x2 with the cell x=1, y=0, z=1 alone, which is the place 1 * 4 + 1 * 2 + 0
    header = b"#binvox 1\ndim 2 2 2\ntranslate 5 6 7\nscale 3\ndata\n"
    (tmp_path / "a.binvox").write_bytes(header + bytes([0, 6, 1, 1, 0, 1]))
    voxels, scale = read_binvox(tmp_path / "a.binvox")
    assert np.argwhere(voxels).tolist() == [[1, 0, 1]]
    assert scale == 3


def test_a_run_longer_than_a_byte_can_count_is_split(tmp_path: Path) -> None:
    write_binvox(tmp_path / "a.binvox", np.ones((8, 8, 8), bool))
    runs = (tmp_path / "a.binvox").read_bytes().partition(b"data\n")[2]
    assert list(runs) == [1, 255, 1, 255, 1, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG....", "no binvox file: it begins .*expected '#binvox 1'"),
        (b"#binvox 1\ndim 2 2 2\nscale 1\n", "no binvox file"),
        (b"#binvox 1\ndim 2 2 3\ndata\n\x00\x0c", "a grid of 2x2x3, expected one with three equal edges"),
        (b"#binvox 1\ndim 2 2 2\nscale 0\ndata\n\x00\x08", "scale is '0', expected a positive number"),
        (b"#binvox 1\ndim 2 2 2\ndata\n\x00\x07", "7 voxels in the file, 8 expected; it is cut short"),
        (b"#binvox 1\ndim 2 2 2\ndata\n\x00\x08\x01", "8 expected; it is cut short"),
        (b"#binvox 1\ndim 2 2 2\ndata\n\x02\x08", "a voxel has the value 2"),
    ],
)
def test_a_broken_file_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.binvox").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.binvox.*{message}"):
        read_binvox(tmp_path / "a.binvox")


def test_a_missing_file_is_named_with_the_archive_it_comes_from(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"b.binvox is missing; .*ShapeNetVox32.tgz"):
        read_binvox(tmp_path / "b.binvox")


def test_real_voxels_of_a_chair_stand_upright_and_face_front(test_data: Path) -> None:
    voxels, scale = read_binvox(test_data / "shapenet_r2n2_3obj/yizi/model.binvox")
    assert voxels.shape == (32, 32, 32)
    assert scale == pytest.approx(0.865748)
    filled = np.argwhere(voxels)
    assert filled[:, 1].min() == 0
    assert filled[:, 1].max() == 31
    # the back of the chair rises at -x
    assert filled[filled[:, 1] > 22, 0].mean() < filled[:, 0].mean() - 2
