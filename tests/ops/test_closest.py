import torch
import trimesh

from ops.closest import closest_on_triangles, point_to_mesh_distances
from ops.types import Shape


def test_closest_point_of_a_triangle_is_on_its_face_edge_or_corner():
    triangle = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    points = torch.tensor([[0.2, 0.3, 5], [0.5, -2, 1], [-1, -1, 0], [1, 1, 0], [3, 0, 0]])
    expected = torch.tensor([[0.2, 0.3, 0], [0.5, 0, 0], [0, 0, 0], [0.5, 0.5, 0], [1, 0, 0]])
    torch.testing.assert_close(closest_on_triangles(points, triangle.expand(5, 3, 3)), expected)


def test_closest_points_agree_with_trimesh_on_random_and_thin_triangles(generator):
    triangles = torch.randn(3000, 3, 3, generator=generator, dtype=torch.float64)
    triangles[:500, 2] = triangles[:500, 1] + 1e-3 * torch.randn(500, 3, generator=generator, dtype=torch.float64)
    points = torch.randn(3000, 3, generator=generator, dtype=torch.float64)
    expected = trimesh.triangles.closest_point(triangles.numpy(), points.numpy())
    found = closest_on_triangles(points, triangles)
    distance = (found - points).norm(dim=-1)
    torch.testing.assert_close(distance, (torch.from_numpy(expected) - points).norm(dim=-1), atol=1e-9, rtol=1e-9)


def test_distances_to_a_mesh_equal_those_to_all_its_triangles(generator):
    sphere = trimesh.creation.icosphere(subdivisions=3)
    shape = Shape(torch.tensor(sphere.vertices), torch.tensor(sphere.faces))
    points = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    triangles = shape.vertices[shape.faces]
    slow = [
        (closest_on_triangles(point.expand(len(triangles), 3), triangles) - point).norm(dim=-1).min()
        for point in points
    ]
    torch.testing.assert_close(point_to_mesh_distances(points, shape), torch.stack(slow))


def test_distances_to_a_point_set_are_those_to_its_points():
    shape = Shape(torch.tensor([[0.0, 0, 0], [1, 0, 0]]))
    assert point_to_mesh_distances(torch.tensor([[3.0, 0, 0], [0, 2, 0]]), shape).tolist() == [2, 2]
