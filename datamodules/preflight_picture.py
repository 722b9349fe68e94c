"""What the check before training saw: a picture and a point cloud of cameras, unit sphere and sparse points."""

import textwrap
from typing import TYPE_CHECKING

import numpy as np
import torch
import trimesh
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torch import Tensor

from datamodules.optical_axes import Cameras

if TYPE_CHECKING:
    from datamodules.scene import Scene

Color = tuple[int, int, int]
SPHERE: Color = (20, 150, 60)
CAMERA: Color = (30, 90, 200)
HELD_OUT: Color = (230, 150, 30)
INSIDE: Color = (200, 30, 40)
OUTSIDE: Color = (150, 150, 150)
MASK: Color = (220, 40, 220)
LEGEND: tuple[tuple[str, Color], ...] = (
    ("unit sphere", SPHERE), ("training camera", CAMERA), ("held-out camera", HELD_OUT),
    ("sparse point inside", INSIDE), ("outside", OUTSIDE), ("edge of the mask", MASK),
)  # fmt: skip
PLOT_SIZE, NUM_PHOTOGRAPHS, GUTTER, TEXT_SIZE, TEXT_WIDTH = 570, 6, 8, 16, 140
FRUSTUM_SHARE = 0.12
"""Depth of a drawn frustum, of the plot's half width."""


def overview(
    scene: "Scene", views: list[int], points: np.ndarray | None, sizes: Tensor, lines: list[str]
) -> Image.Image:
    """Cameras, sphere and points from above and from the side, and a few photographs with sphere and points drawn in.

    Args:
        scene: what to show.
        views: its training photographs.
        points: (P, 3) sparse points, normalised frame.
        sizes: (V, 2) height and width of every photograph.
        lines: sentences to write above.
    """
    points = np.zeros((0, 3)) if points is None else points
    up, right, front = _axes_of(scene)
    plots = [
        _plot(scene, views, points, sizes, np.stack(plane), title)
        for title, plane in (("from above", (right, -front)), ("from the side", (right, up)))
    ]
    chosen = np.unique(np.linspace(0, len(views) - 1, min(NUM_PHOTOGRAPHS, len(views))).round().astype(int))
    edge = (2 * PLOT_SIZE - GUTTER) // 3
    photographs = [_photograph(scene, views[k], points, sizes, edge) for k in chosen]
    return _page(plots, photographs, lines)


def point_cloud(scene: "Scene", views: list[int], points: np.ndarray | None, sizes: Tensor) -> bytes:
    """A PLY of coloured points, dataset's frame: wire frusta of all cameras, the sphere, the sparse points."""
    points = np.zeros((0, 3)) if points is None else points
    reach = FRUSTUM_SHARE * _limit(scene)
    steps = np.linspace(0, 1, 24)[:, None]
    parts = []
    for view in range(len(scene.images)):
        ends = _frustum(scene, view, sizes, reach)
        wires = np.concatenate([a + steps * (b - a) for a, b in ends])
        parts.append((wires, CAMERA if view in views else HELD_OUT))
    # Fibonacci's sphere
    heights, turns = np.linspace(-1, 1, 3000), np.arange(3000) * np.pi * (3 - 5**0.5)
    rings = np.sqrt(1 - heights**2)
    parts.append((np.stack([rings * np.cos(turns), rings * np.sin(turns), heights], axis=-1), SPHERE))
    inside = np.linalg.norm(points, axis=1) < 1
    parts += [(points[inside], INSIDE), (points[~inside], OUTSIDE)]
    to_dataset = scene.normalized_to_dataset.numpy()
    vertices = np.concatenate([part for part, _ in parts]) @ to_dataset[:3, :3].T + to_dataset[:3, 3]
    colors = np.concatenate([np.tile(np.uint8([*color, 255]), (len(part), 1)) for part, color in parts])
    return trimesh.PointCloud(vertices, colors).export(file_type="ply")


def _axes_of(scene: "Scene") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit up, right and towards the first camera, as the photographers stood."""
    poses = scene.camera_to_world.double().numpy()
    up = -poses[:, :3, 1].mean(axis=0)
    up = up / np.linalg.norm(up) if np.linalg.norm(up) > 1e-3 else -poses[0, :3, 1]
    front = poses[0, :3, 3] - up * (up @ poses[0, :3, 3])
    if np.linalg.norm(front) < 1e-3:  # it looks straight down
        front = np.cross(up, np.roll(up, 1) + np.array([0.1, 0.2, 0.3]))
    front /= np.linalg.norm(front)
    return up, np.cross(up, front), front


def _limit(scene: "Scene") -> float:
    """Half the width of the plots: most cameras and the sphere are in them."""
    return 1.15 * max(1.2, float(np.quantile(scene.camera_to_world[:, :3, 3].norm(dim=-1).numpy(), 0.95)))


def _frustum(scene: "Scene", view: int, sizes: Tensor, reach: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Ends of the eight wires of a camera, normalised frame."""
    height, width = sizes[view].tolist()
    corners = np.array([[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1]], dtype=np.float64)
    pose, intrinsics = scene.camera_to_world[view].double().numpy(), scene.intrinsics[view].double().numpy()
    corners = reach * np.linalg.solve(intrinsics, corners.T).T @ pose[:3, :3].T + pose[:3, 3]
    return [(pose[:3, 3], corner) for corner in corners] + list(zip(corners, np.roll(corners, 1, axis=0), strict=True))


