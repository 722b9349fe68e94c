"""Which points lie inside a mesh: how often the vertical line through each crosses it, above and below.

A face is crossed where its projection along z holds the point. That is decided from where the face's edges pass the
line's x, which comes out the same, to the last bit, for both faces of an edge; so a line through an edge or a vertex
crosses a closed mesh an even number of times, like any other.
"""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numba import njit
from torch import Tensor

from ops.types import Shape

MOST_CELLS = 2048  # columns of the look-up table along x and along y
POINTS_PER_TASK = 16384


def contains(shape: Shape, points: Tensor) -> Tensor:
    """Whether points lie inside a watertight mesh; which way its faces wind does not matter.

    Inside is what is separated from the outside by an odd number of surfaces, so the overlap of two closed parts is
    outside. Where a mesh is open, inside are only points whose vertical line crosses it an odd number of times both
    above and below, as in the evaluation of Occupancy Networks.

    Args:
        shape: a mesh; an empty one contains nothing.
        points: (N, 3) in the frame of the mesh, on any device.

    Returns:
        (N,) bool, on the device of the points. Points on the surface may be either.

    Raises:
        ValueError: for a point set, and for coordinates that are not finite.
    """
    if shape.faces is None:
        raise ValueError("shape: a point set, expected a mesh; a point set has no inside")
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"points: shape {tuple(points.shape)}, expected (N, 3)")
    for name, tensor in (("vertices", shape.vertices), ("points", points)):
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name}: {int((~torch.isfinite(tensor)).sum())} coordinates are not finite")
    if shape.is_empty or len(points) == 0:
        return torch.zeros(len(points), dtype=torch.bool, device=points.device)
    corners = shape.vertices.detach().double().cpu()[shape.faces.cpu()].numpy()
    queries = points.detach().double().cpu().contiguous().numpy()
    low, high = corners[:, :, :2].min((0, 1)), corners[:, :, :2].max((0, 1))
    num_cells = min(math.isqrt(len(corners)) + 1, MOST_CELLS)
    table = _table(corners, low, high, num_cells)
    inside = np.zeros(len(queries), np.bool_)

    def decide(start: int) -> None:
        stop = start + POINTS_PER_TASK
        _decide(queries[start:stop], corners, low, high, num_cells, *table, inside[start:stop])

    starts = range(0, len(queries), POINTS_PER_TASK)
    num_threads = min(torch.get_num_threads(), len(starts))
    if num_threads == 1:
        for start in starts:
            decide(start)
    else:
        # threads of one call alone: a forked worker of a DataLoader would inherit a lasting pool without its threads
        with ThreadPoolExecutor(num_threads) as threads:
            list(threads.map(decide, starts))
    return torch.from_numpy(inside).to(points.device)


@njit(nogil=True, cache=True, error_model="numpy")
def _cell(value: float, low: float, high: float, num_cells: int) -> int:
    """The column of a coordinate; it never falls as the coordinate rises, rounding included."""
    if high <= low:
        return 0
    return min(max(int((value - low) / (high - low) * num_cells), 0), num_cells - 1)


@njit(nogil=True, cache=True, error_model="numpy")
def _table(corners: np.ndarray, low: np.ndarray, high: np.ndarray, num_cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Which faces (F, 3, 3) touch each cell of a grid over x and y.

    Returns ``starts`` (cells + 1,) and ``faces``: those of cell c are ``faces[starts[c] : starts[c + 1]]``.
    """
    starts = np.zeros(num_cells * num_cells + 1, np.int64)
    faces = np.empty(0, np.int32)
    for is_filling in (False, True):
        if is_filling:
            for c in range(num_cells * num_cells):
                starts[c + 1] += starts[c]
            faces = np.empty(starts[-1], np.int32)
        for f in range(len(corners)):
            x0 = _cell(corners[f, :, 0].min(), low[0], high[0], num_cells)
            x1 = _cell(corners[f, :, 0].max(), low[0], high[0], num_cells)
            y0 = _cell(corners[f, :, 1].min(), low[1], high[1], num_cells)
            y1 = _cell(corners[f, :, 1].max(), low[1], high[1], num_cells)
            for i in range(x0, x1 + 1):
                for j in range(y0, y1 + 1):
                    c = i * num_cells + j
                    if is_filling:
                        # from the end of the cell's part, so that its start is right when all are in
                        starts[c + 1] -= 1
                        faces[starts[c + 1]] = f
                    else:
                        starts[c + 1] += 1
    # every end has moved to its cell's start
    starts[:-1] = starts[1:]
    starts[-1] = len(faces)
    return starts, faces


@njit(nogil=True, cache=True, error_model="numpy")
def _decide(
    points: np.ndarray,
    corners: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    num_cells: int,
    starts: np.ndarray,
    faces: np.ndarray,
    inside: np.ndarray,
) -> None:
    for n in range(len(points)):
        x, y, z = points[n]
        if not (low[0] <= x <= high[0] and low[1] <= y <= high[1]):
            continue
        cell = _cell(x, low[0], high[0], num_cells) * num_cells + _cell(y, low[1], high[1], num_cells)
        above, below = False, False
        for k in range(starts[cell], starts[cell + 1]):
            height = _crossing(corners[faces[k]], x, y)
            if height > z:
                above = not above
            elif height <= z:
                below = not below
        inside[n] = above and below


@njit(nogil=True, cache=True, error_model="numpy")
def _crossing(triangle: np.ndarray, x: float, y: float) -> float:
    """Height at which the vertical line through (x, y) crosses a triangle; NaN where it does not."""
    num_found, y0, z0 = 0, 0.0, 0.0
    for k in range(3):
        a, b = triangle[k], triangle[(k + 1) % 3]
        if (a[0] > x) == (b[0] > x):
            continue
        if a[0] > x:
            # always from smaller to larger x: the other face of this edge then gets the same numbers
            a, b = b, a
        t = (x - a[0]) / (b[0] - a[0])
        edge_y, edge_z = a[1] + t * (b[1] - a[1]), a[2] + t * (b[2] - a[2])
        if num_found == 0:
            num_found, y0, z0 = 1, edge_y, edge_z
        elif (y0 > y) != (edge_y > y):
            return z0 + (y - y0) / (edge_y - y0) * (edge_z - z0)
    return np.nan
