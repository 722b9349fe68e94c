"""Multiresolution isosurface extraction (MISE) of Occupancy Networks (arXiv:1812.03828), for fields of any slope.

Values are taken on a coarse lattice; cells whose corners differ in sign are halved, again and again. Here a cell is
halved as well if what its halved neighbours found says that the surface enters it, so that no part of a surface that is
seen anywhere is lost: the mesh is that of all values, wherever the coarse lattice sees every component. Objects of a
batch share the calls of their network and the operations on their lattices, which are many and small.
:func:`ops.isosurface.extract_surface` is for distances, whose slope is known, and for lattices beyond memory.
"""

import itertools
import warnings
from collections.abc import Callable, Sequence

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
CHUNK_SIZE = 100_000  # most points that are evaluated at once
CPU_CHUNK_SIZE = 2048  # on a CPU whose caches then hold 256 features a point: twice as fast as from memory
LATTICE_POINTS = 2**27  # of all objects that are extracted together: 512 MiB of values
COARSE_POINTS = 2**22  # of their coarse lattices, where every point is evaluated: 300 MiB

ObjectsField = Callable[[Tensor, Tensor], Tensor]
"""(n, 3) points and (n,) int64, ascending, which object each belongs to -> (n,) values: negative inside."""


def field_of(fields: ObjectsField, index: int = 0) -> Field:
    """The field of one of several objects."""

    def field(points: Tensor) -> Tensor:
        flat = points.reshape(-1, 3)
        objects = torch.full((len(flat),), index, device=points.device)
        return fields(flat, objects).view(points.shape[:-1])

    return field


def extract_mise(
    field: Field,
    *,
    coarse_resolution: int = 32,
    upsampling_steps: int = 2,
    bounds: float = 0.55,
    chunk_size: int | None = None,
    device: torch.device | str | None = None,
) -> Shape:
    """The closed mesh on which a field is zero, on a lattice of coarse_resolution * 2^upsampling_steps cells an axis.

    A component between whose sides no coarse lattice point lies is missed; thinner ones need a finer coarse lattice.

    Args:
        field: (n, 3) points -> (n,) values, negative inside: ``level - logit`` for occupancy. Called without gradients.
        coarse_resolution: cells along an axis that are looked at everywhere.
        upsampling_steps: how often cells at the surface are halved.
        bounds: half the edge of the cube; the paper's unit cube with a tenth around it.
        chunk_size: most points that are evaluated at once; it halves by itself when memory runs out. As many as a CPU's
            caches hold features of, or 100,000 on other devices, where not given.
        device: where ``field`` is evaluated and the lattice lies; the CPU where not given.

    Returns:
        A watertight mesh on the CPU, float32 vertices in the frame of the field, faces counter-clockwise seen from
        outside. What reaches beyond the cube is cut off at its faces. Empty, with a warning, where nothing is inside.

    Raises:
        ValueError: for sizes out of range, and values of the field that are not finite or of another shape.
    """
    return extract_mise_batch(
        lambda points, _: field(points),
        1,
        coarse_resolution=coarse_resolution,
        upsampling_steps=upsampling_steps,
        bounds=bounds,
        chunk_size=chunk_size,
        device=device,
    )[0]


