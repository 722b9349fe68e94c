"""Losses between windows of photographs that show the same piece of surface.

Letters: N points of the surface; I photographs; S of them in which a point is looked for; P pixels of a window.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ops.crossings import first_crossings
from ops.homography import Cameras, facing_cosines, plane_homographies, warp_pixels
from ops.patches import contrast, normalized_cross_correlation, patch_pixels, sample_bilinear
from ops.types import RayBatch


@dataclass(frozen=True)
class GreyPhotographs:
    """What patch consistency looks at.

    Attributes:
        images: (I, H, W) uint8 grey.
        sizes: (I, 2) int, height and width of what is in each image's top left; the rest is padding.
        cameras: theirs.
    """

    images: Tensor
    sizes: Tensor
    cameras: Cameras


def patch_consistency(
    points: Tensor,
    normals: Tensor,
    pixels: Tensor,
    reference: Tensor,
    sources: Tensor,
    photographs: GreyPhotographs,
    *,
    patch_size: int = 11,
    num_best: int = 4,
    min_contrast: float = 2.0,
    min_cosine: float = 0.1,
) -> tuple[Tensor, Tensor]:
    """How little the surroundings of surface points look alike in several photographs: Geo-NeuS (arXiv:2205.15848).

    Each point stands for a small plane, which takes the window about its pixel to the source photographs. Of those only
    the ``num_best`` most alike count, since the point may be hidden in the others. Geo-NeuS squares the correlation; we
    do not, so that a negative picture is no match.

    Args:
        points: (N, 3), normalised frame; the loss moves them, along their rays.
        normals: (N, 3) unit, outward; taken as they are, without gradient.
        pixels: (N, 2) where each point is in its reference photograph.
        reference: (N,) int, photograph each point was found in.
        sources: (N, S) int, photographs it is looked for in.
        photographs: all of them.
        patch_size: edge of the window in pixels, odd.
        num_best: K, most sources that count for a point.
        min_contrast: a window whose standard deviation is below this, of 255, shows nothing to compare.
        min_cosine: a camera that sees the plane at a smaller cosine is left out.

    Returns:
        (N,) 1 - correlation, averaged over the best sources, in [0, 2]; 0 where nothing can be compared; and (N,) bool,
        true where something can.
    """
    normals = normals.detach()
    window = patch_pixels(pixels, patch_size)  # (N, P, 2)
    shown, is_inside = sample_bilinear(photographs.images, photographs.sizes, reference, window)  # (N, P)
    cosines = facing_cosines(points.detach(), normals, photographs.cameras, reference[:, None])[:, 0]
    is_usable = is_inside.all(-1) & (contrast(shown) >= min_contrast) & (cosines >= min_cosine)

    def correlations(chosen: Tensor) -> tuple[Tensor, Tensor]:
        homographies = plane_homographies(points, normals, photographs.cameras, reference, chosen)
        warped, is_in_front = warp_pixels(homographies, window)  # (N, S, P, 2)
        seen, is_inside = sample_bilinear(photographs.images, photographs.sizes, chosen, warped)
        cosines = facing_cosines(points.detach(), normals, photographs.cameras, chosen)
        valid = (is_in_front & is_inside).all(-1) & (contrast(seen) >= min_contrast) & (cosines >= min_cosine)
        return normalized_cross_correlation(shown[:, None], seen), valid

    # the best are found without gradient, so that only they are paid for twice
    with torch.no_grad():
        found, valid = correlations(sources)
        best = found.masked_fill(~valid, -torch.inf).topk(min(num_best, sources.shape[1])).indices
    found, valid = correlations(sources.gather(1, best))
    valid = valid & is_usable[:, None]
    dissimilarity = (torch.where(valid, 1 - found, 0)).sum(-1) / valid.sum(-1).clamp(min=1)
    return dissimilarity, valid.any(-1)


def patch_loss(
    batch: RayBatch,
    index: Tensor,
    distances: Tensor,
    sdf: Tensor,
    gradient: Tensor,
    *,
    patch_size: int = 11,
    num_best: int = 4,
    max_rays: int = 512,
    min_slope: float = 0.1,
) -> Tensor:
    """Patch consistency where the rays of a batch first enter the surface, averaged over those that can be compared.

    Rays count whose crossing is inside the unit sphere and, where there are masks, whose pixel is on the foreground.

    Args:
        batch: with "source_images" and what belongs to them.
        index: (M,) int, the rays that have samples.
        distances: (M, S) increasing distances of the samples.
        sdf: (M, S) values there; the loss reaches the surface through those beside the crossing.
        gradient: (M, S, 3) of the field there, of which the normal is made.
        patch_size: edge of the window in pixels, odd.
        num_best: most sources that count for a ray.
        max_rays: most rays that are compared, the first of those that could be.
        min_slope: crossings at which the field falls more slowly along the ray are left out.

    Returns:
        A scalar in [0, 2]; 0 where nothing can be compared.
    """
    crossings = first_crossings(distances, sdf, min_slope)
    directions = batch["directions"][index]
    points = batch["origins"][index] + crossings.distances[:, None] * directions
    counts = crossings.found & (points.norm(dim=-1) < 1)
    if "ray_masks" in batch:
        counts &= batch["ray_masks"][index] > 0.5
    (chosen,) = counts.nonzero(as_tuple=True)
    chosen = chosen[:max_rays]
    normals = torch.nn.functional.normalize(crossings.interpolate(gradient.detach())[chosen], dim=-1)
    cameras = Cameras(batch["source_intrinsics"], batch["source_camera_to_world"])
    loss, is_seen = patch_consistency(
        points[chosen],
        normals,
        batch["pixels"][index[chosen]],
        batch["reference_row"][index[chosen]],
        batch["source_rows"][index[chosen]],
        GreyPhotographs(batch["source_images"], batch["source_sizes"], cameras),
        patch_size=patch_size,
        num_best=num_best,
    )
    return loss.sum() / is_seen.sum().clamp(min=1)
