"""Points triangulated from a scene's photographs, read from our own files or from COLMAP, and cleaned."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.spatial
import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_info

from datamodules.colmap_model import load_model
from datamodules.scene import Scene, SparsePoints
from datamodules.tracks import Tracks
from ops.cameras import project

MIN_TRACK_LENGTH = 3
MAX_REPROJECTION_ERROR = 1.0


@dataclass(frozen=True)
class PointFilter:
    """Which triangulated points are kept, beside being inside the unit sphere.

    Args:
        min_track_length: Least number of photographs that saw the point.
        max_error: Largest mean reprojection error, pixels of the photographs that it was triangulated from.
        min_mask_share: On more than this share of the masks of these photographs it must lie, where there are masks.
        outlier_deviations: How many standard deviations above the median its distance to its neighbours may be.
    """

    min_track_length: int = MIN_TRACK_LENGTH
    max_error: float = MAX_REPROJECTION_ERROR
    min_mask_share: float = 0.5
    outlier_deviations: float = 4.0


def read_tracks(path: Path, scene: Scene) -> Tracks:
    """Read an ``.npz`` of ``save_tracks``, a COLMAP model's folder or an ``.npy`` of bare points.

    Bare points, (P, 3) in the normalised frame as Geo-NeuS keeps them, count as seen in every photograph, and their
    errors are not known.

    Returns:
        Points in the normalised frame.

    Raises:
        ValueError: the file is of another kind or of another scene.
    """
    if path.is_dir():
        return _read_colmap(path, scene)
    try:
        loaded = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is broken or no NumPy file ({error}); expected points of "
            "python -m datamodules.prepare.triangulate (.npz) or a (P, 3) array (.npy)"
        ) from error
    if isinstance(loaded, np.ndarray):
        return _from_bare_points(loaded, path, len(scene.images))
    with loaded as file:
        missing = {"points", "frame", "view_offsets", "view_point_index"} - set(file.files)
        if missing:
            raise ValueError(f"{path} lacks {sorted(missing)}; write it with python -m datamodules.prepare.triangulate")
        points, view_offsets, view_point_index = (file[name] for name in ("points", "view_offsets", "view_point_index"))
        errors = file["errors"] if "errors" in file.files else np.full(len(points), np.nan)
        tracks = Tracks(points, errors, view_offsets, view_point_index)
        frame = str(file["frame"])
    if len(tracks.view_offsets) - 1 != len(scene.images):
        raise ValueError(
            f"{path} is of {len(tracks.view_offsets) - 1} photographs, {scene.name} has {len(scene.images)}"
        )
    if frame not in ("dataset", "normalized"):
        raise ValueError(f"{path}: frame is {frame!r}, expected 'dataset' or 'normalized'")
    return tracks if frame == "normalized" else _moved(tracks, np.linalg.inv(scene.normalized_to_dataset.numpy()))


def _from_bare_points(points: np.ndarray, path: Path, num_views: int) -> Tracks:
    if points.ndim != 2 or points.shape[1] < 3 or not np.issubdtype(points.dtype, np.floating):
        raise ValueError(
            f"{path} holds {points.dtype} of shape {points.shape}, expected (P, 3) points in the normalised frame"
        )
    everywhere = np.stack(np.meshgrid(np.arange(num_views), np.arange(len(points)), indexing="ij"), axis=-1)
    unknown = np.full(len(points), np.nan)
    return Tracks.from_entries(points[:, :3].astype(np.float64), unknown, everywhere, num_views)


def _moved(tracks: Tracks, matrix: np.ndarray) -> Tracks:
    points = tracks.points @ matrix[:3, :3].T + matrix[:3, 3]
    return Tracks(points, tracks.errors, tracks.view_offsets, tracks.view_point_index)


def _read_colmap(folder: Path, scene: Scene) -> Tracks:
    model = load_model(folder)
    registered = [image for image in model.images.values() if image.has_pose]
    view_of_name = _views_of_names(scene.image_names)
    views = {image.image_id: _view_of(image.name, view_of_name) for image in registered}
    # photographs that the scene leaves out are no matter, as long as enough are left to tell that it is the same
    view_of_id = {number: view for number, view in views.items() if view is not None}
    if len(view_of_id) < 3:
        unknown = next((image.name for image in registered if views[image.image_id] is None), None)
        raise ValueError(
            f"{folder}: the COLMAP model has {len(view_of_id)} posed photographs of {scene.name}, at least 3 are "
            "needed" + (f"; it has {unknown}, but {scene.name} has no such photograph" if unknown else "")
        )
    registered = [image for image in registered if image.image_id in view_of_id]
    theirs = np.array([image.projection_center() for image in registered])
    ours = scene.camera_to_world[list(view_of_id.values()), :3, 3].double().numpy()
    to_normalized = similarity_between(theirs, ours)
    residual = np.linalg.norm(theirs @ to_normalized[:3, :3].T + to_normalized[:3, 3] - ours, axis=1).max()
    if not residual < 0.01 * np.linalg.norm(ours - ours.mean(0), axis=1).max():
        raise ValueError(
            f"{folder}: the COLMAP model's cameras stand elsewhere than those of {scene.name}: after the best "
            f"similarity they are up to {residual:.3g} apart (normalised frame); the model belongs to other poses"
        )
    points = list(model.points3D.values())
    entries = [
        (view_of_id[element.image_id], number)
        for number, point in enumerate(points)
        for element in point.track.elements
        if element.image_id in view_of_id
    ]
    xyz = np.array([point.xyz for point in points]).reshape(-1, 3)
    errors = np.array([point.error for point in points], dtype=np.float64)
    errors[errors < 0] = np.nan  # COLMAP's word for not computed
    entries_array = np.array(entries, dtype=np.int64).reshape(-1, 2)
    return _moved(Tracks.from_entries(xyz, errors, entries_array, len(scene.images)), to_normalized)


def _views_of_names(names: list[str]) -> dict[str, int]:
    """Number of each photograph by its name and, where no other has the same one, by its stem."""
    stems = [Path(name).stem for name in names]
    views = {stem: view for view, stem in enumerate(stems) if stems.count(stem) == 1}
    return views | {Path(name).with_suffix("").as_posix(): view for view, name in enumerate(names)}


def _view_of(name: str, views: dict[str, int]) -> int | None:
    full = Path(name).with_suffix("").as_posix()
    return views.get(full, views.get(Path(name).stem))


def similarity_between(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The similarity that brings points closest to others (Umeyama, PAMI 13(4), 1991).

    Args:
        source: (N, 3).
        target: (N, 3).

    Returns:
        (4, 4) scale, rotation and translation.
    """
    source_mean, target_mean = source.mean(0), target.mean(0)
    left, singular, right = np.linalg.svd((target - target_mean).T @ (source - source_mean))
    signs = np.array([1, 1, np.sign(np.linalg.det(left) * np.linalg.det(right))])
    scale = (singular * signs).sum() / ((source - source_mean) ** 2).sum()
    matrix = np.eye(4)
    matrix[:3, :3] = scale * (left * signs) @ right
    matrix[:3, 3] = target_mean - matrix[:3, :3] @ source_mean
    return matrix


