"""Where an object is and how large, from its masks alone: the sphere that covers it in every photograph."""

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError
from torch import Tensor

from ops.cameras import pixel_rays

# a speck that is this small a part of the mask is noise; a handle is more
SPECK = 0.005
STEPS = 400
# share of the masks that may be cut by the edge of their photograph, beyond which nobody knows how far the object goes
CUT_SHARE = 0.25


def normalization_from_masks(
    masks: Tensor, sizes: Tensor, intrinsics: Tensor, camera_to_world: Tensor, margin: float = 1.1
) -> np.ndarray | None:
    """The similarity that makes the unit sphere hold what the masks show, if they show a whole object.

    Args:
        masks: (V, H, W) uint8 coverage, padded at the bottom and right where photographs differ in size.
        sizes: (V, 2) their heights and widths.
        intrinsics: (V, 3, 3) pixels.
        camera_to_world: (V, 4, 4) OpenCV axes.
        margin: factor on the radius.

    Returns:
        ``normalized_to_dataset``, (4, 4) float64; ``None`` where more than a few of the masks reach the edge of their
        photographs, where the rays through them do not come together, or where a camera would stand in the sphere.
    """
    num_cut = sum(_is_cut(mask[:height, :width]) for mask, (height, width) in zip(masks, sizes.tolist(), strict=True))
    if num_cut > CUT_SHARE * len(masks):
        return None
    try:
        center, radius = sphere_of_masks(masks, intrinsics, camera_to_world, "masks")
    except ValueError:
        return None
    nearest = float(np.linalg.norm(camera_to_world[:, :3, 3].numpy() - center, axis=1).min())
    return similarity_to_sphere(center, margin * radius) if margin * radius < nearest else None


def _is_cut(mask: Tensor) -> bool:
    edge = torch.cat([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    return bool((edge > 127).any())


def sphere_of_masks(masks: Tensor, intrinsics: Tensor, camera_to_world: Tensor, name: str) -> tuple[np.ndarray, float]:
    """The smallest sphere that every ray through the masks meets.

    Seen from all around, that is the sphere around the object. Seen from one side, it is as deep as the object is wide:
    unlike the visual hull, which then reaches far behind the object.

    Args:
        masks: (V, H, W) uint8 coverage; views whose mask is empty say nothing.
        intrinsics: (V, 3, 3) pixels.
        camera_to_world: (V, 4, 4) OpenCV axes.
        name: of the scene, for errors.

    Returns:
        Its centre (3,), float64, and radius, in the world of the cameras.

    Raises:
        ValueError: fewer than two masks have something in them, or the rays through them do not come together.
    """
    origins, directions = [], []
    for mask, matrix, pose in zip(masks, intrinsics, camera_to_world, strict=True):
        corners = torch.from_numpy(_outline(mask.numpy() > 127))
        if len(corners):
            origin, direction = pixel_rays(corners, matrix.double(), pose.double())
            origins.append(origin.numpy())
            directions.append(direction.numpy())
    if len(origins) < 2:
        raise ValueError(
            f"{name}: {len(origins)} of {len(masks)} masks have something in them, at least two are needed to find the "
            "object; masks are white on the object"
        )
    # the middle ray of each mask first: near enough for what follows to settle
    middle = np.stack([direction.mean(0) for direction in directions])
    middle /= np.linalg.norm(middle, axis=1, keepdims=True)
    center = closest_to_lines(np.stack([origin[0] for origin in origins]), middle)
    origin, direction = np.concatenate(origins), np.concatenate(directions)
    for step in range(STEPS):
        across = _across(center, origin, direction)
        # towards the ray that is furthest away, less each time (Badoiu and Clarkson, SODA 2003, for points)
        center = center + across[np.linalg.norm(across, axis=1).argmax()] / (step + 2)
    radius = float(np.linalg.norm(_across(center, origin, direction), axis=1).max())
    along = ((center - origin) * direction).sum(1)
    if not (along > 0).all() or not radius < along.min():
        raise ValueError(
            f"{name}: the rays through the masks do not come together in front of the cameras; check that each mask "
            "belongs to its photograph, that masks are white on the object, and the direction of the poses"
        )
    return center, radius


def closest_to_lines(origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """The point (3,) with the least sum of squared distances to lines through (N, 3) origins along unit directions."""
    across = np.eye(3) - directions[:, :, None] * directions[:, None]
    return np.linalg.lstsq(across.sum(0), (across @ origins[:, :, None]).sum(0)[:, 0], rcond=None)[0]


def _across(point: np.ndarray, origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
    # from the point to the closest point of each ray's line
    relative = origins - point
    return relative - (relative * directions).sum(1, keepdims=True) * directions


def _outline(mask: np.ndarray) -> np.ndarray:
    # (K, 2) corners, x then y, of the convex hull of the foreground without specks: the furthest ray passes one of them
    labels, count = ndimage.label(mask)
    if count == 0:
        return np.empty((0, 2))
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    kept = (sizes >= SPECK * sizes.sum())[labels]
    rows = np.flatnonzero(kept.any(1))
    first, last = kept[rows].argmax(1), kept.shape[1] - kept[rows, ::-1].argmax(1)
    corners = np.concatenate([np.stack([x, rows + dy], 1) for x in (first, last) for dy in (0, 1)]).astype(np.float64)
    try:
        return corners[ConvexHull(corners).vertices]
    except QhullError:
        return corners


def similarity_to_sphere(center: np.ndarray, radius: float) -> np.ndarray:
    """(4, 4) float64 map of the unit sphere onto another."""
    matrix = np.diag([radius] * 3 + [1.0])
    matrix[:3, 3] = center
    return matrix
