import numpy as np
import pytest
import torch

from datamodules.silhouettes import closest_to_lines, normalization_from_masks, similarity_to_sphere, sphere_of_masks
from ops.cameras import look_at, pixel_centers, pixel_rays

SIZE = 80
INTRINSICS = torch.tensor([[100.0, 0, SIZE / 2], [0, 100, SIZE / 2], [0, 0, 1]]).double()


def cameras(directions: torch.Tensor, distance: float = 4.0) -> torch.Tensor:
    up = torch.tensor([0.0, 0.1, 1.0]).double()
    return torch.stack([look_at(distance * d, torch.zeros(3).double(), up) for d in directions.double()])


def masks_of_balls(poses: torch.Tensor, balls: list[tuple[list[float], float]]) -> torch.Tensor:
    masks = []
    for pose in poses:
        origins, directions = pixel_rays(pixel_centers(SIZE, SIZE).double(), INTRINSICS, pose)
        hit = torch.zeros(len(origins), dtype=torch.bool)
        for center, radius in balls:
            relative = torch.tensor(center).double() - origins
            along = (relative * directions).sum(-1, keepdim=True)
            hit |= (relative - along * directions).norm(dim=-1) < radius
        masks.append(hit.reshape(SIZE, SIZE))
    return torch.stack(masks).byte() * 255


ALL_AROUND = torch.nn.functional.normalize(torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), dim=1)
# forty degrees of it
ONE_SIDE = torch.nn.functional.normalize(torch.tensor([1.0, 0, 0]) + 0.25 * ALL_AROUND, dim=1)


@pytest.mark.parametrize("directions", [ALL_AROUND, ONE_SIDE])
def test_a_ball_is_found_wherever_it_is(directions: torch.Tensor) -> None:
    poses = cameras(directions)
    masks = masks_of_balls(poses, [([0.3, -0.2, 0.25], 0.7)])
    center, radius = sphere_of_masks(masks, INTRINSICS.expand(20, 3, 3), poses, "ball")
    # a pixel is 0.04 wide there; from one side the depth is known less well
    assert np.linalg.norm(center - [0.3, -0.2, 0.25]) < (0.05 if directions is ALL_AROUND else 0.2)
    assert 0.68 < radius < 0.8


def test_two_balls_are_held_by_their_common_sphere() -> None:
    poses = cameras(ALL_AROUND)
    masks = masks_of_balls(poses, [([0.5, 0, 0], 0.2), ([-0.3, 0.2, 0], 0.1)])
    center, radius = sphere_of_masks(masks, INTRINSICS.expand(20, 3, 3), poses, "balls")
    for position, size in (([0.5, 0, 0], 0.2), ([-0.3, 0.2, 0], 0.1)):
        assert np.linalg.norm(center - position) + size < 1.05 * radius
    exact = (np.hypot(0.8, 0.2) + 0.3) / 2
    assert radius == pytest.approx(exact, rel=0.1)


def test_specks_do_not_count_and_empty_masks_say_nothing() -> None:
    poses = cameras(ALL_AROUND)
    masks = masks_of_balls(poses, [([0, 0, 0], 0.5)])
    expected = sphere_of_masks(masks, INTRINSICS.expand(20, 3, 3), poses, "ball")
    masks[3, 0, 0] = 255
    masks[5] = 0
    found = sphere_of_masks(masks, INTRINSICS.expand(20, 3, 3), poses, "ball")
    assert np.allclose(found[0], expected[0], atol=0.02)
    assert found[1] == pytest.approx(expected[1], rel=0.03)


def test_masks_that_cannot_be_of_one_thing_are_refused() -> None:
    poses = cameras(ALL_AROUND)
    masks = masks_of_balls(poses, [([0, 0, 0], 0.5)])
    matrices = INTRINSICS.expand(20, 3, 3)
    with pytest.raises(ValueError, match="ball: 0 of 20 masks have something in them, at least two are needed"):
        sphere_of_masks(torch.zeros_like(masks), matrices, poses, "ball")
    backwards = poses.clone()
    backwards[:, :3, 1:3] *= -1
    with pytest.raises(ValueError, match="ball: the rays through the masks do not come together"):
        sphere_of_masks(masks, matrices, backwards, "ball")


def test_lines_through_a_point_meet_there() -> None:
    point = np.array([1.0, 2, -3])
    directions = ALL_AROUND.double().numpy()
    assert np.allclose(closest_to_lines(point - 5 * directions, directions), point)
    assert np.allclose(similarity_to_sphere(point, 2.0) @ [1, 0, 0, 1], [3, 2, -3, 1])


def test_masks_of_a_whole_object_place_the_unit_sphere_and_others_do_not() -> None:
    poses, matrices, sizes = cameras(ALL_AROUND), INTRINSICS.expand(20, 3, 3), torch.full((20, 2), SIZE)
    masks = masks_of_balls(poses, [([0.3, -0.2, 0.25], 0.5)])
    matrix = normalization_from_masks(masks, sizes, matrices, poses, margin=1.2)
    assert np.allclose(matrix[:3, 3], [0.3, -0.2, 0.25], atol=0.05)
    assert matrix[0, 0] == pytest.approx(1.2 * 0.5, rel=0.08)  # half a pixel is 0.02 there
    cut = masks.clone()
    cut[:6, :, 0] = 255
    assert normalization_from_masks(cut, sizes, matrices, poses) is None
    assert normalization_from_masks(torch.zeros_like(masks), sizes, matrices, poses) is None
    # where the photographs are smaller, their edge is not that of the padding
    smaller = torch.full((20, 2), int((masks > 0).any(0).any(0).nonzero().max()) - 3)
    assert normalization_from_masks(masks, smaller, matrices, poses) is None
    near = poses.clone()
    near[0, :3, 3] = torch.tensor([0.3, -0.2, 0.25]) - 0.54 * near[0, :3, 2]
    assert normalization_from_masks(masks, sizes, matrices, near) is None
