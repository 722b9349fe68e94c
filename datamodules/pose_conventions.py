"""Which other reading of the cameras' poses would make them see the object.

Poses come as camera to world or as its inverse, and with OpenCV's axes (z forward, y down) or OpenGL's (z backward, y
up); files do not say which. Read wrongly, cameras look away from what they photographed.
"""

import numpy as np

from datamodules.optical_axes import Cameras, common_point

OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])
MIN_POINTS, MAX_POINTS = 10, 1_000
FITS_WELL = 0.5
"""Score that poses in the right convention reach, where it speaks of the object; of points, most may be elsewhere."""
SOME_POINTS_SEEN = 0.1
BETTER_ODDS = 5.0
"""Misread poses about a far origin still score 0.3 to 0.5, right ones 0.8 to 1: the odds tell them apart."""

REMEDIES = {
    "opengl": "they are camera to world with OpenGL's axes (y up, z backward): multiply each from the right by "
    "diag(1, -1, -1, 1)",
    "inverse": "they are world to camera: invert each",
    "opengl inverse": "they are world to camera with OpenGL's axes (y up, z backward): invert each and multiply it "
    "from the right by diag(1, -1, -1, 1)",
}


def read_as(camera_to_world: np.ndarray, convention: str) -> np.ndarray:
    """Poses, (V, 4, 4), as they would be if they had been given in one of the conventions of ``REMEDIES``."""
    poses = np.linalg.inv(camera_to_world) if "inverse" in convention else camera_to_world
    return poses @ OPENGL_TO_OPENCV if "opengl" in convention else poses


def score_of_poses(
    camera_to_world: np.ndarray,
    intrinsics: np.ndarray,
    image_sizes: np.ndarray,
    points: np.ndarray | None,
    center: np.ndarray | None = None,
    seen_in: np.ndarray | None = None,
) -> float:
    """How well cameras see what they should, in [0, 1].

    Args:
        camera_to_world: (V, 4, 4) OpenCV axes.
        intrinsics: (V, 3, 3) pixels.
        image_sizes: (V, 2) height and width.
        points: (P, 3) that were triangulated from the pictures; with ten or more, the score is the mean share of them
            that lies in a picture.
        center: (3,) of the object; with few points, the score is the share of pictures that show it. Without it, it is
            how well the pictures' middles agree on a point.
        seen_in: (V, P) bool, which pictures each point was seen in; the score is then the share of these that it lies
            in, which is 1 for the right poses.
    """
    cameras = Cameras.from_poses(camera_to_world, intrinsics, image_sizes)
    if points is not None and len(points) >= MIN_POINTS:
        stride = -(-len(points) // MAX_POINTS)
        sees = cameras.sees(points[::stride])
        return float((sees if seen_in is None else sees[seen_in[:, ::stride]]).mean())
    if center is not None:
        return float(cameras.sees(center[None]).mean())
    if cameras.stand_at_one_place or (point := common_point(cameras.centers, cameras.axes)) is None:
        return 0.0
    ways = point - cameras.centers
    cosines = (ways * cameras.axes).sum(-1) / np.linalg.norm(ways, axis=-1)
    return float(np.maximum(1 - np.arccos(np.clip(cosines, -1, 1)) / cameras.half_angles, 0).mean())


def convention_that_fits(
    camera_to_world: np.ndarray,
    intrinsics: np.ndarray,
    image_sizes: np.ndarray,
    points: np.ndarray | None,
    center: np.ndarray | None = None,
    seen_in: np.ndarray | None = None,
) -> str:
    """What to do with the poses so that they see the object, as the end of a message; empty where nothing would help.

    Args:
        camera_to_world: (V, 4, 4) in the frame that they were given in, since inverses differ between frames.
        intrinsics: (V, 3, 3) pixels.
        image_sizes: (V, 2) height and width.
        points: see ``score_of_poses``.
        center: see ``score_of_poses``.
        seen_in: see ``score_of_poses``.
    """
    now = score_of_poses(camera_to_world, intrinsics, image_sizes, points, center, seen_in)
    scores = {
        convention: score_of_poses(
            read_as(camera_to_world, convention), intrinsics, image_sizes, points, center, seen_in
        )
        for convention in REMEDIES
    }
    best = max(scores, key=scores.get)
    with_points = points is not None and len(points) >= MIN_POINTS
    odds_now, odds = ((1e-9 + score) / (1e-9 + 1 - score) for score in (now, scores[best]))
    if scores[best] < (SOME_POINTS_SEEN if with_points else FITS_WELL) or odds < BETTER_ODDS * odds_now:
        return ""
    if with_points:
        measure = f"of the sparse points lie in a picture{'' if seen_in is None else ' that they were seen in'}"
    elif center is not None:
        measure = "of the pictures show the object"
    else:
        measure = "is how well the pictures' middles agree on a point"
    return (
        f". The poses seem to be in another convention: {REMEDIES[best]} ({scores[best]:.0%} {measure}, not {now:.0%})"
    )
