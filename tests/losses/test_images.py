import pytest
import torch

from losses.images import color_l1, mask_cross_entropy


def test_color_loss_sums_channels_and_averages_pixels():
    prediction = torch.tensor([[0.5, 0.5, 0.5], [1.0, 0, 0]])
    assert color_l1(prediction, torch.zeros(2, 3)).item() == pytest.approx((1.5 + 1.0) / 2)


def test_mask_loss_is_the_binary_cross_entropy_of_the_opacity(generator):
    transmittance, mask = torch.rand(100, generator=generator), torch.rand(100, generator=generator)
    expected = torch.nn.functional.binary_cross_entropy((1 - transmittance).clamp(1e-3, 1 - 1e-3), (mask > 0.5).float())
    torch.testing.assert_close(mask_cross_entropy(transmittance, mask), expected)


def test_mask_loss_of_saturated_rays_is_finite_and_in_float32():
    transmittance = torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=torch.float16, requires_grad=True)
    loss = mask_cross_entropy(transmittance, torch.tensor([1.0, 0, 0, 1]))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(-torch.tensor([1e-3, 0.999]).log().mean().item(), rel=1e-3)
    assert torch.isfinite(transmittance.grad).all()
