import math

import numpy as np
import pytest
import torch
import trimesh
from scipy.spatial import cKDTree
from torch import Tensor

from metrics.surface import SurfaceScore, f_score
from ops.types import ObjectBatch, Shape


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sphere(radius: float = 1.0) -> Shape:
    mesh = trimesh.creation.icosphere(5, radius)
    return Shape(torch.tensor(mesh.vertices, dtype=torch.float32), torch.tensor(mesh.faces, dtype=torch.int64))


def sphere_points(num_points: int, radius: float = 1.0) -> tuple[Tensor, Tensor]:
    normals = torch.nn.functional.normalize(torch.randn(num_points, 3, generator=generator(7)), dim=1)
    return radius * normals, normals


def batch_of(
    points: Tensor, normals: Tensor | None = None, matrix: Tensor | None = None, index: int = 0
) -> ObjectBatch:
    batch = ObjectBatch(surface_points=points[None], object_index=torch.tensor([index]))
    if normals is not None:
        batch["surface_normals"] = normals[None]
    if matrix is not None:
        batch["normalized_to_dataset"] = matrix[None]
    return batch


def score(shape: Shape, batch: ObjectBatch, **kwargs) -> dict[str, float]:
    metric = SurfaceScore(**kwargs)
    metric.update({"shapes": [shape]}, batch)
    return metric.rows()[int(batch["object_index"][0])]


def grid_plane(n: int = 20) -> Tensor:
    axis = torch.linspace(0, 1, n)
    return torch.cat([torch.cartesian_prod(axis, axis), torch.zeros(n * n, 1)], dim=1)


def test_scores_of_point_sets_equal_scipys() -> None:
    prediction, truth = torch.randn(200, 3, generator=generator(1)), torch.randn(300, 3, generator=generator(2))
    row = score(Shape(prediction), batch_of(truth), thresholds=[0.03])
    p, t = prediction.double().numpy(), truth.double().numpy()
    to_truth, to_prediction = cKDTree(t).query(p)[0], cKDTree(p).query(t)[0]
    radius = 0.03 * np.linalg.norm(t.max(0) - t.min(0))
    precision, recall = (to_truth < radius).mean(), (to_prediction < radius).mean()
    expected = {
        "accuracy": to_truth.mean(),
        "completeness": to_prediction.mean(),
        "chamfer_l1": (to_truth.mean() + to_prediction.mean()) / 2,
        "chamfer_l2": ((to_truth**2).mean() + (to_prediction**2).mean()) / 2,
        "f_score_3pct": 2 * precision * recall / (precision + recall),
        "precision_3pct": precision,
        "recall_3pct": recall,
        "normal_consistency": math.nan,
    }
    assert row == pytest.approx(expected, nan_ok=True)
    assert tuple(row) == tuple(expected)


def test_chamfer_of_a_shifted_plane_is_the_shift() -> None:
    plane = grid_plane()
    row = score(Shape(plane + torch.tensor([0, 0, 0.02])), batch_of(plane), thresholds=[0.01, 0.02])
    assert row["chamfer_l1"] == pytest.approx(0.02)
    assert row["chamfer_l2"] == pytest.approx(0.02**2)
    # the diagonal is sqrt(2): the shift is 1.41 % of it
    assert row["f_score_1pct"] == 0
    assert row["f_score_2pct"] == 1


def test_a_sphere_within_a_larger_one_is_off_by_the_difference_of_radii() -> None:
    points, normals = sphere_points(20_000)
    row = score(sphere(1.1), batch_of(points, normals), num_points=20_000)
    assert row["accuracy"] == pytest.approx(0.1, rel=0.01)
    assert row["completeness"] == pytest.approx(0.1, rel=0.01)
    assert row["normal_consistency"] == pytest.approx(1, abs=1e-3)
    # 0.1 of a diagonal of 2 sqrt(3) is 2.9 %
    assert row["f_score_2pct"] == 0
    assert score(sphere(1.1), batch_of(points), thresholds=[0.04], num_points=5000)["f_score_4pct"] > 0.99


def test_accuracy_sees_what_is_too_much_and_completeness_what_is_missing() -> None:
    plane = grid_plane()
    half = plane[plane[:, 0] < 0.5]
    missing, surplus = score(Shape(half), batch_of(plane)), score(Shape(plane), batch_of(half))
    assert missing["accuracy"] == 0
    assert missing["precision_1pct"] == 1
    assert missing["completeness"] > 0.1
    assert surplus["completeness"] == 0
    assert surplus["recall_1pct"] == 1
    assert surplus["accuracy"] == pytest.approx(missing["completeness"])


def test_normals_do_not_depend_on_their_sign_and_fall_with_the_angle() -> None:
    points, normals = sphere_points(5000)
    assert score(sphere(), batch_of(points, -normals), num_points=5000)["normal_consistency"] > 0.99
    # a flat disc with normals turned by 60 degrees
    square = Shape(torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]), torch.tensor([[0, 1, 2], [0, 2, 3]]))
    tilted = torch.tensor([math.sin(math.pi / 3), 0, math.cos(math.pi / 3)]).expand(400, 3)
    assert score(square, batch_of(grid_plane(), tilted), num_points=500)["normal_consistency"] == pytest.approx(0.5)


