import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from ops.cameras import decompose_projection, look_at, pixel_centers, pixel_rays, project


def random_camera(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    intrinsics = np.array(
        [[rng.uniform(200, 3000), rng.normal() * 5, 80], [0, rng.uniform(200, 3000), 61.5], [0, 0, 1]]
    )
    camera_to_world = np.eye(4)
    camera_to_world[:3, :3] = Rotation.random(rng=rng).as_matrix()
    camera_to_world[:3, 3] = rng.normal(size=3) * 3
    return intrinsics, camera_to_world


def test_rays_through_image_corners_reproject_to_corners() -> None:
    intrinsics, camera_to_world = (torch.from_numpy(m) for m in random_camera(0))
    corners = torch.tensor([[0.0, 0.0], [160.0, 0.0], [0.0, 120.0], [160.0, 120.0]], dtype=torch.float64)
    origins, directions = pixel_rays(corners, intrinsics, camera_to_world)
    assert torch.allclose(directions.norm(dim=-1), torch.ones(4, dtype=torch.float64))
    pixels, depth = project(origins + 2.5 * directions, intrinsics, camera_to_world)
    assert torch.allclose(pixels, corners, atol=1e-9)
    assert (depth > 0).all()


def test_a_camera_a_ray_equals_one_camera_at_a_time() -> None:
    cameras = [random_camera(seed) for seed in range(5)]
    pixels = torch.rand(5, 2, dtype=torch.float64) * 100
    intrinsics, poses = (torch.from_numpy(np.stack(m)) for m in zip(*cameras, strict=True))
    origins, directions = pixel_rays(pixels, intrinsics, poses)
    for i in range(5):
        one_origin, one_direction = pixel_rays(pixels[i : i + 1], intrinsics[i], poses[i])
        assert torch.allclose(origins[i], one_origin[0])
        assert torch.allclose(directions[i], one_direction[0])


def test_the_ray_through_the_principal_point_is_the_optical_axis() -> None:
    intrinsics, camera_to_world = (torch.from_numpy(m) for m in random_camera(3))
    _, directions = pixel_rays(intrinsics[None, :2, 2], intrinsics, camera_to_world)
    assert torch.allclose(directions[0], camera_to_world[:3, 2])


def test_pixel_centers_run_along_rows_and_start_at_a_half() -> None:
    assert pixel_centers(2, 3).tolist() == [[0.5, 0.5], [1.5, 0.5], [2.5, 0.5], [0.5, 1.5], [1.5, 1.5], [2.5, 1.5]]


@pytest.mark.parametrize("factor", [1.0, -1.0, 37.0, -1e-4])
@pytest.mark.parametrize("seed", range(5))
def test_decomposition_inverts_composition(seed: int, factor: float) -> None:
    intrinsics, camera_to_world = random_camera(seed)
    projection = factor * intrinsics @ np.linalg.inv(camera_to_world)[:3]
    found_intrinsics, found_pose = decompose_projection(projection)
    np.testing.assert_allclose(found_intrinsics, intrinsics, rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(found_pose, camera_to_world, atol=1e-9)


def test_decomposition_refuses_what_is_no_camera() -> None:
    projection = np.hstack([np.eye(3), np.ones((3, 1))])
    broken = projection.copy()
    broken[1, 2] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        decompose_projection(broken)
    flat = projection.copy()
    flat[2] = flat[0] + flat[1]
    with pytest.raises(ValueError, match="singular"):
        decompose_projection(flat)
    with pytest.raises(ValueError, match="singular"):
        decompose_projection(np.zeros((3, 4)))
    with pytest.raises(ValueError, match="3x4"):
        decompose_projection(np.eye(4))


def test_look_at_centres_the_target_and_keeps_up_up() -> None:
    position, target, up = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([0.1, 0.2, 0.0]), torch.tensor([0.0, 0.0, 1.0])
    pose = look_at(position, target, up)
    assert torch.allclose(pose[:3, :3].T @ pose[:3, :3], torch.eye(3), atol=1e-6)
    assert torch.linalg.det(pose[:3, :3]) > 0.999
    points = torch.stack([target, target + 0.1 * up])
    pixels, depth = project(points, torch.eye(3), pose)
    assert torch.allclose(pixels[0], torch.zeros(2), atol=1e-6)
    assert pixels[1, 1] < -0.01  # y points down, so what is higher has the smaller y
    assert abs(pixels[1, 0]) < 1e-6
    assert depth[0] > 0


def test_look_at_refuses_a_view_along_up() -> None:
    with pytest.raises(ValueError, match="no pose"):
        look_at(torch.tensor([0.0, 0.0, 3.0]), torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
