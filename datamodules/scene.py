"""One scene of posed photographs: what it is, and what is checked about it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from datamodules.preflight import advice_on_poses
from ops.cameras import pixel_centers, pixel_rays, project
from ops.types import ObjectBatch, Observation

NUM_CAMERAS = 8
PHOTOGRAPH_KEYS = frozenset({"images", "intrinsics", "camera_to_world", "image_index"})


@dataclass(frozen=True)
class SparsePoints:
    """Points triangulated from the photographs, and which photograph saw which.

    Attributes:
        points: (P, 3) float32, normalised frame.
        view_offsets: (V + 1,) int64.
        view_point_index: (K,) int64; photograph v saw points ``view_point_index[view_offsets[v]:view_offsets[v + 1]]``.
        all_points: (Q, 3) float32, these and the well measured ones outside the unit sphere or beside the object, for
            the check before training; ``None`` where they are not known.
    """

    points: Tensor
    view_offsets: Tensor
    view_point_index: Tensor
    all_points: Tensor | None = None


@dataclass(frozen=True)
class Scene:
    """Photographs of one thing with their cameras, and what is known about the thing.

    Attributes:
        name: what it is called in tables, files and errors.
        category: the dataset's word for its kind.
        images: (V, H, W, 3) uint8, sRGB.
        intrinsics: (V, 3, 3) float32, pixels; the centre of the top-left pixel is (0.5, 0.5).
        camera_to_world: (V, 4, 4) float32, OpenCV axes, normalised frame.
        normalized_to_dataset: (4, 4) float64 similarity into the dataset's frame and unit.
        image_names: V names, for errors.
        masks: (V, H, W) uint8, foreground coverage, 255 is all of the pixel; ``None`` where there are none.
        sparse_points: triangulated points; ``None`` where there are none or nobody reads them.
        surface_points: (N, 3) float32, samples of the true surface, normalised frame; ``None`` where unknown.
        surface_normals: (N, 3) float32, their unit outward normals; ``None`` where unknown.
        observation: what the dataset's protocol knows beside the truth; ``None`` where there is no protocol.
        depth: (V, H, W) float32, true distance along the ray of each pixel's centre, infinite past the object;
            ``None`` where unknown.
        image_sizes: (V, 2) int64 height and width of photographs that differ in size, the rest of ``images`` and
            ``masks``, below and to the right, is padding; ``None`` where all fill them.
    """

    name: str
    category: str
    images: Tensor
    intrinsics: Tensor
    camera_to_world: Tensor
    normalized_to_dataset: Tensor
    image_names: list[str]
    masks: Tensor | None = None
    sparse_points: SparsePoints | None = None
    surface_points: Tensor | None = None
    surface_normals: Tensor | None = None
    observation: Observation | None = None
    depth: Tensor | None = None
    inside_out: bool = False
    image_sizes: Tensor | None = None

    @property
    def sizes(self) -> Tensor:
        """(V, 2) int64 height and width of every photograph, without padding."""
        height_width = torch.tensor(self.images.shape[1:3])
        return height_width.repeat(len(self.images), 1) if self.image_sizes is None else self.image_sizes

    def size_of(self, view: int) -> tuple[int, int]:
        """Height and width of a photograph, without padding."""
        height, width = self.images.shape[1:3] if self.image_sizes is None else self.image_sizes[view].tolist()
        return height, width

    @property
    def keys(self) -> frozenset[str]:
        """Keys of the ObjectBatch and RayBatch that this scene can fill."""
        found = {"rays", "source_images", "normalized_to_dataset", *PHOTOGRAPH_KEYS}
        if self.masks is not None:
            found |= {"masks", "ray_masks"}
        optional = ("sparse_points", "surface_points", "surface_normals")
        found |= {key for key in optional if getattr(self, key) is not None}
        return frozenset(found | ({"observations"} if self.observation is not None else set()))


def check_scene(scene: Scene) -> None:
    """Refuse a scene that would train for hours towards nothing.

    Raises:
        ValueError: counts or sizes differ, a camera is no camera, all cameras are inside the unit sphere of a scene
            that is not ``inside_out``, or no ray of any photograph meets it.
    """
    num_views, height, width = scene.images.shape[:3]
    if not num_views == len(scene.intrinsics) == len(scene.camera_to_world):
        raise ValueError(
            f"{scene.name}: {num_views} images but {len(scene.camera_to_world)} cameras; "
            "check that all images are there"
        )
    if scene.masks is not None and scene.masks.shape != (num_views, height, width):
        raise ValueError(
            f"{scene.name}: masks of shape {tuple(scene.masks.shape)} for images of shape "
            f"{(num_views, height, width)}; each image needs a mask of its own size"
        )
    if scene.image_sizes is not None and (
        scene.image_sizes.shape != (num_views, 2)
        or (scene.image_sizes < 1).any()
        or (scene.image_sizes > torch.tensor([height, width])).any()
    ):
        raise ValueError(
            f"{scene.name}: image_sizes of shape {tuple(scene.image_sizes.shape)}, expected a height up to {height} "
            f"and a width up to {width} for each of {num_views} photographs"
        )
    for name, intrinsics, pose in zip(scene.image_names, scene.intrinsics, scene.camera_to_world, strict=True):
        values = torch.cat([intrinsics.flatten(), pose.flatten()])
        if not values.isfinite().all():
            raise ValueError(f"{scene.name}: the camera of {name} has entries that are not finite")
        if intrinsics[0, 0] <= 0 or intrinsics[1, 1] <= 0 or abs(torch.linalg.det(pose[:3, :3]) - 1) > 1e-3:
            raise ValueError(
                f"{scene.name}: the camera of {name} is singular or mirrored: focal lengths {intrinsics[0, 0]:.6g}, "
                f"{intrinsics[1, 1]:.6g}, rotation of determinant {torch.linalg.det(pose[:3, :3]):.6g} (expected 1)"
            )
    distances = scene.camera_to_world[:, :3, 3].norm(dim=-1)
    if (distances < 1).all() and not scene.inside_out:
        raise ValueError(
            f"{scene.name}: all {num_views} cameras are inside the unit sphere, at most {distances.max():.3g} from its "
            "centre; an object must be seen from outside. Check the normalisation (scale_mat); scenes that are "
            "photographed from inside, rooms for instance, need inside_out, in a dataset that has it and in the model"
            f"{advice_on_poses(scene)}"
        )
    if not any(_sees_unit_sphere(scene, view) for view in range(num_views)):
        raise ValueError(
            f"{scene.name}: no ray of any photograph meets the unit sphere, in which the object must lie; its centre "
            f"is {distances.min():.3g} to {distances.max():.3g} from the cameras. Check the normalisation (scale_mat) "
            f"and the direction of the poses (camera to world, z forward){advice_on_poses(scene)}"
        )


def _sees_unit_sphere(scene: Scene, view: int) -> bool:
    height, width = scene.size_of(view)
    intrinsics, pose = scene.intrinsics[view], scene.camera_to_world[view]
    grid = pixel_centers(33, 33) * torch.tensor([width / 33, height / 33])
    # the grid could step over a small image of the sphere, but not where its centre projects
    center, depth = project(torch.zeros(1, 3), intrinsics, pose)
    if depth[0] > 0:
        grid = torch.cat([grid, center.clamp(min=torch.zeros(2), max=torch.tensor([width, height]))])
    origins, directions = pixel_rays(grid, intrinsics, pose)
    along = -(origins * directions).sum(-1)
    closest = (origins + along.clamp(min=0)[:, None] * directions).norm(dim=-1)
    return bool((closest < 1).any())


def object_batch(scene: Scene, views: list[int], downscale: int = 1) -> ObjectBatch:
    """The scene as a batch of one object, seen in some of its photographs.

    Args:
        scene: what to show.
        views: which photographs; with none there are ``NUM_CAMERAS`` cameras, spread over all of the scene's, which say
            from where it was seen, and no images.
        downscale: factor by which they are made smaller, by area averaging.

    Returns:
        Every key that the scene can fill, but the rays.
    """
    batch = ObjectBatch(
        normalized_to_dataset=scene.normalized_to_dataset.float()[None],
        object_index=torch.zeros(1, dtype=torch.int64),
        object_id=[scene.name],
        category=[scene.category],
    )
    if views:
        intrinsics = scene.intrinsics[views].clone()
        intrinsics[:, :2] /= downscale
        images = scene.images[views].permute(0, 3, 1, 2)
        batch["images"] = torch.nn.functional.avg_pool2d(images.float() / 255, downscale)[None]
        batch["intrinsics"] = intrinsics[None]
        batch["camera_to_world"] = scene.camera_to_world[views][None]
        batch["image_index"] = torch.tensor([views])
        if scene.image_sizes is not None:
            batch["image_sizes"] = scene.image_sizes[views][None] // downscale
        if scene.masks is not None:
            batch["masks"] = torch.nn.functional.avg_pool2d(scene.masks[views].float() / 255, downscale)[None]
    else:
        spread = torch.linspace(0, len(scene.images) - 1, min(NUM_CAMERAS, len(scene.images))).long()
        batch["intrinsics"] = scene.intrinsics[spread][None]
        batch["camera_to_world"] = scene.camera_to_world[spread][None]
        batch["image_index"] = spread[None]
    if scene.surface_points is not None:
        batch["surface_points"] = scene.surface_points[None]
    if scene.surface_normals is not None:
        batch["surface_normals"] = scene.surface_normals[None]
    if scene.sparse_points is not None:
        batch["sparse_points"] = scene.sparse_points.points[None]
    if scene.observation is not None:
        batch["observations"] = [scene.observation]
    return batch
