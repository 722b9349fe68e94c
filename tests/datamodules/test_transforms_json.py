import json
import math
from pathlib import Path

import numpy as np
import pytest
import trimesh

from datamodules.posed_photographs import ImageFinder, PosedPhotographs
from datamodules.transforms_json import find_transforms, read_transforms
from tests.datamodules.toy_photos import (
    CENTER,
    FOCAL,
    HEIGHT,
    NUM_VIEWS,
    WIDTH,
    intrinsics,
    poses,
    transforms,
    write_json,
    write_photo_folder,
    write_pictures,
)

NAMES = [f"images/{view:04d}.png" for view in range(NUM_VIEWS)]


def read(root: Path, **finder: object) -> PosedPhotographs:
    return read_transforms(find_transforms(root), ImageFinder(root, **finder))


def change(root: Path, edit) -> None:
    content = json.loads((root / "transforms.json").read_text())
    edit(content)
    write_json(root / "transforms.json", content)


def blender(root: Path) -> np.ndarray:
    angle = 2 * math.atan(WIDTH / 2 / FOCAL)
    for split in ("train", "test", "val"):
        names = [f"./{split}/{name[:-4]}" for name in write_pictures(root / split)]
        content = {"camera_angle_x": angle, "frames": transforms(names)["frames"]}
        write_json(root / f"transforms_{split}.json", content)
    return np.array([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]])


def instant_ngp(root: Path) -> np.ndarray:
    write_photo_folder(root, camera_angle_x=0.5, k1=0.1, k2=-0.01, p1=0.001, p2=0.002, aabb_scale=4)
    change(root, lambda content: [frame.update(sharpness=30.0) for frame in content["frames"]])
    return intrinsics()


def nerfstudio(root: Path) -> np.ndarray:
    write_photo_folder(root, camera_model="OPENCV", k1=0.0, k2=0.0, p1=0.0, p2=0.0)

    def per_frame(content: dict) -> None:
        for frame in content["frames"]:
            frame |= {key: content[key] for key in ("fl_x", "fl_y", "cx", "cy", "w", "h")}
        for key in ("fl_x", "fl_y", "cx", "cy", "w", "h"):
            del content[key]

    change(root, per_frame)
    return intrinsics()


def neuralangelo(root: Path) -> np.ndarray:
    write_photo_folder(root, sk_x=0.0, sk_y=0.0, is_fisheye=False, sphere_center=CENTER.tolist(), sphere_radius=1.5)
    return intrinsics()


@pytest.mark.parametrize("flavour", [blender, instant_ngp, nerfstudio, neuralangelo])
def test_every_flavour_gives_the_same_cameras(tmp_path: Path, flavour) -> None:
    expected = flavour(tmp_path)
    photographs = read(tmp_path)
    assert len(photographs.paths) == (2 if flavour is blender else 1) * NUM_VIEWS
    assert all(path.is_file() for path in photographs.paths)
    assert np.allclose(photographs.camera_to_world[:NUM_VIEWS], poses())
    assert np.allclose(photographs.intrinsics, expected)
    assert (photographs.sizes == [HEIGHT, WIDTH]).all()
    assert photographs.test_views == (list(range(NUM_VIEWS, 2 * NUM_VIEWS)) if flavour is blender else [])
    assert [lens.is_pinhole for lens in photographs.lenses] == [flavour is not instant_ngp] * len(photographs.paths)
    if flavour is neuralangelo:
        assert photographs.sphere.tolist() == [*CENTER, 1.5]
    if flavour is instant_ngp:
        assert photographs.lenses[0].radial[:2] == (0.1, -0.01)
        assert photographs.lenses[0].tangential == (0.001, 0.002)


def test_what_nerfstudio_applied_is_undone_to_cameras_points_and_sphere(tmp_path: Path) -> None:
    applied = np.array([[0.0, 1, 0, 0.5], [1, 0, 0, 0], [0, 0, -1, 2], [0, 0, 0, 1]])
    write_photo_folder(tmp_path)

    def apply(content: dict) -> None:
        for frame in content["frames"]:
            moved = applied @ np.array(frame["transform_matrix"])
            moved[:3, 3] *= 0.25
            frame["transform_matrix"] = moved.tolist()
        center = 0.25 * (applied[:3, :3] @ CENTER + applied[:3, 3])
        trimesh.PointCloud(center[None]).export(tmp_path / "sparse_pc.ply")
        content |= {"applied_transform": applied[:3].tolist(), "applied_scale": 0.25, "ply_file_path": "sparse_pc.ply"}
        content |= {"sphere_center": center.tolist(), "sphere_radius": 0.5}

    change(tmp_path, apply)
    photographs = read(tmp_path)
    assert np.allclose(photographs.camera_to_world, poses())
    assert np.allclose(photographs.points, CENTER[None], atol=1e-6)
    assert np.allclose(photographs.sphere, [*CENTER, 2.0])


def test_a_box_is_taken_for_its_circumscribed_sphere(tmp_path: Path) -> None:
    for box in ([[-1, 3], [0, 4], [2, 6]], [[-1, 0, 2], [3, 4, 6]]):
        write_photo_folder(tmp_path, **{"aabb_range" if len(box) == 3 else "aabb": box})
        assert np.allclose(read(tmp_path).sphere, [1, 2, 4, math.sqrt(12)])


