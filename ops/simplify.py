"""Fewer faces for the same surface, by clustering vertices, and fewer points for the same set."""

import math

import torch
from torch import Tensor

from ops.types import Shape

CHUNK = 2**20  # faces whose planes are held at once
MOST_COUNTED = 2**20  # vertices that the size of a cell is chosen from


def simplified(shape: Shape, max_faces: int) -> Shape:
    """A mesh with at most about ``max_faces`` faces that looks the same; one with no more comes back as it is.

    Vertices in one cell of a grid become one, placed where the planes of the faces around meet best (Lindstrom 2000,
    "Out-of-core simplification of large polygonal models"), so edges and corners stay sharp; its colour is their mean.
    What is thinner than a cell may fold together. Memory grows by about 150 bytes a vertex.

    Args:
        shape: a mesh; positions (N, 3) in any unit.
        max_faces: at least 4.

    Raises:
        ValueError: for a point set, and for fewer than four faces.
    """
    if shape.faces is None:
        raise ValueError("simplified: got a point set; points are thinned by fewer_points")
    if max_faces < 4:
        raise ValueError(f"max_faces: {max_faces}, expected at least 4, those of a tetrahedron")
    if len(shape.faces) <= max_faces:
        return shape
    vertices = shape.vertices.double()
    # about its corner, since what is far from the origin has few digits left
    vertices = vertices - vertices.amin(0)
    extent = vertices.amax().item() or 1.0
    resolution = _resolution(vertices / extent, max_faces)
    while True:
        clusters, cells = _clusters(vertices / extent, resolution)
        faces = _distinct_faces(clusters, shape.faces)
        if len(faces) <= max_faces or resolution < 1:
            break
        resolution *= min(0.97, math.sqrt(max_faces / len(faces)))
    size = extent / resolution
    positions = _positions(vertices, shape.faces, clusters, cells.double() * size, size) + shape.vertices.double().amin(
        0
    )
    colors = None if shape.vertex_colors is None else _means(shape.vertex_colors.double(), clusters, len(cells))
    return _used(Shape(positions.to(shape.vertices), faces, None if colors is None else colors.to(shape.vertex_colors)))


def fewer_points(shape: Shape, max_points: int) -> Shape:
    """A point set with at most ``max_points`` of its points, the same ones every time."""
    if len(shape.vertices) <= max_points:
        return shape
    kept = torch.randperm(len(shape.vertices), generator=torch.Generator().manual_seed(0))[:max_points].sort().values
    kept = kept.to(shape.vertices.device)
    return Shape(shape.vertices[kept], None, None if shape.vertex_colors is None else shape.vertex_colors[kept])


def _resolution(vertices: Tensor, max_faces: int) -> float:
    """Cells along an edge of the unit cube of which about half as many as ``max_faces`` have vertices in them."""
    some = vertices[:: -(-len(vertices) // MOST_COUNTED)]
    low, high = 1.0, 4096.0
    while high / low > 1.02:
        middle = math.sqrt(low * high)
        # a closed surface has twice as many faces as vertices
        low, high = (middle, high) if 2 * len(torch.unique(_keys(some, middle))) <= max_faces else (low, middle)
    return low


def _keys(vertices: Tensor, resolution: float) -> Tensor:
    cells = (vertices * resolution).long()
    return (cells[:, 0] << 42) | (cells[:, 1] << 21) | cells[:, 2]


def _clusters(vertices: Tensor, resolution: float) -> tuple[Tensor, Tensor]:
    """Cluster of every vertex (N,), and (K, 3) whole coordinates of the clusters' cells."""
    keys, clusters = torch.unique(_keys(vertices, resolution), return_inverse=True)
    mask = (1 << 21) - 1
    return clusters, torch.stack([keys >> 42, (keys >> 21) & mask, keys & mask], 1)


def _distinct_faces(clusters: Tensor, faces: Tensor) -> Tensor:
    """Faces between three different clusters, each once."""
    faces = clusters[faces]
    faces = faces[(faces != faces.roll(1, dims=1)).all(1)]
    # begun at the smallest index, so that the same face is the same row and keeps its side
    turns = (torch.arange(3, device=faces.device)[None] + faces.argmin(1, keepdim=True)) % 3
    return torch.unique(faces.gather(1, turns), dim=0)


def _positions(vertices: Tensor, faces: Tensor, clusters: Tensor, corners: Tensor, size: float) -> Tensor:
    """(K, 3) positions within their cells that are nearest to the planes of the faces at the cells' vertices."""
    means = _means(vertices, clusters, len(corners))
    quadrics, moments = vertices.new_zeros(len(corners), 9), vertices.new_zeros(len(corners), 3)
    for chunk in faces.split(CHUNK):
        a, b, c = vertices[chunk].unbind(1)
        normals = torch.linalg.cross(b - a, c - a)
        for corner in clusters[chunk].unbind(1):
            # from the cell's mean, so that the numbers are small
            heights = (normals * (a - means[corner])).sum(1, keepdim=True)
            quadrics.index_add_(0, corner, (normals[:, :, None] * normals[:, None, :]).flatten(1))
            moments.index_add_(0, corner, normals * heights)
    quadrics = quadrics.view(-1, 3, 3)
    # a flat or straight place says nothing about some directions; the mean does
    weights = 1e-3 * quadrics.diagonal(dim1=1, dim2=2).sum(1).clamp_min(1e-30)
    offsets = torch.linalg.solve(quadrics + weights[:, None, None] * torch.eye(3).to(quadrics), moments)
    return torch.maximum(torch.minimum(means + offsets, corners + size), corners)


def _means(values: Tensor, clusters: Tensor, num_clusters: int) -> Tensor:
    counts = torch.bincount(clusters, minlength=num_clusters).clamp_min(1)
    return values.new_zeros(num_clusters, values.shape[1]).index_add_(0, clusters, values) / counts[:, None]


def _used(shape: Shape) -> Shape:
    used, index = torch.unique(shape.faces, return_inverse=True)
    colors = None if shape.vertex_colors is None else shape.vertex_colors[used]
    return Shape(shape.vertices[used], index, colors)
