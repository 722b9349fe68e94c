import pytest
import torch
from torch import Tensor

from ops.nearest import _brute_force, nearest_distances


def by_loop(queries: Tensor, points: Tensor) -> tuple[list[float], list[int]]:
    distances, indices = [], []
    for query in queries:
        norms = [float(sum((query - p) ** 2)) ** 0.5 for p in points]
        indices.append(min(range(len(norms)), key=norms.__getitem__))
        distances.append(norms[indices[-1]])
    return distances, indices


@pytest.mark.parametrize("search", [nearest_distances, lambda q, p: _brute_force(q, p, pairs=100)], ids=["tree", "gpu"])
def test_nearest_equals_a_slow_loop(search) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, points = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (40, 23))
    distances, indices = search(queries, points)
    expected, expected_indices = by_loop(queries, points)
    torch.testing.assert_close(distances, torch.tensor(expected, dtype=torch.float64))
    assert indices.tolist() == expected_indices


@pytest.mark.parametrize("search", [nearest_distances, _brute_force], ids=["tree", "gpu"])
def test_small_distances_far_from_the_origin_keep_their_digits(search) -> None:
    points = torch.tensor([[1000.0, 0, 0], [1001.0, 0, 0]], dtype=torch.float64).repeat(20, 1)
    distances, _ = search(points + torch.tensor([0, 1e-6, 0]), points)
    torch.testing.assert_close(distances, torch.full((40,), 1e-6, dtype=torch.float64), rtol=1e-5, atol=0)


def test_nothing_is_infinitely_far() -> None:
    distances, indices = nearest_distances(torch.zeros(2, 3), torch.zeros(0, 3))
    assert distances.tolist() == [torch.inf, torch.inf]
    assert indices.tolist() == [-1, -1]
    assert nearest_distances(torch.zeros(0, 3), torch.zeros(2, 3))[0].shape == (0,)


def test_coordinates_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="points: expected finite coordinates, found 1"):
        nearest_distances(torch.zeros(1, 3), torch.tensor([[0, 0, torch.nan]]))
