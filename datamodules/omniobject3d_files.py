"""OmniObject3D's files: which objects are there, and their pictures and cameras.

Below the root, as its archives unpack (each object is a .tar.gz of its own):

- ``raw_scans/<category>/<object>/Scan/Scan.obj``: the scan, y up, in its own frame
- ``blender_renders/<category>/<object>/render/`` with ``transforms.json``, ``images/r_0.png``,
  ``depths/r_0_depth*.exr`` and ``normals/`` (which nothing here reads); the level of the category or that of
  ``render`` may be missing
- ``blender_renders_24_views/img/<object>/`` with ``transforms.json`` and ``000.png``
- ``videos_processed/<category>/<object>/standard/`` with ``images/``, ``matting/``, ``poses_bounds.npy``, ``sparse/``
- ``point_clouds/ply_files/<number>/<category>/<object>/pcd_<number>.ply``, in the frame of the scan. The HDF5 files
  beside them do not say which row is which object, so they are not read

The *render frame* is that of blender_renders: the scan turned upright (x, y, z -> x, -z, y, Blender's import) and
multiplied by ``scale``, which brings its largest coordinate to 0.99. It is not centred there, and may reach out of the
unit sphere. OmniObject3D's own evaluation works in this frame. How the frame of the 24 views or of the videos lies to
it is not documented.
"""

import json
import math
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules.packed import decoded, stacked
from ops.cameras import project

Kind = Literal["blender_renders", "blender_renders_24_views", "videos_processed", "raw_scans", "point_clouds"]
SCAN_NAME = "Scan.obj"
LARGEST_COORDINATE = 0.99
UPRIGHT = np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
"""Scan to render frame, but for its scale: what Blender's import of .obj does to y-up models."""

_PATTERNS: dict[str, tuple[str, ...]] = {
    "blender_renders": ("*/render/transforms.json", "*/*/render/transforms.json", "*/*/transforms.json"),
    "blender_renders_24_views": ("*/transforms.json", "*/*/transforms.json"),
    "videos_processed": ("*/standard/images", "*/*/standard/images"),
    "raw_scans": ("*/Scan/*.obj", "*/*/Scan/*.obj"),
    "point_clouds": ("ply_files/*/*/*/*.ply", "ply_files/*/*/*.ply"),
}
# folders between the root of a kind and an object that are no category
_LEVELS = {"img", "render", "standard", "images", "Scan", "ply_files"}


@dataclass(frozen=True)
class FoundObject:
    """Where an object's files are; ``paths`` holds a folder for each kind of views, a file for scan and cloud."""

    object_id: str
    category: str
    paths: dict[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Frames:
    """Pictures of one object with their cameras.

    Attributes:
        paths: V files.
        field_of_view: horizontal, radians.
        camera_to_world: (V, 4, 4) float64, OpenCV axes.
        scale: what the scan was multiplied by to be rendered; ``None`` where the file does not say.
    """

    paths: list[Path]
    field_of_view: float
    camera_to_world: np.ndarray
    scale: float | None

    def intrinsics(self, size: tuple[int, int]) -> np.ndarray:
        """(3, 3) for pictures of (height, width)."""
        focal = size[1] / 2 / math.tan(self.field_of_view / 2)
        return np.array([[focal, 0, size[1] / 2], [0, focal, size[0] / 2], [0, 0, 1]])


def find_objects(root: Path) -> list[FoundObject]:
    """Every object that has any files, sorted by category and name.

    Raises:
        ValueError: there are none; archives that are still packed are named.
    """
    if not root.is_dir():
        raise ValueError(f"OmniObject3D: the root {root} is no folder; {_expected()}")
    base = root / "raw" if (root / "raw").is_dir() and not _kinds_of(root) else root
    paths: dict[tuple[str, str], dict[str, Path]] = {}
    for kind in _kinds_of(base):
        for pattern in _PATTERNS[kind]:
            for path in sorted((base / kind).glob(pattern)):
                name, at = _object_of(kind, path, base / kind)
                _keep(paths.setdefault(name, {}), kind, at)
    if not paths:
        packed = next(base.rglob("*.tar.gz"), None)
        if packed is not None:
            raise ValueError(f"OmniObject3D: {root} holds archives only, {packed} for one; unpack them where they are")
        raise ValueError(f"OmniObject3D: nothing of it is in {root}; {_expected()}")
    return [FoundObject(object_id, category, found) for (category, object_id), found in sorted(paths.items())]


def _kinds_of(base: Path) -> list[str]:
    return [kind for kind in get_args(Kind) if (base / kind).is_dir()]


def _expected() -> str:
    return f"expected a folder with {', '.join(f'{kind}/' for kind in get_args(Kind))} in it, or some of them"


def _object_of(kind: str, path: Path, base: Path) -> tuple[tuple[str, str], Path]:
    parts = path.relative_to(base).parts[: None if kind == "point_clouds" else -1]
    levels = [part for part in parts if part not in _LEVELS and not part.isdigit()]
    if kind == "point_clouds" and len(levels) == 3:
        levels = levels[:2]  # pcd_1024.ply in the folder of its object
    object_id = levels[-1].removesuffix(".ply")
    category = levels[-2] if len(levels) > 1 else re.sub(r"_\d+$", "", object_id)
    return (category, object_id), path if kind in ("raw_scans", "point_clouds") else path.parent


def _keep(found: dict[str, Path], kind: str, path: Path) -> None:
    # of several scans that of the usual name, of several clouds the one with most points
    if kind == "point_clouds" and kind in found:
        path = max(found[kind], path, key=lambda file: max([int(part) for part in file.parts if part.isdigit()] or [0]))
    if kind not in found or kind == "point_clouds" or path.name == SCAN_NAME:
        found[kind] = path


def read_frames(folder: Path) -> Frames:
    """The pictures and cameras that a ``transforms.json`` of Blender lists.

    Of ``file_path`` only the last part counts: it may be absolute, on the machine that rendered. Where it is missing,
    pictures are ``000.png``, ``001.png`` and so on.

    Args:
        folder: with ``transforms.json``, and pictures in it or in its ``images/``.

    Raises:
        ValueError: the file or a picture is missing, or a camera is none.
    """
    path = folder / "transforms.json"
    if not path.is_file():
        raise ValueError(f"{path} is missing; unpack the object's archive again")
    try:
        content = json.loads(path.read_text())
        angle = float(content["camera_angle_x"])
        frames = list(content["frames"])
        poses = np.array([frame["transform_matrix"] for frame in frames], dtype=np.float64)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: expected camera_angle_x and frames with a transform_matrix each, as Blender's scripts write them "
            f"({error!r}); unpack the object's archive again"
        ) from error
    if not 0 < angle < math.pi or poses.shape != (len(frames), 4, 4) or len(frames) == 0:
        raise ValueError(
            f"{path}: camera_angle_x is {angle} and the {len(frames)} transform_matrix are an array of {poses.shape}; "
            "expected an angle between 0 and pi, and 4x4 matrices"
        )
    for number, pose in enumerate(poses):
        if not np.isfinite(pose).all() or abs(np.linalg.det(pose[:3, :3]) - 1) > 1e-3:
            raise ValueError(f"{path}: transform_matrix of frame {number} is no camera's pose:\n{pose}")
    poses[:, :3, 1:3] *= -1  # Blender's cameras look along -z with y up
    scales = {float(frame["scale"]) for frame in frames if "scale" in frame}
    if len(scales) > 1:
        raise ValueError(f"{path}: frames with different scale, {sorted(scales)[:3]}; one object has one")
    return Frames(_pictures(folder, frames), angle, poses, next(iter(scales), None))


