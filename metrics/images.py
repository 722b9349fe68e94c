"""How near rendered views come to photographs: PSNR and SSIM, of sRGB values in [0, 1]."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from metrics.per_object import PerObjectMetric
from ops.types import ObjectBatch, Reconstruction

WINDOW, SIGMA = 11, 1.5


def psnr(image: Tensor, target: Tensor, mask: Tensor | None = None) -> float:
    """Peak signal-to-noise ratio in dB, peak 1.

    Args:
        image: (C, H, W) in [0, 1].
        target: (C, H, W) in [0, 1].
        mask: (H, W) coverage; pixels above one half count. All pixels without.

    Returns:
        -10 log10 of the mean squared error over pixels and channels: infinite for equal images, NaN for an empty mask.
    """
    _check_sizes(image, target, mask)
    squared = (image.double() - target.double()).square().mean(0)
    if mask is not None:
        squared = squared[mask > 0.5]
    return (-10 * torch.log10(squared.mean())).item()


def ssim(image: Tensor, target: Tensor, mask: Tensor | None = None) -> float:
    """Structural similarity (Wang et al. 2004) with its Gaussian window of 11 pixels, sigma 1.5, K = 0.01 and 0.03.

    The mean over channels and over the pixels whose window lies in the image, as in the authors' code and in
    ``skimage.metrics.structural_similarity`` with population covariances.

    Args:
        image: (C, H, W) in [0, 1].
        target: (C, H, W) in [0, 1].
        mask: (H, W) coverage; the mean is over windows whose centre is above one half.

    Raises:
        ValueError: for images of different sizes or smaller than the window.
    """
    _check_sizes(image, target, mask)
    if min(image.shape[1:]) < WINDOW:
        raise ValueError(f"ssim: images are {tuple(image.shape[1:])}, expected at least {WINDOW} x {WINDOW} pixels")
    x, y = image.double()[:, None], target.double()[:, None]  # (C, 1, H, W)
    offsets = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    kernel = torch.exp(-0.5 * (offsets / SIGMA) ** 2)
    kernel = kernel / kernel.sum()

    def local_mean(z: Tensor) -> Tensor:
        return conv2d(conv2d(z, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))

    mean_x, mean_y = local_mean(x), local_mean(y)
    variance_x, variance_y = local_mean(x * x) - mean_x**2, local_mean(y * y) - mean_y**2
    covariance = local_mean(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))
    per_pixel = similarity[:, 0].mean(0)
    if mask is not None:
        border = WINDOW // 2
        per_pixel = per_pixel[mask[border:-border, border:-border] > 0.5]
    return per_pixel.mean().item()


class ViewScore(PerObjectMetric):
    """PSNR and SSIM of rendered views, each the mean over the views of an object of that view's score.

    ``psnr_masked_db`` counts the pixels inside the masks, and is NaN where the dataset has none; views whose mask is
    empty are left out of it. Means of PSNR are of decibels, as published tables have them, not of errors.
    """

    needs = frozenset({"renders", "images"})
    columns = ("psnr_db", "ssim", "psnr_masked_db")
    unit = "PSNR in dB, mean over views; whole images, except psnr_masked_db, which is inside the masks alone"

    def score(self, reconstruction: Reconstruction, batch: ObjectBatch, i: int) -> dict[str, float]:
        """Scores of object ``i`` of the batch."""
        rendered = reconstruction["renders"]["images"][i]
        targets = batch["images"][i].to(rendered.device)
        if rendered.shape != targets.shape:
            raise ValueError(
                f"Object {int(batch['object_index'][i])}: renders of shape {tuple(rendered.shape)} but images of "
                f"{tuple(targets.shape)}; render the views of the batch at their own size"
            )
        pairs = enumerate(zip(rendered, targets, strict=True))
        views = [without_padding(batch, i, v, pair) for v, pair in pairs]
        masks = list(batch["masks"][i].to(rendered.device)) if "masks" in batch else []
        masks = [without_padding(batch, i, v, [mask])[0] for v, mask in enumerate(masks)]
        masked = [psnr(x, y, mask) for (x, y), mask in zip(views, masks, strict=False) if bool((mask > 0.5).any())]
        return {
            "psnr_db": _mean([psnr(x, y) for x, y in views]),
            "ssim": _mean([ssim(x, y) for x, y in views]),
            "psnr_masked_db": _mean(masked),
        }


def without_padding(batch: ObjectBatch, i: int, v: int, pictures: Sequence[Tensor]) -> list[Tensor]:
    """Pictures (..., H, W) of view ``v`` of object ``i``, cut to what its photograph fills."""
    if "image_sizes" not in batch:
        return list(pictures)
    height, width = batch["image_sizes"][i, v].tolist()
    return [picture[..., :height, :width] for picture in pictures]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _check_sizes(image: Tensor, target: Tensor, mask: Tensor | None) -> None:
    if image.shape != target.shape or (mask is not None and mask.shape != image.shape[1:]):
        sizes = [tuple(image.shape), tuple(target.shape), None if mask is None else tuple(mask.shape)]
        raise ValueError(f"image, target and mask have shapes {sizes}, expected (C, H, W), the same, and (H, W)")
