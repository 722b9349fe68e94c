"""Small windows of photographs: where their pixels are, what is there, and how alike two of them are.

Letters: I photographs of H by W pixels; N windows of P pixels each.
"""

import torch
from torch import Tensor


def patch_pixels(centers: Tensor, size: int) -> Tensor:
    """Pixels of square windows, one pixel apart: (N, 2) centres -> (N, size * size, 2), row by row; ``size`` is odd.

    Raises:
        ValueError: the size is even, so that no pixel is the middle.
    """
    if size % 2 == 0 or size < 1:
        raise ValueError(f"a window of {size} x {size} pixels has none in its middle; its size must be odd")
    offsets = torch.arange(size, device=centers.device, dtype=centers.dtype) - size // 2
    y, x = torch.meshgrid(offsets, offsets, indexing="ij")
    return centers[:, None] + torch.stack([x, y], dim=-1).view(-1, 2)


def sample_bilinear(images: Tensor, sizes: Tensor, index: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Grey values between pixel centres, differentiable in the pixels.

    Args:
        images: (I, H, W) of any dtype.
        sizes: (I, 2) int, height and width of what is in the top left of each image; the rest is padding.
        index: (...) which image each window is of.
        pixels: (..., P, 2) x and y; the centre of the top-left pixel is (0.5, 0.5).

    Returns:
        (..., P) values, of the pixels' dtype, and (..., P) bool, true among the image's pixel centres; elsewhere the
        value is that of the border.
    """
    height, width = images.shape[1:]
    last_y, last_x = (sizes[index, axis, None] - 1 for axis in (0, 1))
    x, y = pixels[..., 0] - 0.5, pixels[..., 1] - 0.5
    is_inside = (x >= 0) & (y >= 0) & (x <= last_x) & (y <= last_y)
    # a point near the camera's plane is projected beyond what an integer holds, and its colour must not run away
    x, y = torch.minimum(x.clamp(min=0), last_x), torch.minimum(y.clamp(min=0), last_y)
    left = torch.minimum(x.detach().long(), (last_x - 1).clamp(min=0))
    top = torch.minimum(y.detach().long(), (last_y - 1).clamp(min=0))
    right_of, below = x - left, y - top
    first = index[..., None] * (height * width) + top * width + left
    flat = images.reshape(-1)
    step_x, step_y = int(width > 1), width if height > 1 else 0

    def at(offset: int) -> Tensor:
        return torch.take(flat, first + offset).to(pixels.dtype)

    above = torch.lerp(at(0), at(step_x), right_of)
    return torch.lerp(above, torch.lerp(at(step_y), at(step_y + step_x), right_of), below), is_inside


def contrast(patches: Tensor) -> Tensor:
    """Standard deviation within each of (..., P) windows, (...), without gradient."""
    patches = patches.detach()
    return (patches - patches.mean(dim=-1, keepdim=True)).square().mean(dim=-1).sqrt()


def normalized_cross_correlation(patches: Tensor, others: Tensor, floor: float = 1e-6) -> Tensor:
    """Cosine between windows whose means are taken off: 1 for windows that differ by brightness and contrast alone.

    Args:
        patches: (..., P).
        others: (..., P).
        floor: what is added to each variance, in squared grey values, so that flat windows correlate with nothing.

    Returns:
        (...) in [-1, 1].
    """
    patches = patches - patches.mean(dim=-1, keepdim=True)
    others = others - others.mean(dim=-1, keepdim=True)
    covariance = (patches * others).mean(dim=-1)
    variances = (patches.square().mean(dim=-1) + floor) * (others.square().mean(dim=-1) + floor)
    return covariance * variances.rsqrt()
