"""A z-buffer for pictures of meshes and point sets on the CPU: no GPU, no window, no display driver.

Depth, barycentric coordinates and hence everything that is interpolated are perspective-correct: 1/z is affine in
the picture plane, z is not.
"""

from typing import TypedDict

import numba
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ops.types import Shape

BACKGROUND_COLOR = 1.0
UNKNOWN_COLOR = 0.7


class Raster(TypedDict):
    """What every pixel of an (H, W) picture sees."""

    depth: Tensor  # (H, W) float, z in the camera, unit of the shape; inf where empty
    normals: Tensor  # (H, W, 3) float, unit, world axes; 0 where empty
    face_index: Tensor  # (H, W) int64, the face, or the vertex of a point set; -1 where empty
    colors: Tensor  # (H, W, 3) float, sRGB in [0, 1]; white where empty


def rasterize(
    shape: Shape,
    intrinsics: Tensor,
    camera_to_world: Tensor,
    height: int,
    width: int,
    *,
    smooth: bool = True,
    point_radius: float = 2.0,
    near: float = 1e-6,
) -> Raster:
    """What a pinhole camera sees of a shape; both sides of a face are seen.

    A face that reaches behind the near plane is dropped whole. A point set is drawn as small balls.

    Args:
        shape: mesh or point set, in the world frame of the camera.
        intrinsics: (3, 3) pixels; the centre of the top-left pixel is (0.5, 0.5).
        camera_to_world: (4, 4) OpenCV axes, rigid.
        height, width: of the picture, pixels.
        smooth: interpolate vertex normals; otherwise every face has its own.
        point_radius: of the ball that stands for a point, pixels.
        near: least z that is drawn, unit of the shape.

    Returns:
        The ``Raster``, on the CPU, in the dtype of the vertices.
    """
    vertices = shape.vertices.detach().double().cpu()
    pose = camera_to_world.detach().double().cpu()
    camera = (vertices - pose[:3, 3]) @ pose[:3, :3]
    projected = (camera @ intrinsics.detach().double().cpu().T).numpy()
    depth = np.full((height, width), np.inf)
    index = np.full((height, width), -1, dtype=np.int64)
    weights = np.zeros((height, width, 2))
    if shape.faces is None:
        _draw_points(projected, point_radius, near, depth, index, weights)
    else:
        _draw_faces(projected, shape.faces.cpu().numpy().astype(np.int64), near, depth, index, weights)
    return _attributes(shape, vertices, pose, smooth, *map(torch.from_numpy, (depth, index, weights)))


def shade(raster: Raster, intrinsics: Tensor, camera_to_world: Tensor, *, ambient: float = 0.2) -> Tensor:
    """A picture lit by a lamp at the camera (Lambert, both sides of a face alike), on white.

    Args:
        raster: from ``rasterize`` with the same camera.
        intrinsics: (3, 3) pixels.
        camera_to_world: (4, 4) OpenCV axes, rigid.
        ambient: share of the light that comes from everywhere.

    Returns:
        (H, W, 3) float, sRGB in [0, 1].
    """
    normals = raster["normals"]
    height, width = raster["depth"].shape
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    pixels = torch.stack([x, y, torch.ones_like(x)], -1).to(normals)
    rays = pixels @ torch.linalg.inv(intrinsics.double()).T.to(normals) @ camera_to_world[:3, :3].T.to(normals)
    cosine = (normals * F.normalize(rays, dim=-1)).sum(-1, keepdim=True).abs()
    lit = raster["colors"] * (ambient + (1 - ambient) * cosine)
    return torch.where((raster["face_index"] >= 0)[..., None], lit, BACKGROUND_COLOR).clamp(0, 1)


def vertex_normals(shape: Shape) -> Tensor:
    """(N, 3) unit normals of a mesh's vertices, its faces weighted by their area; 0 where no face has an area."""
    assert shape.faces is not None
    normals = torch.zeros_like(shape.vertices)
    face_normals = _face_normals(shape.vertices, shape.faces)
    for corner in range(3):
        normals.index_add_(0, shape.faces[:, corner], face_normals)
    return F.normalize(normals, dim=-1)


def _face_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    # twice the area long, so that their sum weights by area
    a, b, c = vertices[faces].unbind(1)
    return torch.linalg.cross(b - a, c - a)


