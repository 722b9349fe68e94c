"""Level sets of fields as triangle meshes, block by block, so that memory holds one block and the mesh.

The lattice has ``resolution`` cells along each axis of [-bounds, bounds]^3; its points are named by integers
(i, j, k). Values are taken on ever finer sub-lattices, and only cells that may hold the surface are refined.
"""

import itertools
import math
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from ops.chunks import ChunkSize, map_chunks
from ops.marching_cubes import Piece, march, weld
from ops.meshes import drop_unused_vertices, largest_component, select_vertices
from ops.ranks import rows_on_ranks
from ops.types import Field, Shape

REFINEMENT = 2  # cells of one sub-lattice along the edge of a cell of the next coarser one
SNAP = 2.0**-22  # of bounds: values below it are the level itself, or vertices would coincide in float32
OUTSIDE, INSIDE = np.float32(np.inf), np.float32(-np.inf)  # stand for points that were not evaluated


def extract_surface(
    field: Field,
    resolution: int,
    *,
    bounds: float = 1.0,
    block_size: int = 64,
    chunk_size: int = 2**18,
    coarse_resolution: int | None = None,
    margin: float = 1.5,
    level: float = 0.0,
    keep_largest: bool = False,
    color_field: Callable[[Tensor], Tensor] | None = None,
    keep: Callable[[Tensor], Tensor] | None = None,
    device: torch.device | str = "cpu",
    on_ranks: bool = False,
) -> Shape:
    """The mesh on which a field equals ``level``.

    A cell of a coarse lattice is refined if its corners differ in sign, or if one of them is nearer to the level than
    ``margin`` times half of the cell's diagonal. That misses nothing where the field changes by at most ``margin`` a
    unit of length: 1 for a distance, and the default leaves room for learnt ones. Fields of no such bound, occupancy
    logits say, want a ``coarse_resolution`` near ``resolution`` or ``margin=math.inf``, which evaluates every point.

    Args:
        field: (n, 3) points -> (n,) values, smaller than ``level`` inside. Called under ``torch.no_grad``.
        resolution: cells along each axis.
        bounds: half the edge of the cube, which is centred at the origin.
        block_size: cells along the edge of a block; rounded up to whole coarse cells.
        chunk_size: most points that are evaluated at once; it halves by itself when memory runs out.
        coarse_resolution: least number of cells of the coarse lattice along each axis; ``None`` takes a quarter of
            ``resolution``, but at least 32 and at most 128.
        margin: the largest slope of the field to reckon with.
        level: the value on the surface.
        keep_largest: whether to keep only the connected part with the most faces.
        color_field: (n, 3) points -> (n, 3) sRGB in [0, 1] for the vertices.
        keep: (n, 3) vertices -> (n,) bool; other vertices go, and their faces with them.
        device: where ``field``, ``color_field`` and ``keep`` are evaluated.
        on_ranks: all processes of a run extract this one surface, and each evaluates a share of the points.

    Returns:
        A mesh on the CPU, float32 vertices in the frame of the field, faces counter-clockwise seen from outside. It is
        open where the surface leaves the cube. Without any surface it is empty, with a warning that says what values
        the field takes.

    Raises:
        ValueError: for values of the field that are not finite, and for sizes below 1.
    """
    for name, value in (("resolution", resolution), ("block_size", block_size)):
        if value < 1:
            raise ValueError(f"{name}: {value}, expected at least 1 cell")
    chunks = ChunkSize(chunk_size)
    share = rows_on_ranks if on_ranks else _alone
    with torch.no_grad():
        lattice = _Lattice(field, resolution, bounds, level, margin, chunks, device, share)
        stride = _coarse_stride(resolution, coarse_resolution)
        coarse = lattice.coarse_values(stride)
        pieces = list(_pieces(lattice, coarse, stride, block_size))
        num_cut = sum(piece.num_cut for piece in pieces)
        if num_cut:
            warnings.warn(
                f"The field changes faster than margin={margin:g} a unit: the surface is wrong at {num_cut} "
                f"lattice edges and may have holes. Raise margin or coarse_resolution.",
                stacklevel=2,
            )
        shape = weld(pieces)
        if not shape.is_empty and keep is not None:
            kept = map_chunks(keep, shape.vertices.to(device), chunk_size=chunks).cpu()
            shape = drop_unused_vertices(select_vertices(shape, kept))
        if keep_largest:
            shape = largest_component(shape)
        if shape.is_empty:
            _warn_empty(coarse + level, level, keep is not None)
            return Shape.empty()
        if color_field is not None:
            colors = share(lambda part: map_chunks(color_field, part, chunk_size=chunks), shape.vertices.to(device))
            shape = Shape(shape.vertices, shape.faces, colors.float().cpu())
    return shape


