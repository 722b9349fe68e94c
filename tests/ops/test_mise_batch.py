import pytest
import torch
from torch import Tensor

import ops.mise
from ops.mise import extract_mise, extract_mise_batch, field_of, refine_vertices, refine_vertices_batch
from ops.types import Shape

# several surfaces, one that touches lattice points, one beyond the cube, none
CENTERS = torch.tensor([[0.01, 0.02, -0.03], [0.0, 0.0, 0.0], [0.3, 0.3, 0.3], [9.0, 9.0, 9.0], [-0.1, 0.1, 0.0]])
RADII = torch.tensor([0.4, 0.275, 0.4, 0.1, 0.15])
SIZES = {"coarse_resolution": 8, "upsampling_steps": 2}


def spheres(points: Tensor, objects: Tensor) -> Tensor:
    assert bool((objects.diff() >= 0).all())
    return (points - CENTERS[objects]).norm(dim=-1) - RADII[objects]


class Counted:
    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, points: Tensor, objects: Tensor) -> Tensor:
        self.rows.append(len(points))
        return spheres(points, objects)


def assert_same(found: Shape, expected: Shape) -> None:
    assert torch.equal(found.vertices, expected.vertices)
    assert torch.equal(found.faces, expected.faces)


@pytest.mark.filterwarnings("ignore:Empty surface")
@pytest.mark.parametrize("lattice_points", [2**27, 2 * 33**3, 1])
def test_objects_of_a_batch_have_the_meshes_that_they_have_alone(
    lattice_points: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops.mise, "LATTICE_POINTS", lattice_points)
    expected = [extract_mise(field_of(spheres, k), **SIZES) for k in range(5)]
    found = extract_mise_batch(spheres, 5, **SIZES)
    assert [shape.is_empty for shape in found] == [False, False, False, True, False]
    for pair in zip(found, expected, strict=True):
        assert_same(*pair)


@pytest.mark.filterwarnings("ignore:Empty surface")
def test_a_batch_evaluates_the_same_points_in_fewer_calls() -> None:
    alone, together = Counted(), Counted()
    for k in range(5):
        extract_mise(field_of(alone, k), **SIZES, chunk_size=10**6)
    extract_mise_batch(together, 5, **SIZES, chunk_size=10**6)
    assert sum(together.rows) == sum(alone.rows)
    assert len(together.rows) < 0.6 * len(alone.rows)


def test_no_object_has_no_mesh() -> None:
    assert extract_mise_batch(spheres, 0) == []
    assert refine_vertices_batch([], spheres, []) == []


def test_an_empty_object_warns_and_one_that_is_not_finite_is_named() -> None:
    with pytest.warns(UserWarning, match="Empty surface: the field lies in") as warned:
        extract_mise_batch(spheres, 4, coarse_resolution=8, upsampling_steps=0)
    assert len(warned) == 1
    broken = lambda points, objects: torch.where(objects == 1, torch.nan, spheres(points, objects))  # noqa: E731
    with pytest.raises(ValueError, match=r"729 of 2187 values are not finite, .* of object 1; check"):
        extract_mise_batch(broken, 3, coarse_resolution=8)


def bent(points: Tensor, objects: Tensor) -> Tensor:
    return torch.expm1(10 * spheres(points, objects))


def test_refined_together_meshes_are_those_refined_alone() -> None:
    fields = range(3)
    meshes = [extract_mise(field_of(bent, k), coarse_resolution=8, upsampling_steps=0) for k in fields]
    meshes.insert(1, Shape.empty())
    objects = [0, 0, 1, 2]  # which field is each mesh's

    def of_meshes(points: Tensor, index: Tensor) -> Tensor:
        return bent(points, torch.tensor(objects)[index])

    def generator(k: int) -> torch.Generator:
        return torch.Generator().manual_seed(k)

    expected = [
        refine_vertices(mesh, field_of(of_meshes, k), generator(k), num_steps=2, learning_rate=1e-3)
        for k, mesh in enumerate(meshes)
    ]
    found = refine_vertices_batch(
        meshes, of_meshes, [generator(k) for k in range(4)], num_steps=2, learning_rate=1e-3, chunk_size=150
    )
    assert found[1].is_empty
    for mesh, a, b in zip(meshes, found, expected, strict=True):
        torch.testing.assert_close(a.vertices, b.vertices, atol=1e-5, rtol=0)
        assert torch.equal(a.faces, mesh.faces)
        assert mesh.is_empty or not torch.equal(a.vertices, mesh.vertices)
    with pytest.raises(ValueError, match="a point set, expected a mesh"):
        refine_vertices_batch([meshes[0], Shape(torch.zeros(3, 3))], of_meshes, [generator(0), generator(1)])
