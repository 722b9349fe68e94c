"""Lenses: where a pinhole camera's rays really fall, and photographs resampled as the pinhole would have taken them.

Letters: (x, y) pinhole coordinates on the plane z = 1, r their distance from the axis, (x', y') where the lens bends
them to; pixels are ``intrinsics @ (x', y', 1)``.
"""

from dataclasses import dataclass

import numpy as np
import torch

MAX_SLOPE = np.tan(np.radians(60))
"""A pinhole picture of a fisheye lens ends this far from its axis: beyond, pixels are stretched without end."""


@dataclass(frozen=True)
class Lens:
    """OpenCV's lens models, which are COLMAP's and those of transforms.json.

    Perspective, with a = x^2 + y^2: x' = x (1 + k1 a + k2 a^2 + ...) / (1 + d1 a + d2 a^2 + ...) + 2 p1 x y +
    p2 (a + 2 x^2), and y' the same with x and y, p1 and p2 exchanged. Fisheye (Kannala and Brandt 2006), with
    t = arctan r: (x', y') = (x, y) / r * t (1 + k1 t^2 + k2 t^4 + ...).

    Attributes:
        radial: k1, k2, ...
        tangential: p1 and p2.
        denominator: d1, d2, ...
        is_fisheye: which of the two.
    """

    radial: tuple[float, ...] = ()
    tangential: tuple[float, float] = (0.0, 0.0)
    denominator: tuple[float, ...] = ()
    is_fisheye: bool = False

    @property
    def is_pinhole(self) -> bool:
        """It bends nothing."""
        return not (self.is_fisheye or any(self.radial) or any(self.tangential) or any(self.denominator))

    def bend(self, points: np.ndarray) -> np.ndarray:
        """(..., 2) pinhole coordinates (x, y) -> (..., 2) bent ones (x', y')."""
        x, y = points[..., 0], points[..., 1]
        squared = x * x + y * y
        if self.is_fisheye:
            radius = np.sqrt(squared)
            angle = np.arctan(radius)
            bent = angle * _series(self.radial, angle * angle)
            return points * np.divide(bent, radius, out=np.ones_like(radius), where=radius > 1e-12)[..., None]
        factor = _series(self.radial, squared) / _series(self.denominator, squared)
        p1, p2 = self.tangential
        return np.stack(
            [
                x * factor + 2 * p1 * x * y + p2 * (squared + 2 * x * x),
                y * factor + 2 * p2 * x * y + p1 * (squared + 2 * y * y),
            ],
            axis=-1,
        )

    def straighten(self, bent: np.ndarray) -> np.ndarray:
        """The inverse of ``bend``, by Newton's method.

        Raises:
            ValueError: the coefficients fold the picture over itself here, so that there is no inverse.
        """
        points = np.array(bent, dtype=np.float64)
        if self.is_fisheye:
            radius = np.linalg.norm(points, axis=-1, keepdims=True)
            points *= np.tan(np.minimum(radius, 1.4)) / np.maximum(radius, 1e-12)
        step = 1e-6
        for _ in range(30):
            value = self.bend(points)
            columns = [(self.bend(points + step * axis) - value) / step for axis in np.eye(2)]
            jacobian = np.stack(columns, axis=-1) + 1e-12 * np.eye(2)
            points = points - np.linalg.solve(jacobian, (value - bent)[..., None])[..., 0]
        with np.errstate(invalid="ignore"):
            worst = np.abs(self.bend(points) - bent).max()
        if not worst < 1e-6:
            raise ValueError(
                f"distortion {self.radial} {self.tangential} {self.denominator} folds the picture over itself; check "
                "the coefficients (k1, k2, p1, p2, ...) and whether they are of a fisheye lens"
            )
        return points


def _series(coefficients: tuple[float, ...], variable: np.ndarray) -> np.ndarray:
    total = np.zeros_like(variable)
    for coefficient in reversed(coefficients):
        total = (total + coefficient) * variable
    return total + 1


def pinhole_window(lens: Lens, intrinsics: np.ndarray, height: int, width: int) -> tuple[np.ndarray, int, int]:
    """The largest upright picture of a pinhole of the same focal lengths that the photograph fills without gaps.

    Args:
        lens: the photograph's.
        intrinsics: (3, 3), its.
        height, width: its pixels.

    Returns:
        ``intrinsics`` (3, 3), ``height`` and ``width`` of the pinhole picture.

    Raises:
        ValueError: nothing is left of the photograph.
    """
    along = np.linspace(0, 1, 65)
    sides = {
        "left": np.stack([0 * along, height * along], axis=-1),
        "right": np.stack([width + 0 * along, height * along], axis=-1),
        "top": np.stack([width * along, 0 * along], axis=-1),
        "bottom": np.stack([width * along, height + 0 * along], axis=-1),
    }
    inverse = np.linalg.inv(intrinsics)
    border = {
        side: np.clip(lens.straighten(pixels @ inverse[:2, :2].T + inverse[:2, 2]), -MAX_SLOPE, MAX_SLOPE)
        for side, pixels in sides.items()
    }
    low = np.array([border["left"][:, 0].max(), border["top"][:, 1].max()])
    high = np.array([border["right"][:, 0].min(), border["bottom"][:, 1].min()])
    focal = np.array([intrinsics[0, 0], intrinsics[1, 1]])
    # a border that is straight but for rounding must not lose a pixel
    new_width, new_height = np.floor((high - low) * focal + 1e-4).astype(int).tolist()
    if min(new_height, new_width) < 2:
        raise ValueError(f"nothing of a photograph of {width}x{height} pixels is left by the distortion {lens}")
    pinhole = np.diag([*focal, 1.0])
    pinhole[:2, 2] = -low * focal
    return pinhole, new_height, new_width


def undistorted(
    pixels: np.ndarray, lens: Lens, intrinsics: np.ndarray, pinhole: np.ndarray, height: int, width: int
) -> np.ndarray:
    """A photograph as the pinhole would have taken it, by bilinear interpolation.

    Args:
        pixels: (H, W, C) uint8.
        lens: its.
        intrinsics: (3, 3), its.
        pinhole: (3, 3) intrinsics of the result.
        height, width: size of the result.

    Returns:
        (height, width, C) uint8.
    """
    columns = (np.arange(width) + 0.5 - pinhole[0, 2]) / pinhole[0, 0]
    rows = (np.arange(height) + 0.5 - pinhole[1, 2]) / pinhole[1, 1]
    bent = lens.bend(np.stack(np.meshgrid(columns, rows), axis=-1))
    source = bent @ intrinsics[:2, :2].T + intrinsics[:2, 2]
    grid = torch.from_numpy(2 * source / np.array([pixels.shape[1], pixels.shape[0]]) - 1).float()
    image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float()
    sampled = torch.nn.functional.grid_sample(image, grid[None], padding_mode="border", align_corners=False)
    return sampled[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()
