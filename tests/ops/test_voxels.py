import math
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from ops.containment import contains
from ops.meshes import euler_characteristic, is_watertight, signed_volume
from ops.types import Shape
from ops.voxels import shape_from_voxels, voxel_centers
from tests.ops.winding import winding_numbers


def test_centres_are_those_of_equal_cells_in_the_order_x_y_z() -> None:
    centers = voxel_centers(4)
    assert centers.shape == (4, 4, 4, 3)
    assert centers[0, 1, 3].tolist() == [-0.375, -0.125, 0.375]
    torch.testing.assert_close(centers.mean((0, 1, 2)), torch.zeros(3))
    torch.testing.assert_close(centers.flip(0, 1, 2), -centers)


def test_a_ball_of_voxels_gives_a_ball() -> None:
    centers = voxel_centers(48)
    center = torch.tensor([0.1, -0.05, 0.02])
    distances = (centers - center).norm(dim=-1)
    # linear in the distance, so that the threshold's place is known
    shape = shape_from_voxels(0.7 - distances, threshold=0.4)
    assert is_watertight(shape)
    assert euler_characteristic(shape) == 2
    assert signed_volume(shape) == pytest.approx(4 / 3 * math.pi * 0.3**3, rel=0.01)
    torch.testing.assert_close(
        (shape.vertices - center).norm(dim=1), torch.full((len(shape.vertices),), 0.3), atol=2e-4, rtol=0
    )


def test_a_single_voxel_is_an_octahedron_about_its_centre() -> None:
    voxels = torch.zeros(8, 8, 8)
    voxels[1, 2, 5] = 1
    shape = shape_from_voxels(voxels)
    assert is_watertight(shape)
    assert len(shape.vertices) == 6
    torch.testing.assert_close(shape.vertices.mean(0), voxel_centers(8)[1, 2, 5])
    assert signed_volume(shape) == pytest.approx(4 / 3 * (0.5 / 8) ** 3)


@pytest.mark.parametrize("value", [0.6, 1.0])
def test_a_full_volume_is_closed_on_the_faces_of_the_cube(value: float) -> None:
    shape = shape_from_voxels(torch.full((16, 16, 16), value))
    assert is_watertight(shape)
    assert shape.vertices.amin(0).tolist() == [-0.5] * 3
    assert shape.vertices.amax(0).tolist() == [0.5] * 3
    # all but what marching cubes cuts from edges and corners
    assert 0.98 < signed_volume(shape) < 1


@pytest.mark.parametrize("seed", range(4))
def test_random_volumes_give_watertight_meshes_that_separate_the_voxels(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(9, 9, 9, generator=generator)
    values[values < 0.1] = 0.5  # exactly on the threshold
    shape = shape_from_voxels(values)
    assert is_watertight(shape)
    assert signed_volume(shape) > 0
    assert float(shape.vertices.abs().max()) <= 0.5
    assert len(torch.unique(shape.vertices, dim=0)) == len(shape.vertices)
    is_inside = winding_numbers(shape, voxel_centers(9).reshape(-1, 3)) > 0.5
    decided = values.reshape(-1) != 0.5  # those lie on the surface
    assert 0 < decided.sum() < len(decided)
    assert torch.equal(is_inside[decided], values.reshape(-1)[decided] > 0.5)


def test_the_threshold_itself_is_outside_and_nothing_above_it_is_empty() -> None:
    assert shape_from_voxels(torch.full((4, 4, 4), 0.3), threshold=0.3).is_empty
    assert shape_from_voxels(torch.zeros(4, 4, 4, dtype=torch.bool)).is_empty
    voxels = torch.zeros(4, 4, 4, dtype=torch.bool)
    voxels[1:3, 1:3, 1:3] = True
    assert signed_volume(shape_from_voxels(voxels)) > 0


def test_bad_volumes_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(4, 4, 5\), expected \(R, R, R\)"):
        shape_from_voxels(torch.zeros(4, 4, 5))
    values = torch.zeros(4, 4, 4)
    values[1, 2, 3] = torch.nan
    with pytest.raises(ValueError, match="1 of 64 are not finite"):
        shape_from_voxels(values)
    with pytest.raises(ValueError, match="resolution: 0"):
        voxel_centers(0)


@pytest.mark.parametrize("name", ["koala", "penguin"])
def test_the_voxels_of_a_real_mesh_give_it_back(name: str, test_data: Path) -> None:
    mesh = trimesh.load(next((test_data / "meshes" / name).glob("*.obj")), force="mesh", process=False)
    vertices = torch.tensor(np.array(mesh.vertices), dtype=torch.float32)
    low, high = vertices.amin(0), vertices.amax(0)
    shape = Shape((vertices - (low + high) / 2) / (high - low).max(), torch.tensor(np.array(mesh.faces)).long())
    voxels = contains(shape, voxel_centers(32).view(-1, 3)).view(32, 32, 32)
    points = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    back, truth = contains(shape_from_voxels(voxels), points), contains(shape, points)
    assert (back & truth).sum() > 0.88 * (back | truth).sum()
