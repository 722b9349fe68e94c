"""DTU's scans as a collection of objects: photographs, masks, cameras, points of the structured-light scanner.

So methods that learn from images and points train on real photographs. DTU knows surfaces seen from one side, and
nothing of what is inside: voxels and occupancy, which other methods learn from, cannot be made of it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import scipy.io
import torch
import trimesh
from PIL import Image

from datamodules.dtu import (
    decomposed,
    find_scan,
    full_masks_of,
    normalization,
    read_files,
    scan_name,
    scans_in,
)
from datamodules.dtu_layouts import (
    fit_to_pictures,
    is_of_another_shape,
    mask_paths_of,
    masks_of_alpha,
    read_sized_masks,
)
from datamodules.object_source import PHOTOGRAPH_KEYS, ObjectName, ObjectSource, Rows
from datamodules.objects import ObjectDataModule
from datamodules.photographs import read_images
from datamodules.splits import sorted_split, split_of_file

MOST_POINTS = 200_000


class DTUObjects(ObjectDataModule):
    """The scans of a folder, each an object with as many photographs as the one with the fewest.

    In memory a scan's unit sphere is the ball of radius 1/2, where collections of objects have theirs. Photographs are
    wider than high: set ``crop`` to their height, or a square ``image_size`` squeezes them.

    Args:
        root: Folder with the scans, in any layout that ``DTU`` reads.
        scans: Their numbers; null is all that are there.
        official_root: Folder of the official evaluation data, with Points/stl; null goes without surface points.
        split: Which scans are for what: sorted (by name, 80 % and 20 %) or a json file; null is sorted.
        val_share: Share of the training scans that is for validation.
        **kwargs: How batches are drawn, see ``ObjectDataModule``.
    """

    provides = PHOTOGRAPH_KEYS | {"surface_points", "normalized_to_dataset"}
    remedies: ClassVar[dict[str, str]] = {
        "masks": "put one mask an image into mask/ of every scan",
        "surface_points": "set official_root to the folder of the official evaluation data, with Points/stl",
        **dict.fromkeys(
            ("voxels", "query_points", "query_occupancy"), "DTU's scans see surfaces from one side, not what is inside"
        ),
    }

    def __init__(
        self,
        root: str,
        scans: list[int] | None = None,
        official_root: str | None = None,
        split: str | None = None,
        val_share: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root, self.scans, self.split, self.val_share = Path(root), scans, split, val_share
        self.official_root = Path(official_root) if official_root else None

    def load_source(self) -> ObjectSource:
        """Find the scans."""
        folders = scans_in(self.root) if self.scans is None else [find_scan(self.root, scan) for scan in self.scans]
        return DTUScans(folders, str(self.root), self.official_root)

    def load_split(self, source: ObjectSource) -> tuple[str, dict[str, list[int]]]:
        """The split by sorted names, or that of a file."""
        if self.split is not None and self.split.endswith(".json"):
            return split_of_file(Path(self.split), source.objects)
        if self.split not in (None, "sorted"):
            raise ValueError(f"split {self.split!r}: DTU knows sorted; give that or a json file")
        return "sorted", sorted_split(source.objects, 0.8, self.val_share)


class DTUScans(ObjectSource):
    """Scans as objects; photographs are read when they are asked for, cameras and points once.

    Args:
        folders: of the scans.
        name: of the collection, for errors.
        official_root: with ``Points/stl``; ``None`` goes without points.

    Raises:
        ValueError: there are none, or a file is missing.
    """

    def __init__(self, folders: Sequence[Path], name: str, official_root: Path | None) -> None:
        self.name, self.official_root = name, official_root
        self._folders = list(folders)
        self.objects = [ObjectName(scan_name(folder), "dtu") for folder in folders]
        self._files = [read_files(folder, scan_name(folder)) for folder in folders]
        self.num_views = min(len(paths) for paths, _, _ in self._files)
        keys = {"images", "intrinsics", "camera_to_world"}
        if all(self._has_masks(index) for index in range(len(folders))):
            keys |= {"masks"}
        if official_root is not None:
            for index in range(len(folders)):
                self._points_file(index)
            keys |= {"surface_points"}
        self.keys = frozenset(keys)
        self._cameras: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        self._points: dict[int, np.ndarray] = {}

    def splits(self) -> dict[str, dict[str, list[int]]]:
        """By sorted names."""
        return {"sorted": sorted_split(self.objects, 0.8, 0.0)}

    def _has_masks(self, index: int) -> bool:
        if mask_paths_of(self._folders[index]):
            return True
        with Image.open(self._files[index][0][0]) as file:
            return "A" in file.getbands()

    def _points_file(self, index: int) -> Path:
        number = self.objects[index].object_id.removeprefix("scan")
        path = self.official_root / f"Points/stl/stl{number.zfill(3)}_total.ply"
        if not path.is_file():
            raise ValueError(
                f"DTU {self.objects[index].object_id}: official_root has no {path}; see roboimagedata.compute.dtu.dk "
                "for the data, or leave the scan out of scans"
            )
        return path

    def _size(self, index: int) -> tuple[int, int]:
        with Image.open(self._files[index][0][0]) as file:
            return file.height, file.width

    def _known_cameras(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        # intrinsics, poses, normalized_to_dataset
        if index not in self._cameras:
            folder, (paths, projections, similarity) = self._folders[index], self._files[index]
            name, size = self.objects[index].object_id, self._size(index)
            masks, are_cut = None, self._masks_are_cut(index, size)
            projections = fit_to_pictures(projections, paths, size, are_cut, name)
            if similarity is None:
                masks, _ = full_masks_of(folder, paths, size, name)
                similarity = normalization(projections, size, masks, [path.name for path in paths], name)
            halved = similarity @ torch.diag(torch.tensor([2.0, 2, 2, 1], dtype=torch.float64))
            intrinsics, poses = decomposed(projections @ halved, [path.name for path in paths], name)
            self._cameras[index] = (intrinsics.float().numpy(), poses.float().numpy(), halved.numpy())
        return self._cameras[index]

    def _masks_are_cut(self, index: int, size: tuple[int, int]) -> bool:
        paths = mask_paths_of(self._folders[index])
        return (
            bool(paths) and (self._folders[index] / "sparse/0").is_dir() and is_of_another_shape(paths[0], size)
        )  # fmt: skip

    def cameras(self, index: int, views: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """See ``ObjectSource``."""
        intrinsics, poses, _ = self._known_cameras(index)
        return intrinsics[list(views)], poses[list(views)]

    def normalized_to_dataset(self, index: int) -> np.ndarray:
        """See ``ObjectSource``: millimetres."""
        return self._known_cameras(index)[2]

    def pixels(self, index: int, views: Sequence[int]) -> np.ndarray:
        """See ``ObjectSource``; masks become alpha."""
        paths = [self._files[index][0][view] for view in views]
        images, size = read_images(paths)
        if "masks" not in self.keys:
            return images.numpy()
        files = mask_paths_of(self._folders[index])
        if files and len(files) != len(self._files[index][0]):
            raise ValueError(
                f"DTU {self.objects[index].object_id}: {len(self._files[index][0])} images but {len(files)} masks; one "
                "an image is needed"
            )
        masks = None
        if files and not self._masks_are_cut(index, size):
            masks = read_sized_masks([files[view] for view in views], size, self.objects[index].object_id)
        if masks is None:
            masks = masks_of_alpha(paths, size)
        if masks is None:  # not a hole in any of these
            masks = torch.full(images.shape[:3], 255, dtype=torch.uint8)
        return torch.cat([images, masks[..., None]], dim=-1).numpy()

    def num_surface_points(self, index: int) -> int:
        """See ``ObjectSource``."""
        return len(self._cloud(index))

    def surface(self, index: int, rows: Rows) -> tuple[np.ndarray, np.ndarray | None]:
        """See ``ObjectSource``."""
        return self._cloud(index)[rows], None

    def _cloud(self, index: int) -> np.ndarray:
        """What the scanner saw of the object: inside its sphere and, where the plane is known, above the ground."""
        if index not in self._points:
            path = self._points_file(index)
            points = np.asarray(trimesh.load(path, process=False).vertices, dtype=np.float64)
            to_normalized = np.linalg.inv(self._known_cameras(index)[2])
            inside = points @ to_normalized[:3, :3].T + to_normalized[:3, 3]
            keep = np.linalg.norm(inside, axis=1) < 0.5
            plane = self._plane(index)
            if plane is not None:
                keep &= points @ plane[:3] + plane[3] > 0
            chosen = inside[keep]
            if len(chosen) == 0:
                raise ValueError(
                    f"DTU {self.objects[index].object_id}: none of the {len(points)} points of {path} lies on the "
                    "object; check that scan and points are of one number"
                )
            order = np.random.default_rng(0).permutation(len(chosen))[:MOST_POINTS]
            self._points[index] = chosen[order].astype(np.float32)
        return self._points[index]

    def _plane(self, index: int) -> np.ndarray | None:
        number = self.objects[index].object_id.removeprefix("scan")
        for folder in ("SampleSet/MVS Data/ObsMask", "ObsMask"):
            path = self.official_root / folder / f"Plane{number}.mat"
            if path.is_file():
                return scipy.io.loadmat(path)["P"].astype(np.float64).ravel()
        return None
