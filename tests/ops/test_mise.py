import math
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from ops.closest import point_to_mesh_distances
from ops.marching_cubes import march, weld
from ops.meshes import euler_characteristic, face_normals_and_areas, is_watertight, signed_volume
from ops.mise import MARGIN, extract_mise, refine_vertices
from ops.types import Field, Shape


def sphere(center: tuple[float, float, float] = (0.01, 0.02, -0.03), radius: float = 0.4) -> Field:
    return lambda x: (x - x.new_tensor(center)).norm(dim=-1) - radius


def chair(x: Tensor) -> Tensor:
    """A seat, a back and four legs, thin against the coarse cells; steep like logits."""
    boxes = [((0, 0, 0), (0.25, 0.25, 0.03)), ((0, 0.23, 0.25), (0.25, 0.02, 0.25))]
    boxes += [((sx * 0.22, sy * 0.22, -0.25), (0.02, 0.02, 0.25)) for sx in (-1, 1) for sy in (-1, 1)]
    centers, halves = (x.new_tensor(np.array(t, np.float32)) for t in zip(*boxes, strict=True))
    q = (x[:, None] - centers - 0.0071).abs() - halves
    return 30 * (q.clamp_min(0).norm(dim=-1) + q.amax(-1).clamp_max(0)).amin(-1)


def wavy(x: Tensor) -> Tensor:
    """One surface with many handles whose bends are finer than coarse cells."""
    return torch.sin(22 * x + 9 * x.flip(-1)).sum(-1) - 0.2 + 2 * (x.norm(dim=-1) - 0.45).clamp_min(0) * 20


def tentacles(x: Tensor) -> Tensor:
    """A ball with arms that no coarse lattice point or edge meets."""
    arms = []
    for axis, (u, v) in enumerate([(0.013, 0.021), (0.009, -0.018), (-0.02, 0.016)]):
        others = [k for k in range(3) if k != axis]
        radial = torch.stack([x[:, others[0]] - u, x[:, others[1]] - v], dim=-1).norm(dim=-1) - 0.012
        arms.append(torch.maximum(radial, x[:, axis].abs() - 0.5))
    return torch.stack([x.norm(dim=-1) - 0.15, *arms]).amin(0)


class Counted:
    def __init__(self, field: Field) -> None:
        self.field, self.num_points, self.seen = field, 0, []

    def __call__(self, x: Tensor) -> Tensor:
        self.num_points += len(x)
        self.seen.append(x)
        return self.field(x)


def dense(field: Field, resolution: int, coarse: int, bounds: float = 0.55) -> Shape:
    """Marching cubes on all values, which are treated alike beside zero and on the border."""
    axis = (bounds * (2 * torch.arange(resolution + 1, dtype=torch.float64) / resolution - 1)).float()
    values = field(torch.cartesian_prod(axis, axis, axis)).view([resolution + 1] * 3)
    step = resolution // coarse
    corners = values[::step, ::step, ::step].unfold(0, 2, 1).unfold(1, 2, 1).unfold(2, 2, 1).reshape(-1, 8)
    is_cut = (corners < 0).any(1) & (corners >= 0).any(1)
    least = MARGIN * float(corners[is_cut].abs().median())
    values = torch.where(values < 0, values.clamp_max(-least), values.clamp_min(least))
    border = torch.ones_like(values, dtype=torch.bool)
    border[1:-1, 1:-1, 1:-1] = False
    values = torch.where(border, values.clamp_min(least), values)
    piece = march(
        values.numpy(), np.zeros(3, int), resolution, lambda i: (bounds * (2 * i / resolution - 1)).astype(np.float32)
    )
    return weld([piece])


def triangles(shape: Shape) -> np.ndarray:
    """Corners of each face from its smallest on, faces sorted: the mesh without its numbering."""
    corners = shape.vertices[shape.faces].numpy()
    order = np.lexsort(corners.transpose(2, 0, 1)[::-1], axis=1)[:, :1]
    turned = np.take_along_axis(corners, ((order + np.arange(3)) % 3)[:, :, None], axis=1).reshape(-1, 9)
    return turned[np.lexsort(turned.T[::-1])]


@pytest.mark.parametrize(("coarse", "steps"), [(32, 0), (16, 1), (16, 2), (8, 3)])
@pytest.mark.parametrize("field", [sphere(), chair, wavy, tentacles], ids=["sphere", "chair", "wavy", "tentacles"])
def test_the_mesh_is_that_of_all_values(field: Field, coarse: int, steps: int) -> None:
    expected = dense(field, coarse * 2**steps, coarse)
    mesh = extract_mise(field, coarse_resolution=coarse, upsampling_steps=steps)
    assert is_watertight(mesh)
    np.testing.assert_array_equal(triangles(mesh), triangles(expected))


def test_following_the_surface_finds_arms_that_the_coarse_lattice_does_not_see() -> None:
    mesh = extract_mise(tentacles, coarse_resolution=16, upsampling_steps=3)
    assert float(mesh.vertices.abs().amax(0).min()) > 0.49


@pytest.mark.parametrize(("field", "share"), [(sphere(radius=0.37), 0.07), (chair, 0.05)], ids=["sphere", "chair"])
def test_at_128_no_more_than_seven_percent_of_the_lattice_is_evaluated(field: Field, share: float) -> None:
    counted = Counted(field)
    extract_mise(counted)
    assert counted.num_points < share * 129**3
    # and no point twice
    assert len(torch.unique(torch.cat(counted.seen), dim=0)) == counted.num_points


