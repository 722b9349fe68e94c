import math
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from ops.containment import contains
from ops.meshes import is_watertight, signed_volume
from ops.types import Shape
from ops.voxels import shape_from_voxels
from tests.ops.winding import winding_numbers


def shape_of(mesh: trimesh.Trimesh) -> Shape:
    return Shape(torch.tensor(np.array(mesh.vertices)), torch.tensor(np.array(mesh.faces), dtype=torch.int64))


def random_points(count: int, bounds: float = 1.0, seed: int = 0) -> Tensor:
    return (2 * torch.rand(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1) * bounds


def rotation(seed: int) -> Tensor:
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    return q * torch.linalg.det(q).sign()


BOX = shape_of(trimesh.creation.box((1.0, 1.0, 1.0)))
TORUS = shape_of(trimesh.creation.torus(0.6, 0.25, 60, 40))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "shape", [BOX, TORUS, shape_of(trimesh.creation.icosphere(3, 0.7))], ids=["box", "torus", "ball"]
)
def test_inside_is_where_the_mesh_winds_once(shape: Shape, seed: int) -> None:
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = rotation(seed)
    turned = shape.transformed(matrix)
    points = random_points(1000, seed=seed)
    expected = winding_numbers(turned, points) > 0.5
    assert 0.05 < expected.double().mean() < 0.95
    assert torch.equal(contains(turned, points), expected)


@pytest.mark.parametrize("seed", range(3))
def test_random_solids_with_many_handles_and_cavities(seed: int) -> None:
    shape = shape_from_voxels(torch.rand(10, 10, 10, generator=torch.Generator().manual_seed(seed)), 0.6)
    points = random_points(2000, 0.55, seed)
    assert torch.equal(contains(shape, points), winding_numbers(shape, points) > 0.5)


def test_lines_through_vertices_edges_and_upright_faces_are_decided_as_any_other() -> None:
    # a lattice whose lines run along the box's faces, through its corners and along its diagonals
    axis = torch.linspace(-1, 1, 17, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis, axis)
    off_the_surface = (points.abs().amax(1) - 0.5).abs() > 1e-9
    inside = contains(BOX, points)
    assert torch.equal(inside[off_the_surface], (points.abs().amax(1) < 0.5)[off_the_surface])
    # vertices of a finely divided sphere, pulled in and pushed out
    ball = shape_of(trimesh.creation.icosphere(4, 0.8))
    for factor, expected in ((0.9, True), (1.1, False)):
        assert bool((contains(ball, factor * ball.vertices) == expected).all())
    below = ball.vertices * torch.tensor([1, 1, 0.0], dtype=torch.float64)
    inner = below.norm(dim=1) < 0.75
    assert bool(contains(ball, below[inner]).all())


def test_the_share_of_points_inside_is_the_volume() -> None:
    points = random_points(200_000, seed=3)
    share = contains(TORUS, points).double().mean().item()
    volume = signed_volume(TORUS) / 8
    assert share == pytest.approx(volume, abs=4 * math.sqrt(volume * (1 - volume) / 200_000))


def test_it_does_not_depend_on_winding_threads_or_repeated_vertices() -> None:
    points = random_points(40_000, 0.9)
    expected = contains(TORUS, points)
    assert torch.equal(contains(Shape(TORUS.vertices, TORUS.faces.flip(1)), points), expected)
    soup = Shape(TORUS.vertices[TORUS.faces].reshape(-1, 3), torch.arange(3 * len(TORUS.faces)).view(-1, 3))
    assert torch.equal(contains(soup, points), expected)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        assert torch.equal(contains(TORUS, points), expected)
    finally:
        torch.set_num_threads(threads)


def test_a_shell_is_hollow() -> None:
    inner = Shape(0.5 * BOX.vertices, BOX.faces + len(BOX.vertices))
    shell = Shape(torch.cat([BOX.vertices, inner.vertices]), torch.cat([BOX.faces, inner.faces]))
    points = torch.tensor([[0.0, 0, 0], [0.4, 0, 0], [0, 0, -0.4], [0.6, 0, 0]])
    assert contains(shell, points).tolist() == [False, True, True, False]


def test_an_open_mesh_holds_only_what_it_covers_from_both_sides() -> None:
    # a box without its lid
    up = BOX.vertices[BOX.faces][:, :, 2].amin(1) == 0.5
    is_open = Shape(BOX.vertices, BOX.faces[~up])
    assert not is_watertight(is_open)
    assert not contains(is_open, random_points(500)).any()
    # without a side: the lines are closed still
    side = BOX.vertices[BOX.faces][:, :, 0].amin(1) == 0.5
    points = random_points(500)
    assert torch.equal(contains(Shape(BOX.vertices, BOX.faces[~side]), points), contains(BOX, points))


def test_nothing_is_inside_of_nothing() -> None:
    points = random_points(10)
    assert not contains(Shape.empty(), points).any()
    assert contains(BOX, points[:0]).shape == (0,)
    flat = Shape(torch.tensor([[0.0, 0, 0], [0, 0, 1], [0, 1, 0]]), torch.tensor([[0, 1, 2], [0, 2, 1]]))
    assert not contains(flat, points).any()


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="a point set has no inside"):
        contains(Shape(torch.zeros(3, 3)), torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"points: shape \(3,\)"):
        contains(BOX, torch.zeros(3))
    with pytest.raises(ValueError, match="points: 3 coordinates are not finite"):
        contains(BOX, torch.full((1, 3), torch.nan))
    with pytest.raises(ValueError, match="vertices: 24 coordinates are not finite"):
        contains(Shape(BOX.vertices * torch.inf, BOX.faces), torch.zeros(1, 3))


@pytest.mark.parametrize("name", ["spot", "cat", "koala"])
def test_real_watertight_meshes_agree_with_their_winding_number(name: str, test_data: Path) -> None:
    files = [
        p for p in (test_data / "meshes").rglob("*") if name in str(p) and p.suffix in (".obj", ".ply", ".stl", ".off")
    ]
    mesh = trimesh.load(files[0], force="mesh", process=False)
    mesh.merge_vertices(merge_tex=True, merge_norm=True)
    shape = shape_of(mesh)
    low, high = shape.vertices.amin(0), shape.vertices.amax(0)
    points = low + (high - low) * (0.5 + 0.5 * random_points(400))
    assert torch.equal(contains(shape, points), winding_numbers(shape, points).abs() > 0.5)
