"""OmniObject3D as a collection of objects: renderings, and what is made of the scans."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import trimesh
from pytorch_lightning.utilities.rank_zero import rank_zero_warn

from datamodules.object_source import PHOTOGRAPH_KEYS, ObjectName, ObjectSource, Rows, bit_rows
from datamodules.omniobject3d_files import (
    LARGEST_COORDINATE,
    UPRIGHT,
    FoundObject,
    Frames,
    image_size,
    read_frames,
    read_pictures,
    share_inside,
)
from datamodules.one_object import posed
from datamodules.prepare.omniobject3d import RESOLUTIONS, PreparedScan, prepared_file
from datamodules.shapenet_trees import read_npz
from datamodules.splits import sorted_split

Renderings = Literal["blender_renders", "blender_renders_24_views"]
CAMERA_KEYS = frozenset({"intrinsics", "camera_to_world"})
SURFACE_KEYS = frozenset({"surface_points", "surface_normals"})
VOLUME_KEYS = frozenset({"voxels", "query_points", "query_occupancy"})


class OmniObject3DTree(ObjectSource):
    """Objects of OmniObject3D that have what is read of them.

    The frame is that of the scan (y up) centred, with longest edge 1; ``normalized_to_dataset`` leads to the render
    frame (see ``omniobject3d_files``). Cameras are known of ``blender_renders``, whose frame is that of the scan; that
    the first object's scan lies inside its masks is checked.

    Args:
        objects: what there is.
        name: of the collection, for errors.
        folder: of the prepared scans.
        report: which of them there are.
        reads: keys that every object must fill; objects that cannot are left out, aloud. What all the others can fill
            beside is there, too.
        views: which renderings.
        keep_open: count scans that are not watertight as solids.
        val_share: share of the training names that is for validation.

    Raises:
        ValueError: scan and renderings do not fit.
    """

    voxel_resolutions: tuple[int, ...] = ()

    def __init__(
        self,
        objects: Sequence[FoundObject],
        name: str,
        folder: Path,
        report: dict[tuple[str, str], PreparedScan],
        reads: frozenset[str],
        views: Renderings,
        keep_open: bool = False,
        val_share: float = 0.05,
    ) -> None:
        self.name, self.folder, self.view_kind, self.val_share = name, folder, views, val_share
        filled = [self._filled_by(found, report, keep_open) for found in objects]
        # where no object has a key, all stay, and the key is missed by name
        wanted = reads & frozenset().union(*filled)
        self._found = [found for found, keys in zip(objects, filled, strict=True) if wanted <= keys]
        left_out = [found for found, keys in zip(objects, filled, strict=True) if not wanted <= keys]
        if left_out and self._found:
            rank_zero_warn(
                f"{name}: {len(left_out)} of {len(objects)} objects lack {', '.join(sorted(wanted))} in part and are "
                f"left out, {left_out[0].category}/{left_out[0].object_id} for one"
            )
        kept = [keys for keys in filled if wanted <= keys]
        self.keys = frozenset.intersection(*kept) if kept else frozenset()
        self.objects = [ObjectName(found.object_id, found.category) for found in self._found]
        if "images" in self.keys:
            frames = read_frames(self._found[0].paths[views])
            self.num_views = len(frames.paths)
            if read_pictures(frames.paths[:1]).shape[-1] == 3:
                self.keys -= {"masks"}
        if "voxels" in self.keys:
            self.voxel_resolutions, self.query_sets = RESOLUTIONS, (None,)
        if {"masks", "camera_to_world", "surface_points"} <= self.keys:
            self._check_frame(0)

    def _filled_by(
        self, found: FoundObject, report: dict[tuple[str, str], PreparedScan], keep_open: bool
    ) -> frozenset[str]:
        keys: set[str] = set()
        prepared = report.get((found.category, found.object_id))
        has_scan = prepared is not None and not prepared.problem
        if self.view_kind in found.paths:
            keys |= {"images", "masks"}
            if self.view_kind == "blender_renders" and (has_scan or "point_clouds" in found.paths):
                keys |= CAMERA_KEYS
        if has_scan:
            keys |= SURFACE_KEYS | (VOLUME_KEYS if keep_open or prepared.watertight else frozenset())
        elif "point_clouds" in found.paths:
            keys |= {"surface_points"}
        return frozenset(keys)

    def _check_frame(self, index: int) -> None:
        views = list(range(0, self.num_views, max(1, self.num_views // 6)))
        pixels = self.pixels(index, views)
        intrinsics, poses = (torch.from_numpy(array) for array in self.cameras(index, views))
        points = self.surface(index, slice(0, min(5000, self.num_surface_points(index))))[0].astype(np.float64)
        share = share_inside(points, torch.from_numpy(pixels[..., 3]), intrinsics[0], poses)
        if share < 0.9:
            name = self.objects[index]
            raise ValueError(
                f"{self.name}: only {share:.0%} of the scan of {name.category}/{name.object_id} lie inside the masks "
                "of its renderings; they are not of one object or not in OmniObject3D's frames"
            )

    def splits(self) -> dict[str, dict[str, list[int]]]:
        """By sorted names of each category; OmniObject3D itself has no split of objects."""
        return {"sorted": sorted_split(self.objects, 0.8, self.val_share)}

    def pixels(self, index: int, views: Sequence[int]) -> np.ndarray:
        """See ``ObjectSource``."""
        paths = self._frames(index).paths
        return read_pictures([paths[view] for view in views])

    def _frames(self, index: int) -> Frames:
        folder = self._found[index].paths[self.view_kind]
        frames = read_frames(folder)
        if len(frames.paths) != self.num_views:
            raise ValueError(
                f"{folder}: {len(frames.paths)} pictures, but the first object has {self.num_views}; all need as many"
            )
        return frames

    def cameras(self, index: int, views: Sequence[int]) -> tuple[np.ndarray, np.ndarray] | None:
        """See ``ObjectSource``."""
        if "camera_to_world" not in self.keys:
            return None
        frames = self._frames(index)
        matrix = frames.intrinsics(image_size(frames.paths[0])).astype(np.float32)
        poses = posed(np.linalg.inv(self.normalized_to_dataset(index)), frames.camera_to_world[list(views)])
        return np.tile(matrix, (len(poses), 1, 1)), poses.astype(np.float32)

    def normalized_to_dataset(self, index: int) -> np.ndarray:
        """See ``ObjectSource``: into the render frame, into the scan's own where nothing says what its scale was."""
        if not self.keys - PHOTOGRAPH_KEYS:
            return np.eye(4)
        location, scale, largest = self._frame(index)
        found = self._found[index]
        rendered = LARGEST_COORDINATE / largest
        if "blender_renders" in found.paths:
            said = read_frames(found.paths["blender_renders"]).scale
            if said is not None and abs(rendered / said - 1) > 0.02:
                raise ValueError(
                    f"{found.paths['blender_renders']}: the scan was multiplied by {said:.6g} to be rendered, but its "
                    f"largest coordinate {largest:.6g} asks for {rendered:.6g}; scan and renderings are not of one "
                    "object"
                )
            rendered = said or rendered
        centred = np.diag([scale, scale, scale, 1.0])
        centred[:3, 3] = location
        return np.diag([rendered, rendered, rendered, 1.0]) @ UPRIGHT @ centred

    def _frame(self, index: int) -> tuple[np.ndarray, float, float]:
        # middle of the box, longest edge and largest coordinate of the scan, in its own frame
        if "surface_normals" in self.keys:
            location, scale, largest = read_npz(self._path(index), "location", "scale", "largest_coordinate")
            return location, float(scale), float(largest)
        points = self._cloud(index)
        low, high = points.min(0), points.max(0)
        return (low + high) / 2, float((high - low).max()), float(abs(points).max())

    def _path(self, index: int) -> Path:
        name = self.objects[index]
        return prepared_file(self.folder, name.category, name.object_id)

    def _cloud(self, index: int) -> np.ndarray:
        path = self._found[index].paths["point_clouds"]
        try:
            points = np.asarray(trimesh.load(path, process=False).vertices, dtype=np.float64)
        except (OSError, ValueError, IndexError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} cannot be read as points ({error!r}); unpack it again") from error
        if len(points) == 0 or not np.isfinite(points).all():
            raise ValueError(f"{path}: {len(points)} points, not all of them finite; unpack it again")
        return points

    def num_surface_points(self, index: int) -> int:
        """See ``ObjectSource``."""
        if "surface_normals" in self.keys:
            return len(read_npz(self._path(index), "surface_points")[0])
        return len(self._cloud(index))

    def surface(self, index: int, rows: Rows) -> tuple[np.ndarray, np.ndarray | None]:
        """See ``ObjectSource``; point clouds have no normals."""
        if "surface_normals" in self.keys:
            points, normals = read_npz(self._path(index), "surface_points", "surface_normals")
            return points[rows], normals[rows]
        location, scale, _ = self._frame(index)
        return ((self._cloud(index)[rows] - location) / scale).astype(np.float32), None

    def num_query_points(self, index: int, query_set: int | None) -> int:
        """See ``ObjectSource``."""
        return len(read_npz(self._path(index), "query_points")[0])

    def queries(self, index: int, query_set: int | None, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """See ``ObjectSource``."""
        points, bits = read_npz(self._path(index), "query_points", "query_occupancy")
        return points[rows], bit_rows(bits, rows, len(points))

    def voxels(self, index: int, resolution: int) -> np.ndarray:
        """See ``ObjectSource``."""
        (bits,) = read_npz(self._path(index), f"voxels_{resolution}")
        return np.unpackbits(bits, count=resolution**3).reshape([resolution] * 3).astype(bool)
