"""Exact distances from points to a mesh, by way of nearest samples of it."""

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from ops.types import Shape


def point_to_mesh_distances(points: Tensor, shape: Shape, num_candidates: int = 16) -> Tensor:
    """Distance from every point to the nearest point of a mesh's faces.

    The faces looked at are those around the ``num_candidates`` nearest vertices, which on a mesh of even triangles,
    such as marching cubes makes, hold the nearest one.

    Args:
        points: (N, 3).
        shape: a mesh, or a point set, to whose points the distance is then.
        num_candidates: nearest vertices whose faces are looked at.

    Returns:
        (N,) float64.
    """
    vertices = shape.vertices.double().cpu()
    queries = points.double().cpu()
    tree = cKDTree(vertices.numpy(), balanced_tree=False)
    if shape.faces is None:
        return torch.from_numpy(tree.query(queries.numpy(), workers=-1)[0])
    faces = shape.faces.cpu()
    count = min(num_candidates, len(vertices))
    _, nearest = tree.query(queries.numpy(), k=np.arange(1, count + 1), workers=-1)
    owner = faces.flatten().argsort(stable=True)  # corners ordered by vertex
    starts = torch.searchsorted(faces.flatten()[owner], torch.arange(len(vertices) + 1))
    vertex = torch.from_numpy(nearest)  # (N, count)
    degree = starts[vertex + 1] - starts[vertex]
    distances = torch.full((len(queries),), torch.inf, dtype=torch.float64)
    for turn in range(int(degree.max())):
        rows, columns = (degree > turn).nonzero(as_tuple=True)
        face = owner[starts[vertex[rows, columns]] + turn] // 3
        found = (queries[rows] - closest_on_triangles(queries[rows], vertices[faces[face]])).norm(dim=-1)
        distances.scatter_reduce_(0, rows, found, "amin")
    return distances


def closest_on_triangles(points: Tensor, triangles: Tensor) -> Tensor:
    """(N, 3) the point of each of (N, 3, 3) triangles that is closest to each of (N, 3) points."""
    a, b, c = triangles.unbind(1)
    normal = torch.linalg.cross(b - a, c - a)
    area = normal.square().sum(-1, keepdim=True)
    offset = ((points - a) * normal).sum(-1, keepdim=True)
    foot = points - normal * (offset / area.clamp(min=1e-300))
    candidates = [foot]
    is_inside = torch.ones(len(points), dtype=torch.bool)
    for start, end in ((a, b), (b, c), (c, a)):
        edge = end - start
        along = ((points - start) * edge).sum(-1, keepdim=True) / edge.square().sum(-1, keepdim=True).clamp(min=1e-300)
        candidates.append(start + edge * along.clamp(0, 1))
        is_inside &= (torch.linalg.cross(edge, foot - start) * normal).sum(-1) >= 0
    stacked = torch.stack(candidates, dim=1)  # (N, 4, 3)
    distances = (stacked - points[:, None]).norm(dim=-1)
    distances[~is_inside | (area[:, 0] == 0), 0] = torch.inf
    return stacked[torch.arange(len(points)), distances.argmin(dim=1)]
