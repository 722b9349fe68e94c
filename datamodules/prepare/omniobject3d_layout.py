"""Write objects as OmniObject3D lays them out: scans, Blender's renderings, the 24 views, videos, point clouds.

``python -m datamodules.prepare.omniobject3d_layout --output DIR`` writes procedural objects, so that whatever reads
OmniObject3D can be tried without a download. As there, scans stand off the origin and renderings are not centred.
"""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import trimesh
from PIL import Image
from scipy.spatial.transform import Rotation
from torch import Tensor

from datamodules.blender_depth import ray_lengths
from datamodules.exr import write_exr
from datamodules.omniobject3d_files import LARGEST_COORDINATE, UPRIGHT
from datamodules.synthetic_objects import ProceduralObjects
from ops.cameras import look_at
from ops.furniture import CATEGORIES
from ops.isosurface import extract_surface
from ops.rasterize import rasterize
from ops.types import Shape

SCAN_SCALE, SCAN_OFFSET = 80.0, (31.0, 12.0, -24.0)
BLENDER_ANGLE, VIEWS24_ANGLE = 0.6911, 0.8575
BLENDER_DISTANCE, VIEWS24_DISTANCE = math.sqrt(16.25), 1.2
VIDEO_SIMILARITY = np.array([[0, -2.5, 0, 4.0], [2.5, 0, 0, -1], [0, 0, 2.5, 7], [0, 0, 0, 1]])
CLOUD_SIZE = 1024


@dataclass(frozen=True)
class Picture:
    """What Blender would write of one view: (H, W, 4) uint8, planar depth (H, W), normals (H, W, 3)."""

    pixels: np.ndarray
    depth: np.ndarray
    normals: np.ndarray


def write_omniobject3d(
    objects: ProceduralObjects,
    root: Path,
    *,
    num_views: int = 100,
    image_size: int = 64,
    mesh_resolution: int = 48,
    planar_depth: bool = True,
) -> None:
    """Write everything of every object.

    Args:
        objects: what to write.
        root: folder to write into.
        num_views: renderings of each object, and frames of its video.
        image_size: their edge in pixels.
        mesh_resolution: of the scans.
        planar_depth: write depth along the optical axis, as newer versions of Blender do, or else along the ray.
    """
    for index, name in enumerate(objects.objects):
        scan = _scan(objects, index, mesh_resolution)
        below = Path(name.category, name.object_id)
        _write_scan(root / "raw_scans" / below / "Scan", scan)
        scale = LARGEST_COORDINATE / float(scan.vertices.abs().max())
        rendered = scan.transformed(torch.from_numpy(np.diag([scale, scale, scale, 1]) @ UPRIGHT))
        generator = np.random.default_rng(index)
        poses = _poses(num_views, BLENDER_DISTANCE, generator)
        blender = root / "blender_renders" / below / "render"
        pictures = _write_blender(blender, rendered, poses, image_size, scale, planar_depth)
        _write_views24(root / "blender_renders_24_views/img" / name.object_id, rendered, image_size, generator)
        _write_video(root / "videos_processed" / below / "standard", rendered, pictures, poses)
        points = scan.vertices[torch.from_numpy(generator.integers(len(scan.vertices), size=CLOUD_SIZE))]
        cloud = root / f"point_clouds/ply_files/{CLOUD_SIZE}" / below / f"pcd_{CLOUD_SIZE}.ply"
        cloud.parent.mkdir(parents=True)
        trimesh.PointCloud(points.numpy()).export(cloud)


def _scan(objects: ProceduralObjects, index: int, resolution: int) -> Shape:
    surface = extract_surface(objects.solid(index).level, resolution, bounds=0.55, coarse_resolution=resolution)
    return Shape(surface.vertices.double() * SCAN_SCALE + torch.tensor(SCAN_OFFSET), surface.faces)