def _plot(
    scene: "Scene", views: list[int], points: np.ndarray, sizes: Tensor, plane: np.ndarray, title: str
) -> tuple[str, Image.Image]:
    limit = _limit(scene)
    image = Image.new("RGB", (PLOT_SIZE, PLOT_SIZE), (248, 248, 248))
    draw = ImageDraw.Draw(image)

    def place(positions: np.ndarray) -> np.ndarray:
        return (positions @ plane.T * [1, -1] / limit + 1) * PLOT_SIZE / 2

    inside = np.linalg.norm(points, axis=1) < 1
    for chosen, color in ((points[~inside], OUTSIDE), (points[inside], INSIDE)):
        _dots(draw, place(chosen), color, radius=1)
    low, high = place(np.array([-1.0, 1.0])[:, None] * (plane[0] - plane[1]))
    draw.ellipse([*low, *high], outline=SPHERE, width=3)
    for view in range(len(scene.images)):
        color = CAMERA if view in views else HELD_OUT
        for start, end in _frustum(scene, view, sizes, FRUSTUM_SHARE * limit):
            draw.line([*place(start), *place(end)], fill=color)
    return title, image


def _photograph(scene: "Scene", view: int, points: np.ndarray, sizes: Tensor, edge: int) -> tuple[str, Image.Image]:
    height, width = sizes[view].tolist()
    scale = edge / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    # not antialiased: of a large photograph only the pixels that are shown need to be touched
    rows, columns = ((torch.arange(n) + 0.5) * full / n for n, full in zip(size[::-1], (height, width), strict=True))
    index = rows.long()[:, None], columns.long()[None]
    image = Image.fromarray(scene.images[view][index].contiguous().numpy())
    if scene.masks is not None:
        mask = Image.fromarray((scene.masks[view][index] > 127).numpy().astype(np.uint8) * 255)
        edges = np.asarray(mask) != np.asarray(mask.filter(ImageFilter.MinFilter(3)))
        image.paste(MASK, mask=Image.fromarray(edges.astype(np.uint8) * 255))
    draw = ImageDraw.Draw(image)
    camera = Cameras.from_poses(scene.camera_to_world[[view]].numpy(), scene.intrinsics[[view]].numpy(), sizes[[view]])
    inside = np.linalg.norm(points, axis=1) < 1
    for chosen, color in ((points[~inside], OUTSIDE), (points[inside], INSIDE)):
        pixels, seen = camera.project(chosen)
        _dots(draw, pixels[0][seen[0]] * scale, color, radius=1.5)
    outline = _sphere_outline(camera.centers[0])
    pixels, depth = camera.pixels_and_depth(0, outline)
    for k in range(len(outline) - 1):
        if min(depth[k], depth[k + 1]) > 0:
            draw.line([*(pixels[k] * scale), *(pixels[k + 1] * scale)], fill=SPHERE, width=3)
    inside_note = "" if len(outline) else ", camera inside the sphere"
    return f"{scene.image_names[view]}{inside_note}", image


def _sphere_outline(center: np.ndarray) -> np.ndarray:
    """(N, 3) the circle where rays from a camera at ``center`` touch the unit sphere; none from inside."""
    distance = np.linalg.norm(center)
    if distance <= 1:
        return np.zeros((0, 3))
    towards = center / distance
    first = np.cross(towards, np.eye(3)[abs(towards).argmin()])
    first /= np.linalg.norm(first)
    turns = np.linspace(0, 2 * np.pi, 181)[:, None]
    ring = np.cos(turns) * first + np.sin(turns) * np.cross(towards, first)
    return towards / distance + np.sqrt(1 - 1 / distance**2) * ring


def _dots(draw: ImageDraw.ImageDraw, positions: np.ndarray, color: Color, radius: float) -> None:
    for x, y in positions:
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=color)


def _page(
    plots: list[tuple[str, Image.Image]], photographs: list[tuple[str, Image.Image]], lines: list[str]
) -> Image.Image:
    font, width = ImageFont.load_default(TEXT_SIZE), 2 * PLOT_SIZE + 3 * GUTTER
    lines = [part for line in lines for part in textwrap.wrap(line, TEXT_WIDTH)]
    rows = [plots, *(photographs[k : k + 3] for k in range(0, len(photographs), 3))]
    line_height = TEXT_SIZE + GUTTER // 2
    height = GUTTER + (len(lines) + 1) * line_height
    height += sum(max(image.height for _, image in row) + line_height + GUTTER for row in rows)
    page = Image.new("RGB", (width, height), "white")
    draw, top, left = ImageDraw.Draw(page), GUTTER, GUTTER
    for line in lines:
        draw.text((GUTTER, top), line, fill=(40, 40, 40), font=font)
        top += line_height
    for name, color in LEGEND:
        draw.text((left, top), name, fill=color, font=font)
        left += int(draw.textlength(name, font=font)) + 3 * GUTTER
    top += line_height
    for row in rows:
        left = GUTTER
        for title, image in row:
            draw.text((left, top), title, fill=(90, 90, 90), font=font)
            page.paste(image, (left, top + line_height))
            left += image.width + GUTTER
        top += max(image.height for _, image in row) + line_height + GUTTER
    return page
