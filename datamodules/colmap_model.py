"""Cameras and points from a COLMAP model, text or binary, from before and after rigs and frames came to it."""

import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from lightning_utilities.core.imports import RequirementCache
from pytorch_lightning.utilities.rank_zero import rank_zero_info, rank_zero_warn

from datamodules.posed_photographs import ImageFinder, PosedPhotographs
from datamodules.tracks import Tracks
from datamodules.undistortion import Lens

if TYPE_CHECKING:
    import pycolmap

PYCOLMAP = RequirementCache("pycolmap")

MODEL_FOLDERS = ("sparse/0", "sparse", "colmap/sparse/0", "colmap/sparse")
NEEDED = ("cameras", "images", "points3D")
NUM_PARAMETERS = (3, 4, 4, 5, 8, 8, 12, 5, 4, 5, 12, 16, 4, 5, 3, 4, 6, 2)
"""Of each of COLMAP's camera models, by its number."""


def needs_pycolmap(what: str) -> None:
    """Refuse to go on without pycolmap.

    Raises:
        ModuleNotFoundError: it is not installed; says how.
    """
    if not PYCOLMAP:
        raise ModuleNotFoundError(f'{what} needs pycolmap: pip install -e ".[sfm]", or pip install pycolmap')


def is_model(folder: Path) -> bool:
    """Whether a folder holds a COLMAP model."""
    return any(all((folder / f"{name}{suffix}").is_file() for name in NEEDED[:2]) for suffix in (".bin", ".txt"))


def find_model(root: Path, given: Path | None = None) -> Path | None:
    """The folder of a scene's COLMAP model, or ``None``."""
    candidates = [given] if given else [root / name for name in MODEL_FOLDERS]
    return next((folder for folder in candidates if is_model(folder)), None)


def read_colmap_model(folder: Path, finder: ImageFinder, is_upright: bool = False) -> PosedPhotographs:
    """Read the posed photographs of a model and its points.

    Args:
        folder: with cameras, images and points3D, .bin or .txt.
        finder: of the photographs.
        is_upright: the model was made of photographs turned as their EXIF data say; COLMAP itself ignores them.

    Raises:
        ModuleNotFoundError: pycolmap is not installed.
        ValueError: the model is broken, has no posed photograph, or most of its photographs are missing.
    """
    model = load_model(folder)
    posed = sorted((image for image in model.images.values() if image.has_pose), key=lambda image: image.name)
    if not posed:
        raise ValueError(f"{folder}: the COLMAP model has no posed photograph")
    found = [(image, path) for image in posed if (path := finder.find(image.name)) is not None]
    missing = sorted({image.name for image in posed} - {image.name for image, _ in found})
    if 2 * len(missing) > len(posed):
        raise ValueError(
            f"{folder}: {len(missing)} of the {len(posed)} photographs of the COLMAP model are not there, {missing[0]} "
            f"for instance; looked in {', '.join(str(place) for place in finder.folders)}; set images to their folder"
        )
    if missing:
        rank_zero_warn(f"{folder}: {len(missing)} photographs are not there and left out: {', '.join(missing[:5])}")
    cameras = [model.cameras[image.camera_id] for image, _ in found]
    return PosedPhotographs(
        source=folder,
        paths=[path for _, path in found],
        intrinsics=np.stack([camera.calibration_matrix() for camera in cameras]),
        sizes=np.array([(camera.height, camera.width) for camera in cameras]),
        lenses=[lens_of(camera, folder) for camera in cameras],
        camera_to_world=np.stack([_camera_to_world(image) for image, _ in found]),
        is_upright=is_upright,
        tracks=_tracks(model, [image for image, _ in found]),
    )


def load_model(folder: Path) -> "pycolmap.Reconstruction":
    """The model as pycolmap has it.

    Raises:
        ModuleNotFoundError: pycolmap is not installed.
        ValueError: a file is missing, truncated or not COLMAP's.
    """
    needs_pycolmap(f"reading the COLMAP model {folder}")
    import pycolmap

    suffix = ".bin" if all((folder / f"{name}.bin").is_file() for name in NEEDED) else ".txt"
    absent = [f"{name}{suffix}" for name in NEEDED if not (folder / f"{name}{suffix}").is_file()]
    if absent:
        raise ValueError(f"{folder} lacks {', '.join(absent)}; a COLMAP model is cameras, images and points3D")
    (check_binary_model if suffix == ".bin" else check_text_model)(folder)
    pycolmap.logging.minloglevel = pycolmap.logging.Level.FATAL.value
    model = pycolmap.Reconstruction()
    try:
        (model.read_binary if suffix == ".bin" else model.read_text)(str(folder))
    except (ValueError, IndexError, KeyError, RuntimeError) as error:
        raise ValueError(f"{folder}: the COLMAP model is broken ({error}); copy or compute it again") from error
    return model


