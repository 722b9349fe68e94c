"""Marching cubes on blocks of a lattice, and the weld of their meshes.

PyMCubes sees the signs alone, which decide the topology; where on a lattice edge a vertex lies is interpolated here. So
a vertex is named exactly, by its lattice edge or lattice point, and blocks are welded by name, never by distance.
"""

from collections.abc import Callable
from dataclasses import dataclass

import mcubes
import numpy as np
import torch

from ops.types import Shape


@dataclass
class Piece:
    """The mesh of one block."""

    positions: np.ndarray  # (n, 3) float32
    keys: np.ndarray  # (n,) int64, the name of the lattice edge or point that a vertex lies on
    on_seam: np.ndarray  # (n,) bool, whether other blocks may have that vertex too
    faces: np.ndarray  # (m, 3) int32, counter-clockwise from outside
    num_cut: int  # edges that cross the surface next to a skipped point


def march(
    values: np.ndarray, origin: np.ndarray, resolution: int, coordinates: Callable[[np.ndarray], np.ndarray]
) -> Piece | None:
    """The mesh of one block, or ``None`` where no face is.

    Args:
        values: negative inside, +-inf at points known to be far from the surface, 0 counts as outside.
        origin: (3,) lattice point of the first value.
        resolution: cells of the whole lattice along an axis.
        coordinates: lattice positions, also fractional, -> coordinates, elementwise.
    """
    inside = values < 0
    if inside.all() or not inside.any():
        return None
    # with signs for values every vertex comes out in the middle of its lattice edge, which names the edge
    middles, faces = mcubes.marching_cubes(np.where(inside, -1, 1).astype(np.int8), 0)
    names = np.rint(2 * middles).astype(np.int64)
    low = names // 2
    high = names - low
    a, b = (values[tuple(ends.T)].astype(np.float64) for ends in (low, high))
    cut = ~np.isfinite(a) | ~np.isfinite(b)
    with np.errstate(invalid="ignore"):
        t = np.where(cut, 0.5, a / (a - b))[:, None]
    # all edges that meet the surface in a lattice point share the vertex there
    names = np.where(t == 0, 2 * low, np.where(t == 1, 2 * high, names))
    points_per_axis = 2 * resolution + 1
    keys, first, index = np.unique(
        np.ravel_multi_index(tuple((names + 2 * origin).T), [points_per_axis] * 3),
        return_index=True,
        return_inverse=True,
    )
    # PyMCubes winds clockwise seen from the side of larger values
    faces = index[faces[:, ::-1].astype(np.int64)]
    a, b, c = faces.T
    faces = faces[(a != b) & (b != c) & (c != a)]
    if len(faces) == 0:
        return None
    used, faces = np.unique(faces, return_inverse=True)
    first, keys = first[used], keys[used]
    on_seam = ((names[first] == 0) | (names[first] == 2 * (np.array(values.shape) - 1))).any(1)
    positions = coordinates(origin + low[first] + t[first] * (high - low)[first])
    return Piece(positions, keys, on_seam, faces.reshape(-1, 3).astype(np.int32), int(cut.sum()))


def weld(pieces: list[Piece]) -> Shape:
    """One mesh of the blocks' meshes, with one vertex for all that have the same name."""
    if not pieces:
        return Shape.empty()
    starts = np.cumsum([0, *(len(p.keys) for p in pieces)])
    seam = np.concatenate([np.flatnonzero(p.on_seam) + o for p, o in zip(pieces, starts, strict=False)])
    keys = np.concatenate([p.keys[p.on_seam] for p in pieces])
    _, first, index = np.unique(keys, return_index=True, return_inverse=True)
    is_first = np.ones(starts[-1], bool)
    is_first[seam] = False
    is_first[seam[first]] = True
    number = np.cumsum(is_first) - 1
    number[seam] = number[seam[first[index]]]
    positions = np.concatenate(
        [p.positions[part] for p, part in zip(pieces, np.split(is_first, starts[1:-1]), strict=True)]
    )
    # into one array: a list of all parts beside their concatenation would be the peak of an extraction's memory
    faces = np.empty((sum(len(p.faces) for p in pieces), 3), np.int64)
    row = 0
    for piece, start in zip(pieces, starts, strict=False):
        faces[row : row + len(piece.faces)] = number[start:][piece.faces]
        row += len(piece.faces)
    return Shape(torch.from_numpy(positions), torch.from_numpy(faces))
