"""Multiresolution isosurface extraction (MISE) of Occupancy Networks (arXiv:1812.03828), for fields of any slope.

Values are taken on a coarse lattice; cells whose corners differ in sign are halved, again and again. Here a cell is
halved as well if what its halved neighbours found says that the surface enters it, so that no part of a surface that is
seen anywhere is lost: the mesh is that of all values, wherever the coarse lattice sees every component.
:func:`ops.isosurface.extract_surface` is for distances, whose slope is known, and for lattices beyond memory.
"""

import itertools
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ops.chunks import ChunkSize, map_chunks
from ops.marching_cubes import march, weld
from ops.types import Field, Shape

MARGIN = 1e-5  # of a typical value beside the surface: those nearer to zero are moved there, lest vertices coincide
TINY = 1e-30
BLOCK = 32  # cells along the edge of what marching cubes sees at once; most blocks hold no surface


def extract_mise(
    field: Field,
    *,
    coarse_resolution: int = 32,
    upsampling_steps: int = 2,
    bounds: float = 0.55,
    chunk_size: int = 100_000,
    device: torch.device | str | None = None,
) -> Shape:
    """The closed mesh on which a field is zero, on a lattice of coarse_resolution * 2^upsampling_steps cells an axis.

    A component between whose sides no coarse lattice point lies is missed; thinner ones need a finer coarse lattice.

    Args:
        field: (n, 3) points -> (n,) values, negative inside: ``level - logit`` for occupancy. Called without gradients.
        coarse_resolution: cells along an axis that are looked at everywhere.
        upsampling_steps: how often cells at the surface are halved.
        bounds: half the edge of the cube; the paper's unit cube with a tenth around it.
        chunk_size: most points that are evaluated at once; it halves by itself when memory runs out.
        device: where ``field`` is evaluated and the lattice lies; the CPU where not given.

    Returns:
        A watertight mesh on the CPU, float32 vertices in the frame of the field, faces counter-clockwise seen from
        outside. What reaches beyond the cube is cut off at its faces. Empty, with a warning, where nothing is inside.

    Raises:
        ValueError: for sizes out of range, and values of the field that are not finite or of another shape.
    """
    for name, value, least in (("coarse_resolution", coarse_resolution, 2), ("upsampling_steps", upsampling_steps, 0)):
        if value < least:
            raise ValueError(f"{name}: {value}, expected at least {least}")
    with torch.no_grad():
        lattice = _Lattice(field, bounds, ChunkSize(chunk_size), device)
        values = lattice.coarse_values(coarse_resolution)
        for _ in range(upsampling_steps):
            values = _halved(lattice, values)
    shape = _march(values.cpu().numpy(), bounds)
    if shape.is_empty:
        warnings.warn(
            f"Empty surface: the field lies in [{lattice.low:.4g}, {lattice.high:.4g}] on the coarse lattice, nothing "
            "within the cube is negative; train longer, or check the sign and the level",
            stacklevel=2,
        )
    return shape


def refine_vertices(
    shape: Shape,
    field: Field,
    generator: torch.Generator,
    *,
    num_steps: int = 30,
    learning_rate: float = 1e-4,
    normal_weight: float = 0.01,
    chunk_size: int = 2**15,
) -> Shape:
    """A mesh moved onto the zero set of a field, its faces turned to the field's gradient.

    The last step of Occupancy Networks (arXiv:1812.03828), Section 3.3: RMSprop on the mean over faces of the squared
    field at a random point of the face (Dirichlet weights of concentration 1/2) plus ``normal_weight`` times the
    squared difference between the face's normal and the unit gradient there. We square the field itself, where the
    paper squares the difference of probabilities, so that fields of any kind can be refined.

    Args:
        shape: a mesh near the zero set.
        field: (n, 3) points -> (n,) values, negative inside, twice differentiable; its parameters get no gradient. What
            it closes over must not come from inference mode.
        generator: draws the points.
        num_steps: of the optimizer.
        learning_rate: about the length that a vertex moves in one step.
        normal_weight: of the second term.
        chunk_size: most faces that are evaluated at once.

    Returns:
        The mesh with other vertices, on the device that they were on.

    Raises:
        ValueError: for a point set.
    """
    if shape.faces is None:
        raise ValueError("shape: a point set, expected a mesh")
    if shape.is_empty:
        return shape
    with torch.inference_mode(False), torch.enable_grad():
        # copies, as tensors made in inference mode take part in no graph
        vertices, faces = shape.vertices.clone().requires_grad_(), shape.faces.clone()
        optimizer = torch.optim.RMSprop([vertices], lr=learning_rate)
        for _ in range(num_steps):
            # squares of normals are gamma variables of shape 1/2, their shares a Dirichlet one
            weights = torch.randn(len(faces), 3, generator=generator, device=generator.device).square().to(vertices)
            weights = weights / weights.sum(1, keepdim=True)
            vertices.grad = torch.zeros_like(vertices)
            for chunk, share in zip(faces.split(chunk_size), weights.split(chunk_size), strict=True):
                loss = _misfit(vertices[chunk], share, field, normal_weight) / len(faces)
                vertices.grad += torch.autograd.grad(loss, vertices)[0]
            optimizer.step()
    return Shape(vertices.detach(), shape.faces, shape.vertex_colors)


