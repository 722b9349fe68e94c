import warnings

import numpy as np
import pytest
import torch
import trimesh
from scipy.spatial import cKDTree

from metrics.omniobject3d import OmniObject3DScore, scan_in_view_frame
from ops.types import ObjectBatch, Shape


def box(extents: tuple[float, float, float]) -> Shape:
    mesh = trimesh.creation.box(extents)
    return Shape(torch.tensor(np.array(mesh.vertices)), torch.tensor(np.array(mesh.faces)))


def score(shape: Shape, truth: torch.Tensor, **kwargs) -> list[float]:
    metric = OmniObject3DScore(**kwargs)
    metric.update({"shapes": [shape]}, ObjectBatch(surface_points=truth[None], object_index=torch.tensor([0])))
    return list(metric.rows()[0].values())


def surface(mesh: trimesh.Trimesh, num_points: int) -> torch.Tensor:
    return torch.tensor(np.array(trimesh.sample.sample_surface(mesh, num_points, seed=0)[0]))


def test_distances_equal_those_of_dense_samples() -> None:
    truth = surface(trimesh.creation.box((1.0, 1.0, 1.0)), 60_000)
    shape = box((1.04, 1.04, 1.04))
    accuracy, completeness, chamfer = score(shape, truth, density=0.02)
    dense = surface(trimesh.creation.box((1.04, 1.04, 1.04)), 60_000).numpy()
    assert accuracy == pytest.approx(cKDTree(truth.numpy()).query(dense)[0].mean(), rel=0.15)
    assert completeness == pytest.approx(cKDTree(dense).query(truth.numpy())[0].mean(), rel=0.15)
    assert chamfer == (accuracy + completeness) / 2
    assert score(shape, truth, density=0.02) == [accuracy, completeness, chamfer]
    assert score(shape, truth, density=0.02, seed=1)[2] == pytest.approx(chamfer, rel=0.01)


def test_far_parts_are_left_out_and_nothing_near_is_the_limit() -> None:
    truth = surface(trimesh.creation.box((1.0, 1.0, 1.0)), 20_000)
    near, far = box((1.0, 1.0, 1.0)), box((0.1, 0.1, 0.1))
    far.vertices += 5
    both = Shape(torch.cat([near.vertices, far.vertices]), torch.cat([near.faces, far.faces + len(near.vertices)]))
    assert score(both, truth, density=0.03) == pytest.approx(score(near, truth, density=0.03), rel=0.02)
    assert score(far, truth, density=0.03) == [0.1, 0.1, 0.1]
    assert score(Shape.empty(), truth) == [0.1, 0.1, 0.1]


def test_a_truth_too_sparse_for_the_protocol_is_said() -> None:
    truth = surface(trimesh.creation.box((1.0, 1.0, 1.0)), 2000)
    with pytest.warns(UserWarning, match="points 0.0.* apart where the protocol has 0.004"):
        score(box((1.0, 1.0, 1.0)), truth, density=0.004)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score(box((1.0, 1.0, 1.0)), truth, density=0.05)


def test_the_scan_is_scaled_and_its_y_axis_turned_upwards() -> None:
    moved = scan_in_view_frame(Shape(torch.tensor([[1.0, 2.0, 3.0]])), 0.5)
    # the tool's own row vectors times [[1, 0, 0], [0, 0, 1], [0, -1, 0]]
    wanted = 0.5 * np.array([[1.0, 2.0, 3.0]]) @ np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]])
    np.testing.assert_allclose(moved.vertices, wanted)
