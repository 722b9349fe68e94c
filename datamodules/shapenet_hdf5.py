"""IM-Net's hdf5 files, in both of the layouts they were released in, told apart by what is in them.

Each has ``voxels`` (N, 64, 64, 64, 1), ``points_16``, ``points_32``, ``points_64`` and ``values_*`` (N, M, 1), and may
have ``pixels`` (N, V, 137, 137) grey; the models' names are in a text file beside it. Points are whole numbers p:

- IM-NET and IM-NET-pytorch count them in a grid of 256 at every resolution, so they are at (p + 0.5) / 256 - 0.5
- implicit-decoder counts them in a grid of the resolution r itself, so they are at (p + 0.5) / r - 0.5

The frame is that of the voxels, in [-0.5, 0.5]³, where the authors scaled each model to a box with diagonal 1.

The released files are compressed in blocks that h5py chose: of 35,019 models, each block of the voxels holds 4 x 4 x 8
cells of 2,189 models. To read one model all 2,048 blocks it has a part in are unpacked, 574 MB. So these files are for
packing, which unpacks each block once; training reads what was packed.
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
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
        self._blocks: _Blocks | None = None
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
        return {**self.__dict__, "_files": {}, "_blocks": None}

    @contextmanager
    def in_order(self) -> Iterator[None]:
        """See ``ObjectSource``; of each array a block of models is in memory, of the released files 1.6 GB in all."""
        self._blocks = _Blocks()
        try:
            yield
        finally:
            self._blocks = None

    def _row(self, index: int, key: str) -> np.ndarray:
        number, row = self._rows[index]
        array = self._file(number)[key]
        return array[row] if self._blocks is None else self._blocks.row((number, key), array, row)

    def unpacked_bytes(self, keys: Sequence[str]) -> int:
        """How much is unpacked to read these arrays of one object; as much as is read, where nothing is packed."""
        arrays = [self._file(0)[key] for key in keys]
        return sum(_unpacked_bytes(array.shape, array.chunks or (1, *array.shape[1:])) for array in arrays)

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
        # h5py takes indices in order only, and a picture alone would cost as much as all of its object
        pictures = self._row(index, "pixels")[list(views)]
        return np.repeat(pictures[..., None], 3, axis=-1)

    def num_query_points(self, index: int, query_set: int | None) -> int:
        """See ``ObjectSource``."""
        return self._file(self._rows[index][0])[f"points_{query_set}"].shape[1]

    def queries(self, index: int, query_set: int | None, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """See ``ObjectSource``."""
        edge = 256 if self.layouts[self._rows[index][0]] == "im-net" else query_set
        points = self._row(index, f"points_{query_set}")[rows]
        # half precision holds these positions exactly
        positions = ((points.astype(np.float32) + 0.5) / edge - 0.5).astype(np.float16)
        return positions, self._row(index, f"values_{query_set}")[rows, 0] > 0

    def voxels(self, index: int, resolution: int) -> np.ndarray:
        """See ``ObjectSource``."""
        return self._row(index, "voxels")[..., 0] > 0


class _Blocks:
    """Rows of arrays from blocks of rows, each read once and dropped when all of its rows were asked for."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._open: dict[tuple[Any, int], list[Any]] = {}

    def row(self, name: Any, array: "h5py.Dataset", row: int) -> np.ndarray:
        """Row number ``row`` of the array called ``name``."""
        size = array.chunks[0] if array.chunks else 1
        number, place = divmod(row, size)
        with self._lock:
            if (name, number) not in self._open:
                block = array[number * size : (number + 1) * size]
                self._open[name, number] = [block, len(block)]
            entry = self._open[name, number]
            entry[1] -= 1
            if not entry[1]:
                del self._open[name, number]
        return entry[0][place]


def _unpacked_bytes(shape: Sequence[int], chunks: Sequence[int]) -> int:
    # of arrays of bytes
    num_chunks = math.prod(math.ceil(size / edge) for size, edge in zip(shape[1:], chunks[1:], strict=True))
    return num_chunks * math.prod(chunks)


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
