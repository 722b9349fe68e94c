"""The visual hull: what no photograph's mask excludes."""

import numpy as np
import torch
from torch import Tensor

from ops.culling import Culling, dilate, disk, view_of_points
from ops.meshes import drop_unused_vertices, select_vertices
from ops.types import Shape


def inside_visual_hull(points: Tensor, masks: Tensor, projections: Tensor, margin: int = 0) -> Tensor:
    """Which points (N, 3) every photograph has in its mask or outside of its image, and at least one in its image.

    Args:
        points: in the frame of the projections.
        masks: (V, H, W), foreground where true or above one half.
        projections: (V, 3, 4) to pixels; the centre of the top-left pixel is (0.5, 0.5).
        margin: radius in pixels by which the masks are grown.

    Returns:
        (N,) bool.
    """
    places, foreground = points.detach().double().cpu().numpy(), (masks > 0.5).cpu().numpy()
    rule = Culling(disk(margin), "nearest", rounds_first=True, least_views=1, largest=None)
    keep, is_seen = np.ones(len(places), bool), np.zeros(len(places), bool)
    for mask, projection in zip(foreground, projections.double().cpu().numpy(), strict=True):
        grown = dilate(mask, rule.half_widths) if margin else mask
        in_image, in_mask = view_of_points(places, grown, projection, rule)
        keep &= in_mask | ~in_image
        is_seen |= in_image
    return torch.from_numpy(keep & is_seen).to(points.device)


def cropped_to_visual_hull(shape: Shape, masks: Tensor, projections: Tensor, margin: int = 0) -> Shape:
    """A shape without what lies outside of the hull of all masks; a face stays if all three of its vertices do.

    Args and frame as for ``inside_visual_hull``. The result may be empty.
    """
    if len(shape.vertices) == 0:
        return shape
    return drop_unused_vertices(select_vertices(shape, inside_visual_hull(shape.vertices, masks, projections, margin)))
