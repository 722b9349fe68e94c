import math

import pytest
import torch
from torch import Tensor

from metrics.images import ViewScore, psnr, ssim
from ops.types import ObjectBatch


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_psnr_of_a_constant_error_is_its_closed_form() -> None:
    image = images(3, 8, 9) * 0.5
    assert psnr(image + 0.1, image) == pytest.approx(20, abs=1e-4)
    assert psnr(image, image) == math.inf


def test_masked_psnr_sees_only_the_mask() -> None:
    image, mask = torch.zeros(3, 4, 4), torch.zeros(4, 4)
    mask[:2] = 0.9
    mask[2:] = 0.4
    wrong = image.clone()
    wrong[:, 2:] = 1
    wrong[:, :2] = 0.01
    assert psnr(wrong, image, mask) == pytest.approx(40, abs=1e-4)
    assert math.isnan(psnr(wrong, image, torch.zeros(4, 4)))


def test_ssim_equals_a_slow_loop_over_windows() -> None:
    x, y = images(2, 14, 13, seed=1), images(2, 14, 13, seed=2)
    offsets = range(-5, 6)
    window = torch.tensor([[math.exp(-(i * i + j * j) / (2 * 1.5**2)) for j in offsets] for i in offsets])
    window = window / window.sum()
    values = []
    for c in range(2):
        for i in range(5, 9):
            for j in range(5, 8):
                a, b = (z[c, i - 5 : i + 6, j - 5 : j + 6] for z in (x, y))
                ma, mb = (window * a).sum(), (window * b).sum()
                va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
                cov = (window * (a - ma) * (b - mb)).sum()
                values.append((2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4)))
    assert ssim(x, y) == pytest.approx(float(torch.stack(values).mean()), abs=1e-6)


def test_ssim_equals_skimages() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    x = images(3, 40, 33, seed=3)
    y = (x + 0.2 * images(3, 40, 33, seed=4)).clamp(0, 1)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    expected = metrics.structural_similarity(x.double().numpy(), y.double().numpy(), channel_axis=0, **options)
    assert ssim(x, y) == pytest.approx(expected, abs=1e-9)
    assert psnr(x, y) == pytest.approx(metrics.peak_signal_noise_ratio(x.numpy(), y.numpy(), data_range=1), abs=1e-5)


def test_ssim_is_one_for_equal_images_and_masks_pick_windows() -> None:
    x, y = images(3, 24, 24), images(3, 24, 24)
    y[:, :, 12:] = 1 - y[:, :, 12:]
    left = torch.zeros(24, 24)
    left[:, :7] = 1
    assert ssim(x, x) == pytest.approx(1)
    assert ssim(x, y, left) == pytest.approx(1)
    assert ssim(x, y) < 0.9


def test_images_smaller_than_the_window_or_of_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 11 x 11"):
        ssim(images(3, 10, 20), images(3, 10, 20))
    with pytest.raises(ValueError, match="the same"):
        psnr(images(3, 4, 4), images(3, 4, 5))


def batch_of(target: Tensor, masks: Tensor | None = None) -> ObjectBatch:
    batch = ObjectBatch(images=target[None], object_index=torch.tensor([0]))
    if masks is not None:
        batch["masks"] = masks[None]
    return batch


def score(rendered: Tensor, batch: ObjectBatch) -> dict[str, float]:
    metric = ViewScore()
    metric.update({"renders": {"images": rendered[None]}}, batch)
    return metric.rows()[0]


def test_view_scores_average_decibels_over_views() -> None:
    target = images(2, 3, 12, 12) * 0.5
    rendered = target + torch.tensor([0.1, 0.001]).view(2, 1, 1, 1)
    row = score(rendered, batch_of(target))
    assert row["psnr_db"] == pytest.approx(40, abs=0.01)  # (20 + 60) / 2
    assert row["ssim"] == pytest.approx((ssim(rendered[0], target[0]) + ssim(rendered[1], target[1])) / 2)
    assert math.isnan(row["psnr_masked_db"])


def test_a_view_without_foreground_does_not_count_inside_the_mask() -> None:
    target = images(2, 3, 12, 12) * 0.5
    rendered = target + 0.1
    rendered[0, :, :6] = target[0, :, :6] + 0.01
    masks = torch.zeros(2, 12, 12)
    masks[0, :6] = 1
    row = score(rendered, batch_of(target, masks))
    assert row["psnr_masked_db"] == pytest.approx(40, abs=0.01)


def test_a_broken_view_is_not_averaged_away() -> None:
    target = images(2, 3, 12, 12)
    rendered = target.clone()
    rendered[0, 0, 0, 0] = math.nan
    assert math.isnan(score(rendered, batch_of(target))["psnr_db"])


def test_renders_of_another_size_name_the_object() -> None:
    with pytest.raises(ValueError, match=r"Object 0: renders of shape \(1, 3, 12, 12\)"):
        score(images(1, 3, 12, 12), batch_of(images(2, 3, 12, 12)))


def test_padding_never_counts() -> None:
    target = images(2, 3, 16, 20)
    rendered = target + 0.1
    batch = batch_of(target.clone(), torch.ones(2, 16, 20))
    batch["image_sizes"] = torch.tensor([[[16, 20], [12, 14]]])
    # whatever is rendered beside the second photograph, padded or not, is as good as anything else
    padded = rendered.clone()
    padded[1, :, 12:], padded[1, :, :, 14:] = 0.9, 0.3
    row = score(padded, batch)
    assert row["psnr_db"] == pytest.approx(20, abs=0.01)
    assert row["psnr_masked_db"] == pytest.approx(20, abs=0.01)
    assert row["ssim"] == pytest.approx(
        (ssim(rendered[0], target[0]) + ssim(rendered[1, :, :12, :14], target[1, :, :12, :14])) / 2
    )
