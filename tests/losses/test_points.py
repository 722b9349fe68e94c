import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import Tensor

import losses.points
from losses.points import chamfer, density_aware_chamfer, earth_movers, nearest_by_pairs, nearest_indices, soft_chamfer


def random_points(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(*shape, 3, generator=torch.Generator().manual_seed(seed), dtype=dtype)


X, Y = random_points(3, 40, seed=1), random_points(3, 55, seed=2)


@pytest.mark.parametrize("squared", [False, True], ids=["distance", "squared"])
def test_chamfer_is_the_mean_of_the_least_distances(squared: bool) -> None:
    to_y, to_x = chamfer(X, Y, squared=squared)
    for i in range(3):
        distances = cdist(X[i], Y[i], "sqeuclidean" if squared else "euclidean")
        assert to_y[i].item() == pytest.approx(distances.min(1).mean())
        assert to_x[i].item() == pytest.approx(distances.min(0).mean())


def test_chamfer_of_a_shifted_lattice_is_the_shift() -> None:
    lattice = torch.cartesian_prod(*[torch.arange(4.0)] * 3)[None]
    shifted = lattice + torch.tensor([0.1, 0.2, 0.2])
    for distance in chamfer(lattice, shifted, squared=False):
        torch.testing.assert_close(distance, torch.tensor([0.3]))
    for distance in chamfer(lattice, shifted):
        torch.testing.assert_close(distance, torch.tensor([0.09]))


def test_directions_see_what_is_missing_and_what_is_too_much() -> None:
    half = Y[:, :20]
    to_y, to_half = chamfer(half, Y)
    assert bool((to_y == 0).all())
    assert bool((to_half > 0).all())


@pytest.mark.parametrize("chunk_size", [1, 7, 55, 300, 55 * 40 * 2, 10**9])
def test_neighbours_from_pairs_equal_those_of_the_tree(chunk_size: int) -> None:
    assert torch.equal(nearest_by_pairs(X, Y, chunk_size), nearest_indices(X, Y))


@pytest.mark.parametrize("chunk_size", [5000, 10**5])
def test_pairs_stay_below_the_chunk_size(chunk_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, pairs = [], losses.points._pairs
    monkeypatch.setattr(
        losses.points, "_pairs", lambda x, y: sizes.append(x.shape[:2].numel() * y.shape[1]) or pairs(x, y)
    )
    x, y = random_points(4, 700), random_points(4, 900, seed=1)
    nearest_by_pairs(x, y, chunk_size)
    soft_chamfer(x, y, 0.1, chunk_size=chunk_size)
    assert max(sizes) <= chunk_size
    # every pair once, and twice for the soft distance's two directions
    assert sum(sizes) == 3 * 4 * 700 * 900


@pytest.mark.parametrize("loss", ["chamfer", "by_pairs", "soft"])
def test_a_hundred_thousand_points_on_each_side_take_less_than_a_gibibyte(loss: str) -> None:
    peak = Path("/proc/self/clear_refs")
    if not os.access(peak, os.W_OK):
        pytest.skip("needs Linux's account of a process's memory")
    x, y = (random_points(1, 100_000, seed=seed, dtype=torch.float32) for seed in (1, 2))
    few = x[:, :300].clone().requires_grad_()
    peak.write_text("5")  # forget the peak so far
    before = _process_mib("VmRSS")
    if loss == "chamfer":
        sum(chamfer(x.requires_grad_(), y)).backward()
    elif loss == "by_pairs":
        # a chunk of the rows takes what all of them take
        nearest_by_pairs(x[:, :300], y)
    else:
        soft_chamfer(few, y, 0.1).sum().backward()
    assert _process_mib("VmHWM") - before < 1024


def _process_mib(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


SMALL = random_points(2, 6, seed=3), random_points(2, 6, seed=4)


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, y: torch.stack(chamfer(x, y)),
        lambda x, y: torch.stack(chamfer(x, y, squared=False)),
        lambda x, y: soft_chamfer(x, y, 0.05, chunk_size=24),
        lambda x, y: soft_chamfer(x, y, 0.3, squared=False),
        lambda x, y: density_aware_chamfer(x, y, alpha=3.0),
        lambda x, y: earth_movers(x, y),
        lambda x, y: earth_movers(x, y, exact=True, squared=True),
    ],
    ids=["chamfer", "chamfer_l1", "soft", "soft_l1", "density_aware", "earth_movers", "earth_movers_squared"],
)
def test_gradients_are_those_of_finite_differences(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    x, y = (points.clone().requires_grad_() for points in SMALL)
    assert torch.autograd.gradcheck(loss, (x, y), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, y: sum(chamfer(x, y, squared=False)),
        lambda x, y: soft_chamfer(x, y, 1e-3),
        lambda x, y: soft_chamfer(x, y, 1e-3, squared=False),
        density_aware_chamfer,
        lambda x, y: earth_movers(x, y),
    ],
    ids=["chamfer_l1", "soft", "soft_l1", "density_aware", "earth_movers"],
)
def test_gradients_are_finite_where_points_coincide(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    x = random_points(1, 5).repeat(1, 2, 1).requires_grad_()
    loss(x, x.detach().clone()).sum().backward()
    assert bool(torch.isfinite(x.grad).all())


def test_distances_scale_with_the_points_and_forget_their_order() -> None:
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    plain, moved = chamfer(X, Y), chamfer(3 * X[:, order] + 1, 3 * Y + 1)
    torch.testing.assert_close(torch.stack(moved), 9 * torch.stack(plain))
    torch.testing.assert_close(soft_chamfer(3 * X[:, order] + 1, 3 * Y + 1, 0.9), 9 * soft_chamfer(X, Y, 0.1))
    same = X[:, order][:, :40], Y[:, :40]
    torch.testing.assert_close(
        earth_movers(3 * same[0], 3 * same[1], exact=True), 3 * earth_movers(X, same[1], exact=True)
    )


@pytest.mark.parametrize("squared", [False, True], ids=["distance", "squared"])
def test_soft_chamfer_lies_between_chamfer_and_the_mean_of_all_distances(squared: bool) -> None:
    least = sum(chamfer(X, Y, squared=squared))
    distances = torch.cdist(X, Y)
    most = 2 * (distances.square() if squared else distances).mean((1, 2))
    ladder = [soft_chamfer(X, Y, t, squared=squared) for t in (1e-6, 1e-3, 1e-2, 0.1, 1.0, 1e6)]
    torch.testing.assert_close(ladder[0], least)
    torch.testing.assert_close(ladder[-1], most)
    # each term rises with the temperature: its derivative is a variance
    for colder, warmer in zip([least, *ladder], ladder, strict=False):
        assert bool((colder <= warmer + 1e-12).all())


def test_density_aware_chamfer_of_a_bijection_depends_on_the_distance_alone() -> None:
    lattice = torch.cartesian_prod(*[torch.arange(4.0)] * 3)[None].double()
    assert density_aware_chamfer(lattice, lattice).item() == 0
    shifted = lattice + torch.tensor([0.03, 0, 0])
    assert density_aware_chamfer(lattice, shifted).item() == pytest.approx(1 - np.exp(-1000 * 0.03**2))


def test_density_aware_chamfer_notices_points_in_the_wrong_places_that_chamfer_does_not() -> None:
    places = torch.cartesian_prod(*[torch.arange(2.0)] * 3).double()
    even = places.repeat(2, 1)[None]
    uneven = torch.cat([places, places[:1].expand(8, -1)])[None]
    assert sum(chamfer(even, uneven)).item() == 0
    # of the neighbours' counts, 1 / n summed over points is the number of places that are somebody's neighbour
    assert density_aware_chamfer(even, uneven).item() == pytest.approx(1 - 8 / 16)
    far = density_aware_chamfer(even, even + 100)
    assert 0 <= far.item() <= 1


def test_earth_movers_is_scipys_least_mean_distance() -> None:
    y = Y[:, :40]
    for squared in (False, True):
        expected = []
        for a, b in zip(X, y, strict=True):
            costs = cdist(a, b, "sqeuclidean" if squared else "euclidean")
            expected.append(costs[linear_sum_assignment(costs)].mean())
        exact = earth_movers(X, y, exact=True, squared=squared)
        torch.testing.assert_close(exact, torch.tensor(expected))
        near = earth_movers(X, y, epsilon=0.02, squared=squared)
        assert bool((near >= exact - 1e-12).all())
        assert bool((near <= 1.02 * exact).all())


def test_earth_movers_pulls_every_point_where_chamfer_leaves_some() -> None:
    # all predictions at one of two targets: Chamfer's first direction is content
    x, y = torch.zeros(1, 4, 3), torch.zeros(1, 4, 3)
    y[0, 2:, 0] = 1
    x.requires_grad_()
    assert chamfer(x, y)[0].item() == 0
    earth_movers(x, y).sum().backward()
    assert (x.grad[0, :, 0] < 0).sum() == 2


def test_half_precision_is_compared_in_float32() -> None:
    x, y = X.bfloat16(), Y[:, :40].bfloat16()
    for loss in (lambda a, b: chamfer(a, b)[0], lambda a, b: soft_chamfer(a, b, 0.1), earth_movers):
        assert loss(x, y).dtype == torch.float32
        torch.testing.assert_close(loss(x, y), loss(x.float(), y.float()))


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 3)),
        (torch.zeros(1, 2, 3), torch.zeros(2, 2, 3)),
        (torch.zeros(1, 2, 3), torch.zeros(1, 2, 2)),
        (torch.zeros(1, 0, 3), torch.zeros(1, 2, 3)),
        (torch.zeros(1, 2, 3), torch.zeros(1, 0, 3)),
    ],
)
def test_shapes_that_do_not_fit_are_named(x: Tensor, y: Tensor) -> None:
    for loss in (chamfer, density_aware_chamfer, lambda a, b: soft_chamfer(a, b, 1.0)):
        with pytest.raises(ValueError, match=r"x and y have shapes .*expected \(B, N, 3\) and \(B, M, 3\)"):
            loss(x, y)


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"temperature: 0\.0"):
        soft_chamfer(X, Y, 0.0)


def test_coordinates_that_are_not_finite_are_found() -> None:
    with pytest.raises(ValueError, match="expected finite coordinates"):
        chamfer(torch.full_like(X, torch.nan), Y)
