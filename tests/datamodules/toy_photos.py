"""Folders of photographs with known cameras, written in each of the layouts that people have them in."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from datamodules.scene import Scene
from ops.cameras import look_at

HEIGHT, WIDTH, FOCAL = 24, 32, 40.0
NUM_VIEWS = 6
CENTER = np.array([3.0, -1.0, 2.0])
"""What the cameras look at; off the origin, so that nobody mistakes one frame for the other unnoticed."""


def poses(num_views: int = NUM_VIEWS) -> np.ndarray:
    """(V, 4, 4) camera to world, OpenCV axes, on two circles about ``CENTER``."""
    made = []
    for view in range(num_views):
        turn = 2 * math.pi * view / num_views
        offset = 4 * torch.tensor([math.cos(turn), math.sin(turn), 0.3 + 0.3 * (view % 2)], dtype=torch.float64)
        target = torch.from_numpy(CENTER)
        made.append(look_at(target + offset, target, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)).numpy())
    return np.reshape(made, (-1, 4, 4))


def intrinsics() -> np.ndarray:
    """(3, 3) of every photograph; the principal point is off the middle."""
    return np.array([[FOCAL, 0, WIDTH / 2 + 1], [0, FOCAL, HEIGHT / 2 - 1], [0, 0, 1]])


def points() -> np.ndarray:
    """(P, 3) points about ``CENTER`` that all photographs see."""
    return CENTER + 0.8 * np.random.default_rng(0).uniform(-1, 1, (60, 3))


def picture(view: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """(height, width, 3) uint8: every pixel says view, row and column."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([np.full_like(rows, 10 * view), rows, columns], axis=-1).astype(np.uint8)


def write_pictures(folder: Path, num_views: int = NUM_VIEWS) -> list[str]:
    """Write ``0000.png`` and so on, and return their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{view:04d}.png" for view in range(num_views)]
    for view, name in enumerate(names):
        Image.fromarray(picture(view)).save(folder / name)
    return names


def write_masks(folder: Path, names: list[str], size: tuple[int, int] = (HEIGHT, WIDTH), value: int = 255) -> None:
    """Write masks whose middle third is foreground, and mask v's pixel in the corner has the value v."""
    folder.mkdir(parents=True, exist_ok=True)
    for view, name in enumerate(names):
        mask = np.zeros(size, dtype=np.uint8)
        mask[size[0] // 3 : -size[0] // 3, size[1] // 3 : -size[1] // 3] = value
        mask[0, 0] = view if value > 1 else 0
        Image.fromarray(mask).save(folder / name)


def transforms(names: list[str], **shared: object) -> dict[str, object]:
    """The content of a transforms.json of the toy cameras; ``shared`` keys beside the frames win."""
    opengl = poses(len(names)) @ np.diag([1.0, -1, -1, 1])
    frames = [{"file_path": name, "transform_matrix": pose.tolist()} for name, pose in zip(names, opengl, strict=True)]
    cameras = {"fl_x": FOCAL, "fl_y": FOCAL, "cx": WIDTH / 2 + 1, "cy": HEIGHT / 2 - 1, "w": WIDTH, "h": HEIGHT}
    return {**cameras, **shared, "frames": frames}


def write_json(path: Path, content: dict[str, object]) -> None:
    """Write a file of cameras."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_photo_folder(root: Path, with_masks: bool = False, **shared: object) -> None:
    """Photographs in ``images/`` and their transforms.json."""
    names = write_pictures(root / "images")
    write_json(root / "transforms.json", transforms([f"images/{name}" for name in names], **shared))
    if with_masks:
        write_masks(root / "masks", names)


def write_colmap(folder: Path, names: list[str], is_text: bool = False) -> None:
    """Write a COLMAP model of the toy cameras, with points that lie where ``points`` says."""
    write_model(folder, names, [intrinsics()] * len(names), poses(len(names)), points(), (HEIGHT, WIDTH), is_text)


def write_model(
    folder: Path,
    names: list[str],
    matrices: Sequence[np.ndarray],
    camera_to_world: np.ndarray,
    points: np.ndarray,
    size: tuple[int, int],
    is_text: bool = False,
) -> None:
    """Write a COLMAP model: a camera (3, 3) and a pose (4, 4) a photograph, points (P, 3) that all of them see."""
    import pycolmap

    model = pycolmap.Reconstruction()
    world_to_camera = np.linalg.inv(camera_to_world)
    for view, (name, matrix) in enumerate(zip(names, matrices, strict=True)):
        camera = pycolmap.Camera.create_from_model_name(view + 1, "PINHOLE", 1, size[1], size[0])
        camera.params = [matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]]
        model.add_camera_with_trivial_rig(camera)
        in_camera = points @ world_to_camera[view, :3, :3].T + world_to_camera[view, :3, 3]
        pixels = in_camera @ matrix.T
        image = pycolmap.Image(name, pixels[:, :2] / pixels[:, 2:], camera_id=view + 1, image_id=view + 1)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(world_to_camera[view, :3]))
    for number, point in enumerate(points):
        model.add_point3D(point, pycolmap.Track([pycolmap.TrackElement(v + 1, number) for v in range(len(names))]))
    model.update_point_3d_errors()
    folder.mkdir(parents=True, exist_ok=True)
    (model.write_text if is_text else model.write_binary)(str(folder))


def write_scene(scene: Scene, root: Path) -> None:
    """Write a scene as photographs with a transforms.json that gives its unit sphere, and a COLMAP model beside it."""
    (root / "images").mkdir(parents=True)
    names = [f"{view:04d}.png" for view in range(len(scene.images))]
    matrices, camera_to_world = scene.intrinsics.double().numpy(), scene.camera_to_world.double().numpy()
    frames = []
    for name, image, matrix, pose in zip(names, scene.images.numpy(), matrices, camera_to_world, strict=True):
        Image.fromarray(image).save(root / "images" / name)
        camera = {"fl_x": matrix[0, 0], "fl_y": matrix[1, 1], "cx": matrix[0, 2], "cy": matrix[1, 2]}
        opengl = pose @ np.diag([1.0, -1, -1, 1])
        frames.append({"file_path": f"images/{name}", "transform_matrix": opengl.tolist(), **camera})
    write_json(root / "transforms.json", {"frames": frames, "sphere_center": [0, 0, 0], "sphere_radius": 1})
    points, size = scene.surface_points[:200].double().numpy(), scene.images.shape[1:3]
    write_model(root / "sparse/0", names, matrices, camera_to_world, points, size)
