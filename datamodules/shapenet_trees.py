"""ShapeNet as folders of many files: 3D-R2N2's renderings and voxels, and Occupancy Networks' preprocessed tree."""

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datamodules import choy
from datamodules.binvox import read_binvox
from datamodules.listing import listed_folders
from datamodules.object_source import ObjectName, ObjectSource, Rows, bit_rows, taken
from datamodules.packed import decoded, stacked
from datamodules.splits import category_of, listed_split, sorted_split

# models whose distributed files are known to be broken (3D-R2N2's own list)
BROKEN = (
    "67ada28ebc79cc75a056f196c127ed77",
    "4a32519f44dc84aabafe26e2eb69ebf4",
    "b65b590a565fa2547e1c85c5c15da7fb",
)
SYNSET = re.compile(r"\d{8}")


class R2N2Tree(ObjectSource):
    """``ShapeNetRendering/<synset>/<model>/rendering/00.png`` and ``ShapeNetVox32/<synset>/<model>/model.binvox``.

    A model that lacks its renderings or its voxels is left out. The frame has the longest edge 1; the voxels fill it.

    Args:
        root: holds both folders.
        val_share: of the training names, for validation.

    Raises:
        ValueError: a folder is missing or empty.
    """

    num_views = 24
    voxel_resolutions = (32,)
    keys = frozenset({"images", "masks", "intrinsics", "camera_to_world", "voxels"})

    def __init__(self, root: Path, val_share: float = 0.0) -> None:
        self.name, self.val_share = str(root), val_share
        self.renderings, self.grids = root / "ShapeNetRendering", root / "ShapeNetVox32"
        for folder in (self.renderings, self.grids):
            if not folder.is_dir():
                raise ValueError(
                    f"{folder} is missing; unpack {folder.name}.tgz of 3D-R2N2 into {root}, so that renderings and "
                    "voxels lie side by side"
                )
        rendered, voxelized = _models(self.renderings), _models(self.grids)
        self._paths = sorted(set(rendered) & set(voxelized))
        self.objects = [ObjectName(model, category_of(synset)) for synset, model in self._paths]
        self.num_left_out = len(set(rendered) ^ set(voxelized))
        if not self.objects:
            raise ValueError(f"{root}: no model has both renderings and voxels; expected <synset>/<model>/ in both")

    def splits(self) -> dict[str, dict[str, list[int]]]:
        """3D-R2N2's split of sorted names."""
        return {"r2n2": sorted_split(self.objects, 0.8, self.val_share)}

    def _rendering(self, index: int) -> Path:
        return self.renderings.joinpath(*self._paths[index], "rendering")

    def pixels(self, index: int, views: Sequence[int]) -> np.ndarray:
        """See ``ObjectSource``."""
        return stacked([_picture(self._rendering(index) / f"{view:02d}.png") for view in views])

    def encoded_view(self, index: int, view: int) -> bytes:
        """See ``ObjectSource``."""
        return _file(self._rendering(index) / f"{view:02d}.png").read_bytes()

    def cameras(self, index: int, views: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """See ``ObjectSource``; how large the model was when it was rendered is in the header of its voxels."""
        path = self._rendering(index) / "rendering_metadata.txt"
        metadata = choy.read_metadata(path)
        if len(metadata) < self.num_views:
            raise ValueError(f"{path}: {len(metadata)} cameras, expected {self.num_views}; unpack the archive again")
        _, scale = self._grid(index)
        poses = choy.camera_to_world(metadata[list(views)], scale).astype(np.float32)
        return np.tile(choy.intrinsics().astype(np.float32), (len(poses), 1, 1)), poses

    def voxels(self, index: int, resolution: int) -> np.ndarray:
        """See ``ObjectSource``."""
        return self._grid(index)[0]

    def _grid(self, index: int) -> tuple[np.ndarray, float]:
        path = self.grids.joinpath(*self._paths[index], "model.binvox")
        voxels, scale = read_binvox(path)
        if len(voxels) != 32:
            raise ValueError(f"{path}: a grid of {len(voxels)}³, expected 32³ as in ShapeNetVox32.tgz")
        return voxels, scale


class ONetTree(ObjectSource):
    """``<synset>/<model>/`` with ``img_choy2016/``, ``pointcloud.npz``, ``points.npz``, ``model.binvox``; as ONet's.

    What a copy has is judged by its first model. The frame is that of the files: centred, longest edge 1. Their ``loc``
    and ``scale`` lead from there to the frame of the cameras.

    Args:
        root: holds the synsets.
        val_share: of the training names, for validation, where the split is 3D-R2N2's.

    Raises:
        ValueError: there are no models.
    """

    def __init__(self, root: Path, val_share: float = 0.0) -> None:
        self.root, self.name, self.val_share = root, str(root), val_share
        lists = sorted(root.glob("*/*.lst"))
        self._has_lists = bool(lists)
        listed = [(path.parent.name, model) for path in lists for model in _lines(path)]
        self._paths = sorted(set(listed)) or _models(root)
        if not self._paths:
            raise ValueError(f"{root}: no models; expected <synset>/<model>/ as in Occupancy Networks' dataset.zip")
        self.objects = [ObjectName(model, category_of(synset)) for synset, model in self._paths]
        self._synset_of = {category_of(synset): synset for synset, _ in self._paths}
        first = root.joinpath(*self._paths[0])
        found = {name for name in ("pointcloud.npz", "points.npz", "model.binvox") if (first / name).is_file()}
        keys, self._counts = set(), {}
        if (first / "img_choy2016").is_dir():
            keys |= {"images"}
            self.num_views = len([path for path in (first / "img_choy2016").iterdir() if path.suffix == ".jpg"])
            if (first / "img_choy2016/cameras.npz").is_file() and found & {"pointcloud.npz", "points.npz"}:
                keys |= {"intrinsics", "camera_to_world"}
        if "pointcloud.npz" in found:
            keys |= {"surface_points", "surface_normals"}
            self._counts["pointcloud.npz"] = len(read_npz(first / "pointcloud.npz", "points")[0])
        if "points.npz" in found:
            keys |= {"query_points", "query_occupancy"}
            self._counts["points.npz"] = len(read_npz(first / "points.npz", "points")[0])
            self.query_sets = (None,)
        if "model.binvox" in found:
            keys |= {"voxels"}
            self.voxel_resolutions = (len(read_binvox(first / "model.binvox")[0]),)
        self.keys = frozenset(keys)

    def splits(self) -> dict[str, dict[str, list[int]]]:
        """ONet's lists, where there are any, and 3D-R2N2's split of sorted names."""
        splits = {"r2n2": sorted_split(self.objects, 0.8, self.val_share)}
        if self._has_lists:
            splits = {"onet": listed_split(self._list, self.objects, self.name), **splits}
        return splits

    def _list(self, category: str, stage: str) -> list[str] | None:
        path = self.root / self._synset_of[category] / f"{stage}.lst"
        return _lines(path) if path.is_file() else None

    def _path(self, index: int, name: str) -> Path:
        return self.root.joinpath(*self._paths[index], name)

    def pixels(self, index: int, views: Sequence[int]) -> np.ndarray:
        """See ``ObjectSource``."""
        return stacked([_picture(self._path(index, f"img_choy2016/{view:03d}.jpg")) for view in views])

    def encoded_view(self, index: int, view: int) -> bytes | None:
        """See ``ObjectSource``."""
        return _file(self._path(index, f"img_choy2016/{view:03d}.jpg")).read_bytes() if self.num_views else None

    def cameras(self, index: int, views: Sequence[int]) -> tuple[np.ndarray, np.ndarray] | None:
        """See ``ObjectSource``."""
        if "camera_to_world" not in self.keys:
            return None
        points = self._path(index, "pointcloud.npz" if "surface_points" in self.keys else "points.npz")
        location, scale = read_npz(points, "loc", "scale")
        names = [f"{kind}_mat_{view}" for view in views for kind in ("camera", "world")]
        matrices = read_npz(self._path(index, "img_choy2016/cameras.npz"), *names)
        poses = np.tile(np.eye(4), (len(views), 1, 1))
        for pose, world in zip(poses, matrices[1::2], strict=True):
            # the camera sees rotation (scale x + location) + translation; divided by scale that is rigid
            rotation, translation = world[:, :3].astype(np.float64), world[:, 3].astype(np.float64)
            moved = (rotation @ location.astype(np.float64) + translation) / float(scale)
            pose[:3, :3], pose[:3, 3] = rotation.T, -rotation.T @ moved
        return np.stack(matrices[::2]).astype(np.float32), poses.astype(np.float32)

    def num_surface_points(self, index: int) -> int:
        """See ``ObjectSource``."""
        return self._counts["pointcloud.npz"]

    def surface(self, index: int, rows: Rows) -> tuple[np.ndarray, np.ndarray | None]:
        """See ``ObjectSource``."""
        points, normals = self._points(index, "pointcloud.npz", "points", "normals")
        return taken(points, rows), taken(normals, rows)

    def surface_points(self, index: int, rows: Rows) -> np.ndarray:
        """See ``ObjectSource``."""
        return taken(self._points(index, "pointcloud.npz", "points")[0], rows)

    def num_query_points(self, index: int, query_set: int | None) -> int:
        """See ``ObjectSource``."""
        return self._counts["points.npz"]

    def _points(self, index: int, name: str, *arrays: str) -> list[np.ndarray]:
        path = self._path(index, name)
        points, *others = read_npz(path, *arrays)
        if len(points) != self._counts[name]:
            raise ValueError(
                f"{path}: {len(points)} points, but {self._counts[name]} in the first model; all need as many"
            )
        return [points, *others]

    def queries(self, index: int, query_set: int | None, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """See ``ObjectSource``."""
        points, occupancy = self._points(index, "points.npz", "points", "occupancies")
        is_packed = len(occupancy) == -(-len(points) // 8)
        if not is_packed and len(occupancy) != len(points):
            path = self._path(index, "points.npz")
            raise ValueError(f"{path}: {len(occupancy)} occupancies of {len(points)} points; download it again")
        chosen = bit_rows(occupancy, rows, len(points)) if is_packed else occupancy[rows].astype(bool)
        return taken(points, rows), chosen

    def voxels(self, index: int, resolution: int) -> np.ndarray:
        """See ``ObjectSource``."""
        return read_binvox(self._path(index, "model.binvox"))[0]


def read_npz(path: Path, *names: str) -> list[np.ndarray]:
    """Arrays of an npz file.

    Raises:
        ValueError: the file is missing or damaged, or lacks an array.
    """
    try:
        with np.load(_file(path), allow_pickle=False) as file:
            missing = [name for name in names if name not in file.files]
            if missing:
                raise ValueError(f"it has no {missing[0]!r} but {', '.join(file.files[:8])}")
            return [file[name] for name in names]
    except (OSError, EOFError, zipfile.BadZipFile, ValueError) as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path} cannot be read: {error}; download or unpack it again") from error


def _file(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"{path} is missing; download or unpack the dataset again")
    return path


def _picture(path: Path) -> np.ndarray:
    return decoded(_file(path), str(path))


def _models(root: Path) -> list[tuple[str, str]]:
    """(synset, model) of the folders below a root, sorted."""
    return [(synset, model) for synset, model in listed_folders(root, SYNSET) if model not in BROKEN]


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text().splitlines() if line.strip()]
