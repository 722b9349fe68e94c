import torch
import torch.nn.functional as F

from ops.cameras import look_at, pixel_rays, project
from ops.homography import Cameras, facing_cosines, plane_homographies, warp_pixels


def _cameras(generator, count=4):
    positions = 3 * F.normalize(torch.randn(count, 3, generator=generator, dtype=torch.float64), dim=-1)
    positions[:, 2] = positions[:, 2].abs() + 1  # all above the planes of the tests
    poses = torch.stack([look_at(p, 0.2 * torch.ones_like(p), p.new_tensor([0, 1, 0])) for p in positions])
    intrinsics = torch.tensor([[300.0, 1.5, 160], [0, 310, 120], [0, 0, 1]], dtype=torch.float64).repeat(count, 1, 1)
    intrinsics[:, 0, 0] += torch.arange(count)
    return Cameras(intrinsics, poses)


def _planes(generator, count=5):
    points = 0.3 * torch.randn(count, 3, generator=generator, dtype=torch.float64)
    normals = F.normalize(torch.tensor([0, 0, 2.0]) + torch.randn(count, 3, generator=generator).double(), dim=-1)
    return points, normals


def test_homography_of_a_plane_is_its_projection_through_the_other_camera(generator):
    cameras, (points, normals) = _cameras(generator), _planes(generator)
    reference, sources = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([[1, 2, 0]] * 5)
    pixels = torch.tensor([160.0, 120]) + 20 * torch.randn(5, 30, 2, generator=generator, dtype=torch.float64)
    warped, is_in_front = warp_pixels(plane_homographies(points, normals, cameras, reference, sources), pixels)
    assert is_in_front.all()
    for n in range(5):
        view = reference[n]
        origins, directions = pixel_rays(pixels[n], cameras.intrinsics[view], cameras.camera_to_world[view])
        depth = ((points[n] - origins) @ normals[n]) / (directions @ normals[n])
        on_plane = origins + depth[:, None] * directions
        for s in range(3):
            source = sources[n, s]
            expected, in_front = project(on_plane, cameras.intrinsics[source], cameras.camera_to_world[source])
            assert (in_front > 0).all()
            torch.testing.assert_close(warped[n, s], expected)


def test_turning_the_normal_round_or_stretching_it_changes_nothing(generator):
    cameras, (points, normals) = _cameras(generator), _planes(generator)
    reference, sources = torch.zeros(5, dtype=torch.int64), torch.tensor([[1, 2]] * 5)
    pixels = 300 * torch.rand(5, 9, 2, generator=generator, dtype=torch.float64)
    one = warp_pixels(plane_homographies(points, normals, cameras, reference, sources), pixels)
    other = warp_pixels(plane_homographies(points, -3 * normals, cameras, reference, sources), pixels)
    torch.testing.assert_close(one[0], other[0])
    assert torch.equal(one[1], other[1])


def test_the_same_photograph_maps_to_itself(generator):
    cameras, (points, normals) = _cameras(generator), _planes(generator)
    pixels = 300 * torch.rand(5, 9, 2, generator=generator, dtype=torch.float64)
    homographies = plane_homographies(points, normals, cameras, torch.full((5,), 2), torch.full((5, 1), 2))
    torch.testing.assert_close(warp_pixels(homographies, pixels)[0][:, 0], pixels)


def test_what_lies_behind_a_camera_is_said_to_and_stays_finite():
    poses = torch.stack(
        [look_at(torch.tensor(p), torch.zeros(3), torch.tensor([0.0, 1, 0])) for p in ([0.0, 0, 3],) * 2]
    )
    poses[1, :3, :3] = poses[0, :3, :3] @ torch.diag(torch.tensor([-1.0, 1, -1]))  # looks away
    cameras = Cameras(torch.diag(torch.tensor([100.0, 100, 1])).repeat(2, 1, 1), poses)
    points = torch.zeros(1, 3, requires_grad=True)
    normals = torch.tensor([[0.0, 0, 1]])
    homographies = plane_homographies(points, normals, cameras, torch.tensor([0]), torch.tensor([[0, 1]]))
    warped, is_in_front = warp_pixels(homographies, torch.zeros(1, 1, 2))
    assert is_in_front[0, :, 0].tolist() == [True, False]
    warped.sum().backward()
    assert warped.isfinite().all()
    assert points.grad.isfinite().all()


def test_facing_cosine_is_one_straight_above_and_falls_to_the_side():
    poses = torch.eye(4).repeat(3, 1, 1)
    poses[:, :3, 3] = torch.tensor([[0.0, 0, 2], [2, 0, 2], [0, 0, -2]])
    cameras = Cameras(torch.eye(3).repeat(3, 1, 1), poses)
    cosines = facing_cosines(torch.zeros(1, 3), torch.tensor([[0.0, 0, 1]]), cameras, torch.tensor([[0, 1, 2]]))
    torch.testing.assert_close(cosines, torch.tensor([[1.0, 0.5**0.5, -1.0]]))
