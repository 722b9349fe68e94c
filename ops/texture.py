"""Texture atlases: a mesh cut into charts that lie flat in a picture, and the picture's colours from a field.

The charts are xatlas's (github.com/jpcy/xatlas, MIT), an optional dependency.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.ndimage
import torch
from lightning_utilities.core.imports import RequirementCache
from torch import Tensor

from ops.chunks import map_chunks
from ops.rasterize import rasterize, vertex_normals
from ops.types import Shape

XATLAS = RequirementCache("xatlas")
# charts are found piece by piece, because the time for one grows with its square: 58,000 faces take 66 s whole, 6 s so
FACES_OF_A_PIECE = 1000
PADDING = 2  # texels between charts, so that interpolation at a border stays off the neighbour


@dataclass(eq=False)
class TexturedShape:
    """A mesh whose vertices repeat along the borders of charts.

    Attributes:
        shape: vertices, faces and vertex colours as they were, where there were any.
        normals: (N, 3) unit, those of the whole mesh, so that no chart's border shows as a crease.
        uv: (N, 2) in [0, 1]; (0, 0) is the lower left corner of the picture, as in OBJ files.
        texture: (H, W, 3) uint8, sRGB, the top row first.
    """

    shape: Shape
    normals: Tensor
    uv: Tensor
    texture: Tensor


def textured(
    shape: Shape, color_field: Callable[[Tensor], Tensor] | None = None, *, size: int = 2048, chunk_size: int = 2**17
) -> TexturedShape:
    """Unwrap a mesh and bake its colours into a picture.

    Args:
        shape: a mesh that is not empty.
        color_field: (n, 3) float64 points in the frame of the mesh -> (n, 3) sRGB in [0, 1]; ``None`` interpolates
            the vertex colours, which says no more than they do.
        size: longest edge of the picture, about; xatlas makes it as large as its charts need.
        chunk_size: points at once.

    Raises:
        ModuleNotFoundError: xatlas is not installed.
        ValueError: a point set or an empty mesh, or neither a field nor vertex colours.
    """
    if shape.faces is None or shape.is_empty:
        raise ValueError("A texture needs a mesh with faces; points keep their colours in .ply")
    if color_field is None and shape.vertex_colors is None:
        raise ValueError("A texture needs colours: this shape has none, and its method no colour field")
    vertices, faces = shape.vertices.detach().double().cpu(), shape.faces.cpu()
    origin, new_faces, uv, (width, height) = _unwrapped(vertices.numpy(), faces.numpy(), size)
    normals = vertex_normals(Shape(vertices, faces))[origin].float()
    vertices = vertices[origin]
    flat = torch.cat([uv * torch.tensor([width, height]), torch.ones(len(uv), 1)], dim=1)
    flat[:, 1] = height - flat[:, 1]
    colors = None if shape.vertex_colors is None else shape.vertex_colors.detach().double().cpu()[origin]
    # the picture plane of a camera at the origin: what is interpolated over a texel is its place on the surface
    attributes = vertices if color_field is not None else colors
    eye = torch.eye(4, dtype=torch.float64)
    raster = rasterize(Shape(flat, new_faces, attributes), eye[:3, :3], eye, height, width, smooth=False)
    seen = raster["face_index"] >= 0
    values = raster["colors"][seen]
    if color_field is not None:
        values = map_chunks(color_field, values, chunk_size=chunk_size).double().cpu()
    picture = torch.zeros(height, width, 3, dtype=torch.uint8)
    picture[seen] = (values.clamp(0, 1) * 255).round().to(torch.uint8)
    # texels between charts take part in interpolation at their borders
    nearest = scipy.ndimage.distance_transform_edt(~seen.numpy(), return_distances=False, return_indices=True)
    picture = picture[tuple(torch.from_numpy(nearest).long())]
    color = None if colors is None else colors.float()
    return TexturedShape(Shape(vertices.to(shape.vertices.dtype), new_faces, color), normals, uv.float(), picture)


def _unwrapped(vertices: np.ndarray, faces: np.ndarray, size: int) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
    """Which vertex each new one was, faces, (N, 2) float64 uv, and the width and height of the picture."""
    if not XATLAS:
        raise ModuleNotFoundError("a texture needs xatlas: pip install xatlas, or pip install -e '.[export]'")
    import xatlas

    atlas = xatlas.Atlas()
    pieces = []
    # in float32 what is far from the origin has few digits left
    centred = vertices - vertices.mean(0)
    for piece in _pieces(centred[faces].mean(1), np.arange(len(faces))):
        used, local = np.unique(faces[piece], return_inverse=True)
        pieces.append(used)
        atlas.add_mesh(centred[used].astype(np.float32), local.reshape(-1, 3).astype(np.uint32))
    packing = xatlas.PackOptions()
    packing.resolution, packing.padding, packing.bilinear = size, PADDING, True
    atlas.generate(xatlas.ChartOptions(), packing)
    if atlas.atlas_count != 1:
        raise ValueError(
            f"The charts fill {atlas.atlas_count} pictures of {size} texels; raise the size of the texture"
        )
    origins, new_faces, uvs, count = [], [], [], 0
    for k, used in enumerate(pieces):
        origin, local, uv = atlas[k]
        origins.append(used[origin])
        new_faces.append(local.astype(np.int64) + count)
        uvs.append(uv.astype(np.float64))
        count += len(origin)
    arrays = (np.concatenate(part) for part in (origins, new_faces, uvs))
    return *(torch.from_numpy(array) for array in arrays), (atlas.width, atlas.height)


def _pieces(centers: np.ndarray, index: np.ndarray) -> list[np.ndarray]:
    """Faces in pieces of at most ``FACES_OF_A_PIECE``, halved along their longest side."""
    if len(index) <= FACES_OF_A_PIECE:
        return [index]
    axis = np.ptp(centers[index], axis=0).argmax()
    ordered = index[np.argsort(centers[index, axis], kind="stable")]
    half = len(ordered) // 2
    return _pieces(centers, ordered[:half]) + _pieces(centers, ordered[half:])
