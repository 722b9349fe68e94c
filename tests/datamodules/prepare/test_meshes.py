import csv
from pathlib import Path

import numpy as np
import pytest
import trimesh

from datamodules.prepare.meshes import find_meshes, prepare_meshes, read_mesh
from datamodules.shapenet import ShapeNet

try:
    from ops.containment import contains  # noqa: F401

    HAS_CONTAINMENT = True
except ModuleNotFoundError:
    HAS_CONTAINMENT = False
needs_containment = pytest.mark.skipif(not HAS_CONTAINMENT, reason="ops.containment is not there")

EXTENTS = (2.0, 1.0, 0.5)


@pytest.fixture
def meshes(tmp_path: Path) -> Path:
    """A sound box, one turned inside out, one with a hole, one without faces and one that is no mesh."""
    root = tmp_path / "meshes"
    (root / "chair" / "folder" / "models").mkdir(parents=True)
    box = trimesh.creation.box(EXTENTS)
    box.apply_translation([3, 4, 5])
    box.export(root / "chair/box.obj")
    box.export(root / "chair/folder/models/model.off")
    inverted = box.copy()
    inverted.invert()
    inverted.export(root / "chair/inverted.ply")
    open_box = box.copy()
    open_box.update_faces(np.arange(len(box.faces)) > 0)
    open_box.export(root / "chair/open.off")
    (root / "chair/empty.off").write_text("OFF\n0 0 0\n")
    (root / "chair/text.stl").write_text("solid but not a mesh")
    return root


def test_meshes_are_found_by_name_or_folder(meshes: Path) -> None:
    found = find_meshes(meshes)
    assert {model for _, model in found} == {"box", "folder", "inverted", "open", "empty", "text"}
    assert {category for category, _ in found} == {"03001627"}


@pytest.mark.parametrize("name", ["box.obj", "inverted.ply", "folder/models/model.off"])
def test_a_mesh_is_centred_scaled_and_turned_outwards(meshes: Path, name: str) -> None:
    shape, location, scale = read_mesh(meshes / "chair" / name)
    assert scale == 2.0
    assert location.tolist() == [3, 4, 5]
    assert np.allclose(np.ptp(shape.vertices.numpy(), axis=0), [1, 0.5, 0.25])
    mesh = trimesh.Trimesh(shape.vertices.numpy(), shape.faces.numpy(), process=False)
    assert mesh.volume == pytest.approx(0.125)


@pytest.mark.parametrize(("name", "reason"), [("open.off", "is not watertight"), ("empty.off", "."), ("text.stl", ".")])
def test_what_is_no_watertight_mesh_is_refused(meshes: Path, name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_mesh(meshes / "chair" / name)


@needs_containment
def test_prepared_meshes_are_read_as_onets_tree_and_the_rest_is_reported(meshes: Path, tmp_path: Path) -> None:
    output = tmp_path / "tree"
    report = prepare_meshes(meshes, output, num_points=3000)
    skipped = {row.model: row.skipped for row in report if row.skipped}
    assert set(skipped) == {"open", "empty", "text"}
    assert skipped["open"] == "is not watertight"
    with (output / "prepared.csv").open() as file:
        assert {row["model"]: row["skipped"] for row in csv.DictReader(file) if row["skipped"]} == skipped
    data = ShapeNet(str(output), split="r2n2", val_share=0)
    data.setup()
    for index in range(3):
        points, occupancy = data.source.queries(index, None, slice(None))
        inside = (abs(points.astype(float)) < [0.5, 0.25, 0.125]).all(1)
        assert np.array_equal(occupancy, inside)
        assert occupancy.mean() == pytest.approx(0.125 / 1.1**3, abs=0.02)
        surface, normals = data.source.surface(index, slice(None))
        at_face = abs(abs(surface.astype(float)) - [0.5, 0.25, 0.125]) < 1e-3
        assert at_face.any(1).all()
        assert (np.sign(surface) * normals)[at_face].max() > 0.99
        assert ((surface * normals).sum(1) > 0).all()
        grid = data.source.voxels(index, 32)
        assert grid.sum() == 32 * 16 * 8
        assert grid[:, 8:24, 12:20].all()


@needs_containment
def test_a_second_call_keeps_what_is_there_and_samples_depend_on_the_name_alone(meshes: Path, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    prepare_meshes(meshes, one, num_points=100)
    before = (one / "03001627/box/points.npz").stat().st_mtime_ns
    prepare_meshes(meshes, one, num_points=100)
    assert (one / "03001627/box/points.npz").stat().st_mtime_ns == before
    (meshes / "chair/folder/models/model.off").unlink()
    prepare_meshes(meshes, other, num_points=100)
    with np.load(one / "03001627/box/points.npz") as a, np.load(other / "03001627/box/points.npz") as b:
        assert all(np.array_equal(a[key], b[key]) for key in a.files)


def test_folders_that_are_no_categories_or_empty_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no meshes; expected <category>/<model>.obj"):
        find_meshes(tmp_path)
    (tmp_path / "things").mkdir()
    trimesh.creation.box().export(tmp_path / "things/a.off")
    with pytest.raises(ValueError, match="things/ is no category; expected eight digits"):
        find_meshes(tmp_path)
