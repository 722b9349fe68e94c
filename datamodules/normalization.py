"""Where the thing is: the sphere that a scene is reconstructed in, from its cameras and sparse points.

Photographers point their cameras at the object and let it fill the picture. So the object is near the point that the
optical axes have in common, no larger than the pictures are wide there, and the sparse points that many photographs
can see in that place are its own. Everything else (the room behind, mistaken points, a few wrong poses) is in the
minority somewhere along this way and is outvoted there: each step is a median, a truncated vote or a trimmed ball.
"""

import numpy as np

from datamodules.optical_axes import Cameras, common_point
from datamodules.pose_conventions import convention_that_fits

MAX_POINTS = 20_000
TRIMMED_SHARE = 0.02
"""Share of the object's points that may stay outside: SfM points scatter about the surface."""
MIN_POINTS = 10
EMPTY_ANGLE = np.radians(60)
"""Where no points are within this angle of a direction, the object may fill the picture in that direction."""
CLEAR_VIEW = 0.95
"""The sphere's margin reaches no further than this towards the nearest decile of the cameras."""
ROOM_REACH, VIEW_REACH = 6.0, 3.0
"""Points of a room, or before cameras, lie within so many times the median distance from their middle."""
REMEDY = "give the sphere by hand instead: its centre and radius in the frame of the cameras"


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
    points = _checked(camera_to_world, intrinsics, image_sizes, points, margin)
    cameras = Cameras.from_poses(camera_to_world, intrinsics, image_sizes)
    if inside_out:
        center, radius = _place_around(cameras, points)
        return _similarity(center, margin * radius)
    advice, num_views = convention_that_fits(camera_to_world, intrinsics, image_sizes, points), len(cameras.centers)
    if cameras.stand_at_one_place:
        raise ValueError(
            f"normalisation: all {num_views} cameras stand at one place, from which no distance can be told; take "
            f"photographs from different places, or {REMEDY}{advice}"
        )
    if advice:
        raise ValueError(
            f"normalisation: the {num_views} cameras look past what they photographed{advice}. If they stand inside a "
            "room, set inside_out instead and give its points"
        )
    # points know better than nearly parallel axes
    start = common_point(cameras.centers, cameras.axes, np.radians(1 if points is None else 5))
    if points is not None:
        center, radius = _view_ahead(points, cameras) if start is None else _object_among(points, cameras, start)
    elif start is not None:
        center, radius = start, cameras.reach(start)
    else:
        raise ValueError(
            f"normalisation: the optical axes of the {num_views} cameras do not meet in front of them and there are no "
            "sparse points, so that nothing says where the object is; give sparse points (a COLMAP model), or "
            f"{REMEDY}. If the cameras stand inside a room, set inside_out and give its points"
        )
    nearest = np.quantile(np.linalg.norm(cameras.centers - center, axis=1), 0.1)
    return _similarity(center, min(margin * radius, max(radius, CLEAR_VIEW * nearest)))


