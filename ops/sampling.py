"""Where on a ray to look.

Letters: R rays; K intervals of a coarse partition; N new samples.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ops.rendering import cpu_kernels, weights_from_alpha


def stratified_distances(near: Tensor, far: Tensor, num_samples: int, generator: torch.Generator | None) -> Tensor:
    """One distance in each of ``num_samples`` equal bins of [near, far]: uniform with a generator, else the middle.

    Args:
        near, far: (R,) ends of the rays.
        num_samples: bins a ray.
        generator: source of the jitter, on the rays' device.

    Returns:
        (R, num_samples), increasing along each ray.
    """
    shape = (len(near), num_samples)
    jitter = 0.5 if generator is None else torch.rand(shape, generator=generator, device=near.device, dtype=near.dtype)
    bins = torch.arange(num_samples, device=near.device, dtype=near.dtype) + jitter
    return near[:, None] + (far - near)[:, None] * (bins / num_samples).expand(shape)


def invert_cdf(edges: Tensor, weights: Tensor, quantiles: Tensor) -> Tensor:
    """Distances at quantiles of a distribution that is constant within each interval.

    Args:
        edges: (R, K + 1) increasing distances.
        weights: (R, K) mass of the intervals, not negative; need not sum to one. Where a ray has none, the
            distribution is uniform over the intervals.
        quantiles: (R, N) in [0, 1], increasing.

    Returns:
        (R, N), increasing.
    """
    weights = weights + 1e-5
    cdf = torch.cumsum(weights, dim=-1)
    cdf = torch.cat([torch.zeros_like(cdf[:, :1]), cdf / cdf[:, -1:]], dim=-1)
    upper = torch.searchsorted(cdf, quantiles.contiguous(), right=True).clamp(1, edges.shape[-1] - 1)
    lower = upper - 1
    cdf_low, cdf_high = cdf.gather(-1, lower), cdf.gather(-1, upper)
    edge_low, edge_high = edges.gather(-1, lower), edges.gather(-1, upper)
    fraction = ((quantiles - cdf_low) / (cdf_high - cdf_low)).clamp(0, 1)
    # rounding could lead beyond the interval, and past the next distance
    return torch.minimum(edge_low + (edge_high - edge_low) * fraction, edge_high)


def section_weights(distances: Tensor, sdf: Tensor, inv_s: Tensor | float) -> Tensor:
    """Rendering weights of the intervals between neighbouring samples, from the SDF at their ends alone.

    The slope of an interval is the smaller of its own and the one before it, which keeps a thin wall from being
    stepped over: NeuS (arXiv:2106.10689), supplementary, as Neuralangelo uses it.

    Args:
        distances: (R, K + 1) increasing.
        sdf: (R, K + 1) values there.
        inv_s: sharpness of the logistic.

    Returns:
        (R, K).
    """
    lengths = distances.diff(dim=-1)
    slope = sdf.diff(dim=-1) / (lengths + 1e-5)
    previous = torch.cat([torch.zeros_like(slope[:, :1]), slope[:, :-1]], dim=-1)
    half_drop = torch.minimum(slope, previous) * lengths / 2
    middle = (sdf[:, :-1] + sdf[:, 1:]) / 2
    entering = torch.sigmoid((middle - half_drop) * inv_s)
    leaving = torch.sigmoid((middle + half_drop) * inv_s)
    return weights_from_alpha(((entering - leaving) / (entering + 1e-5)).clamp(0, 1))


@torch.no_grad()
def importance_distances(distances: Tensor, sdf: Tensor, inv_s: Tensor | float, quantiles: Tensor) -> Tensor:
    """Distances at quantiles of the rendering weights: :func:`invert_cdf` of :func:`section_weights`.

    Args:
        distances: (R, K + 1) increasing.
        sdf: (R, K + 1) values there.
        inv_s: sharpness of the logistic.
        quantiles: (R, N) in [0, 1], increasing.

    Returns:
        (R, N), increasing. On a CPU in one compiled pass, whose sums are taken in float64.
    """
    kernels = cpu_kernels(distances)
    if kernels is not None and sdf.dtype == quantiles.dtype == distances.dtype:
        return kernels.importance_distances(distances, sdf, float(inv_s), quantiles)
    return invert_cdf(distances, section_weights(distances, sdf, inv_s), quantiles)


@torch.no_grad()
def hierarchical_distances(
    sdf_at: Callable[[Tensor], Tensor],
    near: Tensor,
    far: Tensor,
    num_coarse: int,
    num_fine: int,
    num_rounds: int,
    generator: torch.Generator | None,
) -> Tensor:
    """Stratified samples, then rounds of importance samples that close in on the surface: NeuS, §3.3 and supplementary.

    Round h places ``num_fine`` samples at the middle quantiles of the rendering weights at sharpness 64 * 2^h.

    Args:
        sdf_at: (R, N) distances on the rays -> (R, N) signed distances.
        near, far: (R,) ends of the rays.
        num_coarse: stratified samples.
        num_fine: further samples a round.
        num_rounds: rounds; 0 leaves the stratified samples.
        generator: jitter of the stratified samples; ``None`` for their middles.

    Returns:
        (R, num_coarse + num_rounds * num_fine) increasing distances.
    """
    distances = stratified_distances(near, far, num_coarse, generator)
    if num_rounds == 0:
        return distances
    sdf = sdf_at(distances)
    quantiles = (torch.arange(num_fine, device=near.device, dtype=near.dtype) + 0.5) / num_fine
    quantiles = quantiles.expand(len(near), num_fine)
    for round_index in range(num_rounds):
        new = importance_distances(distances, sdf, 64.0 * 2**round_index, quantiles)
        distances, order = torch.cat([distances, new], dim=-1).sort(dim=-1)
        if round_index < num_rounds - 1:  # the values at the last samples are not needed to place any more
            sdf = torch.cat([sdf, sdf_at(new)], dim=-1).gather(-1, order)
    return distances


def sections(distances: Tensor, far: Tensor) -> Tensor:
    """(R, S) lengths from each sample to the next, from the last to ``far``."""
    return torch.cat([distances, far[:, None]], dim=-1).diff(dim=-1).clamp(min=0)