def filter_points(tracks: Tracks, scene: Scene, settings: PointFilter = PointFilter()) -> SparsePoints:
    """Keep what is well measured and of the object, and say in one line of the log what was dropped and why.

    Args:
        tracks: in the normalised frame.
        scene: whose.
        settings: what counts as well measured and of the object.

    Returns:
        The points that pass every criterion, and who saw them.
    """
    num_found, dropped, skipped = len(tracks.points), [], []
    # two photographs see no point three times
    shortest = min(settings.min_track_length, len(scene.images))
    measured = np.isfinite(tracks.errors)
    if not measured.all():
        skipped.append(f"{(~measured).sum()} have no reprojection error to judge by")
    criteria = [
        (f"seen in fewer than {shortest} photographs", lambda t: t.lengths >= shortest),
        (f"more than {settings.max_error:g} px off", lambda t: ~(t.errors > settings.max_error)),
        ("outside the sphere", lambda t: np.linalg.norm(t.points, axis=1) < 1),
        ("beside the masks", lambda t: mask_shares(t, scene) > settings.min_mask_share),
        ("far from all others", lambda t: ~is_outlier(t.points, settings.outlier_deviations)),
    ]
    if scene.masks is None:
        del criteria[3]
    all_points = None
    for number, (reason, passes) in enumerate(criteria):
        keep = passes(tracks)
        dropped += [f"{(~keep).sum()} {reason}"] if not keep.all() else []
        tracks = tracks.select(keep)
        if number == 1:
            all_points = tracks.points
    what = "; ".join([*([f"dropped {', '.join(dropped)}"] if dropped else []), *skipped])
    rank_zero_info(f"{scene.name}: {len(tracks.points)} of {num_found} sparse points kept{what and '; '}{what}")
    return SparsePoints(
        torch.from_numpy(tracks.points).float(),
        torch.from_numpy(tracks.view_offsets),
        torch.from_numpy(tracks.view_point_index),
        torch.from_numpy(all_points).float(),
    )


def mask_shares(tracks: Tracks, scene: Scene) -> np.ndarray:
    """(P,) share of the photographs that saw each point on whose masks it falls."""
    height, width = scene.masks.shape[1:]
    votes = np.zeros(len(tracks.points))
    for view, mask in enumerate(scene.masks):
        seen = tracks.view_point_index[tracks.view_offsets[view] : tracks.view_offsets[view + 1]]
        points = torch.from_numpy(tracks.points[seen]).float()
        x, y = project(points, scene.intrinsics[view], scene.camera_to_world[view])[0].floor().long().T
        votes[seen] += (mask[y.clamp(0, height - 1), x.clamp(0, width - 1)] > 127).numpy()
    return votes / np.maximum(tracks.lengths, 1)


def is_outlier(points: np.ndarray, deviations: float, num_neighbors: int = 8) -> np.ndarray:
    """Which points have their neighbours much farther off than most points have.

    Statistical outlier removal (Rusu et al., Towards 3D point cloud based object maps, RAS 56(11), 2008), but for
    median and median deviation of the logarithms, since sparse points are dense on texture and thin elsewhere.

    Args:
        points: (P, 3).
        deviations: standard deviations, estimated from the median one, above the median that are too far.
        num_neighbors: nearest points whose mean distance is taken; with fewer points than that, none is an outlier.

    Returns:
        (P,) bool.
    """
    if len(points) <= num_neighbors:
        return np.zeros(len(points), dtype=bool)
    distances = scipy.spatial.KDTree(points).query(points, k=num_neighbors + 1)[0][:, 1:].mean(axis=1)
    logs = np.log(np.maximum(distances, 1e-12))
    excess = logs - np.median(logs)
    # of points on a lattice the deviation is 0, and rounding is no outlier
    return excess > max(deviations * 1.4826 * np.median(abs(excess)), np.log(2))
