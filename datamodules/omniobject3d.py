"""OmniObject3D (Wu et al., CVPR 2023, arXiv:2301.07525): scanned objects of daily life, with renderings and videos.

``OmniObject3D`` is the collection, for methods that learn from many objects; ``OmniObject3DScene`` one object, for
methods that read rays. The layout and the frames are told in ``omniobject3d_files``.
``python -m datamodules.prepare.omniobject3d_layout`` writes procedural objects in this layout.
"""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import trimesh
from torch import Tensor

from datamodules.blender_depth import points_of_depth, read_depths
from datamodules.colmap_model import PYCOLMAP
from datamodules.object_source import PHOTOGRAPH_KEYS, ObjectSource, Views
from datamodules.objects import QUERY_KEYS, SURFACE_KEYS, ObjectDataModule
from datamodules.omniobject3d_files import (
    LARGEST_COORDINATE,
    UPRIGHT,
    FoundObject,
    Frames,
    find_objects,
    image_size,
    read_frames,
    read_pictures,
    share_inside,
)
from datamodules.omniobject3d_tree import OmniObject3DTree, Renderings
from datamodules.omniobject3d_video import FILL, read_video, sparse_model
from datamodules.one_object import Background, posed, scene_of_views
from datamodules.prepare.meshes import read_mesh
from datamodules.prepare.omniobject3d import FOLDER, prepare_scans
from datamodules.scene import Scene
from datamodules.scene_module import SceneDataModule
from datamodules.silhouettes import similarity_to_sphere, sphere_of_masks
from datamodules.sparse_points import filter_points, read_tracks
from datamodules.splits import split_of_file
from ops.meshes import sample_surface
from ops.types import Shape

SceneViews = Literal["blender_renders", "blender_renders_24_views", "videos_processed"]
_TRUTH = "unpack raw_scans/ (or, for points, point_clouds/ply_files/) of the objects"


