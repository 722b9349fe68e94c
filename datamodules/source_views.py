"""Which photographs show the same piece of surface as another one does, and which of them a batch of rays carries.

Letters: V photographs of the scene; T of them are trained on; S sources of each; I photographs in a batch; R rays.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ops.cameras import pixel_centers, pixel_rays
from ops.rays import points_along, unit_sphere_intersection

if TYPE_CHECKING:
    from datamodules.scene import Scene

BEST_ANGLE = 5.0
NARROW, WIDE = 1.0, 10.0
MIN_POINTS, MAX_POINTS = 10, 500


class SourceViews:
    """Grey photographs beside the rays of a batch: those that the rays come from, and their sources.

    Args:
        scene: the photographs and their cameras.
        views: indices of the photographs that are trained on; no other one is ever shown.
        num_sources: S, sources of each; fewer where there are not as many others.

    Raises:
        ValueError: there is nothing to compare a photograph with.
    """

    def __init__(self, scene: "Scene", views: list[int], num_sources: int) -> None:
        if len(views) < 2 or num_sources < 1:
            raise ValueError(
                f"{scene.name}: source views are asked for, {num_sources} of each of {len(views)} training views; "
                "expected at least 1 of at least 2; hold out fewer, or train without patch consistency"
            )
        weights = torch.tensor([0.299, 0.587, 0.114])  # Rec. 601, as OpenCV's grey
        self.images = torch.stack([(scene.images[view].float() @ weights).round().byte() for view in views])
        self.sizes = scene.sizes[views]
        self.intrinsics, self.camera_to_world = scene.intrinsics[views], scene.camera_to_world[views]
        self.row_of_view = torch.full((len(scene.images),), -1)
        self.row_of_view[views] = torch.arange(len(views))
        scores = view_scores(scene, views).fill_diagonal_(-1)
        self.sources = scores.topk(min(num_sources, len(views) - 1)).indices  # (T, S) rows

    @property
    def stacks(self) -> dict[str, Tensor]:
        """All photographs that may be shown and their cameras, by the names that they have in a batch; T of each."""
        stacks = (self.images, self.sizes, self.intrinsics, self.camera_to_world)
        names = ("source_images", "source_sizes", "source_intrinsics", "source_camera_to_world")
        return dict(zip(names, stacks, strict=True))

    def choice(self, image_index: Tensor) -> dict[str, Tensor]:
        """Which of the stacks a batch shows, ``shown_rows`` (I,), and which of those belong to each ray.

        Args:
            image_index: (R,) photographs that the rays come from.
        """
        rows = self.row_of_view[image_index]
        references = rows.unique()
        shown = torch.cat([references, self.sources[references].flatten()]).unique()
        return {
            "shown_rows": shown,
            "reference_row": torch.searchsorted(shown, rows),
            "source_rows": torch.searchsorted(shown, self.sources[rows]),
        }


def view_scores(scene: "Scene", views: list[int]) -> Tensor:
    """How well one photograph can check a surface that is seen in another: (T, T), row for the one that sees it.

    The sum over shared points of a weight that is largest where the two see a point 5 degrees apart: MVSNet
    (arXiv:1804.02505). Points are the sparse ones that both saw; where a photograph has few of those, points in the
    middle of the unit sphere, on rays through a grid of its pixels, which another shares if its frame holds them.
    """
    poses, intrinsics = scene.camera_to_world[views], scene.intrinsics[views]
    height, width = scene.sizes[views].float().T[..., None]  # (T, 1) each
    scores = torch.zeros(len(views), len(views))
    for row, view in enumerate(views):
        points, is_shared = _seen_points(scene, view, views)
        if len(points) < MIN_POINTS:
            points = _middle_points(scene, view)
            in_camera = torch.einsum("tpi,tij->tpj", points - poses[:, None, :3, 3], poses[:, :3, :3])
            projected = torch.einsum("tij,tpj->tpi", intrinsics, in_camera)
            x, y = (projected[..., :2] / projected[..., 2:].clamp(min=1e-6)).unbind(-1)
            is_shared = (in_camera[..., 2] > 0) & (x > 0) & (y > 0) & (x < width) & (y < height)
        rays = torch.nn.functional.normalize(poses[:, None, :3, 3] - points, dim=-1)  # (T, P, 3)
        angles = torch.rad2deg((rays * rays[row]).sum(-1).clamp(-1, 1).acos())
        spread = torch.where(angles <= BEST_ANGLE, NARROW, WIDE)
        weights = torch.exp(-((angles - BEST_ANGLE) ** 2) / (2 * spread**2))
        scores[row] = (weights * is_shared).sum(-1)
    return scores


def _seen_points(scene: "Scene", view: int, views: list[int]) -> tuple[Tensor, Tensor]:
    # (P, 3) sparse points that a photograph saw, and (T, P) whether each photograph saw them too
    if scene.sparse_points is None:
        return torch.zeros(0, 3), torch.zeros(len(views), 0, dtype=torch.bool)
    offsets, point_index = scene.sparse_points.view_offsets, scene.sparse_points.view_point_index
    seen = point_index[offsets[view] : offsets[view + 1]]
    seen = seen[:: max(len(seen) // MAX_POINTS, 1)]
    is_shared = torch.stack([torch.isin(seen, point_index[offsets[v] : offsets[v + 1]]) for v in views])
    return scene.sparse_points.points[seen], is_shared


def _middle_points(scene: "Scene", view: int) -> Tensor:
    # (P, 3) points half way through the unit sphere; also where the camera is inside of it
    grid = pixel_centers(7, 7) * scene.sizes[view].flip(0) / 7
    origins, directions = pixel_rays(grid, scene.intrinsics[view], scene.camera_to_world[view])
    near, far, hits = unit_sphere_intersection(origins, directions)
    return points_along(origins[hits], directions[hits], ((near + far) / 2)[hits, None])[:, 0]