def _checked(
    camera_to_world: np.ndarray,
    intrinsics: np.ndarray,
    image_sizes: np.ndarray,
    points: np.ndarray | None,
    margin: float,
) -> np.ndarray | None:
    """The points that are finite, not too many."""
    shapes, num_views = tuple(np.shape(a) for a in (camera_to_world, intrinsics, image_sizes)), len(camera_to_world)
    if num_views == 0 or shapes != ((num_views, 4, 4), (num_views, 3, 3), (num_views, 2)):
        raise ValueError(
            f"normalisation: camera_to_world, intrinsics and image_sizes have shapes {shapes}, expected (V, 4, 4), "
            "(V, 3, 3) and (V, 2) for at least one photograph"
        )
    if not margin >= 1:
        raise ValueError(f"normalisation: margin is {margin}, expected a factor of at least 1")
    numbers = np.concatenate([np.reshape(a, (num_views, -1)) for a in (camera_to_world, intrinsics)], axis=1)
    if not np.isfinite(numbers).all():
        wrong = int(np.flatnonzero(~np.isfinite(numbers).all(axis=1))[0])
        raise ValueError(f"normalisation: the camera of photograph {wrong} (of {num_views}) is not finite")
    if points is None:
        return None
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"normalisation: points have shape {points.shape}, expected (P, 3)")
    points = points[np.isfinite(points).all(axis=1)]
    return points[:: -(-len(points) // MAX_POINTS)] if len(points) else None


def _similarity(center: np.ndarray, radius: float) -> np.ndarray:
    matrix = np.diag([radius, radius, radius, 1.0])
    matrix[:3, 3] = center
    return matrix


def _object_among(points: np.ndarray, cameras: Cameras, start: np.ndarray) -> tuple[np.ndarray, float]:
    """Centre and radius of the ball about the points that many cameras see within their reach of ``start``."""
    near = points[np.linalg.norm(points - start, axis=1) < cameras.reach(start, diagonal=True)]
    if len(near) < MIN_POINTS:
        return start, cameras.reach(start)  # the object has no texture, but the cameras show where it is
    seen = cameras.sees(near).sum(axis=0)
    own = near[(seen > 0) & (seen >= 0.5 * np.quantile(seen, 0.95))]
    bounds = start + cameras.reach(start) * empty_directions(own - start, cameras.centers - start)
    center, radius = trimmed_ball(own, TRIMMED_SHARE, bounds)
    return center, _positive(radius)


def _view_ahead(points: np.ndarray, cameras: Cameras) -> tuple[np.ndarray, float]:
    """Centre and radius of the ball about most of the points before cameras that look in one direction."""
    seen = cameras.sees(points).sum(axis=0)
    many = points[(seen > 0) & (seen >= 0.5 * np.quantile(seen, 0.95))]
    if len(many) < MIN_POINTS:
        raise ValueError(
            f"normalisation: the cameras look in one direction or apart, and only {len(many)} of {len(points)} sparse "
            f"points lie in their pictures, fewer than {MIN_POINTS}; check that points and cameras are of one frame, "
            f"or {REMEDY}. If the cameras stand inside a room, set inside_out"
        )
    middle = geometric_median(many)
    extent = VIEW_REACH * np.median(np.linalg.norm(many - middle, axis=1))
    visible = points[seen > 0]
    center, radius = trimmed_ball(visible[np.linalg.norm(visible - middle, axis=1) <= extent], TRIMMED_SHARE)
    nearest = np.quantile(np.linalg.norm(cameras.centers - center, axis=1), 0.1)
    return center, min(_positive(radius), CLEAR_VIEW * nearest)


def _positive(radius: float) -> float:
    if not radius > 0:
        raise ValueError(f"normalisation: the sparse points of the object all lie in one place; {REMEDY}")
    return radius


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


def _place_around(cameras: Cameras, points: np.ndarray | None) -> tuple[np.ndarray, float]:
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
    return center, _positive(radius)


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


def check_similarity(name: str, trained: list[list[float]], found: list[list[float]]) -> None:
    """Refuse weights that were trained in another frame than the data's: their surface would be elsewhere.

    Args:
        name: of the scene, for the error.
        trained: four rows of four, the ``normalized_to_dataset`` of the checkpoint.
        found: that of the data at hand.

    Raises:
        ValueError: the two unit spheres differ by more than 1e-4 of the radius.
    """
    matrices = np.array([trained, found])
    radii = np.linalg.norm(matrices[:, :3, 0], axis=1)
    if abs(matrices[0] - matrices[1]).max() <= 1e-4 * radii[0]:
        return
    spheres = [
        f"radius {radius:.6g} about ({', '.join(f'{x:.6g}' for x in matrix[:3, 3])})"
        for radius, matrix in zip(radii, matrices, strict=True)
    ]
    raise ValueError(
        f"{name}: the checkpoint was trained in the sphere of {spheres[0]}, but the data now gives {spheres[1]}, in "
        "the dataset's frame, so that its surface would be misplaced; give the photographs, points and normalisation "
        "of that run, or train anew"
    )
