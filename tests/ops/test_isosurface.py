import math
import warnings
from collections.abc import Callable

import mcubes
import numpy as np
import pytest
import torch
from torch import Tensor

from ops.isosurface import extract_surface
from ops.meshes import drop_unused_vertices, euler_characteristic, is_watertight, signed_volume
from ops.types import Field, Shape


def sphere(center: tuple[float, float, float] = (0.0, 0.0, 0.0), radius: float = 0.5) -> Field:
    return lambda x: (x - x.new_tensor(center)).norm(dim=-1) - radius


def torus(x: Tensor) -> Tensor:
    ring = torch.stack([x[:, :2].norm(dim=-1) - 0.6, x[:, 2]], dim=-1)
    return ring.norm(dim=-1) - 0.23


def wavy(x: Tensor) -> Tensor:
    """Many parts, handles and ambiguous cells; slope at most 1; ends at the faces of the cube."""
    return torch.sin(9 * x + x.flip(-1) * 5).sum(-1) / 25 + 0.01


class Counted:
    def __init__(self, field: Field) -> None:
        self.field, self.num_points, self.largest_call = field, 0, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.num_points += len(x)
        self.largest_call = max(self.largest_call, len(x))
        return self.field(x)


def triangles(shape: Shape) -> np.ndarray:
    """Corners of each face from its smallest on, faces sorted: the mesh without its numbering."""
    corners = shape.vertices[shape.faces].numpy()
    rows = []
    for face in corners.tolist():
        first = face.index(min(face))
        rows.append(face[first:] + face[:first])
    return np.array(sorted(rows))


LATTICE_POINTS_ON_SURFACE = sphere((0.0, 0.0, 0.0), 0.5)
OFF_LATTICE = sphere((0.0131, 0.0272, -0.0413), 0.5)


# 40 cells; strides 1 and 4; blocks that divide the resolution, that do not, and that are larger
@pytest.mark.parametrize("coarse_resolution", [40, 10])
@pytest.mark.parametrize("block_size", [5, 7, 8, 13, 39, 64])
@pytest.mark.parametrize("field", [LATTICE_POINTS_ON_SURFACE, OFF_LATTICE], ids=["on_lattice", "off_lattice"])
def test_sphere_is_watertight_whatever_the_blocks(field: Field, block_size: int, coarse_resolution: int) -> None:
    mesh = extract_surface(field, 40, block_size=block_size, coarse_resolution=coarse_resolution)
    assert is_watertight(mesh)
    assert euler_characteristic(mesh) == 2
    assert len(torch.unique(mesh.vertices, dim=0)) == len(mesh.vertices)
    assert signed_volume(mesh) == pytest.approx(4 / 3 * math.pi * 0.5**3, rel=0.01)


@pytest.mark.parametrize("rounding", [-1e-10, 1e-10])
def test_vertices_do_not_coincide_where_the_field_is_zero_but_for_rounding(rounding: float) -> None:
    exact = sphere((0.25, 0.25, 0.25), 0.5)
    mesh = extract_surface(lambda x: exact(x) + rounding, 32, block_size=8)
    assert len(torch.unique(mesh.vertices, dim=0)) == len(mesh.vertices)
    assert is_watertight(mesh)
    assert euler_characteristic(mesh) == 2


@pytest.mark.parametrize("block_size", [9, 16, 64])
def test_torus_has_one_handle(block_size: int) -> None:
    mesh = extract_surface(torus, 48, block_size=block_size, coarse_resolution=12)
    assert is_watertight(mesh)
    assert euler_characteristic(mesh) == 0


@pytest.mark.parametrize("field", [OFF_LATTICE, LATTICE_POINTS_ON_SURFACE, torus, wavy])
@pytest.mark.parametrize("block_size", [4, 11])
def test_blocks_make_the_mesh_of_one_block(field: Field, block_size: int) -> None:
    one = extract_surface(field, 33, block_size=33, coarse_resolution=33)
    many = extract_surface(field, 33, block_size=block_size, coarse_resolution=8)
    assert many.faces.shape == one.faces.shape
    np.testing.assert_allclose(triangles(many), triangles(one), atol=1e-7)


