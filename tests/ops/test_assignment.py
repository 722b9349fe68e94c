import itertools

import pytest
import torch
from torch import Tensor

from ops.assignment import auction_assignment, exact_assignment


def random_points(batch: int, size: int, seed: int = 0) -> Tensor:
    return torch.rand(batch, size, 3, generator=torch.Generator().manual_seed(seed))


def total(x: Tensor, y: Tensor, assignment: Tensor, squared: bool = False) -> Tensor:
    distances = (x - y.gather(1, assignment[..., None].expand(-1, -1, 3))).double().norm(dim=2)
    return (distances.square() if squared else distances).sum(1)


def is_bijection(assignment: Tensor) -> bool:
    return torch.equal(assignment.sort(1).values, torch.arange(assignment.shape[1]).expand_as(assignment))


def clusters(size: int) -> tuple[Tensor, Tensor]:
    """Two tight clusters far apart, of which one has too few targets: prices there must climb by the gap."""
    x, y = (1e-3 * random_points(2, size, seed) for seed in (1, 2))
    x[:, : size // 2 + 7, 0] += 5
    y[:, : size // 2 - 7, 0] += 5
    return x, y


CASES = {
    "uniform": (random_points(3, 150, 1), random_points(3, 150, 2)),
    "untrained": (0.01 * random_points(2, 200, 1), random_points(2, 200, 2)),
    "far_apart": (random_points(2, 120, 1), random_points(2, 120, 2) + 10),
    "clusters": clusters(120),
    "all_in_one_place": (torch.zeros(1, 100, 3), random_points(1, 100)),
    "repeated": (random_points(2, 30).repeat_interleave(5, dim=1), random_points(2, 30, 3).repeat_interleave(5, dim=1)),
    "lattice": (
        torch.cartesian_prod(*[torch.arange(5.0)] * 3)[None],
        torch.cartesian_prod(*[torch.arange(5.0)] * 3)[None] + 0.5,
    ),
}


@pytest.mark.parametrize("squared", [False, True], ids=["distance", "squared"])
@pytest.mark.parametrize("epsilon", [0.2, 0.01, 1e-4])
@pytest.mark.parametrize("case", CASES)
def test_the_auction_is_a_bijection_within_epsilon_of_the_best(case: str, epsilon: float, squared: bool) -> None:
    x, y = CASES[case]
    assignment = auction_assignment(x, y, epsilon, squared=squared)
    assert assignment.dtype == torch.int64
    assert is_bijection(assignment)
    best = total(x, y, exact_assignment(x, y, squared=squared), squared)
    assert bool((total(x, y, assignment, squared) <= (1 + epsilon) * best + 1e-9).all())


def test_the_exact_one_is_the_best_of_all_permutations() -> None:
    x, y = random_points(4, 6, 1), random_points(4, 6, 2)
    orders = torch.tensor(list(itertools.permutations(range(6))))
    for squared in (False, True):
        every = torch.stack([total(x, y, order.expand(4, -1), squared) for order in orders])
        torch.testing.assert_close(total(x, y, exact_assignment(x, y, squared=squared), squared), every.amin(0))


def test_the_best_bijection_depends_on_whether_distances_are_squared() -> None:
    # one way of length 2 and one of 0, or two of 1.04, which squares prefer
    x, y = torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)
    x[0, :, 0], y[0, :, 0] = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0])
    x[0, 1, 1] = y[0, 0, 1] = 0.3
    for assign in (exact_assignment, auction_assignment):
        assert assign(x, y, squared=True).tolist() == [[0, 1]]
        assert assign(x, y).tolist() == [[1, 0]]


@pytest.mark.parametrize("size", [1, 2, 12, 13, 500])
def test_a_shuffled_copy_is_put_in_order(size: int) -> None:
    x = random_points(2, size)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(5))
    for assign in (exact_assignment, auction_assignment):
        assert torch.equal(assign(x[:, order], x), order.expand(2, -1))


def test_repeated_points_whose_counts_differ_still_find_partners() -> None:
    # the nearest point is at distance zero for all, but the best sum is not zero
    a, b = torch.tensor([[0.0, 0, 0]]), torch.tensor([[1.0, 0, 0]])
    x, y = torch.cat([a.expand(60, 3), b.expand(40, 3)])[None], torch.cat([a.expand(40, 3), b.expand(60, 3)])[None]
    assignment = auction_assignment(x, y)
    assert is_bijection(assignment)
    assert total(x, y, assignment).item() == 20


def test_results_do_not_depend_on_the_batch_or_the_number_of_threads() -> None:
    x, y = random_points(5, 80, 1), random_points(5, 80, 2)
    together, threads = auction_assignment(x, y), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(auction_assignment(x, y), together)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.cat([auction_assignment(x[i : i + 1], y[i : i + 1]) for i in range(5)]), together)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(1, 4, 3), torch.zeros(1, 5, 3), r"\(1, 4, 3\) and \(1, 5, 3\).*as many points"),
        (torch.zeros(4, 3), torch.zeros(4, 3), r"expected \(B, N, 3\)"),
        (torch.zeros(1, 0, 3), torch.zeros(1, 0, 3), "N at least 1"),
        (torch.zeros(1, 4, 3), torch.full((1, 4, 3), torch.nan), "y: expected finite coordinates, found 12 others"),
    ],
)
def test_sets_that_have_no_bijection_are_refused(x: Tensor, y: Tensor, message: str) -> None:
    for assign in (exact_assignment, auction_assignment):
        with pytest.raises(ValueError, match=message):
            assign(x, y)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("nan")])
def test_an_epsilon_that_is_not_positive_is_refused(epsilon: float) -> None:
    with pytest.raises(ValueError, match="expected a positive share"):
        auction_assignment(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), epsilon)
