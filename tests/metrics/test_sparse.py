import pytest
import torch

from metrics.sparse import SparsePointScore
from ops.types import Shape

SQUARE = Shape(torch.tensor([[0.0, 0, 0], [10, 0, 0], [10, 10, 0], [0, 10, 0]]), torch.tensor([[0, 1, 2], [0, 2, 3]]))


def _batch(heights):
    points = torch.tensor([[1.0 + 2 * k, 1 + 2 * k, height] for k, height in enumerate(heights)]) / 10
    return {"object_index": torch.tensor([0]), "sparse_points": points[None],
            "normalized_to_dataset": torch.diag(torch.tensor([10.0, 10, 10, 1]))[None]}  # fmt: skip


def test_heights_above_a_square_are_the_distances_in_the_datasets_unit():
    metric = SparsePointScore()
    metric.update({"shapes": [SQUARE]}, _batch([0.0, 0.05, -0.1, 3, 0.05]))
    scores = {name: value.item() for name, value in metric.compute().items()}
    assert scores["sparse_points_median"] == pytest.approx(0.05)
    assert scores["sparse_points_p90"] == pytest.approx(0.1 + 0.6 * 2.9)  # between the fourth and the fifth
    assert scores["sparse_points_within_1pct"] == pytest.approx(0.8)


def test_empty_shape_scores_the_extent_of_the_points():
    metric = SparsePointScore()
    metric.update({"shapes": [Shape.empty()]}, _batch([0.0, 0, 0]))
    scores = {name: value.item() for name, value in metric.compute().items()}
    assert scores["sparse_points_median"] == pytest.approx(32**0.5)
    assert scores["sparse_points_within_1pct"] == 0
