"""Where the thing is: the sphere that a scene is reconstructed in, from its cameras and sparse points.

Photographers point their cameras at the object and let it fill the picture. So the object is near the point that the
optical axes have in common, no larger than the pictures are wide there, and the sparse points that many photographs
can see in that place are its own. Everything else (the room behind, mistaken points, a few wrong poses) is in the
minority somewhere along this way and is outvoted there: each step is a median, a truncated vote or a trimmed ball.
"""

from dataclasses import dataclass

import numpy as np

MAX_POINTS = 20_000
MAX_PAIRS = 2_000
TRIMMED_SHARE = 0.02
"""Share of the object's points that may stay outside: SfM points scatter about the surface."""
MIN_POINTS = 10
EMPTY_ANGLE = np.radians(60)
"""Where no points are within this angle of a direction, the object may fill the picture in that direction."""
CLEAR_VIEW = 0.95
"""The sphere's margin reaches no further than this towards the nearest decile of the cameras."""
ROOM_REACH = 6.0
"""Points of a room lie within so many times their median distance from its middle."""
REMEDY = "give the sphere by hand instead: its centre and radius in the frame of the cameras"


@dataclass(frozen=True)
class _Cameras:
    centers: np.ndarray  # (V, 3)
    axes: np.ndarray  # (V, 3) unit, through the middle of the picture
    half_angles: np.ndarray  # (V,) radians, half the field of view along the longer edge
    half_diagonals: np.ndarray  # (V,) radians, half the field of view from corner to corner
    world_to_camera: np.ndarray  # (V, 3, 3)
    intrinsics: np.ndarray  # (V, 3, 3)
    image_sizes: np.ndarray  # (V, 2) height, width

    def count_seeing(self, points: np.ndarray) -> np.ndarray:
        """(P,) in how many pictures each point lies, whatever may hide it there."""
        counts = np.zeros(len(points), dtype=np.int64)
        rows = zip(self.centers, self.world_to_camera, self.intrinsics, self.image_sizes, strict=True)
        for center, rotation, intrinsics, (height, width) in rows:
            x, y, depth = intrinsics @ rotation @ (points - center).T
            counts += (depth > 0) & (x > 0) & (x < width * depth) & (y > 0) & (y < height * depth)
        return counts

    def reach(self, center: np.ndarray, *, diagonal: bool = False) -> float:
        """Radius of what fills the pictures at ``center``, from edge to edge or corner: the median of those with it."""
        ways = center - self.centers
        along, distances = (ways * self.axes).sum(-1), np.linalg.norm(ways, axis=-1)
        shown = along > distances * np.cos(self.half_angles)
        shown = shown if shown.any() else np.ones_like(shown)
        angles = self.half_diagonals if diagonal else self.half_angles
        return float(np.median((distances * np.sin(angles))[shown]))


def normalization_from_cameras_and_points(
    camera_to_world: np.ndarray,
    intrinsics: np.ndarray,
    image_sizes: np.ndarray,
    points: np.ndarray | None,
    *,
    inside_out: bool = False,
    margin: float = 1.1,
) -> np.ndarray:
    """The similarity that makes the unit sphere hold the object, or the place, that the cameras look at.

    With points, it is the smallest ball about those of the object, but for a few, that reaches the edge of the pictures
    on sides where the object has none; without, the ball that fills the pictures where the optical axes meet. Its
    margin is narrower where cameras would come to stand in it.

    Args:
        camera_to_world: (V, 4, 4) OpenCV axes, rigid, in any frame and unit.
        intrinsics: (V, 3, 3) pixels; the centre of the top-left pixel is (0.5, 0.5).
        image_sizes: (V, 2) height and width, pixels.
        points: (P, 3) triangulated points in the frame of the cameras, outliers and background among them.
        inside_out: the cameras stand inside what is reconstructed: the sphere holds them and the points around them.
        margin: factor on the radius.

    Returns:
        ``normalized_to_dataset``, (4, 4) float64: uniform scale and translation.

    Raises:
        ValueError: shapes are wrong, numbers are not finite, or cameras and points do not say where the thing is: the
            cameras stand in one place, or look in one direction and there are no points.
    """
    cameras, points = _checked(camera_to_world, intrinsics, image_sizes, points, margin)
    if inside_out:
        center, radius = _place_around(cameras, points)
        return _similarity(center, margin * radius)
    spread = np.linalg.norm(cameras.centers - np.median(cameras.centers, axis=0), axis=1).max()
    if not spread > 1e-9 * max(1.0, abs(cameras.centers).max()):
        raise ValueError(
            f"normalisation: all {len(cameras.centers)} cameras stand at one place, from which no distance can be "
            f"told; take photographs from different places, or {REMEDY}"
        )
    start = common_point(cameras.centers, cameras.axes, needs_certainty=points is not None)
    center, radius = (start, cameras.reach(start)) if points is None else _object_among(points, cameras, start)
    nearest = np.quantile(np.linalg.norm(cameras.centers - center, axis=1), 0.1)
    return _similarity(center, min(margin * radius, max(radius, CLEAR_VIEW * nearest)))