def _misfit(corners: Tensor, weights: Tensor, field: Field, normal_weight: float) -> Tensor:
    points = (weights[:, :, None] * corners).sum(1)
    values = field(points)
    (gradient,) = torch.autograd.grad(values.sum(), points, create_graph=True)
    a, b, c = corners.unbind(1)
    normals = F.normalize(torch.linalg.cross(b - a, c - a), dim=1, eps=1e-30)
    turn = (normals - F.normalize(gradient, dim=1)).square().sum(1)
    return (values.square() + normal_weight * turn).sum()


class _Lattice:
    """The field at points of ever finer lattices over the cube; what was not looked at is plus or minus infinite."""

    def __init__(self, field: Field, bounds: float, chunks: ChunkSize, device: torch.device | str | None) -> None:
        self.field, self.bounds, self.chunks = field, bounds, chunks
        self.device = torch.device("cpu" if device is None else device)
        self.low = self.high = self.least = 0.0

    def coarse_values(self, resolution: int) -> Tensor:
        """Values at all points of a lattice; from them, also what counts as near to zero."""
        axis = torch.arange(resolution + 1, device=self.device)
        index = torch.cartesian_prod(axis, axis, axis)
        raw = self._evaluate(index, resolution)
        self.low, self.high = raw.min().item(), raw.max().item()
        corners = _corners(raw.view([resolution + 1] * 3))
        beside = corners[_is_mixed(corners)].abs()
        self.least = max(MARGIN * beside.median().item() if len(beside) else 0.0, TINY)
        return self._decided(raw, index, resolution).view([resolution + 1] * 3)

    def fill(self, values: Tensor, index: Tensor) -> None:
        """Look at those of the (n, 3) lattice points where nobody has."""
        size = len(values)
        flat = torch.unique((index[:, 0] * size + index[:, 1]) * size + index[:, 2])
        flat = flat[values.view(-1)[flat].isinf()]
        if len(flat):
            index = torch.stack(torch.unravel_index(flat, values.shape), dim=1)
            values.view(-1)[flat] = self._decided(self._evaluate(index, size - 1), index, size - 1)

    def _decided(self, raw: Tensor, index: Tensor, resolution: int) -> Tensor:
        """Values that are not zero, and positive on the faces of the cube, so that the mesh is closed there."""
        values = torch.where(raw < 0, raw.clamp_max(-self.least), raw.clamp_min(self.least))
        on_face = ((index == 0) | (index == resolution)).any(1)
        return torch.where(on_face, values.clamp_min(self.least), values)

    def _evaluate(self, index: Tensor, resolution: int) -> Tensor:
        # in float64: a point that finer lattices share has the same coordinates in all of them
        points = (self.bounds * (2 * index.double() / resolution - 1)).float()
        values = map_chunks(self.field, points, chunk_size=self.chunks)
        if values.shape != (len(points),):
            raise ValueError(
                f"field: (n, 3) points gave {tuple(values.shape)} for n = {len(points)}, expected (n,) values"
            )
        finite = torch.isfinite(values)
        if not bool(finite.all()):
            first = [round(x, 6) for x in points[~finite][0].tolist()]
            raise ValueError(
                f"field: {int((~finite).sum())} of {len(points)} values are not finite, the first at {first}; "
                "check that the network has not diverged"
            )
        return values.float()


def _halved(lattice: _Lattice, values: Tensor) -> Tensor:
    """Values on the lattice of half the cells, known wherever the surface is."""
    num_cells, device = len(values) - 1, values.device
    # a cell without surface has the one sign of its corners throughout
    lower = torch.arange(2 * num_cells + 1, device=device) // 2
    is_inside = (values < 0)[lower][:, lower][:, :, lower]
    fine = torch.where(is_inside, -torch.inf, torch.inf)
    fine[::2, ::2, ::2] = values
    points = torch.cartesian_prod(*[torch.arange(3, device=device)] * 3)  # of a halved cell, and around one
    is_halved = _is_mixed(_corners(values))
    cells = is_halved.nonzero()
    while len(cells):
        lattice.fill(fine, (2 * cells[:, None] + points).reshape(-1, 3))
        # the new points on a cell's faces are its neighbours' as well, and may show them a surface
        around = torch.zeros([num_cells + 2] * 3, dtype=torch.bool, device=device)
        around[(cells[:, None] + points).reshape(-1, 3).unbind(1)] = True
        around = (around[1:-1, 1:-1, 1:-1] & ~is_halved).nonzero()
        x, y, z = (2 * around[:, None] + points).unbind(2)
        cells = around[_is_mixed(fine[x, y, z])]
        is_halved[tuple(cells.T)] = True
    return fine


def _corners(values: Tensor) -> Tensor:
    """(r + 1, r + 1, r + 1) values on a lattice -> (r, r, r, 8) those of each cell."""
    ends = slice(None, -1), slice(1, None)
    return torch.stack([values[corner] for corner in itertools.product(ends, repeat=3)], dim=-1)


def _is_mixed(values: Tensor) -> Tensor:
    """(..., n) values -> (...) whether some are inside and some are not."""
    inside = values < 0
    return inside.any(-1) & ~inside.all(-1)


def _march(values: np.ndarray, bounds: float) -> Shape:
    resolution = len(values) - 1
    pieces = []
    for first in itertools.product(range(0, resolution, BLOCK), repeat=3):
        block = values[tuple(slice(f, f + BLOCK + 1) for f in first)]
        piece = march(
            block,
            np.array(first),
            resolution,
            lambda index: (bounds * (2 * index / resolution - 1)).astype(np.float32),
        )
        if piece is not None:
            assert piece.num_cut == 0, "the surface passes points that were not looked at"
            pieces.append(piece)
    return weld(pieces)
