"""What every collection of objects can be asked for, whatever lies on disk: pictures, surface, query points, voxels.

A source reads one object at a time, only what is asked for, and hands it over as it is kept (uint8, float16): drawing,
cropping and batching are the DataModule's. Everything is in the frame in which the object is centred and its longest
edge is 1, but where a dataset's authors chose another one (see the sources).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np

PHOTOGRAPH_KEYS = frozenset({"images", "masks", "intrinsics", "camera_to_world"})
Rows = np.ndarray | slice
"""Which of an object's points: indices, or a slice."""


@dataclass(frozen=True)
class ObjectName:
    """What an object is called in tables and files, and the dataset's word for its kind."""

    object_id: str
    category: str


@dataclass(frozen=True)
class Views:
    """Some pictures of one object.

    Attributes:
        pixels: (V, H, W, C) uint8 sRGB, C 3, or 4 with straight alpha.
        intrinsics: (V, 3, 3) float32; ``None`` where unknown.
        camera_to_world: (V, 4, 4) float32; ``None`` where unknown.
    """

    pixels: np.ndarray
    intrinsics: np.ndarray | None = None
    camera_to_world: np.ndarray | None = None


class ObjectSource(ABC):
    """A collection of objects on disk. Subclasses fill in the attributes and read what ``keys`` promises."""

    name: str
    """For errors."""
    objects: list[ObjectName]
    keys: frozenset[str]
    """Keys of the ObjectBatch that every object fills."""
    num_views: int = 0
    """Pictures of each object."""
    voxel_resolutions: tuple[int, ...] = ()
    query_sets: tuple[int | None, ...] = ()
    """Sets of query points: ``None`` is the uniform one, a number IM-Net's of that resolution."""

    def pixels(self, index: int, views: Sequence[int]) -> np.ndarray:
        """Pictures number ``views`` of object ``index``, (V, H, W, C) uint8 as in ``Views``."""
        raise NotImplementedError

    def cameras(self, index: int, views: Sequence[int]) -> tuple[np.ndarray, np.ndarray] | None:
        """Their intrinsics (V, 3, 3) and poses (V, 4, 4), float32; ``None`` where unknown."""
        return None

    def views(self, index: int, views: Sequence[int], *, with_cameras: bool = True) -> Views:
        """Pictures, and their cameras where they are wanted and known."""
        cameras = self.cameras(index, views) if with_cameras else None
        return Views(self.pixels(index, views), *(cameras or ()))

    def num_surface_points(self, index: int) -> int:
        """How many samples of the surface are kept of an object."""
        raise NotImplementedError

    def surface(self, index: int, rows: Rows) -> tuple[np.ndarray, np.ndarray | None]:
        """Samples of the surface and their normals, each (N, 3) float16 or float32."""
        raise NotImplementedError

    def surface_points(self, index: int, rows: Rows) -> np.ndarray:
        """The samples alone, for who needs no normals; sources that need not read them then, do not."""
        return self.surface(index, rows)[0]

    def num_query_points(self, index: int, query_set: int | None) -> int:
        """How many query points are kept of an object."""
        raise NotImplementedError

    def queries(self, index: int, query_set: int | None, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """Query points (M, 3) float16 or float32 and their occupancy (M,) bool."""
        raise NotImplementedError

    def voxels(self, index: int, resolution: int) -> np.ndarray:
        """(R, R, R) bool, indexed [x, y, z]."""
        raise NotImplementedError

    def encoded_view(self, index: int, view: int) -> bytes | None:
        """A picture's file as it is, ``None`` where pictures are kept otherwise."""
        return None

    def normalized_to_dataset(self, index: int) -> np.ndarray:
        """(4, 4) float64 similarity of an object into the dataset's own frame and unit."""
        return np.eye(4)

    @contextmanager
    def in_order(self) -> Iterator[None]:
        """Meanwhile every object is read once, one after the other: files kept in blocks may be read so."""
        yield

    @cached_property
    def index_of(self) -> dict[tuple[str, str], int]:
        """(category, object_id) -> position in ``objects``."""
        return {(name.category, name.object_id): index for index, name in enumerate(self.objects)}

    @abstractmethod
    def splits(self) -> dict[str, dict[str, list[int]]]:
        """Splits that the collection itself knows, by name; each maps train, val and test to positions."""


def taken(points: np.ndarray, rows: Rows) -> np.ndarray:
    """Some rows of (N, C) points; ``take`` moves a row at a time where indexing moves numbers, in a quarter of it."""
    return points[rows] if isinstance(rows, slice) else points.take(rows, axis=0)


def bit_rows(bits: np.ndarray, rows: Rows, count: int) -> np.ndarray:
    """Some of ``count`` booleans that ``np.packbits`` packed into (ceil(count / 8),) uint8, as (N,) bool.

    Gathering single bits leaves the rest packed: drawing 2048 of 100 000 need not unpack them all.
    """
    if isinstance(rows, slice):
        return np.unpackbits(bits, count=count)[rows].astype(bool)
    return (np.asarray(bits)[rows >> 3] >> (7 - (rows & 7)).astype(np.uint8) & 1).astype(bool)
