"""Properties of the colours that stand for numbers."""

import torch

from ops.colormaps import HEAT, heat


def test_heat_goes_through_its_anchors_and_stays_at_its_ends() -> None:
    values = torch.tensor([-1.0, 0.0, 0.4, 2.0, 5.0, torch.inf])
    expected = torch.tensor([HEAT[0], HEAT[0], HEAT[1], HEAT[-1], HEAT[-1], HEAT[-1]])
    torch.testing.assert_close(heat(values, 2.0), expected)


def test_more_heat_is_brighter_so_that_the_order_survives_in_grey() -> None:
    luminance = heat(torch.linspace(0, 1, 101), 1.0) @ torch.tensor([0.2126, 0.7152, 0.0722])
    assert (luminance.diff() > 0).all()


def test_what_is_not_a_number_is_grey() -> None:
    assert heat(torch.tensor([torch.nan]), 1.0).tolist() == [[0.5] * 3]
