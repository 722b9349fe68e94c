import pytest
import torch
import trimesh

from ops.meshes import (
    drop_unused_vertices,
    euler_characteristic,
    is_watertight,
    largest_component,
    merge_vertices,
    sample_surface,
    select_vertices,
    signed_volume,
)
from ops.types import Shape


def from_trimesh(mesh: trimesh.Trimesh) -> Shape:
    return Shape(torch.tensor(mesh.vertices, dtype=torch.float32), torch.tensor(mesh.faces, dtype=torch.int64))


def joined(*shapes: Shape) -> Shape:
    offsets = [0, *torch.tensor([len(s.vertices) for s in shapes]).cumsum(0).tolist()]
    faces = [s.faces + o for s, o in zip(shapes, offsets, strict=False)]
    return Shape(torch.cat([s.vertices for s in shapes]), torch.cat(faces))


def sphere(subdivisions: int = 2, radius: float = 1.0) -> Shape:
    return from_trimesh(trimesh.creation.icosphere(subdivisions, radius))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_samples_spread_by_area() -> None:
    # two triangles of areas 1/2 and 9/2
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [3, 0, 1], [0, 3, 1]])
    points, normals = sample_surface(Shape(vertices, torch.tensor([[0, 1, 2], [3, 4, 5]])), 20_000, generator())
    assert float((points[:, 2] == 1).float().mean()) == pytest.approx(0.9, abs=0.01)
    # evenly within a triangle: its mean is its centroid
    torch.testing.assert_close(points[points[:, 2] == 1].mean(0), torch.tensor([1.0, 1, 1]), rtol=0, atol=0.03)
    assert bool((points[:, :2].sum(1) <= 3 + 1e-6).all())
    torch.testing.assert_close(normals, torch.tensor([0.0, 0, 1]).expand_as(normals))


def test_normals_of_a_sphere_point_outward() -> None:
    points, normals = sample_surface(sphere(4), 500, generator())
    assert float((points * normals).sum(1).min()) > 0.99


def test_samples_follow_the_seed() -> None:
    first, again, other = (sample_surface(sphere(), 50, generator(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_faces_without_area_get_no_samples() -> None:
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [9, 9, 9]])
    faces = torch.tensor([[3, 3, 3], [0, 1, 2], [3, 3, 0]])
    points, _ = sample_surface(Shape(vertices, faces), 1000, generator())
    assert float(points.max()) <= 1


def test_a_point_set_gives_its_own_points_without_normals() -> None:
    points = torch.randn(100, 3)
    some, normals = sample_surface(Shape(points), 30, generator())
    assert normals is None
    assert len({tuple(p) for p in some.tolist()} & {tuple(p) for p in points.tolist()}) == 30
    assert torch.equal(sample_surface(Shape(points), 200, generator())[0], points)


def test_an_empty_mesh_gives_no_points() -> None:
    assert sample_surface(Shape.empty(), 10, generator())[0].shape == (0, 3)


def test_selection_keeps_only_whole_faces_and_colours() -> None:
    shape = Shape(torch.arange(12.0).view(4, 3), torch.tensor([[0, 1, 2], [1, 3, 2]]), torch.rand(4, 3))
    part = select_vertices(shape, torch.tensor([False, True, True, True]))
    assert part.faces.tolist() == [[0, 2, 1]]
    assert torch.equal(part.vertices, shape.vertices[1:])
    assert torch.equal(part.vertex_colors, shape.vertex_colors[1:])


def test_unused_vertices_go() -> None:
    shape = Shape(torch.arange(15.0).view(5, 3), torch.tensor([[4, 2, 1]]))
    assert drop_unused_vertices(shape).faces.tolist() == [[2, 1, 0]]
    assert len(drop_unused_vertices(shape).vertices) == 3


def test_largest_component_by_faces_and_by_area_differ() -> None:
    fine_and_small, coarse_and_big = sphere(3, radius=0.5), sphere(1, radius=2.0)
    both = joined(fine_and_small, coarse_and_big)
    assert torch.equal(largest_component(both).vertices, fine_and_small.vertices)
    assert torch.equal(largest_component(both, by="area").vertices, coarse_and_big.vertices)
    assert largest_component(both, by="area").faces.tolist() == coarse_and_big.faces.tolist()


def test_euler_characteristic_counts_handles_and_parts() -> None:
    torus = from_trimesh(trimesh.creation.torus(2.0, 0.5, 16, 8))
    assert euler_characteristic(sphere()) == 2
    assert euler_characteristic(torus) == 0
    assert euler_characteristic(joined(sphere(), sphere(), torus)) == 4


def test_watertight_needs_every_edge_twice_in_opposite_directions() -> None:
    closed = sphere()
    assert is_watertight(closed)
    assert not is_watertight(Shape(closed.vertices, closed.faces[1:]))
    assert not is_watertight(Shape(closed.vertices, torch.cat([closed.faces, closed.faces[:1]])))
    flipped = closed.faces.clone()
    flipped[0] = flipped[0].flip(0)
    assert not is_watertight(Shape(closed.vertices, flipped))
    assert not is_watertight(Shape.empty())


def test_signed_volume_of_a_box_is_its_volume_and_flips_with_the_winding() -> None:
    box = from_trimesh(trimesh.creation.box((1.0, 2.0, 3.0)))
    moved = Shape(box.vertices + 10, box.faces)
    assert signed_volume(moved) == pytest.approx(6)
    assert signed_volume(Shape(moved.vertices, moved.faces.flip(1))) == pytest.approx(-6)


def test_merged_vertices_join_faces_that_only_touched() -> None:
    mesh = trimesh.creation.icosphere(2, 1.0)
    # as an STL has it: three vertices for each face
    soup = Shape(torch.tensor(mesh.triangles.reshape(-1, 3)), torch.arange(3 * len(mesh.faces)).reshape(-1, 3))
    soup.vertex_colors = soup.vertices.float()
    merged = merge_vertices(soup)
    assert len(merged.vertices) == len(mesh.vertices)
    assert is_watertight(merged)
    torch.testing.assert_close(merged.vertices[merged.faces], soup.vertices[soup.faces])
    torch.testing.assert_close(merged.vertex_colors, merged.vertices.float())
    # the first vertex stays the first
    torch.testing.assert_close(merged.vertices[0], soup.vertices[0])


def test_merging_drops_faces_without_area_and_leaves_points_alone() -> None:
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0]])
    merged = merge_vertices(Shape(vertices, torch.tensor([[0, 1, 2], [0, 1, 3]])))
    assert merged.faces.tolist() == [[0, 1, 2]]
    assert len(merge_vertices(Shape(vertices)).vertices) == 4
    assert merge_vertices(Shape.empty()).is_empty
