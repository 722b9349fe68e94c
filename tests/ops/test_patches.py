import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch

from ops.patches import contrast, normalized_cross_correlation, patch_pixels, sample_bilinear


def test_window_is_centred_and_in_rows():
    (window,) = patch_pixels(torch.tensor([[10.5, 20.5]]), 3)
    assert window.tolist() == [[x, y] for y in (19.5, 20.5, 21.5) for x in (9.5, 10.5, 11.5)]


@pytest.mark.parametrize("size", [0, 4])
def test_window_without_a_middle_is_refused(size):
    with pytest.raises(ValueError, match="must be odd"):
        patch_pixels(torch.zeros(1, 2), size)


def test_samples_are_those_of_scipy(generator):
    images = (255 * torch.rand(2, 7, 9, generator=generator)).byte()
    pixels = torch.rand(2, 50, 2, generator=generator, dtype=torch.float64) * torch.tensor([8.0, 6]) + 0.5
    sizes = torch.tensor([[7, 9]] * 2)
    values, is_inside = sample_bilinear(images, sizes, torch.tensor([1, 0]), pixels)
    assert is_inside.all()
    for n, image in enumerate((images[1], images[0])):
        coordinates = pixels[n].numpy().T[::-1] - 0.5
        expected = scipy.ndimage.map_coordinates(image.double().numpy(), coordinates, order=1)
        np.testing.assert_allclose(values[n].numpy(), expected, atol=1e-9)


def test_samples_outside_are_said_to_be_and_padding_is_never_read():
    images = torch.full((1, 6, 8), 200, dtype=torch.uint8)
    images[:, :4, :5] = 10  # what is in the top left; the rest is padding
    pixels = torch.tensor([[[0.5, 0.5], [4.5, 3.5], [4.6, 3.5], [4.5, 3.6], [0.4, 2], [2, 0.4], [1e12, -1e12]]])
    pixels.requires_grad_()
    values, is_inside = sample_bilinear(images, torch.tensor([[4, 5]]), torch.tensor([0]), pixels)
    assert is_inside[0].tolist() == [True, True, False, False, False, False, False]
    assert values.unique().tolist() == [10]
    values.sum().backward()
    assert pixels.grad.isfinite().all()


def test_gradient_of_a_sample_is_the_slope_of_the_image():
    ramp = (3 * torch.arange(8)[None, :] + 5 * torch.arange(6)[:, None])[None]
    pixels = torch.tensor([[[3.3, 2.2], [7.5, 5.5]]], dtype=torch.float64, requires_grad=True)
    values, _ = sample_bilinear(ramp, torch.tensor([[6, 8]]), torch.tensor([0]), pixels)
    torch.testing.assert_close(values[0, 0].item(), 3 * 2.8 + 5 * 1.7)
    values[0, 0].backward()
    torch.testing.assert_close(pixels.grad[0, 0], torch.tensor([3.0, 5], dtype=torch.float64))


def test_correlation_is_pearsons_window_by_window(generator):
    one = torch.rand(20, 3, 121, generator=generator, dtype=torch.float64) * 255
    other = 0.5 * one + torch.rand(20, 3, 121, generator=generator, dtype=torch.float64) * 255
    found = normalized_cross_correlation(one, other)
    for n in range(20):
        for s in range(3):
            expected = scipy.stats.pearsonr(one[n, s].numpy(), other[n, s].numpy()).statistic
            assert found[n, s].item() == pytest.approx(expected, abs=1e-8)


def test_brightness_and_contrast_do_not_matter_but_their_inversion_does(generator):
    patch = torch.rand(5, 121, generator=generator) * 255
    other = torch.rand(5, 121, generator=generator) * 255
    plain = normalized_cross_correlation(patch, other)
    torch.testing.assert_close(normalized_cross_correlation(0.3 * patch + 40, other), plain, atol=1e-4, rtol=0)
    torch.testing.assert_close(normalized_cross_correlation(patch, 255 - other), -plain, atol=1e-4, rtol=0)
    torch.testing.assert_close(normalized_cross_correlation(patch, 2 * patch + 1), torch.ones(5), atol=1e-4, rtol=0)


def test_flat_windows_correlate_with_nothing_and_have_finite_gradients():
    flat = torch.full((1, 9), 100.0, requires_grad=True)
    found = normalized_cross_correlation(flat, flat)
    found.sum().backward()
    assert found.item() == 0
    assert flat.grad.isfinite().all()
    assert contrast(flat).item() == 0


def test_contrast_is_the_standard_deviation(generator):
    patches = torch.rand(4, 3, 25, generator=generator, requires_grad=True)
    found = contrast(patches)
    np.testing.assert_allclose(found.numpy(), patches.detach().numpy().std(-1), rtol=1e-5)
