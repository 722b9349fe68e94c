import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from losses.occupancy import gaussian_kl, occupancy_cross_entropy, occupancy_squared_error


def test_cross_entropy_sums_over_points_and_averages_over_objects(generator: torch.Generator) -> None:
    logits = torch.randn(3, 7, generator=generator)
    occupancy = torch.rand(3, 7, generator=generator) < 0.4
    probability = torch.where(occupancy, logits.sigmoid(), 1 - logits.sigmoid())
    torch.testing.assert_close(occupancy_cross_entropy(logits, occupancy), -probability.log().sum() / 3)
    # twice the points are twice the loss, twice the objects are not
    torch.testing.assert_close(
        occupancy_cross_entropy(logits.repeat(1, 2), occupancy.repeat(1, 2)),
        2 * occupancy_cross_entropy(logits.repeat(2, 1), occupancy.repeat(2, 1)),
    )


def test_squared_error_is_a_mean() -> None:
    values, occupancy = torch.tensor([[0.5, 1.0], [0.0, 0.0]]), torch.tensor([[True, True], [False, True]])
    assert occupancy_squared_error(values, occupancy).item() == pytest.approx((0.25 + 1) / 4)


def test_kl_is_torchs_and_zero_at_the_prior(generator: torch.Generator) -> None:
    mean, log_std = torch.randn(2, 5, 4, generator=generator)
    expected = kl_divergence(Normal(mean, log_std.exp()), Normal(0.0, 1.0)).sum(1).mean()
    torch.testing.assert_close(gaussian_kl(mean, log_std), expected)
    assert gaussian_kl(torch.zeros(2, 3), torch.zeros(2, 3)).item() == 0
    # near the prior it is the square of log_std, which 1 + 2e-4 - 1 would round away
    assert gaussian_kl(torch.zeros(1, 1), torch.full((1, 1), 1e-3)).item() == pytest.approx(1e-6, rel=2e-2)
    assert gaussian_kl(torch.ones(1, 2), torch.full((1, 2), math.log(2))).item() == pytest.approx(4 - 2 * math.log(2))


def test_shapes_that_do_not_fit_are_named() -> None:
    for loss in (occupancy_cross_entropy, occupancy_squared_error):
        with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 4\), expected \(B, M\)"):
            loss(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 4\), expected \(B, Z\)"):
        gaussian_kl(torch.zeros(2, 3), torch.zeros(2, 4))