def _write_scan(folder: Path, scan: Shape) -> None:
    folder.mkdir(parents=True)
    lines = [f"v {x:.6f} {y:.6f} {z:.6f}\n" for x, y, z in scan.vertices.tolist()]
    lines += [f"f {a} {b} {c}\n" for a, b, c in (scan.faces + 1).tolist()]
    (folder / "Scan.obj").write_text("mtllib Scan.mtl\n" + "".join(lines))
    (folder / "Scan.mtl").write_text("newmtl material0\nmap_Kd Scan.jpg\n")
    Image.new("RGB", (4, 4), (180, 120, 90)).save(folder / "Scan.jpg")


def _poses(num_views: int, distance: float, generator: np.random.Generator) -> Tensor:
    # the upper half, uniform by area as in the renderer, but never straight from above
    height, turn = generator.uniform(0.02, 0.95, num_views), generator.uniform(0, 2 * np.pi, num_views)
    out = np.sqrt(1 - height**2)
    positions = torch.from_numpy(np.stack([out * np.cos(turn), out * np.sin(turn), height], 1) * distance)
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    return torch.stack([look_at(position, torch.zeros(3, dtype=torch.float64), up) for position in positions])


def _intrinsics(angle: float, size: int) -> Tensor:
    focal = size / 2 / math.tan(angle / 2)
    return torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]], dtype=torch.float64)


def _picture(shape: Shape, intrinsics: Tensor, pose: Tensor, size: int) -> Picture:
    raster = rasterize(shape, intrinsics, pose, size, size, smooth=False)
    covered = torch.isfinite(raster["depth"])
    normals = raster["normals"].numpy()
    pixels = np.zeros((size, size, 4), np.uint8)
    pixels[..., :3] = ((0.5 + 0.4 * normals) * 255 * covered.numpy()[..., None]).astype(np.uint8)
    pixels[..., 3] = covered.numpy() * 255
    return Picture(pixels, raster["depth"].numpy(), normals)


def _transforms(poses: Tensor, angle: float, frames: list[dict]) -> str:
    flipped = poses.numpy() * np.array([1.0, -1, -1, 1])
    rows = [{**frame, "transform_matrix": pose.tolist()} for frame, pose in zip(frames, flipped, strict=True)]
    return json.dumps({"camera_angle_x": angle, "frames": rows}, indent=4)


def _write_blender(
    folder: Path, shape: Shape, poses: Tensor, size: int, scale: float, planar: bool
) -> list[Picture]:  # fmt: skip
    for name in ("images", "depths", "normals"):
        (folder / name).mkdir(parents=True)
    intrinsics = _intrinsics(BLENDER_ANGLE, size)
    lengths = ray_lengths(intrinsics, size, size)
    pictures = [_picture(shape, intrinsics, pose, size) for pose in poses]
    for view, picture in enumerate(pictures):
        Image.fromarray(picture.pixels).save(folder / f"images/r_{view}.png")
        depth = picture.depth if planar else picture.depth * lengths
        write_exr(folder / f"depths/r_{view}_depth0001.exr", {"V": np.where(np.isfinite(depth), depth, 1e10)})
        normals = (127.5 + 127.5 * picture.normals).astype(np.uint8)
        Image.fromarray(normals).save(folder / f"normals/r_{view}_normal0001.png")
    frames = [
        {"file_path": f"/mnt/renderer/{folder.parent.name}/render/r_{view}", "rotation": 0.0628, "scale": scale}
        for view in range(len(poses))
    ]
    (folder / "transforms.json").write_text(_transforms(poses, BLENDER_ANGLE, frames))
    return pictures


def _write_views24(folder: Path, shape: Shape, size: int, generator: np.random.Generator) -> None:
    # normalised in another way: centred, its longest edge 0.8
    folder.mkdir(parents=True)
    low, high = shape.vertices.min(0).values, shape.vertices.max(0).values
    smaller = Shape((shape.vertices - (low + high) / 2) * (0.8 / (high - low).max()), shape.faces)
    poses, intrinsics = _poses(24, VIEWS24_DISTANCE, generator), _intrinsics(VIEWS24_ANGLE, size)
    for view, pose in enumerate(poses):
        Image.fromarray(_picture(smaller, intrinsics, pose, size).pixels).save(folder / f"{view:03d}.png")
    (folder / "transforms.json").write_text(_transforms(poses, VIEWS24_ANGLE, [{} for _ in poses]))


