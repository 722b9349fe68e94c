"""Many objects in few files: NumPy arrays that are mapped into memory, shared by all workers, read without a parser.

A folder with ``objects.json`` (names, splits, what is there) and, as far as there is something to keep, one row an
object in each of

- ``images.npy`` (O, V, H, W, C) uint8, or ``images.bin``, all picture files one after the other, with
  ``image_offsets.npy`` (O V + 1,) int64; ``intrinsics.npy`` (O, V, 3, 3), ``camera_to_world.npy`` (O, V, 4, 4) float32
- ``surface_points.npy``, ``surface_normals.npy`` (O, N, 3) float16 or float32
- ``query_points.npy`` (O, M, 3), ``query_occupancy.npy`` (O, ceil(M / 8)) uint8, bits in the order of ``np.packbits``;
  IM-Net's sets are ``query_points_16.npy`` and so on
- ``voxels_32.npy`` (O, 32³ / 8) uint8 bits of [x, y, z]; the same for other resolutions
"""

import io
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from datamodules.object_source import ObjectName, ObjectSource, Rows, bit_rows, taken

INDEX_FILE = "objects.json"
VERSION = 1


class PackedObjects(ObjectSource):
    """Objects of a packed folder.

    Raises:
        ValueError: the folder is none, is of another version, or lacks a file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, str(folder)
        path = folder / INDEX_FILE
        if not path.is_file():
            raise ValueError(f"{path} is missing: {folder} is no packed folder; python -m datamodules.prepare.shapenet")
        try:
            index = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is damaged ({error}); pack again") from error
        if index.get("version") != VERSION:
            raise ValueError(f"{path}: version {index.get('version')!r}, expected {VERSION}; pack again")
        self.objects = [ObjectName(*name) for name in index["objects"]]
        self.keys, self.num_views = frozenset(index["keys"]), index["num_views"]
        self.voxel_resolutions, self.query_sets = tuple(index["voxels"]), tuple(index["queries"])
        self._splits, self._arrays = index["splits"], index["arrays"]
        for file, size in index["sizes"].items():
            found = (folder / file).stat().st_size if (folder / file).is_file() else None
            if found != size:
                state = "is missing" if found is None else f"has {found} bytes, expected {size}"
                raise ValueError(f"{folder / file} {state}; copy or pack the folder again")

    def __getstate__(self) -> dict[str, Any]:
        # a worker that is handed this object opens the files itself: pickling a map would read all of it
        return {name: value for name, value in self.__dict__.items() if name != "_open"}

    @cached_property
    def _open(self) -> dict[str, np.ndarray]:
        maps: dict[str, np.ndarray] = {
            name: np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in self._arrays
        }
        if "image_offsets" in maps and (self.folder / "images.bin").stat().st_size:
            maps["images.bin"] = np.memmap(self.folder / "images.bin", mode="r", dtype=np.uint8)
        # plain views of the maps: indexing np.memmap itself costs a finalizer each time
        return {name: np.asarray(array) for name, array in maps.items()}

    def splits(self) -> dict[str, dict[str, list[int]]]:
        """The splits that were packed."""
        return self._splits

    def pixels(self, index: int, views: Sequence[int]) -> np.ndarray:
        """See ``ObjectSource``."""
        if "images" in self._open:
            return self._open["images"][index][list(views)]
        return stacked([decoded(self.encoded_view(index, view), f"{self.name}, view {view}") for view in views])

    def cameras(self, index: int, views: Sequence[int]) -> tuple[np.ndarray, np.ndarray] | None:
        """See ``ObjectSource``."""
        if "intrinsics" not in self._open:
            return None
        return self._open["intrinsics"][index][list(views)], self._open["camera_to_world"][index][list(views)]

    def encoded_view(self, index: int, view: int) -> bytes | None:
        """See ``ObjectSource``."""
        if "images.bin" not in self._open:
            return None
        start, stop = self._open["image_offsets"][index * self.num_views + view :][:2]
        return self._open["images.bin"][start:stop].tobytes()

    def num_surface_points(self, index: int) -> int:
        """See ``ObjectSource``."""
        return self._open["surface_points"].shape[1]

    def surface(self, index: int, rows: Rows) -> tuple[np.ndarray, np.ndarray | None]:
        """See ``ObjectSource``."""
        normals = taken(self._open["surface_normals"][index], rows) if "surface_normals" in self._open else None
        return self.surface_points(index, rows), normals

    def surface_points(self, index: int, rows: Rows) -> np.ndarray:
        """See ``ObjectSource``."""
        return taken(self._open["surface_points"][index], rows)

    def num_query_points(self, index: int, query_set: int | None) -> int:
        """See ``ObjectSource``."""
        return self._open[_set_name("query_points", query_set)].shape[1]

    def queries(self, index: int, query_set: int | None, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """See ``ObjectSource``."""
        points = self._open[_set_name("query_points", query_set)][index]
        bits = self._open[_set_name("query_occupancy", query_set)][index]
        return taken(points, rows), bit_rows(bits, rows, len(points))

    def voxels(self, index: int, resolution: int) -> np.ndarray:
        """See ``ObjectSource``."""
        bits = self._open[f"voxels_{resolution}"][index]
        return np.unpackbits(bits, count=resolution**3).reshape([resolution] * 3).astype(bool)


def _set_name(name: str, query_set: int | None) -> str:
    return name if query_set is None else f"{name}_{query_set}"


class UnreadableError(ValueError):
    """A picture that is there but is no picture any more."""


def decoded(content: bytes | Path, where: str) -> np.ndarray:
    """(H, W, 3) or, with an alpha channel, (H, W, 4) uint8 pixels of a picture's file; grey becomes three channels.

    Raises:
        UnreadableError: it cannot be read.
    """
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as file:
            return np.asarray(file.convert("RGBA" if "A" in file.getbands() or "transparency" in file.info else "RGB"))
    # Pillow's word for a broken chunk is SyntaxError
    except (OSError, SyntaxError) as error:
        raise UnreadableError(f"{where} cannot be read as an image ({error}); copy or download it again") from error


def stacked(pictures: list[np.ndarray]) -> np.ndarray:
    """(V, H, W, C) of pictures of one size; where some have alpha, the others are opaque."""
    channels = max(picture.shape[2] for picture in pictures)
    opaque = [
        picture if picture.shape[2] == channels else np.pad(picture, ((0, 0), (0, 0), (0, 1)), constant_values=255)
        for picture in pictures
    ]
    return np.stack(opaque)


def pack(
    source: ObjectSource,
    folder: Path,
    *,
    images: Literal["files", "pixels"] = "files",
    splits: dict[str, dict[str, list[int]]] | None = None,
    progress: bool = False,
) -> None:
    """Write every object of a source into a packed folder, all of it or nothing.

    Args:
        source: what to pack; samples read from the folder equal those read from it, bit for bit.
        folder: to be made.
        images: keep pictures as the files they are, or decoded, which takes some ten times the room and no time to
            decode; a source without picture files is packed as pixels.
        splits: kept with the objects; those that the source knows where not given.
        progress: print a line now and then.

    Raises:
        ValueError: the folder exists, there is nothing to pack, or an object has another number of points or another
            picture size than the first.
    """
    if folder.exists():
        raise ValueError(f"{folder} is there already; remove it or give another output folder")
    if not source.objects:
        raise ValueError(f"{source.name}: there are no objects to pack")
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    partial.mkdir(parents=True)
    try:
        _write(source, partial, images, source.splits() if splits is None else splits, progress)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(source: ObjectSource, folder: Path, images: str, splits: dict, progress: bool) -> None:
    files = images == "files" and source.num_views > 0 and source.encoded_view(0, 0) is not None
    arrays: dict[str, np.ndarray] = {}
    offsets = [0]
    with (folder / "images.bin").open("wb") if files else io.BytesIO() as pictures, source.in_order():
        for index, (rows, encoded) in enumerate(_read_ahead(source, files)):
            for key, row in rows:
                if key not in arrays:
                    shape = (len(source.objects), *row.shape)
                    arrays[key] = np.lib.format.open_memmap(folder / f"{key}.npy", "w+", row.dtype, shape)
                if arrays[key].shape[1:] != row.shape:
                    name = source.objects[index]
                    raise ValueError(
                        f"{source.name}: {key} of {name.category}/{name.object_id} has shape {row.shape}, those before "
                        f"it {arrays[key].shape[1:]}; leave it out or prepare it like the others"
                    )
                arrays[key][index] = row
            for content in encoded:
                offsets.append(offsets[-1] + pictures.write(content))
            if progress and (index + 1) % 500 == 0:
                print(f"packed {index + 1} of {len(source.objects)} objects", flush=True)
    for array in arrays.values():
        array.flush()
    if files:
        np.save(folder / "image_offsets.npy", np.array(offsets))
    index = {
        "version": VERSION,
        "keys": sorted(source.keys),
        "num_views": source.num_views,
        "voxels": list(source.voxel_resolutions),
        "queries": list(source.query_sets),
        "arrays": [*arrays, *(["image_offsets"] if files else [])],
        "sizes": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
        "objects": [[name.object_id, name.category] for name in source.objects],
        "splits": splits,
    }
    (folder / INDEX_FILE).write_text(json.dumps(index))


def _read_ahead(source: ObjectSource, files: bool) -> Iterator[tuple[list[tuple[str, np.ndarray]], list[bytes]]]:
    """Rows and picture files of one object after the other, read by several threads, a few objects ahead."""

    def read(index: int) -> tuple[list[tuple[str, np.ndarray]], list[bytes]]:
        views = range(source.num_views if files else 0)
        return list(_rows(source, index, files)), [source.encoded_view(index, view) for view in views]

    threads = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        for first in range(0, len(source.objects), 4 * threads):
            yield from pool.map(read, range(first, min(first + 4 * threads, len(source.objects))))


def _rows(source: ObjectSource, index: int, files: bool) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of one object and the files they go into."""
    everything, views = slice(None), range(source.num_views)
    if source.num_views and not files:
        yield "images", source.pixels(index, views)
    if source.num_views and (cameras := source.cameras(index, views)) is not None:
        yield from zip(("intrinsics", "camera_to_world"), cameras, strict=True)
    if "surface_points" in source.keys:
        points, normals = source.surface(index, everything)
        yield "surface_points", points
        if normals is not None:
            yield "surface_normals", normals
    for query_set in source.query_sets:
        points, occupancy = source.queries(index, query_set, everything)
        yield _set_name("query_points", query_set), points
        yield _set_name("query_occupancy", query_set), np.packbits(occupancy)
    for resolution in source.voxel_resolutions:
        yield f"voxels_{resolution}", np.packbits(source.voxels(index, resolution))
