"""Triangle meshes: sampling, parts, topology."""

from typing import Literal

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from ops.types import Shape


def face_normals_and_areas(shape: Shape) -> tuple[Tensor, Tensor]:
    """Unit normals (F, 3), outward for faces that wind counter-clockwise seen from outside, and areas (F,), float64.

    Faces without area have a zero normal.
    """
    a, b, c = shape.vertices.double()[shape.faces].unbind(1)
    cross = torch.linalg.cross(b - a, c - a)
    doubled = cross.norm(dim=1)
    return cross / doubled.clamp_min(1e-300)[:, None], 0.5 * doubled


def sample_surface(shape: Shape, num_points: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """Points spread evenly by area over a mesh; of a point set, its points.

    Args:
        shape: a mesh or a point set.
        num_points: how many to draw; a point set gives at most as many as it has, without repetition.
        generator: the randomness; draws are the same on every device for a generator on the CPU.

    Returns:
        ``points`` (n, 3) in the dtype of the vertices, and ``normals`` (n, 3), the unit normals of their faces, or
        ``None`` for a point set. An empty mesh gives no points.
    """
    vertices, device = shape.vertices, generator.device
    if shape.faces is None:
        if len(vertices) <= num_points:
            return vertices, None
        return vertices[torch.randperm(len(vertices), generator=generator, device=device)[:num_points]], None
    if shape.is_empty:
        return vertices.new_zeros(0, 3), vertices.new_zeros(0, 3)
    normals, areas = face_normals_and_areas(shape)
    # torch.multinomial takes at most 2^24 categories, fewer than a fine mesh has faces
    cumulative = (areas if areas.sum() > 0 else torch.ones_like(areas)).cumsum(0)
    draws = torch.rand(num_points, 3, generator=generator, dtype=torch.float64, device=device).to(vertices.device)
    face = torch.searchsorted(cumulative, draws[:, 0] * cumulative[-1], right=True).clamp_max(len(areas) - 1)
    root = draws[:, 1].sqrt()
    weights = torch.stack([1 - root, root * (1 - draws[:, 2]), root * draws[:, 2]], dim=1)
    points = (weights[:, :, None] * vertices.double()[shape.faces[face]]).sum(1)
    return points.to(vertices.dtype), normals[face].to(vertices.dtype)


def select_vertices(shape: Shape, keep: Tensor) -> Shape:
    """The part of a shape on some of its vertices: a face stays if all three of its vertices do.

    Args:
        shape: a mesh or a point set.
        keep: (N,) bool.

    Returns:
        The shape with exactly the kept vertices, in their order; of a mesh some may have lost all their faces.
    """
    index = torch.cumsum(keep, 0) - 1
    faces = None if shape.faces is None else index[shape.faces[keep[shape.faces].all(1)]]
    colors = None if shape.vertex_colors is None else shape.vertex_colors[keep]
    return Shape(shape.vertices[keep], faces, colors)


def drop_unused_vertices(shape: Shape) -> Shape:
    """A mesh without the vertices that no face uses; a point set as it is."""
    if shape.faces is None:
        return shape
    used = torch.zeros(len(shape.vertices), dtype=torch.bool, device=shape.vertices.device)
    used[shape.faces.reshape(-1)] = True
    return shape if bool(used.all()) else select_vertices(shape, used)


def merge_vertices(shape: Shape) -> Shape:
    """A mesh in which equal positions are one vertex, so that faces that touch are connected; a point set as it is.

    Faces that lose a corner go. Of several colours at one place the first stays.
    """
    if shape.faces is None or shape.is_empty:
        return shape
    positions = shape.vertices.cpu().numpy()
    _, first, index = np.unique(positions, axis=0, return_index=True, return_inverse=True)
    # in the order in which they came
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    device = shape.vertices.device
    faces = torch.from_numpy(rank[index.reshape(-1)]).to(device)[shape.faces]
    faces = faces[(faces != faces.roll(1, dims=1)).all(1)]
    kept = torch.from_numpy(first[order]).to(device)
    colors = None if shape.vertex_colors is None else shape.vertex_colors[kept]
    return Shape(shape.vertices[kept], faces, colors)


def largest_component(shape: Shape, by: Literal["faces", "area"] = "faces") -> Shape:
    """The connected part of a mesh with the most faces or the largest area; of equals, the one of the first vertex.

    Parts are connected where faces share a vertex index. Point sets and empty shapes come back as they are.
    """
    if shape.faces is None or shape.is_empty:
        return shape
    faces = shape.faces.cpu().numpy()
    num_vertices = len(shape.vertices)
    rows, columns = faces[:, [0, 1]].ravel(), faces[:, [1, 2]].ravel()
    graph = coo_matrix((np.ones(len(rows), dtype=np.bool_), (rows, columns)), shape=(num_vertices, num_vertices))
    _, labels = connected_components(graph, directed=False)
    weights = None if by == "faces" else face_normals_and_areas(shape)[1].cpu().numpy()
    best = np.bincount(labels[faces[:, 0]], weights=weights).argmax()
    return select_vertices(shape, torch.from_numpy(labels == best).to(shape.vertices.device))


def euler_characteristic(shape: Shape) -> int:
    """Vertices - edges + faces, of the vertices in use: 2 for a sphere, 0 for a torus, summed over parts."""
    a, b = shape.faces, shape.faces.roll(-1, dims=1)
    undirected = torch.unique(_edge_keys(torch.minimum(a, b), torch.maximum(a, b), len(shape.vertices)))
    return len(torch.unique(shape.faces)) - len(undirected) + len(shape.faces)


def is_watertight(shape: Shape) -> bool:
    """Whether every edge joins exactly two faces, which run along it in opposite directions; an empty mesh is not."""
    if shape.faces is None or shape.is_empty:
        return False
    a, b, num_vertices = shape.faces, shape.faces.roll(-1, dims=1), len(shape.vertices)
    forward, uses = torch.unique(_edge_keys(a, b, num_vertices), return_counts=True)
    backward = torch.unique(_edge_keys(b, a, num_vertices))
    return bool((uses == 1).all()) and torch.equal(forward, backward)


def signed_volume(shape: Shape) -> float:
    """Volume that a watertight mesh encloses, positive where its faces wind counter-clockwise seen from outside."""
    corners = shape.vertices.double()[shape.faces]
    corners = corners - shape.vertices.double().mean(0)
    return float((corners[:, 0] * torch.linalg.cross(corners[:, 1], corners[:, 2])).sum() / 6)


def _edge_keys(start: Tensor, end: Tensor, num_vertices: int) -> Tensor:
    # one integer an edge: torch.unique of pairs takes ten times as long
    return (start * num_vertices + end).reshape(-1)
