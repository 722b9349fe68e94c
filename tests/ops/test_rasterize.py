"""The rasteriser against rays and planes whose answer is known."""

import time

import pytest
import torch
import trimesh
from torch import Tensor

from ops.rasterize import rasterize, shade, vertex_normals
from ops.types import Shape

INTRINSICS = torch.tensor([[80.0, 0.0, 33.0], [0.0, 90.0, 21.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
HEIGHT, WIDTH = 48, 64


def _pose(seed: int = 0) -> Tensor:
    """A rigid camera_to_world that is not aligned with anything."""
    generator = torch.Generator().manual_seed(seed)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = rotation * torch.linalg.det(rotation)
    pose[:3, 3] = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
    return pose


def _in_world(points: list[list[float]], pose: Tensor) -> Tensor:
    return torch.tensor(points, dtype=torch.float64) @ pose[:3, :3].T + pose[:3, 3]


def _rays(pose: Tensor, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    """(H, W, 3) world directions with z = 1 in the camera, so that distance along them is depth."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    pixels = torch.stack([x, y, torch.ones_like(x)], -1).double()
    return pixels @ torch.linalg.inv(INTRINSICS).T @ pose[:3, :3].T


def _square(z: float, half: float, pose: Tensor, color: float | None = None) -> Shape:
    corners = [[-half, -half, z], [half, -half, z], [half, half, z], [-half, half, z]]
    colors = None if color is None else torch.full((4, 3), color, dtype=torch.float64)
    return Shape(_in_world(corners, pose), torch.tensor([[0, 2, 1], [0, 3, 2]]), colors)


def _joined(*shapes: Shape) -> Shape:
    vertices = torch.cat([s.vertices for s in shapes])
    offsets = torch.tensor([0, *(len(s.vertices) for s in shapes[:-1])]).cumsum(0).tolist()
    faces = torch.cat([s.faces + o for s, o in zip(shapes, offsets, strict=True)])
    return Shape(vertices, faces, torch.cat([s.vertex_colors for s in shapes]))


def test_a_fronto_parallel_square_has_its_depth_at_exactly_the_pixels_whose_centres_it_covers() -> None:
    pose = _pose()
    raster = rasterize(_square(2.0, 0.3, pose), INTRINSICS, pose, HEIGHT, WIDTH)
    # it spans x in 33 +- 12 and y in 21 +- 13.5
    x, y = torch.arange(WIDTH) + 0.5, torch.arange(HEIGHT) + 0.5
    covered = ((y - 21).abs() <= 13.5)[:, None] & ((x - 33).abs() <= 12.0)
    assert torch.equal(raster["face_index"] >= 0, covered)
    torch.testing.assert_close(raster["depth"][covered], torch.full((int(covered.sum()),), 2.0, dtype=torch.float64))
    assert raster["depth"][~covered].isinf().all()
    towards_camera = (-pose[:3, 2]).expand(int(covered.sum()), 3)
    torch.testing.assert_close(raster["normals"][covered], towards_camera)


def test_depth_and_colour_of_a_slanted_triangle_are_those_of_the_plane_and_not_affine_in_the_picture() -> None:
    pose = _pose(1)
    corners = torch.tensor([[-0.6, -0.5, 1.2], [0.9, -0.3, 3.0], [0.1, 0.9, 2.0]], dtype=torch.float64)
    # the colour is an affine function of the place in space, so interpolation must reproduce it
    shape = Shape(_in_world(corners.tolist(), pose), torch.tensor([[0, 1, 2]]), corners / 10 + 0.5)
    raster = rasterize(shape, INTRINSICS, pose, HEIGHT, WIDTH)
    seen = raster["face_index"] == 0
    assert seen.sum() > 200
    normal = torch.linalg.cross(corners[1] - corners[0], corners[2] - corners[0])
    rays = _rays(torch.eye(4, dtype=torch.float64))[seen]
    depth = (corners[0] @ normal) / (rays @ normal)
    torch.testing.assert_close(raster["depth"][seen], depth)
    torch.testing.assert_close(raster["colors"][seen], rays * depth[:, None] / 10 + 0.5)


def test_depth_and_normals_of_a_sphere_are_those_of_the_ray_sphere_intersection() -> None:
    pose = _pose(2)
    center = _in_world([[0.05, -0.02, 3.0]], pose)[0]
    sphere = trimesh.creation.icosphere(subdivisions=5, radius=0.6)
    shape = Shape(torch.from_numpy(sphere.vertices.copy()) + center, torch.from_numpy(sphere.faces.copy()))
    raster = rasterize(shape, INTRINSICS, pose, HEIGHT, WIDTH)
    rays, to_camera = _rays(pose), pose[:3, 3] - center
    a, b, c = rays.square().sum(-1), rays @ to_camera, to_camera @ to_camera - 0.36
    discriminant = b**2 - a * c
    depth = (-b - discriminant.clamp(min=0).sqrt()) / a
    # grazing rays see the polygon and not the sphere
    inside = discriminant > 0.01 * c
    assert inside.sum() > 300
    torch.testing.assert_close(raster["depth"][inside], depth[inside], atol=2e-3, rtol=0)
    normals = (to_camera + rays * depth[..., None]) / 0.6
    torch.testing.assert_close(raster["normals"][inside], normals[inside], atol=0.02, rtol=0)
    assert (raster["face_index"][discriminant < 0] == -1).all()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_nearer_square_hides_the_farther_one_in_either_order(order: tuple[int, int]) -> None:
    pose = _pose(3)
    squares = [_square(2.0, 0.2, pose, 0.1), _square(4.0, 1.0, pose, 0.9)]
    raster = rasterize(_joined(*(squares[k] for k in order)), INTRINSICS, pose, HEIGHT, WIDTH)
    assert raster["colors"][21, 33].tolist() == pytest.approx([0.1] * 3)
    assert raster["colors"][21, 50].tolist() == pytest.approx([0.9] * 3)
    assert raster["depth"][21, 33].item() == pytest.approx(2.0)


def test_what_lies_behind_the_camera_or_reaches_behind_it_is_not_drawn() -> None:
    pose = _pose(4)
    behind = _square(-2.0, 0.3, pose)
    through = Shape(_in_world([[-1, 0, -1], [1, 0, -1], [0, 0.1, 3]], pose), torch.tensor([[0, 1, 2]]))
    points = Shape(_in_world([[0, 0, -1], [0, 0, 0]], pose))
    for shape in (behind, through, points, Shape.empty()):
        assert (rasterize(shape, INTRINSICS, pose, HEIGHT, WIDTH)["face_index"] == -1).all()


def test_a_face_that_is_larger_than_the_picture_fills_it() -> None:
    pose = _pose()
    raster = rasterize(_square(1e-3, 1e6, pose), INTRINSICS, pose, HEIGHT, WIDTH)
    assert (raster["face_index"] >= 0).all()


def test_both_sides_of_a_face_are_seen_and_lit_alike() -> None:
    pose = _pose()
    front = _square(2.0, 1.0, pose)
    back = Shape(front.vertices, front.faces.flip(-1))
    pictures = [shade(rasterize(s, INTRINSICS, pose, HEIGHT, WIDTH), INTRINSICS, pose) for s in (front, back)]
    torch.testing.assert_close(*pictures)


def test_a_wall_seen_head_on_is_fully_lit_at_its_principal_point_and_the_background_is_white() -> None:
    pose = torch.eye(4, dtype=torch.float64)
    intrinsics = torch.tensor([[80.0, 0.0, 32.5], [0.0, 80.0, 24.5], [0.0, 0.0, 1.0]], dtype=torch.float64)
    raster = rasterize(_square(2.0, 0.3, pose), intrinsics, pose, HEIGHT, WIDTH)
    picture = shade(raster, intrinsics, pose)
    assert picture[24, 32].tolist() == pytest.approx([0.7] * 3)
    assert picture[0, 0].tolist() == [1.0] * 3


def test_a_point_is_a_ball_of_its_own_colour_at_its_projection() -> None:
    pose = _pose(5)
    points = Shape(_in_world([[0.1, -0.1, 2.0]], pose), None, torch.tensor([[0.2, 0.4, 0.6]], dtype=torch.float64))
    raster = rasterize(points, INTRINSICS, pose, HEIGHT, WIDTH, point_radius=3.0)
    y, x = torch.nonzero(raster["face_index"] == 0, as_tuple=True)
    # at 33 + 80 * 0.05 and 21 - 90 * 0.05
    assert torch.stack([x, y], -1).double().add(0.5).mean(0).tolist() == pytest.approx([37.0, 16.5], abs=0.5)
    assert torch.hypot(x + 0.5 - 37, y + 0.5 - 16.5).max() <= 3.0
    assert raster["colors"][y[0], x[0]].tolist() == pytest.approx([0.2, 0.4, 0.6])
    torch.testing.assert_close(raster["normals"][y, x].norm(dim=-1), torch.ones(len(x), dtype=torch.float64))


def test_flat_normals_are_those_of_the_faces_and_smooth_ones_turn_between_them() -> None:
    pose = torch.eye(4, dtype=torch.float64)
    roof = Shape(
        torch.tensor([[-1, -1, 3], [-1, 1, 3], [0, -1, 2], [0, 1, 2], [1, -1, 3], [1, 1, 3]], dtype=torch.float64),
        torch.tensor([[0, 2, 3], [0, 3, 1], [2, 4, 5], [2, 5, 3]]).flip(-1),
    )
    flat = rasterize(roof, INTRINSICS, pose, HEIGHT, WIDTH, smooth=False)
    seen = flat["face_index"] >= 0
    assert set(flat["normals"][seen][:, 0].abs().mul(1e4).round().tolist()) == {7071.0}
    # an end of the ridge has one face on one side and two on the other: normals (1, 0, -1) and 2 (-1, 0, -1)
    ridge = torch.tensor([[1.0, 0.0, -3.0], [-1.0, 0.0, -3.0]], dtype=torch.float64) / 10**0.5
    torch.testing.assert_close(vertex_normals(roof)[2:4].abs(), ridge.abs())
    smooth = rasterize(roof, INTRINSICS, pose, HEIGHT, WIDTH)["normals"][seen]
    assert len(set(smooth[:, 0].tolist())) > 20
    torch.testing.assert_close(smooth.norm(dim=-1), torch.ones(len(smooth), dtype=torch.float64))


def test_more_than_half_a_million_faces_take_well_below_a_second() -> None:
    sphere = trimesh.creation.icosphere(subdivisions=7)  # 327 680 faces
    rough = trimesh.util.concatenate([sphere, trimesh.creation.icosphere(subdivisions=6, radius=0.9)] * 2)
    shape = Shape(torch.from_numpy(rough.vertices.copy()).float(), torch.from_numpy(rough.faces.copy()))
    pose = torch.eye(4)
    pose[2, 3] = -3
    intrinsics = torch.tensor([[600.0, 0, 256], [0, 600, 256], [0, 0, 1]])
    rasterize(Shape(shape.vertices, shape.faces[:1]), intrinsics, pose, 512, 512)  # compiles
    # of the processor and not of the wall, which other jobs share; measured 0.3 s
    start = time.process_time()
    rasterize(shape, intrinsics, pose, 512, 512)
    assert time.process_time() - start < 1.0
