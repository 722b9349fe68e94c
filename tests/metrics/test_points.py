import numpy as np
import pytest
import torch
import trimesh
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import Tensor

from metrics.points import EarthMovers
from ops.types import ObjectBatch, Shape


def random_points(count: int, seed: int) -> Tensor:
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(seed))


def batch_of(points: Tensor, index: int = 0, matrix: Tensor | None = None) -> ObjectBatch:
    batch = ObjectBatch(surface_points=points[None], object_index=torch.tensor([index]))
    if matrix is not None:
        batch["normalized_to_dataset"] = matrix[None]
    return batch


def score(shape: Shape, batch: ObjectBatch, **kwargs) -> float:
    metric = EarthMovers(**kwargs)
    metric.update({"shapes": [shape]}, batch)
    ((row,),) = [list(metric.rows().values())]
    ((name, value),) = row.items()
    assert name == f"earth_movers_{metric.num_points}"
    return value


def test_of_sets_as_large_as_the_sample_it_is_scipys() -> None:
    x, y = random_points(80, 1), random_points(80, 2)
    costs = cdist(x, y)
    expected = costs[linear_sum_assignment(costs)].mean()
    assert score(Shape(x), batch_of(y), num_points=80) == pytest.approx(expected)
    assert expected <= score(Shape(x), batch_of(y), num_points=80, epsilon=0.05) <= 1.05 * expected


def test_of_a_shifted_copy_it_is_at_most_the_shift_in_the_datasets_unit() -> None:
    plane = torch.cartesian_prod(torch.linspace(0, 1, 8), torch.linspace(0, 1, 8), torch.zeros(1))
    matrix = torch.diag(torch.tensor([100.0, 100, 100, 1]))
    matrix[0, 3] = 20
    shape = Shape(plane + torch.tensor([0, 0, 0.02])).transformed(matrix)
    assert score(shape, batch_of(plane, matrix=matrix), num_points=64) == pytest.approx(2.0, rel=1e-5)


def test_a_smaller_set_is_repeated_evenly() -> None:
    x = torch.tensor([[0.0, 0, 0], [1, 0, 0]])
    # each of the two predictions stands for two of four points
    y = torch.tensor([[0.0, 0, 0], [0, 0.5, 0], [1, 0, 0], [1, 0.5, 0]])
    assert score(Shape(x), batch_of(y), num_points=4) == pytest.approx(0.25)
    # three of one and two of the other against five in one place
    assert score(Shape(x), batch_of(torch.zeros(5, 3)), num_points=5) == pytest.approx(2 / 5)


def test_samples_of_a_mesh_depend_on_the_object_and_the_seed_alone() -> None:
    mesh = trimesh.creation.icosphere(3)
    shape = Shape(torch.tensor(np.array(mesh.vertices)), torch.tensor(mesh.faces).long())
    truth = torch.nn.functional.normalize(random_points(3000, 3) - 0.5, dim=1)
    first = score(shape, batch_of(truth, 4), num_points=200)
    assert first == score(shape, batch_of(truth, 4), num_points=200)
    assert first != score(shape, batch_of(truth, 5), num_points=200)
    assert first != score(shape, batch_of(truth, 4), num_points=200, seed=1)
    far = Shape(shape.vertices + 10, shape.faces)
    assert score(far, batch_of(truth), num_points=200) == pytest.approx(np.sqrt(300), rel=0.02)


def test_an_empty_shape_scores_the_diagonal() -> None:
    corners = torch.tensor([[0.0, 0, 0], [1, 2, 2]])
    assert score(Shape.empty(), batch_of(corners)) == pytest.approx(3)
    assert score(Shape(torch.zeros(0, 3)), batch_of(corners)) == pytest.approx(3)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="num_points: 0"):
        EarthMovers(0)
    with pytest.raises(ValueError, match=r"epsilon: -0\.1"):
        EarthMovers(epsilon=-0.1)