def test_surface_and_orientation_are_those_of_marching_cubes_on_all_values() -> None:
    axis = torch.linspace(-1, 1, 41, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis, axis)
    vertices, faces = mcubes.marching_cubes(OFF_LATTICE(points).reshape(41, 41, 41).numpy(), 0)
    inward = Shape(torch.from_numpy(vertices / 20 - 1).float(), torch.from_numpy(faces.astype(np.int64)))
    assert signed_volume(inward) < 0
    mesh = extract_surface(OFF_LATTICE, 40, block_size=16, coarse_resolution=10)
    expected = Shape(inward.vertices, inward.faces.flip(1))
    np.testing.assert_allclose(triangles(mesh), triangles(expected), atol=1e-5)
    assert signed_volume(mesh) == pytest.approx(signed_volume(expected), rel=1e-6)


def test_vertices_lie_on_the_sphere_to_second_order() -> None:
    def error(resolution: int) -> float:
        return float(OFF_LATTICE(extract_surface(OFF_LATTICE, resolution).vertices).abs().max())

    # linear interpolation along an edge of length h: curvature * h^2 / 8 = 2 * h^2 / 8
    assert error(32) < 2 * (2 / 32) ** 2 / 8 * 1.2
    assert error(64) < 0.3 * error(32)


def test_values_that_differ_from_batch_to_batch_leave_no_crack() -> None:
    generator = torch.Generator().manual_seed(0)

    def noisy(x: Tensor) -> Tensor:
        # a plane within the noise of the lattice's middle plane, closed by a sphere
        plane = x[:, 2] + 1e-4 * torch.randn(len(x), generator=generator)
        return torch.maximum(plane, x.norm(dim=-1) - 0.8)

    mesh = extract_surface(noisy, 32, block_size=4, coarse_resolution=8)
    assert is_watertight(mesh)


def test_512_cells_take_less_than_a_tenth_of_the_evaluations() -> None:
    counted = Counted(sphere(radius=0.6))
    extract_surface(counted, 512, chunk_size=2**16)
    assert counted.num_points < 0.1 * 513**3
    assert counted.largest_call <= 2**16


def test_an_infinite_margin_evaluates_every_point_once() -> None:
    counted = Counted(OFF_LATTICE)
    extract_surface(counted, 32, coarse_resolution=8, block_size=16, margin=math.inf)
    assert counted.num_points == 33**3


def test_a_thin_sheet_between_coarse_points_is_found() -> None:
    # 0.03 thick where the coarse cells are 0.25, and none of their corners is inside
    mesh = extract_surface(lambda x: (x[:, 0] - 0.11).abs() - 0.015, 128, coarse_resolution=8)
    assert mesh.vertices[:, 0].min() == pytest.approx(0.095, abs=1e-5)
    assert mesh.vertices[:, 0].max() == pytest.approx(0.125, abs=1e-5)
    assert len(mesh.vertices) == 2 * 129**2


def test_level_shifts_the_surface() -> None:
    mesh = extract_surface(OFF_LATTICE, 32, level=0.2)
    assert signed_volume(mesh) == pytest.approx(4 / 3 * math.pi * 0.7**3, rel=0.01)


def test_bounds_scale_the_cube() -> None:
    small, large = (extract_surface(sphere(radius=0.5 * b), 24, bounds=b) for b in (1.0, 4.0))
    torch.testing.assert_close(large.vertices, 4 * small.vertices)


