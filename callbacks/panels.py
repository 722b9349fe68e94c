"""Pictures of one reconstructed object: its views beside the photographs, its shape from several sides.

A panel is rows of cells; a cell is a title and an (H, W, 3) float picture, sRGB in [0, 1].
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from metrics.images import without_padding
from ops.cameras import look_at
from ops.colormaps import heat
from ops.nearest import nearest_distances
from ops.rasterize import rasterize, shade
from ops.types import ObjectBatch, Renders, Shape

ERROR_LIMIT = 0.25
DISTANCE_LIMIT = 0.02
FIELD_OF_VIEW = math.radians(35)
GUTTER = 8
TITLE_SIZE = 20

Cell = tuple[str, Tensor]
Camera = tuple[str, Tensor, Tensor, int, int]
"""Title, (3, 3) intrinsics, (4, 4) camera_to_world, height, width."""


def view_panel(renders: Renders, batch: ObjectBatch, i: int, *, max_views: int, size: int) -> Image.Image:
    """One row a view: photograph, render, normals, depth, error, as far as the method renders them.

    Args:
        renders: with ``images``; ``normals`` and ``depth`` are shown if there.
        batch: with ``images`` of the same views.
        i: which object of the batch.
        max_views: views shown, spread evenly over those there are.
        size: longest edge of a cell, pixels.
    """
    photographs, images = batch["images"][i].cpu().float(), renders["images"][i].cpu().float()
    num_views = len(photographs)
    names = batch["image_index"][i].tolist() if "image_index" in batch else range(num_views)
    rows = []
    for v in torch.linspace(0, num_views - 1, min(max_views, num_views)).round().int().tolist():
        photograph, image = without_padding(batch, i, v, [photographs[v], images[v]])
        row = [(f"photograph {names[v]}", _last(photograph)), ("render", _last(image))]
        if "normals" in renders:
            (normals,) = without_padding(batch, i, v, [renders["normals"][i, v].cpu().float()])
            row.append(("normals", (_last(normals) + 1) / 2))
        if "depth" in renders:
            row.append(_depth_cell(renders, batch, i, v))
        error = (photograph - image).abs().mean(0)
        rows.append([*row, (f"error, 0 to {ERROR_LIMIT}", heat(error, ERROR_LIMIT))])
    return grid(rows, size)


def shape_panel(shape: Shape, batch: ObjectBatch, i: int, *, size: int) -> Image.Image:
    """One row: the shape from a camera of the batch, or from the front, from the left and from the right above.

    Before it stands the photograph, and after it the true surface and the shape coloured by its distance to that,
    where the batch has them.

    Args:
        shape: not empty, in the dataset's frame.
        batch: whatever is known of the object, in the normalised frame.
        i: which object of the batch.
        size: longest edge of a cell, pixels.
    """
    colors = None if shape.vertex_colors is None else shape.vertex_colors.cpu().float()
    faces = None if shape.faces is None else shape.faces.cpu()
    # about the centre, since what is far from the origin has few digits left
    center = shape.vertices.detach().cpu().double().mean(0)
    shape = Shape((shape.vertices.detach().cpu().double() - center).float(), faces, colors)
    to_shape = batch.get("normalized_to_dataset", torch.eye(4).expand(i + 1, 4, 4))[i].cpu().double().clone()
    to_shape[:3, 3] -= center
    cameras = shape_cameras(shape, batch, i, to_shape.float(), size)
    row = [(title, picture(shape, *camera)) for title, *camera in cameras]
    if "images" in batch:
        (photograph,) = without_padding(batch, i, 0, [batch["images"][i, 0].cpu().float()])
        row.insert(0, ("photograph", _last(photograph)))
    if "surface_points" in batch:
        truth = Shape(batch["surface_points"][i].cpu().float()).transformed(to_shape.float()).vertices
        limit = DISTANCE_LIMIT * max((truth.amax(0) - truth.amin(0)).norm().item(), 1e-12)
        distances, _ = nearest_distances(shape.vertices, truth)
        row.append(("truth, as points", picture(Shape(truth), *cameras[0][1:])))
        title = f"distance to truth, 0 to {DISTANCE_LIMIT:.0%} of its size"
        row.append((title, picture(Shape(shape.vertices, faces, heat(distances, limit)), *cameras[0][1:])))
    return grid([row], size)


def picture(shape: Shape, intrinsics: Tensor, camera_to_world: Tensor, height: int, width: int) -> Tensor:
    """(height, width, 3) shaded and anti-aliased picture of a shape."""
    doubled = intrinsics * intrinsics.new_tensor([2.0, 2.0, 1.0])[:, None]
    radius = max(2.0, 2 * max(height, width) / 150)
    raster = rasterize(shape, doubled, camera_to_world, 2 * height, 2 * width, point_radius=radius)
    image = shade(raster, doubled, camera_to_world)
    return _last(F.avg_pool2d(image.permute(2, 0, 1), 2))


def shape_cameras(shape: Shape, batch: ObjectBatch, i: int, to_shape: Tensor, size: int) -> list[Camera]:
    """Three cameras about a shape, the first one that of the object's first photograph where there is one.

    Where there are cameras without photographs, all three stand in the directions of some of those.

    Args:
        shape: in the frame that the cameras are wanted in.
        batch: cameras in the normalised frame, if any.
        i: which object of the batch.
        to_shape: (4, 4) similarity from the normalised frame into that of the shape.
        size: longest edge of the pictures, pixels.
    """
    points = shape.vertices[:: max(1, len(shape.vertices) // 100_000)]
    # quantiles, so that a few stray pieces do not make the rest small
    low, high = points.quantile(0.005, dim=0), points.quantile(0.995, dim=0)
    center, radius = (low + high) / 2, (high - low).norm().item() / 2 or 1.0
    front, up, first, poses = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.0, 1.0, 0.0]), None, []
    if "camera_to_world" in batch:
        poses = _moved(batch["camera_to_world"][i].cpu().float(), to_shape)
        front, up = F.normalize(poses[0, :3, 3] - center, dim=0), F.normalize(-poses[:, :3, 1].mean(0), dim=0)
    if "camera_to_world" in batch and "images" in batch:
        height, width = without_padding(batch, i, 0, [batch["images"][i, 0]])[0].shape[-2:]
        scale = size / max(height, width)
        intrinsics = batch["intrinsics"][i, 0].cpu().float() * torch.tensor([scale, scale, 1.0])[:, None]
        first = ("from the camera", intrinsics, poses[0], round(height * scale), round(width * scale))
    distance = 1.05 * radius / math.sin(FIELD_OF_VIEW / 2)
    focal = size / 2 / math.tan(FIELD_OF_VIEW / 2)
    pinhole = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])

    def towards(title: str, direction: Tensor, up: Tensor = up) -> Camera:
        return title, pinhole, look_at(center + distance * direction, center, up), size, size

    def orbit(title: str, azimuth: float, elevation: float) -> Camera:
        return towards(title, _turned(front, up, math.radians(azimuth), math.radians(elevation)))

    if len(poses) and first is None:
        directions = F.normalize(poses[:, :3, 3] - center, dim=1)
        # with each camera's own up, since a mean one may be where somebody looks down from
        chosen = [len(poses) * k // 3 for k in range(3)]
        names = batch["image_index"][i].tolist() if "image_index" in batch else range(len(poses))
        return [towards(f"as photograph {names[k]}", directions[k], -poses[k, :3, 1]) for k in dict.fromkeys(chosen)]
    return [first or orbit("front", 0, 10), orbit("left", -60, 10), orbit("right, above", 50, 40)]


def grid(rows: list[list[Cell]], size: int) -> Image.Image:
    """Cells on white, each under its title, enlarged by whole factors or shrunk to at most ``size`` pixels."""
    images = [[(title, _thumbnail(cell, size)) for title, cell in row] for row in rows]
    font, title_height = ImageFont.load_default(TITLE_SIZE), TITLE_SIZE + GUTTER
    heights = [max(image.height for _, image in row) + title_height + GUTTER for row in images]
    width = max(sum(image.width + GUTTER for _, image in row) for row in images) + GUTTER
    panel = Image.new("RGB", (width, sum(heights) + GUTTER), "white")
    draw, top = ImageDraw.Draw(panel), GUTTER
    for row, height in zip(images, heights, strict=True):
        left = GUTTER
        for title, image in row:
            draw.text((left, top), title, fill=(70, 70, 70), font=font)
            panel.paste(image, (left, top + title_height))
            left += image.width + GUTTER
        top += height
    return panel


def _depth_cell(renders: Renders, batch: ObjectBatch, i: int, v: int) -> Cell:
    """Distances along the rays from near (bright) to far (dark), white where less than half a ray is stopped."""
    keys = [key for key in ("depth", "opacity") if key in renders]
    depth, *opacity = without_padding(batch, i, v, [renders[key][i, v].cpu().float() for key in keys])
    is_seen = torch.ones_like(depth, dtype=torch.bool)
    if opacity:
        # rendered depths are weighted by what the ray meets
        is_seen, depth = opacity[0] > 0.5, depth / opacity[0].clamp_min(1e-6)
    seen = depth[is_seen & depth.isfinite()]
    if not len(seen):
        return "depth: nothing seen", torch.ones(*depth.shape, 3)
    # quantiles, so that a few stray rays do not make the rest one colour
    seen = seen[:: max(1, len(seen) // 100_000)]
    near, far = seen.quantile(0.01).item(), seen.quantile(0.99).item()
    colors = heat((far - depth).clamp_min(0), max(far - near, 1e-6))
    return f"depth, {near:.2f} to {far:.2f}", torch.where(is_seen[..., None], colors, 1.0)


def _thumbnail(cell: Tensor, size: int) -> Image.Image:
    pixels = (cell.clamp(0, 1).nan_to_num(0) * 255).round().to(torch.uint8).numpy()
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if (factor := size // max(image.size)) > 1:  # pixels stay squares
        image = image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    return image


def _last(image: Tensor) -> Tensor:
    return image.movedim(0, -1)


def _moved(poses: Tensor, similarity: Tensor) -> Tensor:
    """(V, 4, 4) camera_to_world sent through a (4, 4) similarity; they stay rigid."""
    moved = similarity @ poses
    scale = torch.linalg.det(similarity[:3, :3]).abs() ** (1 / 3)
    moved[:, :3, :3] /= scale
    return moved


def _turned(front: Tensor, up: Tensor, azimuth: float, elevation: float) -> Tensor:
    """The unit direction ``front``, levelled, turned to its right about ``up`` and then lifted, in radians."""
    right = torch.linalg.cross(up, front)
    if right.norm() < 1e-3:  # seen from straight above, any side is the front
        right = torch.linalg.cross(up, up.roll(1) + torch.tensor([0.1, 0.2, 0.3]))
    right = F.normalize(right, dim=0)
    level = torch.linalg.cross(right, up)
    turned = math.cos(azimuth) * level + math.sin(azimuth) * right
    return math.cos(elevation) * turned + math.sin(elevation) * up
