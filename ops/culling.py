"""Removing what the masks of the photographs exclude from a mesh, in the variants by which DTU tables differ.

Published numbers of different variants must not be compared. All work on DTU's masks at full size, 1600 x 1200 pixels,
grown by some pixels, and keep a face if all three of its vertices are kept.

============== =============================== ======================================================= ===============
variant        masks grown by                  a vertex is kept if                                     then the part
============== =============================== ======================================================= ===============
``neus``       OpenCV's ellipse of 101 x 101   every view has it in the mask or outside the image      with most faces
``neuralwarp`` disk of radius 12               two views have it in the image and none beside the mask of most area
``geoneus``    disk of radius 15               as ``neuralwarp``                                       with most faces
``monosdf``    disk of radius 12               as ``neus``                                             all parts
``2dgs``       disk of radius 24               as ``monosdf``                                          all parts
============== =============================== ======================================================= ===============

Half pixels: the authors' codes call the centre of the top-left pixel (0, 0), so 0.5 is taken off our projections first.
``neus`` then rounds to the nearest pixel, and one that does not exist is outside. ``monosdf`` and ``2dgs`` round too,
but take as outside what lies beyond the *centres* of the border pixels, as ``grid_sample`` with ``align_corners`` does.
``neuralwarp`` and ``geoneus`` have the same border, and interpolate: a vertex is beside the mask if none of the up to
four pixels that take part is in it. A vertex behind a camera is outside its image; the original codes do not look.
"""

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from ops.meshes import drop_unused_vertices, largest_component, select_vertices
from ops.types import Observation, Shape


@dataclass(frozen=True)
class Culling:
    """One variant of the table above."""

    half_widths: tuple[int, ...]  # the structuring element, row by row
    lookup: Literal["nearest", "bilinear"]
    rounds_first: bool  # whether the image ends half a pixel beyond the centres of its border pixels, or at them
    least_views: int  # in how many images a vertex must be
    largest: Literal["faces", "area"] | None


def disk(radius: int) -> tuple[int, ...]:
    """Half-widths of the rows of a disk: all offsets with x^2 + y^2 <= radius^2, as ``skimage.morphology.disk``."""
    return tuple(int(np.sqrt(radius**2 - y**2)) for y in range(-radius, radius + 1))


def opencv_ellipse(size: int) -> tuple[int, ...]:
    """Half-widths of the rows of OpenCV's ``MORPH_ELLIPSE`` of odd size, with r = size // 2.

    Row y in [-r, r] reaches to round(r sqrt((r^2 - y^2) / r^2)), half to even, where a disk would truncate.
    """
    r = size // 2
    return tuple(int(np.rint(r * np.sqrt((r**2 - y**2) / r**2))) for y in range(-r, r + 1))


CULLINGS = {
    "neus": Culling(opencv_ellipse(101), "nearest", rounds_first=True, least_views=0, largest="faces"),
    "neuralwarp": Culling(disk(12), "bilinear", rounds_first=False, least_views=2, largest="area"),
    "geoneus": Culling(disk(15), "bilinear", rounds_first=False, least_views=2, largest="faces"),
    "monosdf": Culling(disk(12), "nearest", rounds_first=False, least_views=0, largest=None),
    "2dgs": Culling(disk(24), "nearest", rounds_first=False, least_views=0, largest=None),
}


def cull(shape: Shape, observation: Observation, culling: Culling) -> Shape:
    """What a variant leaves of a shape.

    Args:
        shape: in the dataset's frame.
        observation: ``masks`` and ``projections``.
        culling: a value of ``CULLINGS``.

    Returns:
        The shape without culled vertices and without vertices that lost all their faces; maybe empty.
    """
    masks, projections = observation["masks"].cpu().numpy(), observation["projections"].cpu().numpy()
    if masks.shape[1:] != (1200, 1600):
        warnings.warn(
            f"DTU's culling is defined on masks of 1200 x 1600 pixels, not {masks.shape[1]} x {masks.shape[2]}: the "
            f"margin around them is another one and scores do not compare with published ones",
            stacklevel=2,
        )
    points = shape.vertices.double().cpu().numpy()
    keep, num_views = np.ones(len(points), bool), np.zeros(len(points), int)
    for mask, projection in zip(masks, projections, strict=True):
        in_image, in_mask = view_of_points(points, dilate(mask, culling.half_widths), projection, culling)
        keep &= in_mask | ~in_image
        num_views += in_image
    keep &= num_views >= culling.least_views
    shape = drop_unused_vertices(select_vertices(shape, torch.from_numpy(keep).to(shape.vertices.device)))
    return shape if culling.largest is None else largest_component(shape, by=culling.largest)


def view_of_points(
    points: np.ndarray, mask: np.ndarray, projection: np.ndarray, culling: Culling
) -> tuple[np.ndarray, np.ndarray]:
    """Which points (N, 3) are ``in_image`` and, of these, ``in_mask``, both (N,) bool; the mask is taken as it is."""
    height, width = mask.shape
    projected = points @ projection[:, :3].T + projection[:, 3]
    depth = projected[:, 2]
    ahead = depth > 0
    pixels = projected[:, :2] / np.where(ahead, depth, 1)[:, None] - 0.5  # pixel centres at whole numbers
    last = np.array([width - 1, height - 1])
    reach = np.rint(pixels) if culling.rounds_first else pixels
    in_image = ahead & ((reach >= 0) & (reach <= last)).all(1)
    pixels = np.where(in_image[:, None], pixels, 0)
    if culling.lookup == "nearest":
        x, y = np.rint(pixels).astype(int).T
        return in_image, in_image & mask[y, x]
    # a pixel takes part if its bilinear weight is not zero: both neighbours, or one where the position is whole
    (x0, y0), (x1, y1) = np.floor(pixels).astype(int).T, np.ceil(pixels).astype(int).T
    return in_image, in_image & (mask[y0, x0] | mask[y0, x1] | mask[y1, x0] | mask[y1, x1])


def dilate(mask: np.ndarray, half_widths: tuple[int, ...]) -> np.ndarray:
    """A mask (H, W) grown by a structuring element that is symmetric and has one run in every row.

    Args:
        mask: bool; outside the image is no foreground.
        half_widths: odd number of rows; each reaches that many pixels to the left and to the right.
    """
    height, width = mask.shape
    columns = np.arange(width)
    far = 2 * (width + len(half_widths))
    to_left = columns - np.maximum.accumulate(np.where(mask, columns, -far), axis=1)
    to_right = np.minimum.accumulate(np.where(mask, columns, far)[:, ::-1], axis=1)[:, ::-1] - columns
    distance = np.minimum(np.minimum(to_left, to_right), 2**15 - 1).astype(np.int16)
    grown = np.zeros_like(mask)
    reach = len(half_widths) // 2
    for offset, half_width in zip(range(-reach, reach + 1), half_widths, strict=True):
        if abs(offset) < height:
            rows = slice(max(0, offset), height + min(0, offset))
            sources = slice(max(0, -offset), height + min(0, -offset))
            grown[rows] |= distance[sources] <= half_width
    return grown