def test_keep_cuts_and_then_the_largest_part_stays() -> None:
    def two(x: Tensor) -> Tensor:
        return torch.minimum(sphere((-0.5, 0, 0), 0.3)(x), sphere((0.5, 0, 0), 0.35)(x))

    whole = extract_surface(two, 48, block_size=8, coarse_resolution=12)
    assert euler_characteristic(whole) == 4
    largest = extract_surface(two, 48, block_size=8, coarse_resolution=12, keep_largest=True)
    assert euler_characteristic(largest) == 2
    assert largest.vertices[:, 0].min() > 0
    # keep leaves only a cap of the larger sphere, so that now the smaller is the larger part
    cut = extract_surface(two, 48, coarse_resolution=12, keep=lambda x: x[:, 0] < 0.3, keep_largest=True)
    assert cut.vertices[:, 0].max() < 0
    assert is_watertight(cut)
    cut = extract_surface(two, 48, coarse_resolution=12, keep=lambda x: x[:, 0] < 0.3)
    assert len(drop_unused_vertices(cut).vertices) == len(cut.vertices)
    assert bool((cut.vertices[:, 0] < 0.3).all())


def test_colours_are_the_fields_at_the_vertices() -> None:
    mesh = extract_surface(OFF_LATTICE, 24, color_field=lambda x: 0.5 + x / 2, chunk_size=100)
    torch.testing.assert_close(mesh.vertex_colors, 0.5 + mesh.vertices / 2)


def test_extraction_keeps_no_graph() -> None:
    radius = torch.nn.Parameter(torch.tensor(0.5))
    mesh = extract_surface(lambda x: x.norm(dim=-1) - radius, 16)
    assert not mesh.vertices.requires_grad
    assert mesh.vertices.dtype == torch.float32
    assert mesh.faces.dtype == torch.int64


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (sphere(radius=-0.25), r"lies in \[0.25, 1.982\].*nothing is inside"),
        (sphere(radius=3.0), r"lies in \[-3, -1.268\].*all of the cube is inside"),
    ],
)
def test_an_empty_surface_warns_with_the_range_of_the_field(field: Field, message: str) -> None:
    with pytest.warns(UserWarning, match=message):
        mesh = extract_surface(field, 32)
    assert mesh.is_empty
    assert mesh.vertices.shape == (0, 3)


def test_an_empty_selection_warns_of_keep() -> None:
    with pytest.warns(UserWarning, match="no vertex satisfies keep"):
        assert extract_surface(OFF_LATTICE, 16, keep=lambda x: x[:, 0] > 2).is_empty


def test_a_surface_that_leaves_the_cube_is_open() -> None:
    mesh = extract_surface(sphere(radius=1.2), 24)
    assert not mesh.is_empty
    assert not is_watertight(mesh)
    assert float(mesh.vertices.abs().max()) <= 1


def test_a_field_steeper_than_the_margin_warns() -> None:
    with pytest.warns(UserWarning, match="changes faster than margin"):
        # values a hundred times the distance: cells beside the surface look far from it
        extract_surface(lambda x: 100 * wavy(x), 64, coarse_resolution=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        extract_surface(lambda x: 100 * wavy(x), 64, coarse_resolution=8, margin=150.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    def broken(x: Tensor) -> Tensor:
        return torch.where(x[:, 0] > 0.9, value, OFF_LATTICE(x))

    with pytest.raises(ValueError, match=r"values are not finite, the first at \[0\.9375, -1\.0, -1\.0\]"):
        extract_surface(broken, 32)


@pytest.mark.parametrize(
    ("field", "kwargs", "message"),
    [
        (lambda x: x[:, :1], {}, r"gave \(\d+, 1\)"),
        (OFF_LATTICE, {"resolution": 0}, "resolution: 0"),
        (OFF_LATTICE, {"block_size": 0}, "block_size: 0"),
    ],
)
def test_bad_arguments_are_named(field: Field, kwargs: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        extract_surface(field, **{"resolution": 8, **kwargs})


def test_chunks_shrink_when_memory_runs_out() -> None:
    def greedy(field: Field) -> Callable[[Tensor], Tensor]:
        def limited(x: Tensor) -> Tensor:
            if len(x) > 5000:
                raise torch.OutOfMemoryError("full")
            return field(x)

        return limited

    with pytest.warns(UserWarning, match="Out of memory") as caught:
        mesh = extract_surface(greedy(OFF_LATTICE), 40, color_field=lambda x: x, block_size=20)
    assert len(caught) == 1
    assert torch.equal(mesh.vertices, extract_surface(OFF_LATTICE, 40, block_size=20).vertices)