def _checked(
    camera_to_world: np.ndarray,
    intrinsics: np.ndarray,
    image_sizes: np.ndarray,
    points: np.ndarray | None,
    margin: float,
) -> tuple[_Cameras, np.ndarray | None]:
    poses, intrinsics = np.asarray(camera_to_world, dtype=np.float64), np.asarray(intrinsics, dtype=np.float64)
    sizes = np.asarray(image_sizes, dtype=np.float64)
    shapes, num_views = (poses.shape, intrinsics.shape, sizes.shape), len(poses)
    if num_views == 0 or shapes != ((num_views, 4, 4), (num_views, 3, 3), (num_views, 2)):
        raise ValueError(
            f"normalisation: camera_to_world, intrinsics and image_sizes have shapes {shapes}, expected (V, 4, 4), "
            "(V, 3, 3) and (V, 2) for at least one photograph"
        )
    if not margin >= 1:
        raise ValueError(f"normalisation: margin is {margin}, expected a factor of at least 1")
    wrong = [v for v in range(num_views) if not np.isfinite([*poses[v].flat, *intrinsics[v].flat]).all()]
    if wrong:
        raise ValueError(f"normalisation: the camera of photograph {wrong[0]} (of {num_views}) is not finite")
    if points is not None:
        points = np.asarray(points, dtype=np.float64)
        if points.ndim != 2 or points.shape[1] != 3:
            raise ValueError(f"normalisation: points have shape {points.shape}, expected (P, 3)")
        points = points[np.isfinite(points).all(axis=1)]
        points = points[:: -(-len(points) // MAX_POINTS)] if len(points) else None
    middles = np.stack([sizes[:, 1] / 2, sizes[:, 0] / 2, np.ones(num_views)], axis=-1)
    # the picture's middle and not its principal point, which a crop moves to anywhere
    axes = (poses[:, :3, :3] @ np.linalg.solve(intrinsics, middles[..., None]))[..., 0]
    half_edges = np.stack([sizes[:, 1] / intrinsics[:, 0, 0], sizes[:, 0] / intrinsics[:, 1, 1]]) / 2
    return _Cameras(
        centers=poses[:, :3, 3],
        axes=axes / np.linalg.norm(axes, axis=1, keepdims=True),
        half_angles=np.arctan(half_edges.max(axis=0)),
        half_diagonals=np.arctan(np.linalg.norm(half_edges, axis=0)),
        world_to_camera=poses[:, :3, :3].transpose(0, 2, 1),
        intrinsics=intrinsics,
        image_sizes=sizes,
    ), points


def _similarity(center: np.ndarray, radius: float) -> np.ndarray:
    matrix = np.diag([radius, radius, radius, 1.0])
    matrix[:3, 3] = center
    return matrix


def common_point(centers: np.ndarray, axes: np.ndarray, *, needs_certainty: bool = False) -> np.ndarray | None:
    """The point that most optical axes pass by closely, in angle, in front of their cameras.

    Of the meeting points of pairs of axes the one with the least mean truncated angle, refined by reweighted least
    squares (Geman and McClure's weights).

    Args:
        centers: (V, 3) of the cameras.
        axes: (V, 3) unit.
        needs_certainty: give up where the axes are so parallel, or meet so badly, that the point could be anywhere
            along them.

    Returns:
        (3,); ``None`` where certainty is needed and not had.

    Raises:
        ValueError: there is no such point, and certainty is not needed.
    """
    candidates = _meeting_points(centers, axes)
    if len(candidates):
        ways = candidates[None] - centers[:, None]
        along = np.einsum("vpc,vc->vp", ways, axes)
        angles = np.arccos(np.clip(along / np.maximum(np.linalg.norm(ways, axis=-1), 1e-300), -1, 1))
        point = candidates[np.minimum(angles, np.pi / 6).mean(axis=0).argmin()]
        point, residual, spread = _refined(point, centers, axes)
        enough = spread > np.radians(1) and residual < np.pi / 6
        if enough and (not needs_certainty or spread > max(np.radians(5), residual)):
            return point
    if needs_certainty:
        return None
    raise ValueError(
        f"normalisation: the optical axes of the {len(centers)} cameras do not meet in front of them (they are "
        "parallel, look apart, or there is but one) and there are no sparse points, so that nothing says where the "
        f"object is; give sparse points (a COLMAP model), or {REMEDY}. Where the cameras stand inside a room, set "
        "inside_out and give its points. Where they circle an object, their poses may be inverted"
    )


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


def _object_among(points: np.ndarray, cameras: _Cameras, start: np.ndarray | None) -> tuple[np.ndarray, float]:
    """Centre and radius of the ball about the points that many cameras see within their reach of ``start``."""
    seen = cameras.count_seeing(points)
    center = _middle_of_view(points, seen) if start is None else start
    radius, bounds = cameras.reach(center), None
    for _ in range(2):
        near = np.linalg.norm(points - center, axis=1) < cameras.reach(center, diagonal=True)
        if near.sum() < MIN_POINTS:
            break  # the object has no texture, but the cameras show where it is
        own = points[near & (seen > 0) & (seen >= 0.5 * np.quantile(seen[near], 0.95))]
        if start is not None:
            bounds = start + cameras.reach(start) * empty_directions(own - start, cameras.centers - start)
        center, radius = trimmed_ball(own, TRIMMED_SHARE, bounds)
    if not radius > 0:
        raise ValueError(f"normalisation: the sparse points of the object all lie in one place; {REMEDY}")
    return center, radius


def _middle_of_view(points: np.ndarray, seen: np.ndarray) -> np.ndarray:
    well_seen = points[(seen > 0) & (seen >= 0.5 * np.quantile(seen, 0.95))]
    if len(well_seen) < MIN_POINTS:
        raise ValueError(
            f"normalisation: the cameras look in one direction or apart, and only {len(well_seen)} of {len(points)} "
            f"sparse points lie in their pictures, fewer than {MIN_POINTS}; check that points and cameras are of one "
            f"frame and that poses are camera to world, or {REMEDY}. Where the cameras stand inside a room, set "
            "inside_out"
        )
    return geometric_median(well_seen)


def empty_directions(points: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Directions from the origin in which no points say how far the object goes, as where it has no texture.

    Args:
        points: (N, 3) about the origin, a few outliers among them.
        centers: (V, 3) cameras; beside their directions and those away from them, the ones away from points are tried.

    Returns:
        (E, 3) unit; all but a few points are more than ``EMPTY_ANGLE`` from each of them.
    """
    points, centers = (_unit(vectors) for vectors in (points, centers))
    candidates = np.concatenate([centers, -centers, -points])
    candidates = candidates[:: -(-len(candidates) // 500)]
    few = int(0.01 * len(points))
    cosines = np.partition(candidates @ points.T, len(points) - 1 - few, axis=1)[:, len(points) - 1 - few]
    return candidates[cosines < np.cos(EMPTY_ANGLE)]


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1)
    return vectors[lengths > 0] / lengths[lengths > 0, None]


def _place_around(cameras: _Cameras, points: np.ndarray | None) -> tuple[np.ndarray, float]:
    """Centre and radius of the ball about a room's points and the cameras in it."""
    if points is None or len(points) < MIN_POINTS:
        raise ValueError(
            f"normalisation: inside_out, but there are {0 if points is None else len(points)} sparse points, which "
            f"alone say how large the place around the cameras is; give at least {MIN_POINTS}, or {REMEDY}"
        )
    everything = np.concatenate([points, cameras.centers])
    middle = geometric_median(everything)
    for _ in range(10):
        distances = np.linalg.norm(everything - middle, axis=1)
        kept = everything[distances <= ROOM_REACH * np.median(distances)]
        if len(kept) == len(everything):
            break
        everything, middle = kept, geometric_median(kept)
    center, radius = trimmed_ball(everything, TRIMMED_SHARE)
    if not radius > 0:
        raise ValueError(f"normalisation: the sparse points of the place all lie in one spot; {REMEDY}")
    return center, radius


def geometric_median(points: np.ndarray) -> np.ndarray:
    """The point of least summed distance to (N, 3) points, by Weiszfeld's iteration; half of them may be anywhere."""
    center = np.median(points, axis=0)
    scale = np.median(np.linalg.norm(points - center, axis=1))
    for _ in range(100):
        weights = 1 / np.maximum(np.linalg.norm(points - center, axis=1), 1e-6 * scale + 1e-300)
        moved = weights @ points / weights.sum()
        if np.linalg.norm(moved - center) <= 1e-7 * scale:
            break
        center = moved
    return center


def trimmed_ball(
    points: np.ndarray, trimmed_share: float, bounds: np.ndarray | None = None
) -> tuple[np.ndarray, float]:
    """Centre and radius of a small ball that holds all but a share of (N, 3) points, and all of ``bounds``, (M, 3).

    The steps are those of Badoiu and Clarkson (Smaller core-sets for balls, SODA 2003), towards the point that is the
    farthest but for the trimmed ones.
    """
    rank = min(int(np.ceil((1 - trimmed_share) * len(points))), len(points)) - 1
    center, best = geometric_median(points), (None, np.inf)
    for step in range(300):
        distances = np.linalg.norm(points - center, axis=1)
        index = np.argpartition(distances, rank)[rank]
        farthest, radius = points[index], distances[index]
        if bounds is not None and len(bounds):
            distances = np.linalg.norm(bounds - center, axis=1)
            if distances.max() > radius:
                farthest, radius = bounds[distances.argmax()], distances.max()
        if radius < best[1]:
            best = (center, float(radius))
        center = center + (farthest - center) / (step + 2)
    return best
