"""From signed distances and densities to opacities, weights and pixels.

Letters: R rays, S samples on each; sections of a ray are numbered from the camera outwards.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def annealed_slope(cosine: Tensor, ratio: float) -> Tensor:
    """The slope of the SDF along a ray that NeuS's opacity assumes, never positive.

    At ratio 0 even a back-facing surface gets a little opacity, so that gradients flow while the shape is still
    wrong; at 1 only front-facing ones do. NeuS (arXiv:2106.10689), supplementary; Neuralangelo keeps it.

    Args:
        cosine: (...) direction . gradient, the gradient *not* normalised.
        ratio: progress of the annealing in [0, 1].
    """
    return -((0.5 - 0.5 * cosine).relu() * (1 - ratio) + (-cosine).relu() * ratio)


def alpha_from_sdf(sdf: Tensor, slope: Tensor, lengths: Tensor, inv_s: Tensor | float) -> Tensor:
    """Opacity of sections of a ray: NeuS (arXiv:2106.10689), Eq. 13, with the SDF taken as linear in each section.

    Args:
        sdf: (R, S) signed distance in the middle of each section.
        slope: (R, S) its derivative along the ray, not positive.
        lengths: (R, S) lengths of the sections.
        inv_s: sharpness s of the logistic, one over the distance unit.

    Returns:
        (R, S) in [0, 1]. Over sections that tile a ray on which the SDF is linear, the product of 1 - alpha is
        sigmoid(s f_end) / sigmoid(s f_start).
    """
    half_drop = slope * lengths / 2
    entering = torch.sigmoid((sdf - half_drop) * inv_s)
    leaving = torch.sigmoid((sdf + half_drop) * inv_s)
    return ((entering - leaving) / (entering + 1e-5)).clamp(0, 1)


def alpha_from_density(density: Tensor, lengths: Tensor) -> Tensor:
    """Opacity of (R, S) sections of constant density: NeRF (arXiv:2003.08934), Eq. 3."""
    return -torch.expm1(-density * lengths)


def weights_from_alpha(alpha: Tensor) -> Tensor:
    """Share of the pixel that each section contributes: w_i = alpha_i prod_{j<i} (1 - alpha_j), (R, S) each."""
    transmittance = torch.cumprod(1 - alpha, dim=-1)
    return alpha * F.pad(transmittance[:, :-1], (1, 0), value=1.0)


def composite(weights: Tensor, values: Tensor) -> Tensor:
    """(R, C) weighted sum of (R, S, C) values over the samples of each ray."""
    return (weights[:, None] @ values).squeeze(1)
