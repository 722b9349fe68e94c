"""What differs between photographs of the same thing, other than the camera: light, weather, exposure."""

from typing import Literal

import torch
from torch import Tensor, nn

from ops.ranks import any_rank


class PhotographCodes(nn.Module):
    """A learnt vector for each photograph, as in NeRF-W (arXiv:2008.02268).

    A view that no photograph is named for, held out or new, gets the mean over the photographs that were trained on.
    NeRF-W instead fits the code of a test view to one half of it; the paper's code takes zeros, which nothing trained.

    Args:
        num_images: the most photographs a scene may have.
        size: length of a vector.
        std: of the normal distribution that they start from.
    """

    trained: Tensor  # (num_images,) bool; held-out and missing photographs keep a random start and must not be averaged

    def __init__(self, num_images: int, size: int, std: float = 1.0) -> None:
        super().__init__()
        self.codes = nn.Parameter(std * torch.randn(num_images, size))
        self.register_buffer("trained", torch.zeros(num_images, dtype=torch.bool))

    def forward(self, image_index: Tensor | None, num_rays: int) -> Tensor:
        """(num_rays, size) vectors of (num_rays,) photographs, or of none where ``None``."""
        if image_index is None:
            trained = self.trained[:, None] if self.trained.any() else torch.ones_like(self.trained[:, None])
            return ((self.codes * trained).sum(0) / trained.sum()).expand(num_rays, -1)
        if self.training:
            self.trained[image_index] = True
            # DDP overwrites buffers by the first rank's, and each rank sees photographs of its own
            self.trained.copy_(any_rank(self.trained))
        return self.codes[image_index]


class Exposure(nn.Module):
    """A correction of all colours of a photograph: a gain a channel, or an affine map of colours.

    Affine as in Urban Radiance Fields (arXiv:2111.14643). It starts as the identity, which weight decay pulls it to.
    Views that were not trained on are shown at the mean correction (of gains the geometric mean).

    Args:
        kind: form of the correction.
        num_images: the most photographs a scene may have.
    """

    def __init__(self, kind: Literal["gain", "affine"], num_images: int) -> None:
        super().__init__()
        self.kind = kind
        self.codes = PhotographCodes(num_images, 3 if kind == "gain" else 12, std=0.0)

    def forward(self, color: Tensor, coverage: Tensor, image_index: Tensor | None) -> Tensor:
        """(R, 3) colours as their photographs have them.

        Args:
            color: (R, 3), multiplied by the coverage already.
            coverage: (R,) share of the pixel that shows the scene; a plain backdrop is not exposed.
            image_index: (R,) photographs, or ``None`` for none of them.
        """
        code = self.codes(image_index, len(color))
        if self.kind == "gain":
            return color * code.exp()
        matrix, offset = code[:, :9].view(-1, 3, 3), code[:, 9:]
        return color + (matrix * color[:, None]).sum(-1) + coverage[:, None] * offset