class OmniObject3D(ObjectDataModule):
    """The collection: images and masks from the renderings, surface, voxels and occupancy from the scans.

    Args:
        root: Folder of blender_renders/, raw_scans/ and so on.
        views: Which renderings; of the 24 views the cameras are not used, since their frame is not documented.
        split: Which objects are for what: sorted (names of each category, 80 % and 20 %), or a json file; null is
            sorted. OmniObject3D itself has no split of objects.
        val_share: Share of the training names that is for validation.
        prepared: Folder for what is made of the scans, once; null is prepared/ in the root.
        prepared_points: Surface samples, and query points, that are made of each scan.
        keep_open: Train and score on the inside of scans that are not watertight, too, judged by vertical lines.
        categories: Names such as apple; null is all.
        **kwargs: How batches are drawn, see ``ObjectDataModule``.
    """

    provides = PHOTOGRAPH_KEYS | SURFACE_KEYS | QUERY_KEYS | {"voxels", "normalized_to_dataset"}
    remedies: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("surface_points", "surface_normals"), _TRUTH),
        **dict.fromkeys(
            ("voxels", "query_points", "query_occupancy"),
            "unpack raw_scans/ of the objects; where scans are not watertight (prepared.csv says so), set keep_open",
        ),
        **dict.fromkeys(("images", "masks"), "unpack blender_renders/ or set views"),
        **dict.fromkeys(("intrinsics", "camera_to_world"), "cameras are those of blender_renders/, beside a scan"),
    }

    def __init__(
        self,
        root: str,
        views: Renderings = "blender_renders",
        split: str | None = None,
        val_share: float = 0.05,
        prepared: str | None = None,
        prepared_points: int = 100_000,
        keep_open: bool = False,
        categories: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(categories=categories, **kwargs)
        self.root, self.views, self.split, self.val_share = Path(root), views, split, val_share
        self.prepared = Path(prepared) if prepared else self.root / FOLDER
        self.prepared_points, self.keep_open = prepared_points, keep_open
        if not 0 <= val_share < 1:
            raise ValueError(f"val_share is {val_share}, expected at least 0 and less than 1")

    def prepare_data(self) -> None:
        """Make surface samples, query points and voxels of the scans, unless that was done before."""
        self._prepare(self._objects())

    def _objects(self) -> list[FoundObject]:
        objects = find_objects(self.root)
        there = {found.category for found in objects}
        unknown = sorted(set(self.categories or ()) - there)
        if unknown:
            raise ValueError(f"categories: {self.root} has no {', '.join(unknown)}; it has {', '.join(sorted(there))}")
        return [found for found in objects if self.categories is None or found.category in self.categories]

    def _prepare(self, objects: list[FoundObject]) -> dict:
        return prepare_scans(objects, self.prepared, num_points=self.prepared_points, seed=0)

    def load_source(self) -> ObjectSource:
        """Open the objects that have what the method reads."""
        objects = self._objects()
        return OmniObject3DTree(
            objects,
            str(self.root),
            self.prepared,
            self._prepare(objects),
            self.reads,
            self.views,
            self.keep_open,
            self.val_share,
        )

    def load_split(self, source: ObjectSource) -> tuple[str, dict[str, list[int]]]:
        """The split by sorted names, or that of a file."""
        if self.split is not None and self.split.endswith(".json"):
            return split_of_file(Path(self.split), source.objects)
        if self.split not in (None, "sorted"):
            raise ValueError(f"split {self.split!r}: OmniObject3D knows sorted; give that or a json file")
        return "sorted", source.splits()["sorted"]


class OmniObject3DScene(SceneDataModule):
    """One object as a scene: Blender's renderings, the 24 views, or a video.

    The object is neither centred nor sure to be inside the unit sphere where it was rendered: the normalised frame is
    found from the scan, the depth maps, or the masks, in that order. Meshes come out in the frame of the cameras: of
    blender_renders that is the render frame, in which OmniObject3D's own evaluation works.

    Args:
        root: Folder of blender_renders/, raw_scans/ and so on.
        object_id: Which object, such as apple_001.
        views: Which pictures; null is the first kind of blender_renders, blender_renders_24_views, videos_processed
            that is there.
        normalization: Where the object is known from: scan, depth or masks; null is the first that is there.
        background: What is put behind pictures with alpha.
        downscale: Whole factor by which pictures are made smaller, by area averaging.
        num_surface_points: Samples of the scan, the truth of blender_renders. How the 24 views and the videos lie to
            the scan is not documented, so they have no truth.
        with_depth: Keep the depth maps of blender_renders in the scene.
        rescaled: Of a video, the poses that are meant to be of real size, which users of the data doubt.
        **kwargs: How batches are drawn, see ``SceneDataModule``.
    """

    provides = frozenset(
        {"rays", "ray_masks", "sparse_points", "images", "masks", "intrinsics", "camera_to_world", "image_index"}
        | {"surface_points", "surface_normals", "normalized_to_dataset", "observations"}
    )
    remedies: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("surface_points", "surface_normals"), f"{_TRUTH}, with views blender_renders"),
        "sparse_points": "set views to videos_processed, which have COLMAP's points in sparse/",
        "ray_masks": "its pictures have no alpha channel",
    }

    def __init__(
        self,
        root: str,
        object_id: str,
        views: SceneViews | None = None,
        normalization: Literal["scan", "depth", "masks"] | None = None,
        background: Background = "black",
        downscale: int = 1,
        num_surface_points: int = 100_000,
        with_depth: bool = False,
        rescaled: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root, self.object_id, self.views, self.normalization = Path(root), object_id, views, normalization
        self.background, self.downscale = background, downscale
        self.num_surface_points, self.with_depth, self.rescaled = num_surface_points, with_depth, rescaled
        if with_depth and downscale > 1:
            raise ValueError(
                f"downscale is {downscale}, but depth cannot be averaged over edges; set downscale to 1 or with_depth "
                "to false"
            )

    def load_scene(self) -> Scene:
        """Read the object's pictures, cameras and truth."""
        found = self._found()
        kind = self._kind(found)
        if kind != "videos_processed":
            return self._rendered(found, kind)
        if self.normalization not in (None, "masks"):
            raise ValueError(
                f"normalization is {self.normalization!r}, but how the video of {found.object_id} lies to its scan and "
                "renderings is not documented; set it to masks"
            )
        folder = found.paths[kind]
        scene = read_video(
            folder, found.object_id, found.category, rescaled=self.rescaled, downscale=self.downscale
        )  # fmt: skip
        model = sparse_model(folder)
        if model is None or not (PYCOLMAP or "sparse_points" in self.reads):
            return scene
        return dataclasses.replace(scene, sparse_points=filter_points(read_tracks(model, scene), scene))

    def _found(self) -> FoundObject:
        objects = find_objects(self.root)
        found = [entry for entry in objects if entry.object_id == self.object_id]
        if len(found) == 1:
            return found[0]
        names = sorted(entry.object_id for entry in objects)
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        raise ValueError(
            f"object_id {self.object_id!r}: {self.root} has {len(found) or 'none'}; it has {', '.join(names[:8])}{more}"
        )

    def _kind(self, found: FoundObject) -> SceneViews:
        kinds = [kind for kind in SceneViews.__args__ if kind in found.paths]
        if self.views is None and kinds:
            return kinds[0]
        if self.views not in kinds:
            raise ValueError(
                f"{found.object_id} has no {self.views or 'pictures'} in {self.root}; of pictures it has "
                f"{', '.join(kinds) or 'none'}; unpack them or set views"
            )
        return self.views

    def _rendered(self, found: FoundObject, kind: str) -> Scene:
        frames = read_frames(found.paths[kind])
        where = f"{found.category}/{found.object_id}, {kind}"
        full = torch.from_numpy(frames.intrinsics(image_size(frames.paths[0])))
        pixels = read_pictures(frames.paths, self.downscale)
        matrix = full.clone()
        matrix[:2] /= self.downscale
        masks = torch.from_numpy(np.ascontiguousarray(pixels[..., 3])) if pixels.shape[-1] == 4 else None
        poses = torch.from_numpy(frames.camera_to_world)
        surface = self._surface(found, frames) if kind == "blender_renders" else None
        if surface is not None and masks is not None:
            share = share_inside(surface[0].numpy()[:5000], masks[::8], matrix, poses[::8])
            if share < 0.9:
                raise ValueError(
                    f"{where}: only {share:.0%} of the scan lie inside the masks; scan and renderings are not of one "
                    "object or not in OmniObject3D's frames; set normalization to masks and move raw_scans/ away to "
                    "reconstruct without truth"
                )
        has_depth = kind == "blender_renders" and (found.paths[kind] / "depths").is_dir()
        source = self._normalization(where, surface is not None, has_depth, masks is not None)
        distances = read_depths(frames, full, where) if source == "depth" or self.with_depth else None
        similarity = _normalization(source, surface, distances, full, masks, matrix, poses, where)
        to_normalized = np.linalg.inv(similarity)
        views = Views(
            pixels,
            np.tile(matrix.numpy(), (len(poses), 1, 1)).astype(np.float32),
            posed(to_normalized, frames.camera_to_world).astype(np.float32),
        )
        known: dict[str, Tensor] = {}
        if surface is not None:
            known["surface_points"] = Shape(surface[0]).transformed(torch.from_numpy(to_normalized)).vertices.float()
            known |= {"surface_normals": surface[1].float()} if surface[1] is not None else {}
        if distances is not None and self.with_depth:
            known["depth"] = torch.from_numpy(distances * np.float32(to_normalized[0, 0]))
        return scene_of_views(
            views, found.object_id, found.category, where, similarity, self.background,
            image_names=[path.name for path in frames.paths], **known,
        )  # fmt: skip

    def _normalization(self, where: str, has_scan: bool, has_depth: bool, has_masks: bool) -> str:
        there = [
            name for name, known in (("scan", has_scan), ("depth", has_depth), ("masks", has_masks)) if known
        ]  # fmt: skip
        if self.normalization is None and there:
            return there[0]
        if self.normalization not in there:
            raise ValueError(
                f"{where}: where the object is cannot be known from {self.normalization or 'anything'}; there is "
                f"{', '.join(there) or 'no scan, no depth and no alpha'}; unpack the scan, or set normalization"
            )
        return self.normalization

    def _surface(self, found: FoundObject, frames: Frames) -> tuple[Tensor, Tensor | None] | None:
        """Samples of scan or cloud and, of a scan, their normals, in the render frame."""
        normals = None
        if "raw_scans" in found.paths:
            path = found.paths["raw_scans"]
            try:
                shape, location, scale = read_mesh(path, may_be_open=True)
            except ValueError as error:
                raise ValueError(f"{path} {error}; unpack the object's scan again") from error
            vertices = shape.vertices * scale + location
            generator = torch.Generator().manual_seed(0)
            points, normals = sample_surface(Shape(vertices, shape.faces), self.num_surface_points, generator)
        elif "point_clouds" in found.paths:
            vertices = torch.from_numpy(np.array(trimesh.load(found.paths["point_clouds"], process=False).vertices))
            points = vertices = vertices.double()
        else:
            return None
        upright = torch.from_numpy(UPRIGHT[:3, :3])
        scale = frames.scale or LARGEST_COORDINATE / float(vertices.abs().max())
        return points @ upright.T * scale, None if normals is None else normals @ upright.T


def _normalization(
    source: str,
    surface: tuple[Tensor, Tensor | None] | None,
    distances: np.ndarray | None,
    full: Tensor,
    masks: Tensor | None,
    matrix: Tensor,
    poses: Tensor,
    where: str,
) -> np.ndarray:
    """The similarity that brings the object into the unit sphere, with a margin."""
    if source == "masks":
        center, radius = sphere_of_masks(masks, matrix.expand(len(poses), 3, 3), poses, where)
        return similarity_to_sphere(center, radius / FILL)
    if source == "scan":
        points = surface[0].numpy()
    else:
        seen = zip(distances, poses, strict=True)
        points = np.concatenate([points_of_depth(depth, full, pose, every=7) for depth, pose in seen])
    center = (points.min(0) + points.max(0)) / 2
    return similarity_to_sphere(center, np.linalg.norm(points - center, axis=1).max() / FILL)