@pytest.mark.parametrize(
    "written",
    ["images/{}.png", "./images/{}", "{}.jpg", "/home/someone/data/scene/images/{}.png", "C:\\data\\images\\{}.PNG"],
)
def test_photographs_are_found_however_their_paths_are_written(tmp_path: Path, written: str) -> None:
    write_pictures(tmp_path / "images")
    write_json(tmp_path / "transforms.json", transforms([written.format(f"{view:04d}") for view in range(NUM_VIEWS)]))
    assert read(tmp_path).paths == [tmp_path / name for name in NAMES]


def test_a_missing_test_photograph_is_not_replaced_by_that_of_its_name_in_train(tmp_path: Path) -> None:
    blender(tmp_path)
    (tmp_path / "test/0001.png").unlink()
    with pytest.warns(UserWarning, match=r"1 of its 6 photographs are not there and left out: ./test/0001"):
        photographs = read(tmp_path)
    assert len(photographs.test_views) == NUM_VIEWS - 1
    assert len(set(photographs.paths)) == 2 * NUM_VIEWS - 1


def test_splits_by_file_name_are_kept(tmp_path: Path) -> None:
    write_photo_folder(tmp_path, train_filenames=NAMES[:4], test_filenames=NAMES[4:])
    assert read(tmp_path).test_views == [4, 5]


def set_frame(key: str, value: object):
    return lambda content: content["frames"][2].update({key: value})


def nan_in_pose(content: dict) -> None:
    content["frames"][2]["transform_matrix"][1][3] = math.nan


def mirrored(content: dict) -> None:
    content["frames"][2]["transform_matrix"] = np.diag([1.0, -1, 1, 1]).tolist()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (nan_in_pose, r"transforms.json: images/0002.png: transform_matrix has entries that are not finite"),
        (set_frame("fl_x", math.nan), r"images/0002.png: fl_x is nan, expected a finite number"),
        (set_frame("transform_matrix", [[1, 0], [0, 1]]), r"0002.png: transform_matrix has shape \(2, 2\)"),
        (set_frame("transform_matrix", "identity"), r"0002.png: transform_matrix is no matrix of numbers"),
        (mirrored, r"0002.png: transform_matrix is no pose: .* determinant -1 .* not mirrored"),
        (lambda content: content["frames"][2].pop("file_path"), "frame 2 has no file_path"),
        (lambda content: content.pop("frames"), "has no 'frames'"),
        (lambda content: content.pop("fl_x"), "images/0000.png has no focal length; expected camera_angle_x"),
        (set_frame("fl_y", -3), "focal lengths 40.0, -3.0"),
        (set_frame("camera_model", "EQUIRECTANGULAR"), "camera_model EQUIRECTANGULAR is not supported"),
        (lambda content: content.update(applied_scale=0), "applied_scale is 0, expected a positive number"),
        (lambda content: content.update(applied_transform=np.zeros((3, 4)).tolist()), "is no rotation and transl"),
        (
            lambda content: content.update(sphere_center=[0, 0, 0], sphere_radius=-1),
            "expected a centre .* and a positive radius",
        ),
        (lambda content: content.update(aabb_range=[1, 2]), r"aabb_range has shape \(2,\)"),
        (
            lambda content: [frame.update(file_path=f"gone/{k}.png") for k, frame in enumerate(content["frames"][:4])],
            r"4 of its 6 photographs are not there, gone/0.png for instance; looked in .*; check root",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_file_and_key(tmp_path: Path, edit, message: str) -> None:
    write_photo_folder(tmp_path)
    change(tmp_path, edit)
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


@pytest.mark.parametrize("content", ['{"frames": [', "[1, 2]"])
def test_a_file_that_is_cut_or_something_else_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "transforms.json").write_text(content)
    with pytest.raises(ValueError, match=r"transforms.json (is no JSON|holds a list)"):
        read(tmp_path)


def test_cameras_that_carry_the_scale_of_their_parent_are_rigid(tmp_path: Path) -> None:
    write_photo_folder(tmp_path)

    def scale(content: dict) -> None:
        for frame in content["frames"]:
            frame["transform_matrix"] = (np.array(frame["transform_matrix"]) @ np.diag([3.0, 3, 3, 1])).tolist()

    change(tmp_path, scale)
    assert np.allclose(read(tmp_path).camera_to_world, poses())


def test_the_views_of_blenders_chair_look_at_the_origin(test_data: Path) -> None:
    root = test_data / "nerf_synthetic_chair_400"
    if not root.is_dir():
        pytest.skip(f"no {root}")
    photographs = read(root)
    assert (len(photographs.paths), len(photographs.test_views)) == (60, 10)
    centers, forward = photographs.camera_to_world[:, :3, 3], photographs.camera_to_world[:, :3, 2]
    assert np.allclose(np.linalg.norm(centers, axis=1), 4.0311, atol=1e-3)
    assert np.allclose((centers * forward).sum(-1), -4.0311, atol=1e-2)
    assert np.allclose(photographs.intrinsics[:, 0, 0], 555.5555, atol=1e-3)
