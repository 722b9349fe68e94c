"""How a small plane moves from one photograph to others.

Letters: I photographs with cameras; N planes; S photographs to which each plane is taken; P pixels of each.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Cameras(NamedTuple):
    """Pinhole cameras of I photographs; OpenCV axes, the centre of the top-left pixel is (0.5, 0.5)."""

    intrinsics: Tensor  # (I, 3, 3)
    camera_to_world: Tensor  # (I, 4, 4)


def plane_homographies(points: Tensor, normals: Tensor, cameras: Cameras, reference: Tensor, sources: Tensor) -> Tensor:
    """Homographies that planes induce between photographs: Hartley and Zisserman, 2nd edition, Result 13.1.

    With the plane n . (X - x) = 0 and d = n . (x - c_r), a ray r of the reference meets it at c_r + d r / (n . r), so
    K_s R_s^T [d 1 + (c_r - c_s) n^T] R_r K_r^-1 sends pixels of the reference to pixels of the source. This form does
    not divide by d, which is small where a plane is seen at a grazing angle.

    Args:
        points: (N, 3) x, on each plane.
        normals: (N, 3) n, of any length and sign.
        cameras: of the photographs.
        reference: (N,) photograph in which each plane is seen.
        sources: (N, S) photographs to which it is taken.

    Returns:
        (N, S, 3, 3), whose third coordinate is positive where the point is in front of both cameras.
    """
    rotation, centers = cameras.camera_to_world[:, :3, :3], cameras.camera_to_world[:, :3, 3]
    to_pixels = _product(cameras.intrinsics, rotation.mT)  # (I, 3, 3) world directions to pixels, K R^T
    to_world = _product(rotation, torch.linalg.inv(cameras.intrinsics))  # (I, 3, 3) pixels to directions, R K^-1
    offset = (normals * (points - centers[reference])).sum(-1)  # (N,) d
    # d < 0 where the normal looks at the camera; the factor makes homogeneous coordinates positive in front
    sign = torch.where(offset < 0, -1.0, 1.0).to(offset)
    rotated = _product(to_pixels[sources], to_world[reference][:, None])  # (N, S, 3, 3)
    baselines = centers[reference][:, None] - centers[sources]  # (N, S, 3)
    epipoles = _product(to_pixels[sources], baselines[..., None])  # (N, S, 3, 1)
    plane = _product(normals[:, None], to_world[reference])  # (N, 1, 3) n^T R_r K_r^-1
    return (sign * offset)[:, None, None, None] * rotated + epipoles * (sign[:, None, None] * plane)[:, None]


def warp_pixels(homographies: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels sent through homographies.

    Args:
        homographies: (N, S, 3, 3).
        pixels: (N, P, 2).

    Returns:
        (N, S, P, 2), finite everywhere, and (N, S, P) bool, true where the point is in front of the camera.
    """
    x, y = pixels[:, None, None, :, 0], pixels[:, None, None, :, 1]  # (N, 1, 1, P)
    sent = homographies[..., :1] * x + homographies[..., 1:2] * y + homographies[..., 2:]  # (N, S, 3, P)
    depth = sent[:, :, 2]
    # scaled by its own size, since homographies are known up to a factor
    is_in_front = depth > 1e-6 * homographies[:, :, 2].norm(dim=-1)[..., None]
    projected = sent[:, :, :2] / torch.where(is_in_front, depth, 1)[:, :, None]
    return projected.movedim(2, -1), is_in_front


def facing_cosines(points: Tensor, normals: Tensor, cameras: Cameras, photographs: Tensor) -> Tensor:
    """Cosines between unit normals (N, 3) and the directions to the cameras of (N, S) photographs, (N, S)."""
    towards = cameras.camera_to_world[photographs, :3, 3] - points[:, None]
    return (torch.nn.functional.normalize(towards, dim=-1) * normals[:, None]).sum(-1)


def _product(left: Tensor, right: Tensor) -> Tensor:
    # not @, which autocast and TF32 round to ten bits: a pixel or two of a large photograph
    return (left[..., None] * right[..., None, :, :]).sum(-2)