def test_relative_scores_do_not_change_and_distances_scale_under_a_similarity() -> None:
    points, normals = sphere_points(3000)
    shape = Shape(sphere(1.02).vertices * torch.tensor([1, 1, 1.1]), sphere().faces)
    # a quarter turn keeps the bounding box, by which thresholds are measured
    turn = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    matrix = torch.eye(4)
    matrix[:3, :3], matrix[:3, 3] = 250 * turn, torch.tensor([10.0, -20, 600])
    plain = score(shape, batch_of(points, normals), num_points=3000)
    moved = score(shape.transformed(matrix), batch_of(points, normals, matrix), num_points=3000)
    for name in plain:
        factor = {"accuracy": 250, "completeness": 250, "chamfer_l1": 250, "chamfer_l2": 250**2}.get(name, 1)
        # float32 vertices in the thousands, and a point in three thousand beside a threshold
        assert moved[name] == pytest.approx(factor * plain[name], rel=1e-3, abs=1e-3), name


def test_a_sample_depends_on_the_object_and_the_seed_alone() -> None:
    points, _ = sphere_points(500)
    alone = score(sphere(), batch_of(points, index=3), num_points=200)
    metric = SurfaceScore(num_points=200)
    both = ObjectBatch(surface_points=points.expand(2, -1, -1), object_index=torch.tensor([1, 3]))
    metric.update({"shapes": [sphere(), sphere()]}, both)
    rows = metric.rows()
    assert rows[3] == pytest.approx(alone, nan_ok=True)
    assert rows[1]["accuracy"] != rows[3]["accuracy"]
    assert score(sphere(), batch_of(points, index=3), num_points=200, seed=9)["accuracy"] != alone["accuracy"]


@pytest.mark.parametrize("normals", [None, torch.tensor([[0.0, 0, 1]]).expand(400, 3)])
def test_an_empty_shape_scores_as_the_worst(normals: Tensor | None) -> None:
    row = score(Shape.empty(), batch_of(3 * grid_plane(), normals))
    diagonal = 3 * math.sqrt(2)
    for name, value in row.items():
        worst = {"accuracy": diagonal, "completeness": diagonal, "chamfer_l1": diagonal, "chamfer_l2": diagonal**2}
        if name == "normal_consistency" and normals is None:
            assert math.isnan(value)
        else:
            assert value == pytest.approx(worst.get(name, 0)), name


def test_f_score_of_nothing_near_is_zero_and_the_threshold_itself_is_near() -> None:
    far, near = torch.tensor([2.0, 3.0]), torch.tensor([1.0, 2.0])
    assert f_score(far, far, 1.0) == (0, 0, 0)
    assert f_score(near, far, 1.0) == (0, 0.5, 0)
    assert f_score(near, near, 1.0) == (0.5, 0.5, 0.5)


def test_columns_name_their_thresholds() -> None:
    assert SurfaceScore(thresholds=[0.005, 0.1]).columns[4:8] == (
        "f_score_0_5pct",
        "precision_0_5pct",
        "recall_0_5pct",
        "f_score_10pct",
    )
    with pytest.raises(ValueError, match="num_points: 0"):
        SurfaceScore(num_points=0)


def test_thresholds_are_shares_of_the_diagonal_of_the_longest_edge_or_of_both() -> None:
    # a box of edges 1, 2 and 2: the diagonal is 3
    corners = torch.cartesian_prod(torch.tensor([0.0, 1]), torch.tensor([0.0, 2]), torch.tensor([0.0, 2]))
    prediction = Shape(corners + torch.tensor([0.0, 0, 0.025]))
    row = score(prediction, batch_of(corners), thresholds=[0.01], extents=["diagonal", "longest_edge"])
    assert row["f_score_1pct"] == 1  # within 0.03
    assert row["f_score_1pct_of_edge"] == 0  # within 0.02
    assert list(score(prediction, batch_of(corners), thresholds=[0.01], extents=["longest_edge"]))[4:7] == [
        *("f_score_1pct_of_edge", "precision_1pct_of_edge", "recall_1pct_of_edge")
    ]
    worst = score(Shape.empty(), batch_of(corners), thresholds=[0.01], extents=["diagonal", "longest_edge"])
    assert worst["f_score_1pct_of_edge"] == 0
    with pytest.raises(ValueError, match=r"extents: \['edge'\], expected some of \['diagonal', 'longest_edge'\]"):
        SurfaceScore(extents=["edge"])


def test_facts_name_the_protocol_and_its_settings() -> None:
    facts = SurfaceScore(num_points=7, seed=2).facts
    assert facts["protocol"] == "metrics.surface.SurfaceScore"
    assert facts["settings"] == {"num_points": 7, "thresholds": [0.005, 0.01, 0.02], "extents": ["diagonal"], "seed": 2}
