from pathlib import Path

import numpy as np
import pytest
from numpy.random import Generator
from scipy.spatial.transform import Rotation

from datamodules.normalization import (
    common_point,
    empty_directions,
    geometric_median,
    normalization_from_cameras_and_points,
    trimmed_ball,
)

CENTER, RADIUS = np.array([3.0, -2.0, 10.0]), 0.8


@pytest.fixture
def rng() -> Generator:
    return np.random.default_rng(0)


def poses_towards(positions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(V, 4, 4) cameras with their z axis towards the targets."""
    poses = np.tile(np.eye(4), (len(positions), 1, 1))
    forward = targets - positions
    forward /= np.linalg.norm(forward, axis=1, keepdims=True)
    right = np.cross(forward, [0.1, 0.2, 1.0])
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    poses[:, :3] = np.stack([right, np.cross(forward, right), forward, positions], axis=-1)
    return poses


def cameras(poses: np.ndarray, focal: float = 500.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Poses, intrinsics and sizes of 640x480 pictures."""
    intrinsics = np.tile([[focal, 0, 320], [0, focal, 240], [0, 0, 1]], (len(poses), 1, 1))
    return poses, intrinsics, np.tile([480, 640], (len(poses), 1))


def on_sphere(rng: Generator, count: int) -> np.ndarray:
    points = rng.normal(size=(count, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def orbit(rng: Generator, num_views: int = 24, distance: float = 3.0, aim: float = 0.05) -> np.ndarray:
    """Cameras all around that look at the object, but for a careless hand."""
    positions = CENTER + distance * on_sphere(rng, num_views)
    return poses_towards(positions, CENTER + aim * rng.normal(size=(num_views, 3)))


def surface(rng: Generator, count: int = 2000) -> np.ndarray:
    return CENTER + RADIUS * on_sphere(rng, count)


def assert_close(matrix: np.ndarray, center: np.ndarray, radius: float, tolerance: float) -> None:
    np.testing.assert_allclose(matrix[:3, 3], center, atol=tolerance * radius)
    np.testing.assert_allclose(matrix[:3, :3], matrix[0, 0] * np.eye(3))
    assert matrix[0, 0] == pytest.approx(radius, rel=tolerance)
    assert matrix.dtype == np.float64
    np.testing.assert_array_equal(matrix[3], [0, 0, 0, 1])


@pytest.mark.parametrize("num_views", [4, 24, 90])
def test_an_orbit_with_a_third_of_mistaken_points_gives_the_object(rng: Generator, num_views: int) -> None:
    outliers = CENTER + 100 * RADIUS * rng.uniform(0.5, 1.5, size=(860, 1)) * on_sphere(rng, 860)
    points = np.concatenate([surface(rng), outliers])
    matrix = normalization_from_cameras_and_points(*cameras(orbit(rng, num_views)), points)
    assert_close(matrix, CENTER, 1.1 * RADIUS, 0.03)


def test_a_room_behind_the_object_is_outvoted(rng: Generator) -> None:
    walls = CENTER + 8 * on_sphere(rng, 6000)
    matrix = normalization_from_cameras_and_points(*cameras(orbit(rng)), np.concatenate([surface(rng), walls]))
    assert_close(matrix, CENTER, 1.1 * RADIUS, 0.03)


def test_wrong_poses_in_a_fifth_of_the_photographs_change_little(rng: Generator) -> None:
    poses = orbit(rng, 30)
    poses[::5] = poses_towards(CENTER + 20 * rng.normal(size=(6, 3)), CENTER + 30 * rng.normal(size=(6, 3)))
    for points, tolerance in ((surface(rng), 0.03), (None, 0.1)):
        matrix = normalization_from_cameras_and_points(*cameras(poses), points)
        radius = 1.1 * (RADIUS if points is not None else 3 * np.sin(np.arctan(320 / 500)))
        assert_close(matrix, CENTER, radius, tolerance)


def test_without_points_the_sphere_fills_the_pictures_where_the_axes_meet(rng: Generator) -> None:
    matrix = normalization_from_cameras_and_points(*cameras(orbit(rng, aim=0.0)), None)
    assert_close(matrix, CENTER, 1.1 * 3 * np.sin(np.arctan(320 / 500)), 1e-6)


def test_two_cameras_are_enough(rng: Generator) -> None:
    poses = poses_towards(CENTER + np.array([[3.0, 0, 0], [0, 3.0, 0]]), np.tile(CENTER, (2, 1)))
    assert_close(normalization_from_cameras_and_points(*cameras(poses), surface(rng)), CENTER, 1.1 * RADIUS, 0.03)
    matrix = normalization_from_cameras_and_points(*cameras(poses), None)
    assert_close(matrix, CENTER, 1.1 * 3 * np.sin(np.arctan(320 / 500)), 1e-6)


@pytest.mark.parametrize("with_points", [True, False])
def test_moving_turning_and_scaling_the_input_moves_the_sphere_with_it(rng: Generator, with_points: bool) -> None:
    poses, intrinsics, sizes = cameras(orbit(rng))
    points = np.concatenate([surface(rng, 500)[:300], CENTER + 8 * on_sphere(rng, 400)]) if with_points else None
    before = normalization_from_cameras_and_points(poses, intrinsics, sizes, points)
    scale, rotation, shift = 0.01, Rotation.random(rng=rng).as_matrix(), np.array([50.0, -3.0, 7.0])
    moved = poses.copy()
    moved[:, :3, :3] = rotation @ poses[:, :3, :3]
    moved[:, :3, 3] = scale * poses[:, :3, 3] @ rotation.T + shift
    points = scale * points @ rotation.T + shift if with_points else None
    after = normalization_from_cameras_and_points(moved, intrinsics, sizes, points)
    # median over coordinates starts the iterations, so that turning changes where they stop
    assert_close(after, scale * rotation @ before[:3, 3] + shift, scale * before[0, 0], 0.01)


def test_the_picture_bounds_the_object_where_it_has_no_texture(rng: Generator) -> None:
    points = surface(rng)
    poses = cameras(orbit(rng, aim=0.0))
    reach = 3 * np.sin(np.arctan(320 / 500))
    matrix = normalization_from_cameras_and_points(*poses, points[points[:, 2] > CENTER[2] + 0.3], margin=1.0)
    bottom = CENTER - [0, 0, reach]
    assert np.linalg.norm(bottom - matrix[:3, 3]) < 1.001 * matrix[0, 0]
    # the points of the top stay inside but for the trimmed ones, and no more than the picture is needed
    assert np.quantile(np.linalg.norm(points - matrix[:3, 3], axis=1), 0.99) < matrix[0, 0] < reach


def test_a_capture_from_one_side_holds_the_object_and_no_camera(rng: Generator) -> None:
    positions = CENTER + 3 * on_sphere(rng, 200)
    positions = positions[(positions[:, 0] > CENTER[0] + 2)][:20]
    poses = poses_towards(positions, CENTER + 0.05 * rng.normal(size=positions.shape))
    wall = CENTER + np.array([-4.0, 0, 0]) + rng.uniform(-6, 6, size=(4000, 3)) * [0, 1, 1]
    front = surface(rng)
    points = np.concatenate([front[front[:, 0] > CENTER[0]], wall])
    matrix = normalization_from_cameras_and_points(*cameras(poses), points)
    assert (np.linalg.norm(front - matrix[:3, 3], axis=1) < matrix[0, 0]).all()
    assert (np.linalg.norm(wall - matrix[:3, 3], axis=1) > matrix[0, 0]).all()
    assert matrix[0, 0] < 2.5 * RADIUS


def test_forward_facing_cameras_take_the_points_they_see(rng: Generator) -> None:
    positions = CENTER + np.array([0, 0, -4.0]) + rng.uniform(-0.5, 0.5, size=(12, 3)) * [1, 1, 0]
    poses = poses_towards(positions, positions + np.array([0, 0, 1.0]))
    outliers = CENTER + rng.normal(size=(200, 3)) * 100
    points = np.concatenate([surface(rng), outliers])
    assert_close(normalization_from_cameras_and_points(*cameras(poses), points), CENTER, 1.1 * RADIUS, 0.05)
    with pytest.raises(ValueError, match=r"axes of the 12 cameras do not meet .* no sparse points.*give sparse points"):
        normalization_from_cameras_and_points(*cameras(poses), None)


def test_a_facade_longer_than_any_picture_is_held_and_the_cameras_stay_before_it(rng: Generator) -> None:
    facade = rng.uniform([-5, -0.2, 0], [5, 0.2, 6], size=(3000, 3))
    positions = np.stack([np.linspace(-4, 4, 30), np.full(30, -6.5), np.full(30, 2.0)], axis=-1)
    poses = poses_towards(positions, positions + np.array([0, 1.0, 0.2]))
    points = np.concatenate([facade, 80 * on_sphere(rng, 1000)])
    matrix = normalization_from_cameras_and_points(*cameras(poses), points)
    assert (np.linalg.norm(facade - matrix[:3, 3], axis=1) < matrix[0, 0]).mean() > 0.97
    assert (np.linalg.norm(positions - matrix[:3, 3], axis=1) > matrix[0, 0]).mean() >= 0.9


def test_a_room_is_held_with_the_cameras_in_it(rng: Generator) -> None:
    corners = np.array([6.0, 4.0, 2.5])
    walls = rng.uniform(-0.5, 0.5, size=(3000, 3)) * corners
    side = rng.integers(0, 3, size=3000)
    walls[np.arange(3000), side] = np.sign(walls[np.arange(3000), side]) * corners[side] / 2
    positions = rng.uniform(-0.5, 0.5, size=(20, 3))
    poses = poses_towards(positions, positions + on_sphere(rng, 20))
    outliers = 300 * on_sphere(rng, 1000)
    matrix = normalization_from_cameras_and_points(*cameras(poses), np.concatenate([walls, outliers]), inside_out=True)
    distances = np.linalg.norm(np.concatenate([walls, positions]) - matrix[:3, 3], axis=1)
    assert (distances < matrix[0, 0]).mean() > 0.99
    assert matrix[0, 0] < 1.2 * np.linalg.norm(corners) / 2
    with pytest.raises(
        ValueError, match=r"inside_out, but there are 0 sparse points.*give at least 10, or give the sph"
    ):
        normalization_from_cameras_and_points(*cameras(poses), None, inside_out=True)


def test_the_margin_ends_before_the_cameras_but_the_object_is_not_cut(rng: Generator) -> None:
    close = cameras(orbit(rng, distance=1.0, aim=0.0), focal=100.0)
    matrix = normalization_from_cameras_and_points(*close, surface(rng), margin=1.5)
    assert_close(matrix, CENTER, 0.95, 0.02)
    assert_close(normalization_from_cameras_and_points(*close, surface(rng), margin=1.0), CENTER, RADIUS, 0.02)


def test_cameras_at_one_place_or_too_few_say_what_to_give(rng: Generator) -> None:
    turning = poses_towards(np.tile(CENTER, (8, 1)), CENTER + on_sphere(rng, 8))
    for points in (None, surface(rng)):
        with pytest.raises(
            ValueError, match=r"all 8 cameras stand at one place.*give the sphere by hand.*centre and rad"
        ):
            normalization_from_cameras_and_points(*cameras(turning), points)


def test_misread_poses_are_refused_with_the_right_reading(rng: Generator) -> None:
    away = orbit(rng)
    away[:, :3, 1:3] *= -1
    for points in (None, surface(rng)):
        with pytest.raises(ValueError, match=r"24 cameras look past .*OpenGL's axes.*multiply.* not 0%.*inside_out"):
            normalization_from_cameras_and_points(*cameras(away), points)
        with pytest.raises(ValueError, match=r"look past .*world to camera: invert each \("):
            normalization_from_cameras_and_points(*cameras(np.linalg.inv(orbit(rng))), points)


def test_points_of_another_frame_are_refused(rng: Generator) -> None:
    positions = rng.uniform(-0.5, 0.5, size=(12, 3))
    poses = poses_towards(positions, positions + np.array([0, 0, 1.0]))
    with pytest.raises(ValueError, match=r"only 0 of 2000 sparse points lie in their pictures.*of one frame"):
        normalization_from_cameras_and_points(*cameras(poses), 1000 * np.array([1, 1, 0]) + rng.normal(size=(2000, 3)))


def test_what_is_no_camera_or_no_point_is_refused(rng: Generator) -> None:
    poses, intrinsics, sizes = cameras(orbit(rng))
    with pytest.raises(ValueError, match=r"have shapes .*\(23, 3, 3\).* expected \(V, 4, 4\)"):
        normalization_from_cameras_and_points(poses, intrinsics[1:], sizes, None)
    with pytest.raises(ValueError, match=r"points have shape \(4, 2\), expected \(P, 3\)"):
        normalization_from_cameras_and_points(poses, intrinsics, sizes, np.zeros((4, 2)))
    with pytest.raises(ValueError, match=r"margin is 0.5, expected a factor of at least 1"):
        normalization_from_cameras_and_points(poses, intrinsics, sizes, None, margin=0.5)
    poses[3, 0, 3] = np.nan
    with pytest.raises(ValueError, match=r"camera of photograph 3 \(of 24\) is not finite"):
        normalization_from_cameras_and_points(poses, intrinsics, sizes, None)


def test_the_sphere_of_a_real_statue_holds_its_face_though_all_points_are_in_its_hair(test_data: Path) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    model = pycolmap.Reconstruction(str(test_data / "buddha_ccby/colmap/sparse/0"))
    images = list(model.images.values())
    poses = np.stack([np.vstack([image.cam_from_world().inverse().matrix(), [0, 0, 0, 1]]) for image in images])
    intrinsics = np.stack([model.cameras[image.camera_id].calibration_matrix() for image in images])
    sizes = np.array([(model.cameras[i.camera_id].height, model.cameras[i.camera_id].width) for i in images])
    points = np.array([point.xyz for point in model.points3D.values()])
    matrix = normalization_from_cameras_and_points(poses, intrinsics, sizes, points)
    # read off the photographs with the model's axes drawn in: top of the hair and end of the neck
    for place in ([-0.9, 1.3, 4.3], [-0.95, 7.0, 5.9]):
        assert np.linalg.norm(np.array(place) - matrix[:3, 3]) < matrix[0, 0]
    assert (np.linalg.norm(poses[:, :3, 3] - matrix[:3, 3], axis=1) > 1.5 * matrix[0, 0]).all()


def test_axes_through_one_point_give_that_point_exactly(rng: Generator) -> None:
    poses = orbit(rng, 5, aim=0.0)
    np.testing.assert_allclose(common_point(poses[:, :3, 3], poses[:, :3, 2]), CENTER, atol=1e-9)
    # also where a quarter of the cameras looks elsewhere, all to the same side
    poses = orbit(rng, 40, aim=0.0)
    poses[:10] = poses_towards(poses[:10, :3, 3], np.tile(CENTER + [0, 0, 1.5], (10, 1)))
    np.testing.assert_allclose(common_point(poses[:, :3, 3], poses[:, :3, 2]), CENTER, atol=1e-3)


def test_the_geometric_median_withstands_almost_half(rng: Generator) -> None:
    points = np.concatenate([rng.normal(size=(600, 3)), 1e6 + rng.normal(size=(400, 3))])
    assert np.linalg.norm(geometric_median(points)) < 3
    # of three corners of a triangle it is Fermat's point, where they stand 120 degrees apart
    corners = np.array([[0.0, 0, 0], [4, 0, 0], [1, 3, 0]])
    ways = corners - geometric_median(corners)
    ways /= np.linalg.norm(ways, axis=1, keepdims=True)
    np.testing.assert_allclose((ways @ ways.T)[np.triu_indices(3, 1)], -0.5, atol=1e-4)


def test_the_trimmed_ball_is_the_smallest_but_for_the_trimmed(rng: Generator) -> None:
    points = np.concatenate([on_sphere(rng, 990) * 2 + 1, rng.normal(size=(10, 3)) * 50])
    center, radius = trimmed_ball(points, 0.02)
    np.testing.assert_allclose(center, [1, 1, 1], atol=0.05)
    assert radius == pytest.approx(2, rel=0.02)
    assert (np.linalg.norm(points - center, axis=1) <= radius * (1 + 1e-9)).mean() >= 0.98
    center, radius = trimmed_ball(points, 0.02, bounds=np.array([[1.0, 1.0, 5.0]]))
    np.testing.assert_allclose(center, [1, 1, 2], atol=0.1)
    assert radius == pytest.approx(3, rel=0.03)


def test_empty_directions_are_those_without_points(rng: Generator) -> None:
    points = on_sphere(rng, 1000)
    assert len(empty_directions(points, points[:10])) == 0
    below = empty_directions(points[points[:, 2] > 0], on_sphere(rng, 200))
    assert len(below) > 0
    assert (below[:, 2] < -np.sin(np.radians(50))).all()