def _write_video(folder: Path, shape: Shape, pictures: list[Picture], poses: Tensor) -> None:
    """The renderings as frames before a grey wall, in a frame of COLMAP's that nobody could guess."""
    for name in ("images", "matting", "sparse/0"):
        (folder / name).mkdir(parents=True)
    size = len(pictures[0].pixels)
    focal = float(_intrinsics(BLENDER_ANGLE, size)[0, 0])
    moved = VIDEO_SIMILARITY @ poses.numpy()
    moved[:, :3, :3] /= np.cbrt(np.linalg.det(VIDEO_SIMILARITY[:3, :3]))
    rows, images = [], []
    points = shape.vertices[:: max(1, len(shape.vertices) // 60)].numpy()
    points = points @ VIDEO_SIMILARITY[:3, :3].T + VIDEO_SIMILARITY[:3, 3]
    for view, (picture, pose) in enumerate(zip(pictures, moved, strict=True)):
        name = f"frame_{view:05d}"
        wall = Image.new("RGBA", (size, size), (90, 100, 110, 255))
        wall.alpha_composite(Image.fromarray(picture.pixels))
        wall.convert("RGB").save(folder / f"images/{name}.png")
        Image.fromarray(picture.pixels[..., 3]).save(folder / f"matting/{name}.png")
        right, down, forward, position = pose[:3].T
        matrix = np.stack([down, right, -forward, position, [size, size, focal]], axis=1)
        rows.append(np.concatenate([matrix.ravel(), [5.0, 20.0]]))
        seen = (points - position) @ pose[:3, :3]
        pixels = seen[:, :2] / seen[:, 2:] * focal + size / 2
        x, y, z, w = Rotation.from_matrix(pose[:3, :3].T).as_quat()
        tx, ty, tz = -pose[:3, :3].T @ position
        images.append(f"{view + 1} {w} {x} {y} {z} {tx} {ty} {tz} 1 {name}.png\n")
        images.append(" ".join(f"{u} {v} {number + 1}" for number, (u, v) in enumerate(pixels)) + "\n")
    np.save(folder / "poses_bounds.npy", np.array(rows))
    rescaled = np.array(rows)
    rescaled[:, 3:15:5] *= 0.1
    np.save(folder / "poses_bounds_rescaled.npy", rescaled)
    model = folder / "sparse/0"
    (model / "cameras.txt").write_text(f"1 SIMPLE_PINHOLE {size} {size} {focal} {size / 2} {size / 2}\n")
    (model / "images.txt").write_text("".join(images))
    tracks = [" ".join(f"{view + 1} {number}" for view in range(len(pictures))) for number in range(len(points))]
    lines = [f"{n + 1} {x} {y} {z} 128 128 128 0.3 {tracks[n]}\n" for n, (x, y, z) in enumerate(points)]
    (model / "points3D.txt").write_text("".join(lines))


def main() -> None:
    """Write procedural objects in the layout of OmniObject3D."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--objects_per_category", type=int, default=10)
    parser.add_argument("--categories", nargs="+", choices=CATEGORIES, default=list(CATEGORIES))
    parser.add_argument("--num_views", type=int, default=100, help="renderings of each object")
    parser.add_argument("--image_size", type=int, default=200)
    parser.add_argument("--mesh_resolution", type=int, default=96, help="of the scans")
    parser.add_argument("--output", required=True, type=Path, help="folder to write")
    arguments = parser.parse_args()
    objects = ProceduralObjects(arguments.categories, arguments.objects_per_category)
    write_omniobject3d(
        objects,
        arguments.output,
        num_views=arguments.num_views,
        image_size=arguments.image_size,
        mesh_resolution=arguments.mesh_resolution,
    )
    print(f"wrote {len(objects.objects)} objects into {arguments.output}")


if __name__ == "__main__":
    main()
