"""Files of shapes: what is in them, what they are called, and what an empty shape does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from callbacks.save import SaveShapes, ply_bytes
from ops.types import Shape
from tests.callbacks.toy import COLORS, CORNERS, FACES, ToyMethod, loader, sample, trainer

ROOT = Path(__file__).parents[2]


def _folder(tmp_path: Path) -> Path:
    return tmp_path / "run" / "test" / "shapes"


def _load(content: bytes) -> trimesh.Trimesh:
    return trimesh.load(trimesh.util.wrap_as_stream(content), file_type="ply", process=False)


def test_a_mesh_reads_back_with_its_vertices_faces_and_colours() -> None:
    content = ply_bytes(Shape(CORNERS, FACES, COLORS))
    assert content.startswith(b"ply\nformat binary_little_endian")
    mesh = _load(content)
    np.testing.assert_array_equal(mesh.vertices, CORNERS.numpy())
    np.testing.assert_array_equal(mesh.faces, FACES.numpy())
    np.testing.assert_array_equal(
        mesh.visual.vertex_colors[:, :3], [[255, 0, 0], [0, 255, 0], [0, 0, 255], [51, 102, 153]]
    )


def test_a_point_set_reads_back_with_its_colours() -> None:
    points = _load(ply_bytes(Shape(CORNERS, None, COLORS)))
    np.testing.assert_array_equal(points.vertices, CORNERS.numpy())
    np.testing.assert_array_equal(points.colors[3, :3], [51, 102, 153])


def test_a_shape_of_unknown_colour_says_nothing_about_colour() -> None:
    for faces in (FACES, None):
        assert b"red" not in ply_bytes(Shape(CORNERS, faces))


def test_tested_shapes_lie_in_the_datasets_frame_beside_their_description(tmp_path: Path) -> None:
    trainer(tmp_path, [SaveShapes()]).test(ToyMethod(empty=(1,)), loader(3), verbose=False)
    folder = _folder(tmp_path)
    names = [f"thing_{k}.{extension}" for k in (0, 2) for extension in ("json", "ply")]
    assert sorted(path.name for path in folder.iterdir()) == names
    facts = json.loads((folder / "thing_2.json").read_text())
    assert facts.pop("frame").startswith("the dataset's own frame and unit")
    assert facts == {
        "object_index": 2,
        "object_id": "thing/2",
        "normalized_to_dataset": sample(2)["normalized_to_dataset"].tolist(),
        "up": [0.0, 2.0, 0.0],
        "first_camera": [0.0, 0.0, 6.0],
        "num_vertices": 4,
        "num_faces": 4,
        "bounding_box": [[-3.0] * 3, [3.0] * 3],
    }
    assert _load((folder / "thing_2.ply").read_bytes()).bounds.tolist() == facts["bounding_box"]


def test_objects_of_the_same_name_keep_a_file_each(tmp_path: Path) -> None:
    samples = [sample(index) | {"object_id": name} for index, name in enumerate(["a b", "a/b", "a_b_1", "a_b"])]
    batches = torch.utils.data.DataLoader(samples, collate_fn=loader(1).collate_fn)
    trainer(tmp_path, [SaveShapes()]).test(ToyMethod(), batches, verbose=False)
    files = {path.stem: json.loads(path.read_text())["object_index"] for path in _folder(tmp_path).glob("*.json")}
    assert files == {"a_b": 0, "a_b_1": 1, "a_b_1_2": 2, "a_b_3": 3}


@pytest.mark.parametrize(
    ("object_id", "name"), [("../../etc/passwd", "_.._etc_passwd"), (".hidden", "hidden"), ("", "object"), ("ü", "_")]
)
def test_no_name_leaves_the_folder_or_hides(tmp_path: Path, object_id: str, name: str) -> None:
    batches = torch.utils.data.DataLoader([sample(0) | {"object_id": object_id}], collate_fn=loader(1).collate_fn)
    trainer(tmp_path, [SaveShapes()]).test(ToyMethod(), batches, verbose=False)
    assert [path.name for path in _folder(tmp_path).glob("*.ply")] == [f"{name}.ply"]


def test_an_object_that_became_empty_loses_the_file_of_an_earlier_test(tmp_path: Path) -> None:
    for empty in ((), (1,)):
        trainer(tmp_path, [SaveShapes()]).test(ToyMethod(empty), loader(2), verbose=False)
    assert sorted(path.name for path in _folder(tmp_path).iterdir()) == ["thing_0.json", "thing_0.ply"]


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer(tmp_path, [SaveShapes()]).test(ToyMethod(), loader(1), verbose=False)
    before = {path.name: path.read_bytes() for path in _folder(tmp_path).iterdir()}
    monkeypatch.setattr("callbacks.files.os.replace", _fail)
    with pytest.raises(OSError, match="disk full"):
        trainer(tmp_path, [SaveShapes()]).test(ToyMethod(), loader(1), verbose=False)
    assert {path.name: path.read_bytes() for path in _folder(tmp_path).iterdir() if path.is_file()} == before


def _fail(*_: object) -> None:
    raise OSError("disk full")


@pytest.mark.parametrize("kwargs", [{"logger": False}, {"fast_dev_run": True}])
def test_without_a_logger_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kwargs: dict[str, bool]
) -> None:
    monkeypatch.chdir(tmp_path)
    trainer(tmp_path / "unused", [SaveShapes()], **kwargs).test(ToyMethod(), loader(2), verbose=False)
    assert not list(tmp_path.rglob("*.ply"))


def test_predict_writes_what_there_is_names_the_empty_objects_and_fails(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.callbacks.toy", "predict", str(tmp_path), "--empty", "3", "6"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert "2 of 7 objects came out empty and were not written: thing/3, thing/6;" in result.stderr
    saved = sorted(path.name for path in _folder(tmp_path).glob("*.ply"))
    assert saved == [f"thing_{k}.ply" for k in (0, 1, 2, 4, 5)]


def test_predict_without_an_empty_object_succeeds(tmp_path: Path) -> None:
    trainer(tmp_path, [SaveShapes()]).predict(ToyMethod(), loader(2), return_predictions=False)
    assert len(list(_folder(tmp_path).glob("*.ply"))) == 2