class _Lattice:
    """The field on the lattice, relative to the level: negative inside; +-inf where a point is far and was skipped."""

    def __init__(
        self,
        field: Field,
        resolution: int,
        bounds: float,
        level: float,
        margin: float,
        chunks: ChunkSize,
        device: torch.device | str,
        share: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor],
    ) -> None:
        # how many points are taken at a time must not depend on one rank's memory
        self.share, self.rows = share, chunks.rows
        self.field, self.level, self.margin, self.chunks, self.device = field, level, margin, chunks, device
        self.resolution, self.bounds = resolution, bounds
        self.cell = 2 * bounds / resolution
        # from one formula for all blocks, so that they agree on where a shared point is
        self.axis = self.coordinates(np.arange(resolution + 1))
        self.snap = SNAP * bounds

    def coordinates(self, index: np.ndarray) -> np.ndarray:
        """float32 coordinates of lattice positions, which may lie between lattice points."""
        return (self.bounds * (2 * index / self.resolution - 1)).astype(np.float32)

    def evaluate(self, i: np.ndarray, j: np.ndarray, k: np.ndarray) -> np.ndarray:
        """Values (n,) float32 at lattice points named by three (n,) arrays."""
        if len(i) == 0:
            return np.zeros(0, np.float32)
        points = torch.from_numpy(np.stack([self.axis[i], self.axis[j], self.axis[k]], axis=1)).to(self.device)
        values = self.share(lambda part: map_chunks(self.field, part, chunk_size=self.chunks), points)
        if values.shape != (len(i),):
            raise ValueError(f"field: (n, 3) points gave {tuple(values.shape)} for n = {len(i)}, expected (n,) values")
        finite = torch.isfinite(values)
        if not bool(finite.all()):
            first = [round(x, 6) for x in points[~finite][0].tolist()]
            raise ValueError(
                f"field: {int((~finite).sum())} of {len(i)} values are not finite, the first at {first}; "
                f"check that the network has not diverged"
            )
        # the difference in the field's own precision: a level of 0.5 must not cost digits
        return (values - self.level).float().cpu().numpy()

    def coarse_values(self, stride: int) -> np.ndarray:
        """Values at every ``stride``-th lattice point and at the last, on all axes."""
        index = _sub_lattice(self.resolution, stride)
        values = np.empty(len(index) ** 3, np.float32)
        for start in range(0, values.size, self.rows):
            flat = np.arange(start, min(start + self.rows, values.size))
            values[flat] = self.evaluate(*(index[a] for a in np.unravel_index(flat, [len(index)] * 3)))
        return values.reshape([len(index)] * 3)

    def active_cells(self, values: np.ndarray, stride: int) -> np.ndarray:
        """Which cells of a sub-lattice may hold the surface, from the values at its points; one less on each axis."""
        low, high = _cell_extremes(values)
        # no point of a cell is farther than half the diagonal from the nearest corner
        reach = self.margin * 0.5 * math.sqrt(3) * stride * self.cell
        return ((low < reach) & (high > -reach)) | (reach == math.inf)

    def refine(
        self,
        values: np.ndarray,
        origin: np.ndarray,
        size: np.ndarray,
        strides: tuple[int, int],
        known: np.ndarray | None,
    ) -> np.ndarray:
        """Values of a block on a finer sub-lattice.

        Args:
            values: on the sub-lattice of stride ``strides[0]``.
            origin: (3,) lattice point of the block's lowest corner, a multiple of the strides.
            size: (3,) cells of the full lattice along the block's edges.
            strides: the given and the wanted stride; the second divides the first.
            known: values to take over where they are finite, shaped like the result; or ``None``.
        """
        stride, finer = strides
        active = self.active_cells(values, stride)
        fine = [_sub_lattice(n, finer) for n in size]
        # a point is wanted if any of the cells around it is active; an inactive cell has the one sign of its corners
        wanted, is_inside = active, values < 0
        for axis, points in enumerate(fine):
            below, above = np.maximum((points - 1) // stride, 0), np.minimum(points // stride, active.shape[axis] - 1)
            wanted = wanted.take(below, axis) | wanted.take(above, axis)
            is_inside = is_inside.take(above, axis)
        result = np.where(is_inside, INSIDE, OUTSIDE)
        shared = np.ix_(*(np.searchsorted(f, _sub_lattice(n, stride)) for f, n in zip(fine, size, strict=True)))
        result[shared], wanted[shared] = values, False
        if known is not None:
            taken = np.isfinite(known)
            result[taken], wanted[taken] = known[taken], False
        local = np.nonzero(wanted)
        result[local] = self.evaluate(*(o + f[a] for o, f, a in zip(origin, fine, local, strict=True)))
        return result


def _alone(fn: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    return fn(rows)


def _pieces(lattice: _Lattice, coarse: np.ndarray, stride: int, block_size: int) -> Iterator[Piece]:
    """The meshes of all blocks that hold surface; only one block's values are in memory at a time."""
    cells = math.ceil(block_size / stride)
    occupied = lattice.active_cells(coarse, stride)
    for axis in range(3):
        occupied = np.logical_or.reduceat(occupied, np.arange(0, occupied.shape[axis], cells), axis=axis)
    upper: dict[tuple[int, ...], list[np.ndarray]] = {}  # the last planes along x, y and z of finished blocks
    for block in map(tuple, np.argwhere(occupied).tolist()):
        upper = {b: planes for b, planes in upper.items() if b[0] >= block[0] - 1}
        first = np.array(block) * cells
        origin = first * stride
        size = np.minimum(origin + cells * stride, lattice.resolution) - origin
        values = coarse[tuple(slice(f, f + cells + 1) for f in first)]
        for strides in itertools.pairwise(_strides(stride, lattice.margin)):
            known = None
            if strides[1] == 1:
                # a network gives other last digits in another batch: neighbours must see the same numbers
                known = np.full(size + 1, np.nan, np.float32)
                for axis in range(3):
                    neighbour = (*block[:axis], block[axis] - 1, *block[axis + 1 :])
                    if neighbour in upper:
                        np.moveaxis(known, axis, 0)[0] = upper[neighbour][axis]
            values = lattice.refine(values, origin, size, strides, known)
        values = np.where(np.abs(values) <= lattice.snap, np.float32(0), values)
        upper[block] = [np.take(values, -1, axis=axis) for axis in range(3)]
        piece = march(values, origin, lattice.resolution, lattice.coordinates)
        if piece is not None:
            yield piece


def _sub_lattice(size: int, stride: int) -> np.ndarray:
    """Every ``stride``-th of the points 0..size, and the last."""
    return np.minimum(np.arange(math.ceil(size / stride) + 1) * stride, size)


def _coarse_stride(resolution: int, coarse_resolution: int | None) -> int:
    cells = coarse_resolution or min(max(resolution // 4, 32), 128)
    # a power of two, so that the finer strides divide it
    return 2 ** int(math.log2(max(resolution / cells, 1)))


def _strides(coarse: int, margin: float) -> list[int]:
    # an infinite margin skips nothing: steps between would only evaluate the borders of blocks twice
    refinement = REFINEMENT if margin < math.inf else coarse
    strides = [coarse]
    while strides[-1] > 1:
        strides.append(max(strides[-1] // refinement, 1))
    return strides


def _cell_extremes(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest of each cell's eight corners."""
    low = high = values
    for axis in range(3):
        head, tail = ((slice(None),) * axis + (part,) for part in (slice(None, -1), slice(1, None)))
        low, high = np.minimum(low[head], low[tail]), np.maximum(high[head], high[tail])
    return low, high


def _warn_empty(coarse: np.ndarray, level: float, has_keep: bool) -> None:
    low, high = float(coarse.min()), float(coarse.max())
    if low >= level:
        hint = "nothing is inside; train longer, or check the sign and the level"
    elif high < level:
        hint = "all of the cube is inside; enlarge bounds, or check the sign and the level"
    else:
        hint = "no vertex satisfies keep" if has_keep else "check the level and raise coarse_resolution"
    warnings.warn(
        f"Empty surface: the field lies in [{low:.4g}, {high:.4g}], the level is {level:g}: {hint}", stacklevel=3
    )