def test_a_sphere_has_its_volume_and_topology() -> None:
    mesh = extract_mise(sphere())
    assert euler_characteristic(mesh) == 2
    assert signed_volume(mesh) == pytest.approx(4 / 3 * math.pi * 0.4**3, rel=2e-3)
    torch.testing.assert_close(mesh.vertices.mean(0), torch.tensor([0.01, 0.02, -0.03]), atol=1e-3, rtol=0)


def test_bounds_scale_the_cube() -> None:
    small = extract_mise(sphere((0, 0, 0.01), 0.3), coarse_resolution=8)
    large = extract_mise(sphere((0, 0, 0.04), 1.2), coarse_resolution=8, bounds=2.2)
    torch.testing.assert_close(large.vertices, 4 * small.vertices)


@pytest.mark.parametrize("steps", [0, 2])
def test_what_reaches_beyond_the_cube_is_closed_at_its_faces(steps: int) -> None:
    mesh = extract_mise(sphere(radius=0.65), coarse_resolution=16, upsampling_steps=steps)
    assert is_watertight(mesh)
    assert float(mesh.vertices.abs().max()) <= 0.55
    full = extract_mise(lambda x: -torch.ones(len(x)), coarse_resolution=8, upsampling_steps=steps)
    assert is_watertight(full)
    torch.testing.assert_close(full.vertices.abs().amax(0), torch.full((3,), 0.55), atol=1e-4, rtol=0)


def test_surfaces_through_lattice_points_stay_watertight() -> None:
    mesh = extract_mise(lambda x: x.abs().amax(-1) - 0.275, coarse_resolution=16, upsampling_steps=1)
    assert is_watertight(mesh)
    assert euler_characteristic(mesh) == 2
    # the lattice points on the box count as outside, and marching cubes cuts edges and corners
    assert 0.97 * 0.55**3 < signed_volume(mesh) < 0.55**3


def test_results_do_not_depend_on_the_chunks_and_keep_no_graph() -> None:
    scale = torch.nn.Parameter(torch.ones(()))
    meshes = [extract_mise(lambda x: scale * chair(x), coarse_resolution=16, chunk_size=c) for c in (777, 10**6)]
    assert torch.equal(meshes[0].vertices, meshes[1].vertices)
    assert torch.equal(meshes[0].faces, meshes[1].faces)
    assert not meshes[0].vertices.requires_grad


def test_an_empty_surface_warns_with_the_range_of_the_field() -> None:
    with pytest.warns(UserWarning, match=r"lies in \[1\.5, 2\.453\].*nothing within the cube is negative"):
        mesh = extract_mise(lambda x: x.norm(dim=-1) + 1.5, coarse_resolution=8)
    assert mesh.is_empty
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        extract_mise(sphere(), coarse_resolution=8)


@pytest.mark.parametrize(
    ("field", "kwargs", "message"),
    [
        (lambda x: x[:, :1], {}, r"gave \(729, 1\) for n = 729"),
        (
            lambda x: torch.where(x[:, 0] > 0.5, torch.nan, x[:, 0]),
            {},
            r"81 of 729 .* first at \[0\.55, -0\.55, -0\.55\]",
        ),
        (sphere(), {"coarse_resolution": 1}, "coarse_resolution: 1, expected at least 2"),
        (sphere(), {"upsampling_steps": -1}, "upsampling_steps: -1"),
    ],
)
def test_bad_arguments_are_named(field: Field, kwargs: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        extract_mise(field, **{"coarse_resolution": 8, **kwargs})


def test_refinement_moves_vertices_onto_the_zero_set_and_turns_faces(generator: torch.Generator) -> None:
    radius = torch.nn.Parameter(torch.tensor(0.4))
    # marching cubes of a field that is not linear across a cell leaves its vertices off the surface
    field = lambda x: torch.expm1(40 * (x.norm(dim=-1) - radius))  # noqa: E731
    mesh = extract_mise(field, coarse_resolution=8, upsampling_steps=1)
    with torch.inference_mode():
        refined = refine_vertices(mesh, field, generator, num_steps=60, learning_rate=1e-3)

    def errors(shape: Shape) -> tuple[float, float]:
        normals, _ = face_normals_and_areas(shape)
        middles = shape.vertices[shape.faces].mean(1)
        turn = 1 - (normals * torch.nn.functional.normalize(middles.double(), dim=1)).sum(1)
        return (middles.norm(dim=1) - 0.4).abs().mean().item(), turn.mean().item()

    (distance, turn), (refined_distance, refined_turn) = errors(mesh), errors(refined)
    assert refined_distance < 0.25 * distance
    assert refined_turn < turn
    assert radius.grad is None
    assert is_watertight(refined)
    assert point_to_mesh_distances(refined.vertices, mesh).max() < 0.07


def test_refinement_is_the_same_for_any_chunks_and_leaves_nothing_alone() -> None:
    mesh = extract_mise(sphere(), coarse_resolution=8, upsampling_steps=0)
    results = [
        refine_vertices(mesh, sphere(), torch.Generator().manual_seed(1), num_steps=3, chunk_size=c)
        for c in (17, 10**6)
    ]
    torch.testing.assert_close(results[0].vertices, results[1].vertices)
    assert refine_vertices(Shape.empty(), sphere(), torch.Generator()).is_empty
    with pytest.raises(ValueError, match="a point set, expected a mesh"):
        refine_vertices(Shape(torch.zeros(3, 3)), sphere(), torch.Generator())
