import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from datamodules import colmap_model
from datamodules.colmap_model import check_binary_model, find_model, load_model, read_colmap_model
from datamodules.posed_photographs import ImageFinder
from tests.datamodules.toy_photos import (
    HEIGHT,
    NUM_VIEWS,
    WIDTH,
    intrinsics,
    points,
    poses,
    write_colmap,
    write_pictures,
)

pytest.importorskip("pycolmap")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    names = write_pictures(tmp_path / "images")
    write_colmap(tmp_path / "sparse/0", names)
    return tmp_path


@pytest.mark.parametrize("kind", ["binary", "text", "before rigs and frames"])
def test_cameras_and_points_come_out_as_they_were_written(root: Path, kind: str) -> None:
    model = root / "sparse/0"
    if kind == "text":
        shutil.rmtree(model)
        write_colmap(model, [f"{view:04d}.png" for view in range(NUM_VIEWS)], is_text=True)
    if kind == "before rigs and frames":
        (model / "rigs.bin").unlink()
        (model / "frames.bin").unlink()
    photographs = read_colmap_model(model, ImageFinder(root))
    assert [path.name for path in photographs.paths] == [f"{view:04d}.png" for view in range(NUM_VIEWS)]
    assert np.allclose(photographs.camera_to_world, poses(), atol=1e-9)
    assert np.allclose(photographs.intrinsics, intrinsics())
    assert (photographs.sizes == [HEIGHT, WIDTH]).all()
    assert np.allclose(np.sort(photographs.tracks.points, axis=0), np.sort(points(), axis=0))
    assert (photographs.tracks.lengths == NUM_VIEWS).all()
    assert photographs.tracks.errors.max() < 1e-6


def test_photographs_that_are_missing_are_left_out_and_their_tracks_with_them(root: Path) -> None:
    (root / "images/0002.png").unlink()
    with pytest.warns(UserWarning, match=r"1 photographs are not there and left out: 0002.png"):
        photographs = read_colmap_model(root / "sparse/0", ImageFinder(root))
    assert np.allclose(photographs.camera_to_world, np.delete(poses(), 2, axis=0), atol=1e-9)
    assert (photographs.tracks.lengths == NUM_VIEWS - 1).all()


def test_a_model_of_other_photographs_says_where_it_looked(root: Path) -> None:
    for view in range(4):
        (root / f"images/000{view}.png").unlink()
    with pytest.raises(ValueError, match=r"4 of the 6 photographs .* 0000.png for instance; looked in .*images"):
        read_colmap_model(root / "sparse/0", ImageFinder(root))


@pytest.mark.parametrize("name", ["cameras.bin", "images.bin", "points3D.bin", "rigs.bin", "frames.bin"])
def test_a_truncated_file_is_named_wherever_it_ends(root: Path, name: str) -> None:
    path = root / "sparse/0" / name
    whole = path.read_bytes()
    for length in (0, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=rf"{name} ends too early or is broken: {length} bytes"):
            load_model(root / "sparse/0")
    path.write_bytes(whole + b"more")
    with pytest.raises(ValueError, match=rf"{name} has {len(whole) + 4} bytes, but its records take {len(whole)}"):
        check_binary_model(root / "sparse/0")


@pytest.mark.parametrize("name", ["cameras.txt", "images.txt", "points3D.txt"])
def test_a_truncated_text_file_is_named_wherever_it_ends(tmp_path: Path, name: str) -> None:
    write_colmap(tmp_path, [f"{view:04d}.png" for view in range(NUM_VIEWS)], is_text=True)
    path = tmp_path / name
    lines = path.read_text().splitlines()
    words = len(lines[-1].split())
    first_record = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    cut_line = "\n".join([*lines[:-1], " ".join(lines[-1].split()[: words // 2 if words % 4 else words // 2 - 1])])
    for content in (cut_line, "\n".join(lines[: (first_record + len(lines)) // 2])):
        path.write_text(content)
        with pytest.raises(ValueError, match=rf"{name} is truncated or broken: it has \d+ records"):
            load_model(tmp_path)
    # programs other than COLMAP write no header, and end with a blank line or not
    path.write_text("\n".join([*lines[first_record:], ""]))
    assert len(load_model(tmp_path).images) == NUM_VIEWS


def test_what_is_no_model_is_said(root: Path) -> None:
    (root / "sparse/0/points3D.bin").unlink()
    with pytest.raises(ValueError, match=r"lacks cameras.txt, images.txt, points3D.txt; a COLMAP model is"):
        load_model(root / "sparse/0")
    write_colmap(root / "sparse/0", [])
    with pytest.raises(ValueError, match="the COLMAP model has no posed photograph"):
        read_colmap_model(root / "sparse/0", ImageFinder(root))
    (root / "sparse/0/cameras.bin").write_bytes(struct.pack("<QIiQQ", 1, 1, 99, 4, 4))
    with pytest.raises(ValueError, match=r"cameras.bin ends too early or is broken"):
        load_model(root / "sparse/0")


def test_without_pycolmap_the_error_names_the_extra(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(colmap_model, "PYCOLMAP", False)
    with pytest.raises(ModuleNotFoundError, match=r'needs pycolmap: pip install -e "\.\[sfm\]"'):
        read_colmap_model(root / "sparse/0", ImageFinder(root))


@pytest.mark.parametrize("place", ["sparse/0", "sparse", "colmap/sparse/0", "elsewhere"])
def test_a_model_is_found_where_programs_put_it(tmp_path: Path, place: str) -> None:
    assert find_model(tmp_path) is None
    write_colmap(tmp_path / place, ["0.png"])
    assert find_model(tmp_path, tmp_path / place if place == "elsewhere" else None) == tmp_path / place


def test_the_cameras_of_a_real_model_are_those_of_its_projection_matrices(test_data: Path) -> None:
    root = test_data / "buddha_ccby"
    if not root.is_dir():
        pytest.skip(f"no {root}")
    photographs = read_colmap_model(root / "colmap/sparse/0", ImageFinder(root))
    assert len(photographs.paths) == 11
    centers = photographs.camera_to_world[:, :3, 3]
    truth = []
    for path in photographs.paths:
        matrix = _projection(root / f"{path.stem}_P.txt")
        truth.append(-np.linalg.solve(matrix[:, :3], matrix[:, 3]))
    # up to a similarity: all distances between cameras have one ratio
    ratios = _distances(np.array(truth)) / _distances(centers)
    assert np.std(ratios) / np.mean(ratios) < 0.02


def _projection(path: Path) -> np.ndarray:
    # COLMAP-like header "CONTOUR", then 3 rows of 4
    return np.array([float(word) for word in path.read_text().replace("CONTOUR", "").split()]).reshape(3, 4)


def _distances(positions: np.ndarray) -> np.ndarray:
    first, second = np.triu_indices(len(positions), 1)
    return np.linalg.norm(positions[first] - positions[second], axis=1)
