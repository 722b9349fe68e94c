"""Choy's cameras, those of 3D-R2N2's renderings of ShapeNet (arXiv:1604.00449): around the object, looking at it.

A view is (azimuth, elevation, distance ratio): degrees, degrees, and a share of 1.75. The renderer saw each model in
the frame of ShapeNet's first edition, where boxes have a diagonal of about 1. In the frame with a longest edge of 1 the
camera is further away, by the factor 1 / ``scale``, where ``scale`` is the longest edge there (it is in the headers of
binvox files and in ONet's npz files).
"""

from pathlib import Path

import numpy as np

IMAGE_SIZE = 137
MAX_DISTANCE = 1.75
FOCAL_MM, SENSOR_MM = 35.0, 32.0
FIELD_OF_VIEW = 25.0  # what the files say in their fifth column; the lens above is what was rendered


def intrinsics(size: int = IMAGE_SIZE) -> np.ndarray:
    """(3, 3) float64 in pixels of a picture of this size; the centre of the top-left pixel is (0.5, 0.5)."""
    focal = FOCAL_MM * size / SENSOR_MM
    return np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])


def camera_to_world(views: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """Poses in the frame in which the object's longest edge is 1.

    Args:
        views: (V, 3) azimuth and elevation in degrees, distance ratio.
        scale: longest edge of the object where it was rendered.

    Returns:
        (V, 4, 4) float64, OpenCV axes.
    """
    azimuth, elevation = np.radians(views[:, 0]), np.radians(views[:, 1])
    out = np.stack(
        [np.cos(elevation) * np.cos(azimuth), np.sin(elevation), np.cos(elevation) * np.sin(azimuth)], axis=-1
    )
    right = np.stack([np.sin(azimuth), np.zeros_like(azimuth), -np.cos(azimuth)], axis=-1)
    poses = np.tile(np.eye(4), (len(views), 1, 1))
    poses[:, :3, 0], poses[:, :3, 1], poses[:, :3, 2] = right, np.cross(-out, right), -out
    poses[:, :3, 3] = out * (views[:, 2:] * MAX_DISTANCE / scale)
    return poses


def draw_views(num_views: int, generator: np.random.Generator) -> np.ndarray:
    """(V, 3) views as Choy's are distributed: all around, 25 to 30 degrees up, 0.65 to 0.95 of the way out."""
    low, high = np.array([[0.0, 25.0, 0.65], [360.0, 30.0, 0.95]])
    return generator.uniform(low, high, (num_views, 3))


def read_metadata(path: Path) -> np.ndarray:
    """The views of ``rendering_metadata.txt``, (V, 3).

    Raises:
        ValueError: the file is missing or holds something else.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing; unpack ShapeNetRendering.tgz of 3D-R2N2 again")
    lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
    try:
        columns = np.array(lines, dtype=np.float64)
    except ValueError:
        columns = np.empty(0)
    if columns.ndim != 2 or columns.shape[1] != 5 or not np.isfinite(columns).all() or (columns[:, 3] <= 0).any():
        raise ValueError(
            f"{path}: expected lines of five numbers (azimuth, elevation, in-plane angle, distance ratio, field of "
            f"view), found {' '.join(lines[0]) if lines else 'nothing'!r}; unpack ShapeNetRendering.tgz again"
        )
    if (columns[:, 2] != 0).any():
        raise ValueError(f"{path}: cameras turned about their axis (column 3) are not Choy's, where it is 0")
    return columns[:, [0, 1, 3]]


def write_metadata(path: Path, views: np.ndarray) -> None:
    """Write ``rendering_metadata.txt``."""
    lines = [f"{azimuth!r} {elevation!r} 0 {ratio!r} 25\n" for azimuth, elevation, ratio in views.tolist()]
    path.write_text("".join(lines))