def extract_mise_batch(
    field: ObjectsField,
    num_objects: int,
    *,
    coarse_resolution: int = 32,
    upsampling_steps: int = 2,
    bounds: float = 0.55,
    chunk_size: int | None = None,
    device: torch.device | str | None = None,
) -> list[Shape]:
    """The mesh of every object as by :func:`extract_mise`, with one call of the field for points of all of them.

    Args:
        field: points and their objects -> values. Called without gradients.
        num_objects: B; the field sees the objects 0 to B - 1.
        coarse_resolution, upsampling_steps, bounds, chunk_size, device: as there.

    Returns:
        B meshes.

    Raises:
        ValueError: as there.
    """
    for name, value, least in (("coarse_resolution", coarse_resolution, 2), ("upsampling_steps", upsampling_steps, 0)):
        if value < least:
            raise ValueError(f"{name}: {value}, expected at least {least}")
    device = torch.device("cpu" if device is None else device)
    if chunk_size is None:
        chunk_size = CPU_CHUNK_SIZE if device.type == "cpu" else CHUNK_SIZE
    chunks, resolution = ChunkSize(chunk_size), coarse_resolution * 2**upsampling_steps
    together = min(LATTICE_POINTS // (resolution + 1) ** 3, COARSE_POINTS // (coarse_resolution + 1) ** 3)
    shapes = []
    for objects in torch.arange(num_objects, device=device).split(max(together, 1)):
        with torch.no_grad():
            lattice = _Lattice(field, objects, bounds, chunks)
            values = lattice.coarse_values(coarse_resolution)
            for _ in range(upsampling_steps):
                values = _halved(lattice, values)
        for own, (low, high) in zip(values, lattice.ranges, strict=True):
            shapes.append(_march(own.cpu().numpy(), bounds))
            if shapes[-1].is_empty:
                warnings.warn(
                    f"Empty surface: the field lies in [{low:.4g}, {high:.4g}] on the coarse lattice, nothing within "
                    "the cube is negative; train longer, or check the sign and the level",
                    stacklevel=2,
                )
    return shapes


def refine_vertices(
    shape: Shape,
    field: Field,
    generator: torch.Generator,
    *,
    num_steps: int = 30,
    learning_rate: float = 1e-4,
    normal_weight: float = 0.01,
    chunk_size: int = 2**15,
    device: torch.device | str | None = None,
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
        device: where ``field`` is evaluated; the mesh's where not given.

    Returns:
        The mesh with other vertices, on the device that they were on.

    Raises:
        ValueError: for a point set.
    """
    return refine_vertices_batch(
        [shape],
        lambda points, _: field(points),
        [generator],
        num_steps=num_steps,
        learning_rate=learning_rate,
        normal_weight=normal_weight,
        chunk_size=chunk_size,
        device=device,
    )[0]


def refine_vertices_batch(
    shapes: Sequence[Shape],
    field: ObjectsField,
    generators: Sequence[torch.Generator],
    *,
    num_steps: int = 30,
    learning_rate: float = 1e-4,
    normal_weight: float = 0.01,
    chunk_size: int = 2**15,
    device: torch.device | str | None = None,
) -> list[Shape]:
    """Every mesh as by :func:`refine_vertices`, with one call of the field for faces of all of them.

    Args:
        shapes: B meshes, each near the zero set of its object.
        field: points and their objects -> values.
        generators: B, each draws the points on its object's faces.
        num_steps, learning_rate, normal_weight, chunk_size, device: as there.

    Returns:
        B meshes.

    Raises:
        ValueError: for a point set.
    """
    if any(shape.faces is None for shape in shapes):
        raise ValueError("shape: a point set, expected a mesh")
    full = [i for i, shape in enumerate(shapes) if not shape.is_empty]
    if not full:
        return list(shapes)
    device = shapes[0].vertices.device if device is None else device
    num_vertices, num_faces = [len(shapes[i].vertices) for i in full], [len(shapes[i].faces) for i in full]
    counts = torch.tensor(num_faces, device=device)
    with torch.inference_mode(False), torch.enable_grad():
        # copies, as tensors made in inference mode take part in no graph
        vertices = torch.cat([shapes[i].vertices for i in full]).to(device).clone().requires_grad_()
        first_vertices = itertools.accumulate(num_vertices, initial=0)
        faces = torch.cat([shapes[i].faces + v for i, v in zip(full, first_vertices, strict=False)]).to(device).clone()
        objects = torch.tensor(full, device=device).repeat_interleave(counts)
        shares = (1 / counts).repeat_interleave(counts).to(vertices)
        optimizer = torch.optim.RMSprop([vertices], lr=learning_rate)
        for _ in range(num_steps):
            # squares of normals are gamma variables of shape 1/2, their shares a Dirichlet one
            drawn = [_normals(count, generators[i]).to(vertices) for i, count in zip(full, num_faces, strict=True)]
            weights = torch.cat(drawn).square()
            weights = weights / weights.sum(1, keepdim=True)
            vertices.grad = torch.zeros_like(vertices)
            chunks = (rows.split(chunk_size) for rows in (faces, weights, objects, shares))
            for chunk, weight, of, share in zip(*chunks, strict=True):
                misfit = _misfit(vertices[chunk], weight, lambda x, of=of: field(x, of), normal_weight)
                vertices.grad += torch.autograd.grad((misfit * share).sum(), vertices)[0]
            optimizer.step()
    refined = list(shapes)
    for i, own in zip(full, vertices.detach().split(num_vertices), strict=True):
        refined[i] = Shape(own.to(shapes[i].vertices, copy=True), shapes[i].faces, shapes[i].vertex_colors)
    return refined


def _normals(count: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, 3, generator=generator, device=generator.device)


def _misfit(corners: Tensor, weights: Tensor, field: Field, normal_weight: float) -> Tensor:
    """(n,) of the faces with (n, 3, 3) corners, each at one point."""
    points = (weights[:, :, None] * corners).sum(1)
    values = field(points)
    (gradient,) = torch.autograd.grad(values.sum(), points, create_graph=True)
    a, b, c = corners.unbind(1)
    normals = F.normalize(torch.linalg.cross(b - a, c - a), dim=1, eps=1e-30)
    turn = (normals - F.normalize(gradient, dim=1)).square().sum(1)
    return values.square() + normal_weight * turn


class _Lattice:
    """The fields at points of ever finer lattices over the cube; what was not looked at is plus or minus infinite.

    Points are (n, 4) indices: which of the objects, and where along the axes.
    """

    def __init__(self, field: ObjectsField, objects: Tensor, bounds: float, chunks: ChunkSize) -> None:
        self.field, self.objects, self.bounds, self.chunks = field, objects, bounds, chunks
        self.ranges: list[tuple[float, float]] = []
        self.least = torch.zeros(len(objects), device=objects.device)

    def coarse_values(self, resolution: int) -> Tensor:
        """(B, r + 1, r + 1, r + 1) values; from them, also what counts as near to zero."""
        device, shape = self.objects.device, [len(self.objects), *[resolution + 1] * 3]
        index = torch.cartesian_prod(*[torch.arange(size, device=device) for size in shape])
        raw = self._evaluate(index, resolution)
        for k, own in enumerate(raw.view(shape)):
            self.ranges.append((own.min().item(), own.max().item()))
            beside = _corners(own)[_is_cut(own[None])[0]].abs()
            self.least[k] = max(MARGIN * beside.median().item() if len(beside) else 0.0, TINY)
        return self._decided(raw, index, resolution).view(shape)

    def fill(self, values: Tensor, index: Tensor) -> None:
        """Look at those of the lattice points where nobody has."""
        size = values.shape[-1]
        flat = index[:, 0]
        for axis in (1, 2, 3):
            flat = flat * size + index[:, axis]
        flat = torch.unique(flat)
        flat = flat[values.view(-1)[flat].isinf()]
        if len(flat):
            index = torch.stack(torch.unravel_index(flat, values.shape), dim=1)
            values.view(-1)[flat] = self._decided(self._evaluate(index, size - 1), index, size - 1)

    def _decided(self, raw: Tensor, index: Tensor, resolution: int) -> Tensor:
        """Values that are not zero, and positive on the faces of the cube, so that the mesh is closed there."""
        least = self.least[index[:, 0]]
        values = torch.where(raw < 0, torch.minimum(raw, -least), torch.maximum(raw, least))
        on_face = ((index[:, 1:] == 0) | (index[:, 1:] == resolution)).any(1)
        return torch.where(on_face, torch.maximum(values, least), values)

    def _evaluate(self, index: Tensor, resolution: int) -> Tensor:
        # in float64: a point that finer lattices share has the same coordinates in all of them
        points = (self.bounds * (2 * index[:, 1:].double() / resolution - 1)).float()
        objects = self.objects[index[:, 0]]
        values = map_chunks(self.field, points, objects, chunk_size=self.chunks)
        if values.shape != (len(points),):
            raise ValueError(
                f"field: (n, 3) points gave {tuple(values.shape)} for n = {len(points)}, expected (n,) values"
            )
        finite = torch.isfinite(values)
        if not bool(finite.all()):
            first = [round(x, 6) for x in points[~finite][0].tolist()]
            raise ValueError(
                f"field: {int((~finite).sum())} of {len(points)} values are not finite, the first at {first} of object "
                f"{int(objects[~finite][0])}; check that the network has not diverged"
            )
        return values.float()


def _halved(lattice: _Lattice, values: Tensor) -> Tensor:
    """Values on the lattice of half the cells, known wherever the surface is."""
    num_cells, device = values.shape[-1] - 1, values.device
    # a cell without surface has the one sign of its corners throughout
    lower = torch.arange(2 * num_cells + 1, device=device) // 2
    is_inside = (values < 0)[:, lower][:, :, lower][:, :, :, lower]
    fine = torch.where(is_inside, -torch.inf, torch.inf)
    fine[:, ::2, ::2, ::2] = values
    twice = torch.tensor([1, 2, 2, 2], device=device)
    # of a halved cell, and around one; in the same object
    points = torch.cartesian_prod(*[torch.arange(size, device=device) for size in (1, 3, 3, 3)])
    is_halved = _is_cut(values)
    cells = is_halved.nonzero()
    while len(cells):
        lattice.fill(fine, (twice * cells[:, None] + points).reshape(-1, 4))
        # the new points on a cell's faces are its neighbours' as well, and may show them a surface
        around = torch.zeros([len(values), *[num_cells + 2] * 3], dtype=torch.bool, device=device)
        around[(cells[:, None] + points).reshape(-1, 4).unbind(1)] = True
        around = (around[:, 1:-1, 1:-1, 1:-1] & ~is_halved).nonzero()
        inside = fine[(twice * around[:, None] + points).unbind(2)] < 0
        cells = around[inside.any(1) & ~inside.all(1)]
        is_halved[tuple(cells.T)] = True
    return fine


def _corners(values: Tensor) -> Tensor:
    """(r + 1, r + 1, r + 1) values on a lattice -> (r, r, r, 8) those of each cell."""
    ends = slice(None, -1), slice(1, None)
    return torch.stack([values[corner] for corner in itertools.product(ends, repeat=3)], dim=-1)


def _is_cut(values: Tensor) -> Tensor:
    """(B, r + 1, r + 1, r + 1) values -> (B, r, r, r): whether some corners of a cell are inside and some are not."""
    some = every = values < 0
    for axis in (1, 2, 3):
        low, high = slice(0, values.shape[axis] - 1), slice(1, None)
        ends = [(slice(None),) * axis + (end,) for end in (low, high)]
        some, every = some[ends[0]] | some[ends[1]], every[ends[0]] & every[ends[1]]
    return some & ~every


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
