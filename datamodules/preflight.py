"""Whether training can succeed: what cameras, sphere, points and masks say of one another before the first step."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_info, rank_zero_warn

from datamodules.optical_axes import Cameras
from datamodules.pose_conventions import convention_that_fits
from datamodules.preflight_picture import overview, point_cloud
from ops.cameras import pixel_centers, pixel_rays

if TYPE_CHECKING:
    from datamodules.scene import Scene

GRID = 32
MAX_POINTS = 2_000
MIN_POINTS = 10
"""Fewer points are no evidence."""


@dataclass(frozen=True)
class Preflight:
    """What decides over the training of a scene. Shares are in [0, 1]; ``None`` where there is nothing to measure.

    Attributes:
        views_meeting_sphere: share of the training photographs with any ray that meets the unit sphere.
        rays_meeting_sphere: share of all their rays that do.
        cameras_inside: share of their cameras inside the sphere.
        points_inside: share of the sparse points inside the sphere.
        points_in_view: share of those inside that lie in a photograph, on average over photographs.
        points_on_masks: share of those inside that fall on the masks in most of the photographs that they lie in.
        mask_agreement: share of the photographs in which these last ones do so; 1 where cameras and masks agree.
        mask_rays_meeting_sphere: share of the masks' pixels whose rays meet the sphere.
        doubts: what may spoil the training, a sentence each.
    """

    views_meeting_sphere: float
    rays_meeting_sphere: float
    cameras_inside: float
    points_inside: float | None = None
    points_in_view: float | None = None
    points_on_masks: float | None = None
    mask_agreement: float | None = None
    mask_rays_meeting_sphere: float | None = None
    doubts: tuple[str, ...] = ()

    def __str__(self) -> str:
        facts = {
            "of the rays meet the unit sphere": self.rays_meeting_sphere,
            "of the cameras are inside it": self.cameras_inside or None,
            "of the sparse points lie in it": self.points_inside,
            "of the masks' rays meet it": self.mask_rays_meeting_sphere,
            "agreement of masks and points": self.mask_agreement,
        }
        return ", ".join(f"{share:.0%} {what}" for what, share in facts.items() if share is not None)


def check_before_training(scene: "Scene", folder: Path | None, views: list[int] | None = None) -> Preflight:
    """Refuse a scene that cannot be learnt, and warn of one that may not be.

    A picture, ``preflight.png``, and a point cloud of cameras, sphere and sparse points, ``preflight.ply`` (in the
    dataset's frame, where the meshes will be), show what was found.

    Args:
        scene: one that ``check_scene`` has passed.
        folder: where to write them; ``None`` writes nothing.
        views: the photographs to train on; ``None`` is all.

    Raises:
        ValueError: training would be hopeless; it says why and, where poses seem misread, how to read them.
    """
    views = list(range(len(scene.images))) if views is None else views
    facts = measure(scene, views)
    advice = advice_on_poses(scene, views)
    reasons = _reasons_against(facts, scene, len(views), advice)
    doubts = tuple(_doubts(facts, scene, len(views), advice))
    facts = Preflight(**{**vars(facts), "doubts": doubts})
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        points = points_of(scene)
        overview(scene, views, points, scene.sizes, [str(facts), *reasons, *doubts]).save(folder / "preflight.png")
        (folder / "preflight.ply").write_bytes(point_cloud(scene, views, points, scene.sizes))
    shown = "" if folder is None else f"; see {folder / 'preflight.png'}"
    if reasons:
        raise ValueError(f"{scene.name}: nothing can be learnt here: {'; '.join(reasons)}{shown}")
    for doubt in doubts:
        rank_zero_warn(f"{scene.name}: {doubt}{shown}")
    rank_zero_info(f"{scene.name}: {facts}{shown}")
    return facts


def measure(scene: "Scene", views: list[int]) -> Preflight:
    """The shares, from a grid of rays in every photograph and at most ``MAX_POINTS`` sparse points."""
    meets, on_mask = _grid_of_rays(scene, views)
    distances = scene.camera_to_world[views, :3, 3].norm(dim=-1)
    shares = {
        "views_meeting_sphere": float(meets.any(axis=1).mean()),
        "rays_meeting_sphere": float(meets.mean()),
        "cameras_inside": float((distances < 1).float().mean()),
    }
    if on_mask is not None and on_mask.any():
        shares["mask_rays_meeting_sphere"] = float(meets[on_mask].mean())
    points = points_of(scene)
    if points is None or len(points) < MIN_POINTS:
        return Preflight(**shares)
    inside = points[np.linalg.norm(points, axis=1) < 1]
    shares["points_inside"] = len(inside) / len(points)
    if len(inside) >= MIN_POINTS:
        pixels, seen = _cameras(scene, views).project(inside)
        shares["points_in_view"] = float(seen.mean())
        if scene.masks is not None:
            shares |= _agreement(scene.masks[views].numpy(), pixels, seen)
    return Preflight(**shares)


def _agreement(masks: np.ndarray, pixels: np.ndarray, seen: np.ndarray) -> dict[str, float]:
    x, y = np.where(seen[..., None], pixels, 0).astype(np.int64).transpose(2, 0, 1)
    on_masks = (masks[np.arange(len(masks))[:, None], y, x] > 127) & seen
    counts = seen.sum(axis=0)
    votes = on_masks.sum(axis=0)[counts > 0] / counts[counts > 0]
    # what hides a point of the object is the object, so that it falls on every mask, seen or not
    own = votes[votes > 0.5]
    shares = {"points_on_masks": len(own) / len(votes)} if len(votes) else {}
    return shares | ({"mask_agreement": float(own.mean())} if len(own) else {})


def _grid_of_rays(scene: "Scene", views: list[int]) -> tuple[np.ndarray, np.ndarray | None]:
    """(V, GRID²) whether rays of each photograph meet the sphere; whether they are on the mask, if there are masks."""
    grid, meets, on_mask = pixel_centers(GRID, GRID) / GRID, [], []
    for view, (height, width) in zip(views, scene.sizes[views].tolist(), strict=True):
        pixels = grid * torch.tensor([width, height])
        origins, directions = pixel_rays(pixels, scene.intrinsics[view], scene.camera_to_world[view])
        along = -(origins * directions).sum(-1).clamp(max=0)
        meets.append((origins + along[:, None].abs() * directions).norm(dim=-1) < 1)
        if scene.masks is not None:
            x, y = pixels.long().T
            on_mask.append(scene.masks[view, y, x] > 127)
    return torch.stack(meets).numpy(), torch.stack(on_mask).numpy() if on_mask else None


def points_of(scene: "Scene") -> np.ndarray | None:
    """(P, 3) float64 at most ``MAX_POINTS`` sparse points, before those outside sphere and masks were dropped."""
    if scene.sparse_points is None:
        return None
    known = scene.sparse_points.all_points
    points = (scene.sparse_points.points if known is None else known).double().numpy()
    return points[:: max(1, -(-len(points) // MAX_POINTS))]


def _cameras(scene: "Scene", views: list[int]) -> Cameras:
    poses, intrinsics, sizes = scene.camera_to_world[views], scene.intrinsics[views], scene.sizes[views]
    return Cameras.from_poses(poses.numpy(), intrinsics.numpy(), sizes.numpy())


def advice_on_poses(scene: "Scene", views: list[int] | None = None) -> str:
    """How to read the poses so that cameras see the object, as the end of a message; empty where they do."""
    views = list(range(len(scene.images))) if views is None else views
    if scene.inside_out:
        return ""  # whichever way cameras look there, they see the place
    to_dataset = scene.normalized_to_dataset.numpy()
    # inverses are of poses as they were given
    poses = to_dataset @ scene.camera_to_world[views].double().numpy()
    poses[:, :3, :3] /= np.cbrt(np.linalg.det(to_dataset[:3, :3]))
    points, seen_in = _points_with_views(scene, views)
    if points is not None:
        points = points @ to_dataset[:3, :3].T + to_dataset[:3, 3]
    intrinsics, sizes = scene.intrinsics[views].numpy(), scene.sizes[views].numpy()
    return convention_that_fits(poses, intrinsics, sizes, points, to_dataset[:3, 3], seen_in)


def _points_with_views(scene: "Scene", views: list[int]) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(P, 3) points of the object that some of the views saw, and (V, P) which did; all points where there are few."""
    tracks = scene.sparse_points
    if tracks is None or len(tracks.points) < MIN_POINTS:
        return points_of(scene), None
    stride = -(-len(tracks.points) // MAX_POINTS)
    seen_in = np.zeros((len(views), len(tracks.points)), dtype=bool)
    for row, view in enumerate(views):
        seen_in[row, tracks.view_point_index[tracks.view_offsets[view] : tracks.view_offsets[view + 1]].numpy()] = True
    points, seen_in = tracks.points[::stride].double().numpy(), seen_in[:, ::stride]
    return (points, seen_in) if seen_in.any() else (points, None)


def _reasons_against(facts: Preflight, scene: "Scene", num_views: int, advice: str) -> list[str]:
    """Why training would be hopeless; empty where it is not."""
    reasons = []
    if facts.views_meeting_sphere < 0.25 or facts.rays_meeting_sphere < 0.002:
        reasons.append(
            f"only {facts.rays_meeting_sphere:.2%} of the rays, in {facts.views_meeting_sphere:.0%} of the {num_views} "
            "training photographs, meet the unit sphere, in which the object must lie; check the normalisation "
            f"(its centre and radius){advice}"
        )
    elif advice and (facts.views_meeting_sphere < 0.5 or scene.sparse_points is not None):
        reasons.append(f"the cameras look past the object{advice}")
    if facts.cameras_inside > 0.5 and not scene.inside_out:
        reasons.append(
            f"{facts.cameras_inside:.0%} of the cameras are inside the unit sphere, where the object must be; if a "
            "place is photographed from inside, set inside_out in data and model, else make the sphere smaller"
        )
    if facts.points_inside is not None and facts.points_inside < 0.002:
        reasons.append(
            f"{facts.points_inside:.2%} of the sparse points lie in the unit sphere, in which the object must lie; "
            "check the normalisation, and that points and cameras are of one frame"
        )
    if facts.points_on_masks is not None and facts.points_on_masks < 0.02:
        reasons.append(
            f"{facts.points_on_masks:.0%} of the sparse points in the sphere fall on the masks; check that masks are "
            "white on the object, and that each is of its own photograph"
        )
    if facts.mask_rays_meeting_sphere is not None and facts.mask_rays_meeting_sphere < 0.02:
        reasons.append(
            f"{facts.mask_rays_meeting_sphere:.0%} of the masks' rays meet the unit sphere, in which the object must "
            "lie; check the normalisation, and that masks are white on the object"
        )
    return reasons


def _doubts(facts: Preflight, scene: "Scene", num_views: int, advice: str) -> list[str]:
    """What may spoil the training, a sentence each."""
    doubts = []
    if facts.views_meeting_sphere < 0.9:
        missing = round((1 - facts.views_meeting_sphere) * num_views)
        doubts.append(
            f"{missing} of {num_views} training photographs do not show the unit sphere; are their poses right?"
        )
    if facts.rays_meeting_sphere < 0.05:
        doubts.append(
            f"only {facts.rays_meeting_sphere:.1%} of the rays meet the unit sphere, the others teach the background "
            "alone; crop the photographs, draw rays from the masks (foreground_share), or make the sphere larger"
        )
    if facts.cameras_inside > 0 and not scene.inside_out:
        doubts.append(
            f"{facts.cameras_inside:.0%} of the cameras are inside the unit sphere; if a place is photographed from "
            "inside, set inside_out in data and model"
        )
    if facts.cameras_inside < 0.5 and scene.inside_out:
        doubts.append(f"inside_out, but only {facts.cameras_inside:.0%} of the cameras are inside the unit sphere")
    if facts.points_inside is not None and facts.points_inside < 0.1:
        doubts.append(
            f"only {facts.points_inside:.1%} of the sparse points lie in the unit sphere; is it where the object is?"
        )
    if facts.mask_agreement is not None and facts.mask_agreement < 0.85:
        doubts.append(
            f"points of the object fall on only {facts.mask_agreement:.0%} of the masks; is each mask of its own "
            "photograph, and are the poses right?"
        )
    if facts.mask_rays_meeting_sphere is not None and facts.mask_rays_meeting_sphere < 0.9:
        doubts.append(
            f"only {facts.mask_rays_meeting_sphere:.0%} of the masks' rays meet the unit sphere, the object may be cut "
            "off at it; make the sphere larger"
        )
    if advice:
        doubts.append(f"the cameras may look past the object{advice}")
    return doubts