def _attributes(
    shape: Shape, vertices: Tensor, pose: Tensor, smooth: bool, depth: Tensor, index: Tensor, weights: Tensor
) -> Raster:
    seen = index >= 0
    normals = torch.zeros(*index.shape, 3, dtype=torch.float64)
    colors = torch.full_like(normals, BACKGROUND_COLOR)
    colors[seen] = UNKNOWN_COLOR
    hit, weight = index[seen], weights[seen]
    vertex_colors = None if shape.vertex_colors is None else shape.vertex_colors.detach().double().cpu()
    if shape.faces is None:
        # weights are the place in the disc, radius 1; the ball bulges towards the camera, against +z
        bulge = torch.cat([weight, -(1 - weight.square().sum(-1, keepdim=True)).clamp(min=0).sqrt()], -1)
        normals[seen] = bulge @ pose[:3, :3].T
        if vertex_colors is not None:
            colors[seen] = vertex_colors[hit]
    else:
        faces = shape.faces.cpu()
        barycentric = torch.cat([1 - weight.sum(-1, keepdim=True), weight], -1)[..., None]
        flat = F.normalize(_face_normals(vertices, faces[hit]), dim=-1)
        if smooth:
            mixed = (vertex_normals(Shape(vertices, faces))[faces[hit]] * barycentric).sum(1)
            # opposite normals cancel where a mesh folds onto itself
            flat = torch.where(mixed.norm(dim=-1, keepdim=True) > 1e-6, F.normalize(mixed, dim=-1), flat)
        normals[seen] = flat
        if vertex_colors is not None:
            colors[seen] = (vertex_colors[faces[hit]] * barycentric).sum(1)
    dtype = shape.vertices.dtype
    return Raster(depth=depth.to(dtype), normals=normals.to(dtype), face_index=index, colors=colors.to(dtype))


@numba.njit(cache=True)
def _pixel_range(lowest: float, highest: float, size: int) -> tuple[int, int]:
    """First and last-but-one pixel whose centre lies in [lowest, highest]; clamped before it becomes an integer."""
    first = np.ceil(min(max(lowest - 0.5, 0.0), float(size)))
    last = np.floor(min(max(highest - 0.5, -1.0), size - 1.0))
    return int(first), int(last) + 1


@numba.njit(cache=True)
def _draw_faces(
    projected: np.ndarray, faces: np.ndarray, near: float, depth: np.ndarray, index: np.ndarray, weights: np.ndarray
) -> None:
    """Fill ``depth``, ``index`` and the barycentric ``weights`` of corners 1 and 2 from (N, 3) rows (x z, y z, z)."""
    height, width = depth.shape
    for f in range(len(faces)):
        a, b, c = faces[f]
        za, zb, zc = projected[a, 2], projected[b, 2], projected[c, 2]
        if not (za > near and zb > near and zc > near):
            continue
        xa, ya = projected[a, 0] / za, projected[a, 1] / za
        xb, yb = projected[b, 0] / zb, projected[b, 1] / zb
        xc, yc = projected[c, 0] / zc, projected[c, 1] / zc
        area = (xb - xa) * (yc - ya) - (xc - xa) * (yb - ya)
        if area == 0.0:
            continue
        left, right = _pixel_range(min(xa, xb, xc), max(xa, xb, xc), width)
        top, bottom = _pixel_range(min(ya, yb, yc), max(ya, yb, yc), height)
        for i in range(top, bottom):
            y = i + 0.5
            for j in range(left, right):
                x = j + 0.5
                # division by the signed area makes inside positive for both windings
                wb = ((x - xa) * (yc - ya) - (xc - xa) * (y - ya)) / area
                wc = ((xb - xa) * (y - ya) - (x - xa) * (yb - ya)) / area
                wa = 1.0 - wb - wc
                if wa < -1e-12 or wb < -1e-12 or wc < -1e-12:
                    continue
                z = 1.0 / (wa / za + wb / zb + wc / zc)
                if z < depth[i, j]:
                    depth[i, j] = z
                    index[i, j] = f
                    weights[i, j, 0] = wb * z / zb
                    weights[i, j, 1] = wc * z / zc


@numba.njit(cache=True)
def _draw_points(
    projected: np.ndarray, radius: float, near: float, depth: np.ndarray, index: np.ndarray, weights: np.ndarray
) -> None:
    """Fill ``depth``, ``index`` and the place in the disc from (N, 3) rows (x z, y z, z)."""
    height, width = depth.shape
    for p in range(len(projected)):
        z = projected[p, 2]
        if not z > near:
            continue
        x, y = projected[p, 0] / z, projected[p, 1] / z
        left, right = _pixel_range(x - radius, x + radius, width)
        top, bottom = _pixel_range(y - radius, y + radius, height)
        for i in range(top, bottom):
            for j in range(left, right):
                dx, dy = (j + 0.5 - x) / radius, (i + 0.5 - y) / radius
                if dx * dx + dy * dy <= 1.0 and z < depth[i, j]:
                    depth[i, j] = z
                    index[i, j] = p
                    weights[i, j, 0] = dx
                    weights[i, j, 1] = dy