def check_text_model(folder: Path) -> None:
    """Count the records of the .txt files and their words: pycolmap takes what is left of truncated ones for the whole.

    Raises:
        ValueError: a record has too few words, or there are not as many as the file's own header says.
    """
    for name in NEEDED:
        path = folder / f"{name}.txt"
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        records = [line.split() for line in lines if not line.startswith("#")]
        if name == "images":
            # two lines each: the pose, and what was seen, which may be nothing
            if len(records) % 2 and not records[-1]:
                records.pop()
            records, points = records[::2], records[1::2]
            is_whole = len(records) == len(points) and all(len(line) % 3 == 0 for line in points)
            is_whole = is_whole and all(len(line) >= 10 for line in records)
        else:
            records = [line for line in records if line]
            is_cameras = name == "cameras"
            is_whole = all(len(line) >= (5 if is_cameras else 8) for line in records)
            is_whole = is_whole and (is_cameras or all(len(line) % 2 == 0 for line in records))
        header = next((line for line in lines if line.startswith("# Number of")), "")
        stated = re.match(r"# Number of [A-Za-z]+: (\d+)", header)
        if not is_whole or (stated and int(stated[1]) != len(records)):
            said = f"its header says {stated[1]}" if stated else "of which the last is not whole"
            raise ValueError(f"{path} is truncated or broken: it has {len(records)} records, {said}; copy it again")


def check_binary_model(folder: Path) -> None:
    """Walk through the records of the .bin files: pycolmap reads truncated ones as garbage, or stops the process.

    Raises:
        ValueError: a file ends before its last record or goes on after it.
    """
    walks = {
        "cameras.bin": _walk_cameras,
        "images.bin": _walk_images,
        "points3D.bin": _walk_points,
        "rigs.bin": _walk_rigs,
        "frames.bin": _walk_frames,
    }
    for name, walk in walks.items():
        path = folder / name
        if not path.is_file():
            continue  # models from before rigs and frames
        content = path.read_bytes()
        try:
            (count,) = struct.unpack_from("<Q", content, 0)
            end = _walked(content, count, walk)
        except (struct.error, ValueError, IndexError) as error:
            raise ValueError(
                f"{path} ends too early or is broken: {len(content)} bytes do not hold its records; copy it again"
            ) from error
        if end != len(content):
            raise ValueError(f"{path} has {len(content)} bytes, but its records take {end}; copy it again")


def _walked(content: bytes, count: int, walk: Callable[[bytes, int], int]) -> int:
    position = 8
    for _ in range(count):
        position = walk(content, position)
        if position > len(content):
            raise ValueError("a record goes on behind the end")
    return position


def _walk_cameras(content: bytes, position: int) -> int:
    _, model, _, _ = struct.unpack_from("<IiQQ", content, position)
    return position + 24 + 8 * NUM_PARAMETERS[model]


def _walk_images(content: bytes, position: int) -> int:
    # number, rotation and translation, camera; the name up to a zero; points
    end_of_name = content.index(b"\0", position + 64)
    (num_points,) = struct.unpack_from("<Q", content, end_of_name + 1)
    return end_of_name + 9 + 24 * num_points


def _walk_points(content: bytes, position: int) -> int:
    (length,) = struct.unpack_from("<Q", content, position + 43)
    return position + 51 + 8 * length


def _walk_rigs(content: bytes, position: int) -> int:
    _, num_sensors = struct.unpack_from("<II", content, position)
    position += 8 + (8 if num_sensors else 0)
    for _ in range(num_sensors - 1):
        (has_pose,) = struct.unpack_from("<B", content, position + 8)
        position += 9 + (56 if has_pose else 0)
    return position


def _walk_frames(content: bytes, position: int) -> int:
    (num_data,) = struct.unpack_from("<I", content, position + 64)
    return position + 68 + 16 * num_data


def lens_of(camera: "pycolmap.Camera", folder: Path) -> Lens:
    """The lens of one of COLMAP's cameras.

    Raises:
        ValueError: a model of which no undistortion is known here.
    """
    model = camera.model_name
    extra = [float(camera.params[index]) for index in camera.extra_params_idxs()]
    match model:
        case "SIMPLE_PINHOLE" | "PINHOLE":
            return Lens()
        case "SIMPLE_RADIAL" | "RADIAL":
            return Lens(radial=tuple(extra))
        case "OPENCV":
            return Lens(tuple(extra[:2]), (extra[2], extra[3]))
        case "FULL_OPENCV":
            return Lens((*extra[:2], extra[4]), (extra[2], extra[3]), tuple(extra[5:]))
        case "SIMPLE_FISHEYE" | "FISHEYE" | "SIMPLE_RADIAL_FISHEYE" | "RADIAL_FISHEYE" | "OPENCV_FISHEYE":
            return Lens(tuple(extra), is_fisheye=True)
    raise ValueError(
        f"{folder}: photographs of COLMAP's camera model {model} cannot be undistorted here; run COLMAP's "
        "image_undistorter first and give its output"
    )


def _camera_to_world(image: "pycolmap.Image") -> np.ndarray:
    world_to_camera = np.vstack([image.cam_from_world().matrix(), [0, 0, 0, 1]])
    return np.linalg.inv(world_to_camera)


def _tracks(model: "pycolmap.Reconstruction", images: list["pycolmap.Image"]) -> Tracks | None:
    view_of_id = {image.image_id: view for view, image in enumerate(images)}
    points = list(model.points3D.values())
    if not points:
        rank_zero_info("the COLMAP model has no points")
        return None
    entries = [
        (view_of_id[element.image_id], number)
        for number, point in enumerate(points)
        for element in point.track.elements
        if element.image_id in view_of_id
    ]
    xyz, errors = np.array([point.xyz for point in points]), np.array([point.error for point in points])
    return Tracks.from_entries(xyz, errors, np.array(entries, dtype=np.int64), len(images))
