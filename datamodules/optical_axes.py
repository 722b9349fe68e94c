"""Cameras as photographers hold them: where their optical axes meet, what fills their pictures and what is in them."""

from dataclasses import dataclass

import numpy as np

MAX_PAIRS = 2_000


@dataclass(frozen=True)
class Cameras:
    """Cameras in any frame and unit, float64; see ``from_poses``."""

    centers: np.ndarray  # (V, 3)
    axes: np.ndarray  # (V, 3) unit, through the middle of the picture
    half_angles: np.ndarray  # (V,) radians, half the field of view along the longer edge
    half_diagonals: np.ndarray  # (V,) radians, half the field of view from corner to corner
    world_to_camera: np.ndarray  # (V, 3, 3)
    intrinsics: np.ndarray  # (V, 3, 3)
    image_sizes: np.ndarray  # (V, 2) height, width

    @staticmethod
    def from_poses(camera_to_world: np.ndarray, intrinsics: np.ndarray, image_sizes: np.ndarray) -> "Cameras":
        """Of (V, 4, 4) rigid poses with OpenCV axes, (V, 3, 3) intrinsics in pixels and (V, 2) heights and widths."""
        poses, intrinsics = np.asarray(camera_to_world, dtype=np.float64), np.asarray(intrinsics, dtype=np.float64)
        height, width = np.asarray(image_sizes, dtype=np.float64).T
        # the picture's middle and not its principal point, which a crop moves to anywhere
        middles = np.stack([width / 2, height / 2, np.ones(len(poses))], axis=-1)
        axes = (poses[:, :3, :3] @ np.linalg.solve(intrinsics, middles[..., None]))[..., 0]
        half_edges = np.stack([width / intrinsics[:, 0, 0], height / intrinsics[:, 1, 1]]) / 2
        return Cameras(
            centers=poses[:, :3, 3],
            axes=axes / np.linalg.norm(axes, axis=1, keepdims=True),
            half_angles=np.arctan(half_edges.max(axis=0)),
            half_diagonals=np.arctan(np.linalg.norm(half_edges, axis=0)),
            world_to_camera=poses[:, :3, :3].transpose(0, 2, 1),
            intrinsics=intrinsics,
            image_sizes=np.asarray(image_sizes),
        )

    @property
    def stand_at_one_place(self) -> bool:
        """No two differ in where they stand by more than rounding."""
        spread = np.linalg.norm(self.centers - self.centers[0], axis=1).max()
        return not spread > 1e-9 * abs(self.centers).max()

    def pixels_and_depth(self, view: int, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(P, 2) where points appear in one picture, and (P,) their depth, not positive where they do not."""
        in_camera = self.world_to_camera[view] @ (points - self.centers[view]).T
        x, y, depth = self.intrinsics[view] @ in_camera
        return np.stack([x, y], axis=-1) / np.where(depth > 0, depth, 1)[:, None], depth

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(V, P, 2) pixels of points, and (V, P) whether they lie in the picture, whatever may hide them there."""
        pixels, seen = np.empty((len(self.centers), len(points), 2)), self.sees(points)
        for view in range(len(pixels)):
            pixels[view] = self.pixels_and_depth(view, points)[0]
        return pixels, seen

    def sees(self, points: np.ndarray) -> np.ndarray:
        """(V, P) which pictures each point lies in, whatever may hide it there."""
        seen = np.empty((len(self.centers), len(points)), dtype=bool)
        for view, (height, width) in enumerate(self.image_sizes):
            pixels, depth = self.pixels_and_depth(view, points)
            seen[view] = (depth > 0) & (pixels > 0).all(axis=1) & (pixels < [width, height]).all(axis=1)
        return seen

    def reach(self, center: np.ndarray, *, diagonal: bool = False) -> float:
        """Radius of what fills the pictures at ``center``, from edge to edge or corner: the median of those with it."""
        ways = center - self.centers
        along, distances = (ways * self.axes).sum(-1), np.linalg.norm(ways, axis=-1)
        shown = along > distances * np.cos(self.half_angles)
        shown = shown if shown.any() else np.ones_like(shown)
        angles = self.half_diagonals if diagonal else self.half_angles
        return float(np.median((distances * np.sin(angles))[shown]))


def common_point(centers: np.ndarray, axes: np.ndarray, least_spread: float = np.radians(1)) -> np.ndarray | None:
    """The point that most optical axes pass by closely, in angle, in front of their cameras.

    Of the meeting points of pairs of axes the one with the least mean truncated angle, refined by reweighted least
    squares (Geman and McClure's weights).

    Args:
        centers: (V, 3) of the cameras.
        axes: (V, 3) unit.
        least_spread: by how much axes must differ, radians; the point of more parallel ones is anywhere along them.

    Returns:
        (3,); ``None`` where axes are too parallel, or miss one another by as much as they differ.
    """
    candidates = _meeting_points(centers, axes)
    if len(candidates) == 0:
        return None
    ways = candidates[None] - centers[:, None]
    along = np.einsum("vpc,vc->vp", ways, axes)
    angles = np.arccos(np.clip(along / np.maximum(np.linalg.norm(ways, axis=-1), 1e-300), -1, 1))
    point = candidates[np.minimum(angles, np.pi / 6).mean(axis=0).argmin()]
    point, residual, spread = _refined(point, centers, axes)
    return point if residual < np.pi / 6 and spread > max(least_spread, residual) else None


def _meeting_points(centers: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """(N, 3) midpoints between pairs of axes at their closest, where that is in front of both cameras."""
    first, second = np.triu_indices(len(centers), k=1)
    if len(first) > MAX_PAIRS:
        chosen = np.random.default_rng(0).choice(len(first), MAX_PAIRS, replace=False)
        first, second = first[chosen], second[chosen]
    cosines = (axes[first] * axes[second]).sum(-1)
    crossing = 1 - cosines**2 > np.sin(np.radians(0.5)) ** 2
    first, second, cosines = first[crossing], second[crossing], cosines[crossing]
    between = centers[second] - centers[first]
    ahead, other = (between * axes[first]).sum(-1), (between * axes[second]).sum(-1)
    along_first = (ahead - cosines * other) / (1 - cosines**2)
    along_second = (cosines * ahead - other) / (1 - cosines**2)
    middles = centers[first] + along_first[:, None] * axes[first]
    middles = (middles + centers[second] + along_second[:, None] * axes[second]) / 2
    return middles[(along_first > 0) & (along_second > 0)]


def _refined(point: np.ndarray, centers: np.ndarray, axes: np.ndarray) -> tuple[np.ndarray, float, float]:
    """The point after reweighting, the median angle by which axes miss it, and how far the axes spread (radians)."""
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]
    for _ in range(20):
        distances = np.linalg.norm(point - centers, axis=1)
        misses = np.linalg.norm(np.einsum("vij,vj->vi", across, point - centers), axis=1)
        angles = np.arctan2(misses, ((point - centers) * axes).sum(-1))
        residual = float(np.median(angles))
        scale = max(1.5 * residual, np.radians(0.5))
        weights = 1 / (1 + (angles / scale) ** 2) ** 2
        weights /= weights.sum()
        # a miss counts as an angle, so that far cameras have no louder voice
        loudness = weights / np.maximum(distances, 1e-12 * distances.max()) ** 2
        normal_matrix = np.einsum("v,vij->ij", loudness, across)
        if np.linalg.cond(normal_matrix) > 1e12:
            break
        point = np.linalg.solve(normal_matrix, np.einsum("v,vij,vj->i", loudness, across, centers))
    spread = np.sqrt(max(np.linalg.eigvalsh(np.einsum("v,vij->ij", weights, across))[0], 0.0))
    return point, residual, float(np.arcsin(min(spread, 1.0)))
