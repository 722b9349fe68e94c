"""IM-Net's hdf5 files, in both of the layouts they were released in, told apart by what is in them.

Each has ``voxels`` (N, 64, 64, 64, 1), ``points_16``, ``points_32``, ``points_64`` and ``values_*`` (N, M, 1), and may
have ``pixels`` (N, V, 137, 137) grey; the models' names are in a text file beside it. Points are whole numbers p:

- IM-NET and IM-NET-pytorch count them in a grid of 256 at every resolution, so they are at (p + 0.5) / 256 - 0.5
- implicit-decoder counts them in a grid of the resolution r itself, so they are at (p + 0.5) / r - 0.5

The frame is that of the voxels, in [-0.5, 0.5]³, where the authors scaled each model to a box with diagonal 1.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning_utilities.core.imports import RequirementCache

from datamodules.object_source import ObjectName, ObjectSource, Rows
from datamodules.splits import category_of, sorted_split

if TYPE_CHECKING:
    import h5py

_H5PY = RequirementCache("h5py")
RESOLUTIONS = (16, 32, 64)


class IMNetFiles(ObjectSource):
    """Objects of ``<name>_train.hdf5`` and ``<name>_test.hdf5``, or of one file.

    Args:
        root: one file, or a folder with such files.
        val_share: of the training names, for validation.

    Raises:
        ModuleNotFoundError: h5py is not installed.
        ValueError: a file is missing, damaged, or of neither layout.
    """

    def __init__(self, root: Path, val_share: float = 0.0) -> None:
        if not _H5PY:
            raise ModuleNotFoundError("reading IM-Net's hdf5 files needs h5py: pip install h5py")
        self.name, self.val_share = str(root), val_share
        self.paths = [root] if root.is_file() else find_files(root)
        self._files: dict[tuple[int, int], h5py.File] = {}
        self.objects, self._rows = [], []
        for number, path in enumerate(self.paths):
            names = _names(path, len(self._file(number)["voxels"]))
            self.objects += names
            self._rows += [(number, row) for row in range(len(names))]
        with_pixels = ["pixels" in self._file(number) for number in range(len(self.paths))]
        self.num_views = self._file(0)["pixels"].shape[1] if all(with_pixels) else 0
        self.voxel_resolutions, self.query_sets = (self._file(0)["voxels"].shape[1],), RESOLUTIONS
        keys = {"voxels", "query_points", "query_occupancy"} | ({"images"} if self.num_views else set())
        self.keys = frozenset(keys)
        self.layouts = [layout_of(self._file(number), path) for number, path in enumerate(self.paths)]

    def __getstate__(self) -> dict[str, Any]:
        # an open file cannot be sent to a worker, who opens it itself
        return {**self.__dict__, "_files": {}}

    def _file(self, number: int) -> "h5py.File":
        import h5py

        # a worker that was forked opens the file for itself: two processes must not share one handle
        key = (os.getpid(), number)
        if key not in self._files:
            path = self.paths[number]
            try:
                file = h5py.File(path, "r")
            except OSError as error:
                raise ValueError(f"{path} cannot be read as hdf5 ({error}); download it again") from error
            needed = ["voxels", *(f"{kind}_{r}" for r in RESOLUTIONS for kind in ("points", "values"))]
            missing = [name for name in needed if name not in file]
            if missing:
                raise ValueError(f"{path}: no {', '.join(missing)}; expected IM-Net's arrays, found {', '.join(file)}")
            self._files[key] = file
        return self._files[key]

    def splits(self) -> dict[str, dict[str, list[int]]]:
        """The split of the files; of one file alone, the first 80 % of the sorted names are for training."""
        if len(self.paths) == 1:
            return {"imnet": sorted_split(self.objects, 0.8, self.val_share)}
        in_train = [index for index, (number, _) in enumerate(self._rows) if number == 0]
        test = [index for index, (number, _) in enumerate(self._rows) if number == 1]
        parts = sorted_split([self.objects[index] for index in in_train], 1.0, self.val_share)
        train, val = ([in_train[position] for position in parts[stage]] for stage in ("train", "val"))
        return {"imnet": {"train": train, "val": val, "test": test}}

    def pixels(self, index: int, views: Sequence[int]) -> np.ndarray:
        """See ``ObjectSource``."""
        number, row = self._rows[index]
        # h5py takes indices in order only; a row is one chunk or few, and small
        pictures = self._file(number)["pixels"][row][list(views)]
        return np.repeat(pictures[..., None], 3, axis=-1)

    def num_query_points(self, index: int, query_set: int | None) -> int:
        """See ``ObjectSource``."""
        return self._file(self._rows[index][0])[f"points_{query_set}"].shape[1]

    def queries(self, index: int, query_set: int | None, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """See ``ObjectSource``."""
        number, row = self._rows[index]
        edge = 256 if self.layouts[number] == "im-net" else query_set
        points = self._file(number)[f"points_{query_set}"][row][rows]
        # half precision holds these positions exactly
        positions = ((points.astype(np.float32) + 0.5) / edge - 0.5).astype(np.float16)
        return positions, self._file(number)[f"values_{query_set}"][row][rows, 0] > 0

    def voxels(self, index: int, resolution: int) -> np.ndarray:
        """See ``ObjectSource``."""
        number, row = self._rows[index]
        return self._file(number)["voxels"][row][..., 0] > 0


def layout_of(file: "h5py.File", path: Path) -> str:
    """``im-net`` or ``implicit-decoder``, by the coordinates of the first model's points.

    Raises:
        ValueError: they fit neither, or the resolutions contradict one another.
    """
    largest = {r: int(np.max(file[f"points_{r}"][0])) for r in RESOLUTIONS}
    if all(largest[r] < r for r in RESOLUTIONS):
        return "implicit-decoder"
    # at 16 there is a point in every cell, so one of the last sixteenth
    if largest[16] >= 240 and all(64 <= value < 256 for value in largest.values()):
        return "im-net"
    raise ValueError(
        f"{path}: the largest coordinates of points_16, points_32 and points_64 are {list(largest.values())}; expected "
        "at least 240 and at most 255 (IM-NET) or less than 16, 32 and 64 (implicit-decoder)"
    )


def find_files(root: Path) -> list[Path]:
    """The file of training models and that of test models, or the only file.

    Raises:
        ValueError: there are none, or several and no such pair.
    """
    files = sorted(root.glob("*.hdf5"))
    if len(files) == 1:
        return files
    for train in files:
        if train.stem.endswith("_train") and (test := train.with_name(train.name.replace("_train", "_test"))) in files:
            return [train, test]
    raise ValueError(
        f"{root}: expected one .hdf5 file, or <name>_train.hdf5 and <name>_test.hdf5, found "
        f"{', '.join(path.name for path in files) or 'none'}; download IM-Net's data, or set root to one file"
    )


def _names(path: Path, count: int) -> list[ObjectName]:
    text = path.with_suffix(".txt")
    if not text.is_file():
        raise ValueError(f"{text} is missing: the names of the models in {path.name}; download it with that file")
    lines = [line.strip() for line in text.read_text().splitlines() if line.strip()]
    if len(lines) != count:
        raise ValueError(f"{text}: {len(lines)} names of {count} models in {path.name}; download both again")
    # "<synset>/<model>", or a model alone, whose category is then the file's
    pairs = [
        (line.rpartition("/")[0].split("/")[-1] or path.stem.split("_")[0], line.rpartition("/")[2]) for line in lines
    ]
    return [ObjectName(model, category_of(synset)) for synset, model in pairs]
