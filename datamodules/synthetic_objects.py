"""Procedural objects as a source: everything about them is computed when it is asked for, and exact."""

import io
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image

from datamodules import choy
from datamodules.object_source import PHOTOGRAPH_KEYS, ObjectName, ObjectSource, Rows
from datamodules.packed import decoded, stacked
from ops.furniture import make_solid
from ops.solids import Solid

QUERY_BOUND = 0.55
QUERY_SET_SIZES = {16: 4096, 32: 4096, 64: 16384}
"""IM-Net's sets of query points, by the resolution they belong to."""

# what the numbers that follow a seed are for; no two kinds of draws share a seed
_SHAPE, _VIEWS, _SURFACE, _QUERIES = 0, 1, 2, 3


class ProceduralObjects(ObjectSource):
    """Objects ``<category>_0000`` and so on; an object depends on its name and the seed alone.

    Of every ten numbers of a category the first seven are for training, the eighth for validation, the last two for
    test: a larger collection has the same objects in the same splits, and more.

    Args:
        categories: names.
        objects_per_category: how many of each.
        num_views: pictures of each object.
        picture_size: their height and width.
        num_surface_points: samples of each surface.
        num_query_points: uniform in a cube with edge 1.1.
        seed: of everything.
    """

    name = "the procedural objects"
    keys = PHOTOGRAPH_KEYS | {"voxels", "surface_points", "surface_normals", "query_points", "query_occupancy"}
    voxel_resolutions = (16, 32, 64)
    query_sets = (None, *QUERY_SET_SIZES)

    def __init__(
        self,
        categories: Sequence[str],
        objects_per_category: int,
        num_views: int = 24,
        picture_size: int = choy.IMAGE_SIZE,
        num_surface_points: int = 20_000,
        num_query_points: int = 20_000,
        seed: int = 0,
    ) -> None:
        self.num_views, self.picture_size, self.seed = num_views, picture_size, seed
        self._num_surface_points, self._num_query_points = num_surface_points, num_query_points
        self.objects = [
            ObjectName(f"{category}_{number:04d}", category)
            for category in categories
            for number in range(objects_per_category)
        ]

    def splits(self) -> dict[str, dict[str, list[int]]]:
        """The one split, by the last digit of the name."""
        stages: dict[str, list[int]] = {"train": [], "val": [], "test": []}
        for index, name in enumerate(self.objects):
            digit = int(name.object_id[-1])
            stages["train" if digit < 7 else "val" if digit == 7 else "test"].append(index)
        return {"synthetic": stages}

    def _seed(self, index: int, purpose: int) -> list[int]:
        return [self.seed, purpose, int(self.objects[index].object_id[-4:]), *self.objects[index].category.encode()]

    def solid(self, index: int) -> Solid:
        """The object itself."""
        return _solid(self.objects[index].category, *self._seed(index, _SHAPE))

    def scale(self, index: int) -> float:
        """Its longest edge in the frame it was rendered in, where the diagonal of its box is 1, as in ShapeNet."""
        low, high = self.solid(index).bounds()
        return 1 / float(np.linalg.norm(high - low))

    def choy_views(self, index: int) -> np.ndarray:
        """(V, 3) azimuth, elevation and distance ratio of its cameras."""
        return choy.draw_views(self.num_views, np.random.default_rng(self._seed(index, _VIEWS)))

    def cameras(self, index: int, views: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """See ``ObjectSource``."""
        poses = choy.camera_to_world(self.choy_views(index)[list(views)], self.scale(index)).astype(np.float32)
        return np.tile(choy.intrinsics(self.picture_size).astype(np.float32), (len(poses), 1, 1)), poses

    def pixels(self, index: int, views: Sequence[int]) -> np.ndarray:
        """See ``ObjectSource``."""
        return stacked([decoded(self.encoded_view(index, view), self.name) for view in views])

    def encoded_view(self, index: int, view: int) -> bytes:
        """See ``ObjectSource``."""
        intrinsics, poses = self.cameras(index, [view])
        content = io.BytesIO()
        picture = self.solid(index).render(intrinsics[0], poses[0], self.picture_size)
        Image.fromarray(picture).save(content, format="PNG", compress_level=3)
        return content.getvalue()

    def num_surface_points(self, index: int) -> int:
        """See ``ObjectSource``."""
        return self._num_surface_points

    def surface(self, index: int, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """See ``ObjectSource``."""
        generator = np.random.default_rng(self._seed(index, _SURFACE))
        points, normals = self.solid(index).sample_surface(self._num_surface_points, generator)
        return points[rows].astype(np.float32), normals[rows].astype(np.float16)

    def num_query_points(self, index: int, query_set: int | None) -> int:
        """See ``ObjectSource``."""
        return self._num_query_points if query_set is None else QUERY_SET_SIZES[query_set]

    def queries(self, index: int, query_set: int | None, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """See ``ObjectSource``; points are rounded to half precision first, so that their occupancy is exact."""
        generator = np.random.default_rng([*self._seed(index, _QUERIES), query_set or 0])
        solid = self.solid(index)
        if query_set is None:
            points = generator.uniform(-QUERY_BOUND, QUERY_BOUND, (self._num_query_points, 3))
        else:
            points = cell_points(solid, query_set, QUERY_SET_SIZES[query_set], generator)
        points = points.astype(np.float16)
        return points[rows], solid.contains(points)[rows]

    def voxels(self, index: int, resolution: int) -> np.ndarray:
        """See ``ObjectSource``."""
        return self.solid(index).voxels(resolution)


# an object is asked for once a picture
@lru_cache(maxsize=64)
def _solid(category: str, *seed: int) -> Solid:
    return make_solid(category, list(seed))


def cell_points(solid: Solid, resolution: int, count: int, generator: np.random.Generator) -> np.ndarray:
    """Query points as IM-Net chooses them (arXiv:1812.02822, Sec. 3.1): one a cell, cells near the surface first.

    A cell is near the surface where its neighbourhood of 3³ cells is mixed. The point is the centre of one of the
    cell's voxels in a grid of 256³. IM-Net takes a voxel that agrees with the cell; here occupancy is the point's own.

    Args:
        solid: whose points.
        resolution: cells along an edge.
        count: how many; as many as there are cells takes all of them.
        generator: of the choice.

    Returns:
        (count, 3) float64, in random order.
    """
    grid = np.pad(solid.voxels(resolution), 1, mode="edge")
    shifted = [
        grid[x : x + resolution, y : y + resolution, z : z + resolution]
        for x in range(3)
        for y in range(3)
        for z in range(3)
    ]
    is_near = (np.logical_or.reduce(shifted) & ~np.logical_and.reduce(shifted)).reshape(-1)
    near, rest = (generator.permutation(np.flatnonzero(mask)) for mask in (is_near, ~is_near))
    cells = generator.permutation(np.concatenate([near, rest])[:count])
    edge = 256 // resolution
    corner = np.stack(np.unravel_index(cells, [resolution] * 3), axis=1) * edge
    return (corner + generator.integers(edge, size=corner.shape) + 0.5) / 256 - 0.5
