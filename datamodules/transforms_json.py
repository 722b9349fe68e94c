"""Cameras from a transforms.json: Blender's (nerf_synthetic), Instant-NGP's, nerfstudio's and Neuralangelo's.

All hold, for each photograph, ``transform_matrix``: camera to world with OpenGL axes (y up, z backward). Intrinsics are
``camera_angle_x`` (radians) or ``fl_x fl_y cx cy`` for an image of ``w`` x ``h``, beside the frames or in each of them.
nerfstudio's ``applied_transform`` and ``applied_scale``, which led from the world of the cameras' origin (COLMAP's) to
that of the file, are undone, so that meshes come out where the photographs' own model is.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from pytorch_lightning.utilities.rank_zero import rank_zero_info, rank_zero_warn

from datamodules.photographs import photograph_size
from datamodules.posed_photographs import ImageFinder, PosedPhotographs
from datamodules.undistortion import Lens

FILES = ("transforms.json", "transforms_train.json")
TEST_FILE = "transforms_test.json"
PINHOLE_MODELS = ("PINHOLE", "SIMPLE_PINHOLE", "OPENCV", "SIMPLE_RADIAL", "RADIAL", "PERSPECTIVE")
Frame = dict[str, Any]


def find_transforms(root: Path, given: Path | None = None) -> Path | None:
    """The file of cameras of a scene, or ``None``."""
    candidates = [given] if given else [root / name for name in FILES]
    return next((path for path in candidates if path.is_file()), None)


def read_transforms(path: Path, finder: ImageFinder) -> PosedPhotographs:
    """Read the cameras of a file, and of the ``transforms_test.json`` beside it as held-out photographs.

    Args:
        path: the file.
        finder: of the photographs.

    Raises:
        ValueError: the file is broken, a camera is none, or most of the photographs are missing.
    """
    content = _load(path)
    frames = _frames(content, path)
    test_path = path.with_name(TEST_FILE)
    tests = []
    if test_path.is_file() and path.name != TEST_FILE:
        tests = _frames(_load(test_path), test_path)
    held_out = {str(name) for name in content.get("test_filenames", [])}
    found = _existing(frames, path, finder) + (_existing(tests, test_path, finder) if tests else [])
    first_test = len(found) - sum(frame["file"] == test_path for frame, _ in found)
    cameras = [_camera(frame, image) for frame, image in found]
    to_origin, scale = _to_origin(content, path)
    poses = np.stack([_pose(frame) for frame, _ in found])
    poses[:, :3, 3] /= scale
    poses = to_origin @ poses
    points = _points(content, path)
    named_masks = [frame.get("mask_path") for frame, _ in found]
    return PosedPhotographs(
        source=path,
        paths=[image for _, image in found],
        intrinsics=np.stack([intrinsics for intrinsics, _, _ in cameras]),
        sizes=np.array([size for _, size, _ in cameras]),
        lenses=[lens for _, _, lens in cameras],
        camera_to_world=poses,
        is_upright=True,
        points=None if points is None else points / scale @ to_origin[:3, :3].T + to_origin[:3, 3],
        mask_paths=[None if name is None else finder.find(name, path.parent) for name in named_masks],
        test_views=[
            view
            for view, (frame, _) in enumerate(found)
            if view >= first_test or str(frame.get("file_path")) in held_out
        ],
        sphere=_sphere(content, path, to_origin, scale),
    )


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON ({error}); copy or write it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected an object with 'frames'")
    return content


def _frames(content: dict[str, Any], path: Path) -> list[Frame]:
    """The frames, each with what the file says of all, and with its file for errors."""
    frames = content.get("frames")
    if not isinstance(frames, list) or not frames:
        raise ValueError(f"{path} has no 'frames'; expected a list with file_path and transform_matrix of each")
    for number, frame in enumerate(frames):
        missing = {"file_path", "transform_matrix"} - set(frame)
        if missing:
            raise ValueError(f"{path}: frame {number} has no {sorted(missing)[0]}")
    shared = {key: value for key, value in content.items() if key != "frames"}
    return [{**shared, **frame, "file": path} for frame in frames]


def _existing(frames: list[Frame], path: Path, finder: ImageFinder) -> list[tuple[Frame, Path]]:
    found = [(frame, finder.find(frame["file_path"], path.parent)) for frame in frames]
    missing = [frame["file_path"] for frame, image in found if image is None]
    if 2 * len(missing) > len(frames):
        raise ValueError(
            f"{path}: {len(missing)} of its {len(frames)} photographs are not there, {missing[0]} for instance; looked "
            f"in {path.parent} and, by name, in {', '.join(str(folder) for folder in finder.folders)}; check root, or "
            "set images to their folder"
        )
    if missing:
        rank_zero_warn(
            f"{path}: {len(missing)} of its {len(frames)} photographs are not there and left out: "
            f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}"
        )
    return [(frame, image) for frame, image in found if image is not None]


def _where(frame: Frame) -> str:
    return f"{frame['file']}: {frame['file_path']}"


def _number(frame: Frame, key: str, default: float | None = None) -> float:
    value = frame.get(key, default)
    if value is None:
        raise ValueError(f"{_where(frame)} has no focal length; expected camera_angle_x (radians) or fl_x (pixels)")
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{_where(frame)}: {key} is {value!r}, expected a finite number")
    return float(value)


def _camera(frame: Frame, image: Path) -> tuple[np.ndarray, tuple[int, int], Lens]:
    """Intrinsics, (height, width) and lens of one frame."""
    (height, width), orientation = photograph_size(image)
    if orientation >= 5:
        height, width = width, height
    height, width = (int(_number(frame, key, size)) for key, size in (("h", height), ("w", width)))
    if "fl_x" in frame or "camera_angle_x" not in frame:
        focal_x = _number(frame, "fl_x")
    else:
        focal_x = width / 2 / math.tan(_number(frame, "camera_angle_x") / 2)
    if "fl_y" in frame or "camera_angle_y" not in frame or "fl_x" in frame:
        focal_y = _number(frame, "fl_y", focal_x)
    else:
        focal_y = height / 2 / math.tan(_number(frame, "camera_angle_y") / 2)
    if min(focal_x, focal_y, height, width) <= 0:
        raise ValueError(f"{_where(frame)}: focal lengths {focal_x}, {focal_y}, {width}x{height} pixels, expected > 0")
    skew = _number(frame, "sk_x", 0)
    center = [_number(frame, "cx", width / 2), _number(frame, "cy", height / 2)]
    intrinsics = np.array([[focal_x, skew, center[0]], [0, focal_y, center[1]], [0, 0, 1]])
    return intrinsics, (height, width), _lens(frame)


def _lens(frame: Frame) -> Lens:
    model = str(frame.get("camera_model", "OPENCV")).upper()
    is_fisheye = bool(frame.get("is_fisheye")) or "FISHEYE" in model
    if not is_fisheye and model not in PINHOLE_MODELS:
        raise ValueError(
            f"{_where(frame)}: camera_model {model} is not supported; expected one of {', '.join(PINHOLE_MODELS)}, "
            "OPENCV_FISHEYE; undistort the photographs first"
        )
    radial = tuple(_number(frame, key, 0) for key in ("k1", "k2", "k3", "k4"))
    # a pinhole may carry the zeros, or the remains, of another model
    if model in ("PINHOLE", "SIMPLE_PINHOLE"):
        return Lens()
    return Lens(radial, (_number(frame, "p1", 0), _number(frame, "p2", 0)), is_fisheye=is_fisheye)


def _matrix(value: Any, rows: tuple[int, ...], what: str) -> np.ndarray:
    """(4, 4) float64 of a matrix whose last row may be left out."""
    try:
        matrix = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} is no matrix of numbers") from error
    if matrix.ndim != 2 or matrix.shape[1] != 4 or matrix.shape[0] not in rows:
        raise ValueError(f"{what} has shape {matrix.shape}, expected (4, 4)")
    if not np.isfinite(matrix).all():
        raise ValueError(f"{what} has entries that are not finite:\n{matrix}")
    return np.vstack([matrix, [0, 0, 0, 1]]) if len(matrix) == 3 else matrix


def _pose(frame: Frame) -> np.ndarray:
    pose = _matrix(frame["transform_matrix"], (3, 4), f"{_where(frame)}: transform_matrix")
    # cameras parented to something scaled carry its scale
    scale = np.cbrt(np.linalg.det(pose[:3, :3]))
    rotation = pose[:3, :3] / scale if scale > 0 else pose[:3, :3]
    if not scale > 0 or np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-2:
        raise ValueError(
            f"{_where(frame)}: transform_matrix is no pose: its left 3x3 part has determinant {scale**3:.6g} and is no "
            "rotation; expected camera to world, OpenGL axes, not mirrored"
        )
    left, _, right = np.linalg.svd(rotation)
    pose[:3, :3] = left @ right
    return pose @ np.diag([1.0, -1.0, -1.0, 1.0])


def _to_origin(content: dict[str, Any], path: Path) -> tuple[np.ndarray, float]:
    """Rigid motion (4, 4) and scale: positions of the file, divided by the scale and moved, are those of the origin."""
    scale = content.get("applied_scale", 1.0)
    if not isinstance(scale, (int, float)) or not 0 < scale < math.inf:
        raise ValueError(f"{path}: applied_scale is {scale!r}, expected a positive number")
    if "applied_transform" not in content:
        return np.eye(4), float(scale)
    applied = _matrix(content["applied_transform"], (3, 4), f"{path}: applied_transform")
    if np.abs(applied[:3, :3] @ applied[:3, :3].T - np.eye(3)).max() > 1e-3 or np.linalg.det(applied[:3, :3]) < 0:
        raise ValueError(f"{path}: applied_transform is no rotation and translation:\n{applied}")
    # nerfstudio scales after it has moved
    return np.linalg.inv(applied), float(scale)


def _points(content: dict[str, Any], path: Path) -> np.ndarray | None:
    """nerfstudio's point cloud, in the frame of the file."""
    name = content.get("ply_file_path")
    if not name or not (path.parent / name).is_file():
        return None
    return np.asarray(trimesh.load(path.parent / name, process=False).vertices, dtype=np.float64)


