import pytest
import torch
import trimesh

from ops.meshes import face_normals_and_areas, signed_volume
from ops.simplify import fewer_points, simplified
from ops.types import Shape


def _shape(mesh: trimesh.Trimesh, offset: float = 0.0) -> Shape:
    vertices = torch.tensor(mesh.vertices) + offset
    return Shape(vertices, torch.tensor(mesh.faces), (vertices - vertices.amin(0)) / 2)


@pytest.mark.parametrize("max_faces", [200, 1000, 5000])
def test_a_sphere_stays_a_sphere_with_about_as_many_faces_as_asked_for(max_faces):
    sphere = _shape(trimesh.creation.icosphere(5))  # 20,480 faces
    few = simplified(sphere, max_faces)
    assert 0.6 * max_faces < len(few.faces) <= max_faces
    assert (few.vertices.norm(dim=1) - 1).abs().max() < 0.06
    assert signed_volume(few) == pytest.approx(signed_volume(sphere), rel=0.1)
    # its colours are those of the places
    assert (few.vertex_colors - (few.vertices + 1) / 2).abs().max() < 10 / max_faces**0.5


def test_a_box_keeps_its_corners_and_flat_sides_far_from_the_origin():
    box = trimesh.creation.box(extents=(2, 1, 1))
    for _ in range(5):
        box = box.subdivide()
    few = simplified(_shape(box, offset=1000.0), 500)
    torch.testing.assert_close(few.vertices.amin(0), torch.tensor([999.0, 999.5, 999.5]).double(), rtol=0, atol=1e-4)
    normals, areas = face_normals_and_areas(few)
    flat = normals.abs().amax(1) > 0.999
    assert areas[flat].sum() > 0.93 * areas.sum()
    for x in (999.0, 1001.0):
        corner = torch.tensor([x, 1000.5, 1000.5]).double()
        assert (few.vertices - corner).norm(dim=1).min() < 1e-3


def test_a_mesh_with_few_faces_and_a_small_point_set_come_back_as_they_are():
    box = _shape(trimesh.creation.box())
    assert simplified(box, 12) is box
    points = Shape(torch.rand(10, 3))
    assert fewer_points(points, 10) is points
    assert fewer_points(Shape(torch.rand(10, 3), None, torch.rand(10, 3)), 4).vertex_colors.shape == (4, 3)


def test_a_mesh_without_colours_and_without_extent_is_no_trouble():
    few = simplified(Shape(torch.zeros(30, 3), torch.arange(30).view(10, 3)), 4)
    assert few.vertex_colors is None
    assert few.is_empty


def test_what_cannot_be_simplified_is_said():
    with pytest.raises(ValueError, match="point set"):
        simplified(Shape(torch.zeros(3, 3)), 10)
    with pytest.raises(ValueError, match="max_faces: 3, expected at least 4"):
        simplified(Shape.empty(), 3)
