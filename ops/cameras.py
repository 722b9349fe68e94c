"""Pinhole cameras: pixels to rays, points to pixels, projection matrices to their parts.

Axes are OpenCV's (x right, y down, z forward) and the centre of the top-left pixel is (0.5, 0.5). Intrinsics are
``[[fx, skew, cx], [0, fy, cy], [0, 0, 1]]`` in pixels.
"""

import numpy as np
import scipy.linalg
import torch
from torch import Tensor


def pixel_centers(height: int, width: int, device: torch.device | str | None = None) -> Tensor:
    """Centres of all pixels of an image, (height * width, 2) float, x then y, row by row."""
    y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2) + 0.5


def pixel_rays(pixels: Tensor, intrinsics: Tensor, camera_to_world: Tensor) -> tuple[Tensor, Tensor]:
    """Rays from the camera's centre through points of the image.

    Args:
        pixels: (R, 2) float pixel coordinates; (0, 0) is the image's corner.
        intrinsics: (3, 3), or (R, 3, 3) for a camera a ray.
        camera_to_world: (4, 4) or (R, 4, 4).

    Returns:
        ``origins`` and unit ``directions``, each (R, 3), in world axes.
    """
    # K is upper triangular: back substitution costs a tenth of a batched 3x3 inverse
    y = (pixels[:, 1] - intrinsics[..., 1, 2]) / intrinsics[..., 1, 1]
    x = (pixels[:, 0] - intrinsics[..., 0, 2] - intrinsics[..., 0, 1] * y) / intrinsics[..., 0, 0]
    rotation = camera_to_world[..., :3, :3]
    directions = (rotation @ torch.stack([x, y, torch.ones_like(x)], dim=-1)[..., None])[..., 0]
    directions = torch.nn.functional.normalize(directions, dim=-1)
    return camera_to_world[..., :3, 3].expand_as(directions), directions


def project(points: Tensor, intrinsics: Tensor, camera_to_world: Tensor) -> tuple[Tensor, Tensor]:
    """Where points appear in one photograph.

    Args:
        points: (N, 3) in the world of ``camera_to_world``.
        intrinsics: (3, 3).
        camera_to_world: (4, 4), rigid.

    Returns:
        ``pixels`` (N, 2), meaningless where ``depth``, (N,), the distance along the optical axis, is not positive.
    """
    in_camera = (points - camera_to_world[:3, 3]) @ camera_to_world[:3, :3]
    homogeneous = in_camera @ intrinsics.T
    return homogeneous[:, :2] / homogeneous[:, 2:], in_camera[:, 2]


def decompose_projection(projection: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split a projection matrix into the camera's inside and its pose.

    Args:
        projection: (3, 4), world to pixels, up to any factor, a negative one included.

    Returns:
        ``intrinsics`` (3, 3) with ``[2, 2] = 1`` and positive focal lengths, and ``camera_to_world`` (4, 4), float64.

    Raises:
        ValueError: an entry is not finite, or no camera has this matrix (its left 3x3 part is singular).
    """
    projection = np.asarray(projection, dtype=np.float64)
    if projection.shape != (3, 4):
        raise ValueError(f"a projection matrix is 3x4, this one has shape {projection.shape}")
    if not np.isfinite(projection).all():
        raise ValueError(f"the projection matrix has entries that are not finite:\n{projection}")
    left = projection[:, :3]
    singular_values = np.linalg.svd(left, compute_uv=False)
    # focal lengths of thousands of pixels leave ratios near 1e-7: only what float64 cannot invert is refused
    if singular_values[2] <= 1e-12 * singular_values[0]:
        raise ValueError(f"the projection matrix is singular, no camera projects so:\n{projection}")
    center = -np.linalg.solve(left, projection[:, 3])
    # of P and -P, the same camera, one has a proper rotation behind positive focal lengths
    upper, rotation = scipy.linalg.rq(left * np.sign(np.linalg.det(left)))
    signs = np.sign(np.diag(upper))
    camera_to_world = np.eye(4)
    camera_to_world[:3, :3] = (signs[:, None] * rotation).T
    camera_to_world[:3, 3] = center
    return upper * signs / abs(upper[2, 2]), camera_to_world


def look_at(position: Tensor, target: Tensor, up: Tensor) -> Tensor:
    """Pose of a camera at ``position`` that sees ``target`` in its centre and ``up`` pointing up.

    Args:
        position: (3,) the camera's centre.
        target: (3,) another point.
        up: (3,) a direction, not along the view.

    Returns:
        (4, 4) ``camera_to_world``.

    Raises:
        ValueError: the three do not fix a pose.
    """
    forward = torch.nn.functional.normalize(target - position, dim=0)
    right = torch.linalg.cross(forward, up)
    if not right.norm() > 1e-6 * up.norm():
        raise ValueError(f"no pose: looking from {position.tolist()} to {target.tolist()} with up {up.tolist()}")
    right = torch.nn.functional.normalize(right, dim=0)
    pose = torch.eye(4, dtype=position.dtype, device=position.device)
    pose[:3] = torch.stack([right, torch.linalg.cross(forward, right), forward, position], dim=1)
    return pose
