import math

import pytest
import torch

from losses.images import color_l1, mask_cross_entropy


def test_color_loss_sums_channels_and_averages_pixels():
    prediction = torch.tensor([[0.5, 0.5, 0.5], [1.0, 0, 0]])
    assert color_l1(prediction, torch.zeros(2, 3)).item() == pytest.approx((1.5 + 1.0) / 2)


def test_mask_loss_is_the_binary_cross_entropy_of_the_opacity(generator):
    transmittance, mask = torch.rand(100, generator=generator), torch.rand(100, generator=generator)
    expected = torch.nn.functional.binary_cross_entropy(1 - transmittance, (mask > 0.5).float())
    torch.testing.assert_close(mask_cross_entropy(transmittance.log(), mask), expected)


def test_mask_loss_of_saturated_rays_is_finite_and_in_float32():
    log_transmittance = torch.tensor([0.0, -torch.inf, 0.0, -torch.inf], dtype=torch.float16, requires_grad=True)
    loss = mask_cross_entropy(log_transmittance, torch.tensor([0.0, 0, 1, 1]))
    loss.backward()
    assert loss.dtype == torch.float32
    # right, wrongly opaque, wrongly clear, right
    assert loss.item() == pytest.approx(-(math.log(1e-3) + math.log1p(-1e-3)) / 2)
    assert torch.isfinite(log_transmittance.grad).all()


def test_mask_loss_is_exact_where_one_minus_the_opacity_has_no_digits_left():
    # 1 - o and o themselves would round to 1 or 0 in float32
    log_transmittance = torch.tensor([-1e-12, -60.0], requires_grad=True)
    clear = mask_cross_entropy(log_transmittance[:1], torch.ones(1), floor=1e-30)
    opaque = mask_cross_entropy(log_transmittance[1:], torch.zeros(1), floor=1e-30)
    assert clear.item() == pytest.approx(-math.log(1e-12), rel=1e-6)
    assert opaque.item() == pytest.approx(60)
    (clear + opaque).backward()
    assert log_transmittance.grad.tolist() == pytest.approx([1e12, -1])


def test_beyond_the_floor_a_ray_pulls_no_more():
    # opaque and nearly as wrong as can be, then more than that; clear and nearly right, then more than that
    log_transmittance = torch.tensor([math.log(2e-3), math.log(0.5e-3), -2e-3, -0.5e-3], requires_grad=True)
    mask_cross_entropy(log_transmittance, torch.zeros(4)).backward()
    assert log_transmittance.grad.tolist() == [-0.25, 0, -0.25, 0]
