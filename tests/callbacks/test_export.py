"""Files for other programs: round trips, colours as each format has them, textures of a colour field, the hull."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from torch import Tensor

from callbacks.export import Export, file_contents, hull_views, main, up_axis
from callbacks.save import SaveShapes
from metrics.shape_files import read_shape
from ops.cameras import look_at
from ops.texture import XATLAS
from ops.types import ObjectBatch, Reconstruction, Shape
from tests.callbacks.toy import COLORS, CORNERS, FACES, ToyMethod, loader, trainer

needs_xatlas = pytest.mark.skipif(not XATLAS, reason="xatlas is not installed: pip install xatlas")
SMALL = {"turntable_frames": 8, "turntable_size": 96}
OFFSET = torch.tensor([100.0, -20.0, 600.0])


def ball(center: tuple[float, float, float] = (0, 0, 0), radius: float = 1.0, subdivisions: int = 3) -> Shape:
    mesh = trimesh.creation.icosphere(subdivisions, radius)
    return Shape(torch.tensor(mesh.vertices + center).float(), torch.tensor(np.array(mesh.faces)))


def joined(a: Shape, b: Shape) -> Shape:
    return Shape(torch.cat([a.vertices, b.vertices]), torch.cat([a.faces, b.faces + len(a.vertices)]))


@pytest.mark.parametrize("kind", ["ply", "obj", "glb"])
@pytest.mark.parametrize("faces", [FACES, None])
def test_shapes_read_back_in_their_frame_with_their_colours(tmp_path: Path, kind: str, faces: Tensor | None) -> None:
    # dark ones too, of which eight bits of light would leave nothing
    colors = torch.cat([COLORS[:3], torch.tensor([[0.02, 0.04, 0.06]])])
    shape = Shape(CORNERS + OFFSET, faces, colors)
    for suffix, content in file_contents(shape, kind, "thing").items():
        (tmp_path / f"thing{suffix}").write_bytes(content)
    back = trimesh.load(tmp_path / f"thing.{kind}", process=False, **({"force": "mesh"} if faces is not None else {}))
    if isinstance(back, trimesh.Scene):
        back = next(iter(back.geometry.values()))
    np.testing.assert_allclose(back.vertices, shape.vertices.numpy(), rtol=1e-6)
    if faces is not None:
        np.testing.assert_array_equal(back.faces, faces.numpy())
        read = read_shape(tmp_path / f"thing.{kind}")
        np.testing.assert_allclose(read.vertex_colors, colors, atol=0.045 if kind == "glb" else 0.003)


def test_colours_in_a_glb_are_light_in_floats() -> None:
    content = file_contents(Shape(CORNERS, FACES, COLORS), "glb", "thing")[".glb"]
    length = int.from_bytes(content[12:16], "little")
    tree = json.loads(content[20 : 20 + length])
    accessor = tree["accessors"][tree["meshes"][0]["primitives"][0]["attributes"]["COLOR_0"]]
    assert (accessor["componentType"], accessor["type"]) == (5126, "VEC3")
    view = tree["bufferViews"][accessor["bufferView"]]
    start = 20 + length + 8 + view.get("byteOffset", 0) + accessor.get("byteOffset", 0)
    colors = np.frombuffer(content, "<f4", 12, start).reshape(4, 3)
    # sRGB 0.2, 0.4, 0.6 by the standard's formula
    np.testing.assert_allclose(colors[3], [((c + 0.055) / 1.055) ** 2.4 for c in (0.2, 0.4, 0.6)], rtol=1e-5)


class FieldMethod(ToyMethod):
    """One ball in the normalised frame, moved by its batch, whose colours vary faster than its vertices."""

    def _shapes(self, batch: ObjectBatch) -> list[Shape]:
        return [ball().transformed(matrix) for matrix in batch["normalized_to_dataset"]]

    def color_field(self, points: Tensor) -> Tensor:
        assert points.dtype == torch.float32
        assert points.norm(dim=1).max() < 1.01
        return 0.5 + 0.4 * torch.sin(9 * points)

    def test_step(self, batch: ObjectBatch, batch_idx: int) -> Reconstruction:
        voxels = torch.zeros(len(batch["object_index"]), 4, 4, 4)
        voxels[:, 0, 1, 2] = 0.75
        return {"shapes": self._shapes(batch), "voxels": voxels}


@needs_xatlas
def test_a_test_writes_all_that_was_asked_for_and_textures_come_from_the_colour_field(tmp_path: Path) -> None:
    saving = SaveShapes(
        "export",
        formats=["obj", "glb"],
        texture=True,
        texture_size=400,
        turntable="gif",
        voxels=["npz", "binvox"],
        **SMALL,
    )
    trainer(tmp_path, [saving]).test(FieldMethod(), loader(1), verbose=False)
    folder = tmp_path / "run" / "test" / "export"
    assert sorted(path.name for path in folder.iterdir()) == [
        *("thing_0.glb", "thing_0.json", "thing_0.mtl", "thing_0.obj", "thing_0.ply"),
        *("thing_0_texture.png", "thing_0_turntable.gif", "thing_0_voxels.binvox", "thing_0_voxels.npz"),
    ]
    for suffix in ("obj", "glb"):
        mesh = trimesh.load(folder / f"thing_0.{suffix}", force="mesh", process=False)
        material = mesh.visual.material
        picture = getattr(material, "baseColorTexture", None) or material.image
        corners, uv = mesh.triangles, mesh.visual.uv[mesh.faces]
        middles, places = corners.mean(1), uv.mean(1) * picture.size - 0.5
        pixels = np.asarray(picture.convert("RGB")) / 255
        rows = np.rint(picture.size[1] - 1 - places[:, 1]).astype(int)
        shown = pixels[rows, np.rint(places[:, 0]).astype(int)]
        wanted = 0.5 + 0.4 * np.sin(9 * middles / 2)  # the toy's dataset is twice as large
        error = np.abs(shown - wanted).max(1)
        assert np.quantile(error, 0.95) < 0.04, suffix
        outward = (middles * mesh.vertex_normals[mesh.faces].mean(1)).sum(1) / np.linalg.norm(middles, axis=1)
        assert outward.min() > 0.95
    voxels = np.load(folder / "thing_0_voxels.npz", allow_pickle=False)
    assert voxels["occupancy"][0, 1, 2] == 0.75
    assert voxels["occupancy"].sum() == 0.75
    np.testing.assert_array_equal(voxels["normalized_to_dataset"], np.diag([2.0, 2, 2, 1]))


def test_voxels_as_binvox_read_back_at_their_place(tmp_path: Path) -> None:
    from datamodules.binvox import read_binvox

    voxels = torch.rand(6, 6, 6, generator=torch.Generator().manual_seed(0))
    (path,) = Export(voxels=["binvox"]).write_voxels(voxels, tmp_path / "thing", None)
    grid, scale = read_binvox(path)
    np.testing.assert_array_equal(grid, voxels.numpy() >= 0.5)
    assert scale == pytest.approx(1.0)
    assert b"translate -0.5 -0.5 -0.5" in path.read_bytes()


def test_the_turntable_turns_once_and_the_shape_stays_in_the_middle(tmp_path: Path) -> None:
    shape = joined(ball(), ball((1.5, 0, 0), 0.3))
    shape.vertices += OFFSET * 100
    for kind in ("webp", "gif"):
        (path,) = Export(turntable=kind, **SMALL).write(shape, tmp_path / "thing")
        with Image.open(path) as animation:
            assert (animation.n_frames, animation.size) == (8, (96, 96))
            frames = []
            for k in (0, 2, 4, 6):
                animation.seek(k)
                frames.append(np.asarray(animation.convert("L")) < 250)
        centers = [np.argwhere(frame).mean(0) for frame in frames]
        # the small ball is on the one side, in front or behind, and on the other side
        assert np.ptp([center[1] for center in centers]) > 5
        assert all(0.05 < frame.mean() < 0.6 for frame in frames)
        # nothing reaches the rim
        assert not any(frame[0].any() or frame[-1].any() or frame[:, 0].any() or frame[:, -1].any() for frame in frames)


def hull_batch(with_observation: bool) -> ObjectBatch:
    """Three cameras at a distance of 5 along the axes see a ball of radius 1; the dataset is twice as large, moved."""
    poses, masks = [], []
    intrinsics = torch.tensor([[150.0, 0, 50], [0, 150, 50], [0, 0, 1]])
    y, x = torch.meshgrid(torch.arange(100) + 0.5, torch.arange(100) + 0.5, indexing="ij")
    for axis in range(3):
        forward = -torch.eye(3)[axis]
        right = torch.eye(3)[axis - 1]
        pose = torch.eye(4)
        pose[:3, :3] = torch.stack([right, torch.linalg.cross(forward, right), forward], 1)
        pose[:3, 3] = -5 * forward
        poses.append(pose)
        masks.append(((x - 50) ** 2 + (y - 50) ** 2 < (150 / 24**0.5) ** 2).float())
    to_dataset = torch.diag(torch.tensor([2.0, 2, 2, 1]))
    to_dataset[:3, 3] = OFFSET
    batch = ObjectBatch(
        masks=torch.stack(masks)[None],
        camera_to_world=torch.stack(poses)[None],
        intrinsics=intrinsics.expand(1, 3, 3, 3),
        normalized_to_dataset=to_dataset[None],
    )
    if with_observation:
        seen, projections = hull_views(batch, 0)
        batch = ObjectBatch(observations=[{"masks": seen > 0.5, "projections": projections}])
    return batch


@pytest.mark.parametrize("with_observation", [False, True])
def test_the_crop_to_the_hull_keeps_the_object_and_removes_a_floater(with_observation: bool) -> None:
    batch = hull_batch(with_observation)
    body, floater = ball(radius=0.98), ball((0.9, 0.9, 0.9), 0.1)
    to_dataset = hull_batch(False)["normalized_to_dataset"][0]
    shape = joined(body, floater).transformed(to_dataset)
    cropped = Export(crop_to_hull=True).prepared(shape, batch, 0)
    torch.testing.assert_close(cropped.vertices, body.transformed(to_dataset).vertices)
    assert len(Export().prepared(shape, batch, 0).vertices) == len(shape.vertices)
    assert len(Export(largest_only=True).prepared(shape, batch, 0).vertices) == len(body.vertices)
    with pytest.raises(ValueError, match="crop_to_hull: the dataset has no masks"):
        Export(crop_to_hull=True).prepared(shape, {}, 0)


def test_up_is_the_cameras_up_in_the_dataset_frame() -> None:
    pose = torch.diag(torch.tensor([1.0, -1, -1, 1])).expand(1, 2, 4, 4)
    assert up_axis(ObjectBatch(camera_to_world=pose), 0).tolist() == [0, 1, 0]
    turned = torch.tensor([[1.0, 0, 0, 5], [0, 0, -1, 5], [0, 1, 0, 5], [0, 0, 0, 1]])[None]
    assert up_axis(ObjectBatch(camera_to_world=pose, normalized_to_dataset=turned), 0).tolist() == [0, 0, 1]
    assert up_axis({}, 0) is None


def test_up_is_at_right_angles_to_level_cameras_wherever_most_of_them_stand() -> None:
    eyes = torch.tensor([[2.0, 0.5, 3.0], [2.5, 0.0, 2.5], [2.0, -0.5, 3.0], [-1.0, 2.0, 0.5]])
    poses = torch.stack([look_at(eye, torch.zeros(3), torch.tensor([0.0, 0.0, 1.0])) for eye in eyes])[None]
    up = up_axis(ObjectBatch(camera_to_world=poses), 0)
    torch.testing.assert_close(up, torch.tensor([0.0, 0.0, 1.0]).double(), rtol=0, atol=1e-5)
    # the mean of the cameras' own leans away from where they look down from
    mean = -poses[0, :, :3, 1].mean(0)
    assert torch.rad2deg(torch.acos(mean[2] / mean.norm())) > 10


def test_an_object_that_became_empty_loses_all_files_of_an_earlier_test(tmp_path: Path) -> None:
    for empty in ((), (1,)):
        saving = SaveShapes(formats=["glb", "obj"], turntable="gif", **SMALL)
        trainer(tmp_path, [saving]).test(ToyMethod(empty), loader(2), verbose=False)
    names = {path.name for path in (tmp_path / "run" / "test" / "shapes").iterdir()}
    assert names == {f"thing_0{suffix}" for suffix in (".glb", ".json", ".obj", ".ply", "_turntable.gif")}


def test_a_texture_needs_a_format_that_carries_it() -> None:
    with pytest.raises(ValueError, match=r"texture: formats are \['ply'\], but only obj and glb carry a texture"):
        SaveShapes(texture=True)


@needs_xatlas
def test_the_program_converts_a_mesh_and_keeps_its_largest_part(tmp_path: Path) -> None:
    both = joined(ball(subdivisions=2), ball((3, 0, 0), 0.2, subdivisions=1))
    both.vertex_colors = (both.vertices + 1).clamp(0, 1) / 2
    soup = Shape(both.vertices[both.faces].reshape(-1, 3), torch.arange(3 * len(both.faces)).reshape(-1, 3))
    soup.vertex_colors = both.vertex_colors[both.faces].reshape(-1, 3)
    (tmp_path / "soup.ply").write_bytes(file_contents(soup, "ply", "soup")[".ply"])
    args = [str(tmp_path / "soup.ply"), "--formats", "[ply, obj, glb]", "--texture", "true", "--texture_size", "128"]
    files = main([*args, "--largest_only", "true", "--output", str(tmp_path / "out")])
    assert [path.name for path in files] == ["soup.ply", "soup.obj", "soup.mtl", "soup_texture.png", "soup.glb"]
    # a vertex a corner in the file, yet the parts are told
    assert len(read_shape(files[0]).vertices) == len(ball(subdivisions=2).vertices)
    shutil.move(tmp_path / "out", tmp_path / "moved")  # the files find each other wherever they are
    mesh = trimesh.load(tmp_path / "moved" / "soup.obj", process=False)
    assert mesh.visual.material.image is not None
    assert len(mesh.faces) == len(ball(subdivisions=2).faces)


def test_the_program_says_what_is_wrong_with_its_input(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.ply: no such file"):
        main([str(tmp_path / "gone.ply")])
    (tmp_path / "points.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\n")
    with pytest.raises(ValueError, match="a mesh with no faces to export"):
        main([str(tmp_path / "points.obj")])
    bare = file_contents(ball(), "ply", "bare")[".ply"]
    (tmp_path / "bare.ply").write_bytes(bare)
    if XATLAS:
        with pytest.raises(ValueError, match="A texture needs colours"):
            main([str(tmp_path / "bare.ply"), "--formats", "[glb]", "--texture", "true"])