def _sphere(content: dict[str, Any], path: Path, to_origin: np.ndarray, scale: float) -> np.ndarray | None:
    """Centre and radius (4,), or ``None`` where the file gives none."""
    if "sphere_center" in content and "sphere_radius" in content:
        key, values = "sphere_center, sphere_radius", [*content["sphere_center"], content["sphere_radius"]]
    else:
        key = next((key for key in ("aabb_range", "aabb") if key in content), None)
        if key is None:
            return None
        box = np.array(content[key], dtype=np.float64)
        if box.shape not in ((3, 2), (2, 3)):
            raise ValueError(f"{path}: {key} has shape {box.shape}, expected [[x_min, x_max], ...] or [min, max]")
        low, high = box.T if box.shape == (3, 2) else box
        values = [*(low + high) / 2, np.linalg.norm(high - low) / 2]
    sphere = np.array(values, dtype=np.float64)
    if sphere.shape != (4,) or not np.isfinite(sphere).all() or not sphere[3] > 0:
        raise ValueError(f"{path}: {key} gives {sphere.tolist()}, expected a centre (3) and a positive radius")
    rank_zero_info(f"{path.name} gives the scene's sphere ({key})")
    sphere[:3] = to_origin[:3, :3] @ (sphere[:3] / scale) + to_origin[:3, 3]
    sphere[3] /= scale
    return sphere