def _pictures(folder: Path, frames: Sequence[dict[str, Any]]) -> list[Path]:
    pictures = folder / "images" if (folder / "images").is_dir() else folder
    names = [
        PurePosixPath(str(frame.get("file_path", f"{number:03d}")).replace("\\", "/")).name.removesuffix(".png")
        for number, frame in enumerate(frames)
    ]
    paths = [pictures / f"{name}.png" for name in names]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise ValueError(
            f"{missing[0]} is missing, as {len(missing)} of the {len(paths)} pictures of {folder / 'transforms.json'}; "
            "unpack the object's archive again"
        )
    return paths


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) of a picture, from its header."""
    try:
        with Image.open(path) as file:
            return file.height, file.width
    except OSError as error:
        raise ValueError(f"{path} cannot be read as an image ({error}); unpack the object's archive again") from error


def read_pictures(paths: Sequence[Path], downscale: int = 1) -> np.ndarray:
    """(V, H, W, 3) or, where pictures have alpha, (V, H, W, 4) uint8, made smaller by area averaging.

    Raises:
        ValueError: one is broken, of another size than the first, or too small for ``downscale``.
    """
    if downscale < 1:
        raise ValueError(f"downscale is {downscale}, expected a whole factor of at least 1")
    with ThreadPoolExecutor() as pool:  # decoding holds no interpreter lock
        pictures = list(pool.map(partial(_picture, downscale=downscale), paths))
    for path, picture in zip(paths, pictures, strict=True):
        if picture.shape[:2] != pictures[0].shape[:2]:
            raise ValueError(
                f"{path} has {picture.shape[1]}x{picture.shape[0]} pixels, but {paths[0].name} has "
                f"{pictures[0].shape[1]}x{pictures[0].shape[0]}; pictures of an object have one size"
            )
    return stacked(pictures)


def _picture(path: Path, downscale: int) -> np.ndarray:
    pixels = decoded(path, str(path))
    height, width = (edge // downscale * downscale for edge in pixels.shape[:2])
    if min(height, width) == 0:
        raise ValueError(f"{path} has too few pixels to be made {downscale} times smaller")
    if downscale == 1:
        return pixels
    image = Image.fromarray(pixels[:height, :width])
    # colours are averaged by their alpha, or the black behind the object would bleed into its edge
    return np.asarray(
        image.convert("RGBa").reduce(downscale).convert("RGBA") if image.mode == "RGBA" else image.reduce(downscale)
    )


def share_inside(points: np.ndarray, masks: Tensor, intrinsics: Tensor, poses: Tensor) -> float:
    """Mean share of (N, 3) points that project onto the foreground, or within two pixels of it.

    Args:
        points: of the whole object.
        masks: (V, H, W) uint8.
        intrinsics: (3, 3).
        poses: (V, 4, 4).
    """
    shares = []
    for mask, pose in zip(masks, poses, strict=True):
        wide = torch.nn.functional.max_pool2d((mask > 127).float()[None], 5, stride=1, padding=2)[0]
        pixels, depth = project(torch.from_numpy(points), intrinsics.double(), pose.double())
        x, y = pixels.floor().long().T
        inside = (depth > 0) & (x >= 0) & (y >= 0) & (x < wide.shape[1]) & (y < wide.shape[0])
        shares.append(float(wide[y[inside], x[inside]].sum()) / len(points))
    return float(np.mean(shares))
