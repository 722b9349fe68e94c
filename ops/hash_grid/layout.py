"""Where each level of a multiresolution hash grid lies in the one table, and how its vertices are numbered."""

import math
from dataclasses import dataclass

from torch import Tensor

# Primes of the spatial hash (Müller et al., arXiv:2201.05989, Eq. 4); x is multiplied by 1.
HASH_PRIME_Y = 2654435761
HASH_PRIME_Z = 805459861


@dataclass(frozen=True)
class GridLayout:
    """The numbers of every level, coarse to fine; hashable, so that backends can cache their own form of it.

    Attributes:
        bound: The grid covers [-bound, bound]^3 in world units.
        features_per_level: F, features of one vertex.
        hash_mask: Table entries of a hashed level, less one; their number is a power of two.
        scales: Cells across the cube, one float a level; a position in cells is ``(x + bound) / (2 bound) * scale``.
        resolutions: Vertices along each axis.
        offsets: Where the level's entries begin in the table; one more than levels, the last is their total number.
        is_hashed: Whether vertices share entries through the hash, or have one each (index x + r (y + r z)).
    """

    bound: float
    features_per_level: int
    hash_mask: int
    scales: tuple[float, ...]
    resolutions: tuple[int, ...]
    offsets: tuple[int, ...]
    is_hashed: tuple[bool, ...]

    @property
    def num_levels(self) -> int:
        """L, how many levels there are."""
        return len(self.scales)

    @property
    def num_entries(self) -> int:
        """Rows of the table."""
        return self.offsets[-1]

    @property
    def inverse_extent(self) -> float:
        """1 / (2 bound). All backends multiply by it, so that they agree on the cell of a point on a border."""
        return 1.0 / (2.0 * self.bound)

    @property
    def level_records(self) -> list[tuple[int, int, int]]:
        """Resolution, offset and hash mask of every level, as the kernels take them; a dense level's mask is 0."""
        masks = [self.hash_mask if is_hashed else 0 for is_hashed in self.is_hashed]
        return list(zip(self.resolutions, self.offsets[:-1], masks, strict=True))

    def level_rows(self, table: Tensor, level: int) -> Tensor:
        """The level's part of the (num_entries, F) table, a view."""
        return table[self.offsets[level] : self.offsets[level + 1]]


def grid_layout(
    num_levels: int = 16,
    features_per_level: int = 8,
    log2_table_size: int = 22,
    base_resolution: int = 32,
    finest_resolution: int = 2048,
    bound: float = 2.0,
) -> GridLayout:
    """Sizes of every level, in tiny-cuda-nn's arrangement, computed without allocating a table.

    Level l has scale base g^l - 1 with g = (finest / base)^(1 / (L - 1)), and ceil(scale) + 1 vertices along an axis.
    A level that fits into 2^log2_table_size entries is stored densely, its entries rounded up to a multiple of 8.

    Args:
        num_levels: L.
        features_per_level: F.
        log2_table_size: A hashed level has 2^log2_table_size entries.
        base_resolution: Vertices along an axis of the coarsest level, at least 2.
        finest_resolution: Vertices along an axis of the finest level; of one level alone it must be base_resolution.
        bound: Half the edge of the cube that the grid covers, world units.

    Raises:
        ValueError: If a number is out of its range.
    """
    _check(num_levels, features_per_level, log2_table_size, base_resolution, finest_resolution, bound)
    growth_log2 = math.log2(finest_resolution / base_resolution) / max(num_levels - 1, 1)
    scales, resolutions, offsets, is_hashed = [], [], [0], []
    for level in range(num_levels):
        vertices = base_resolution * 2.0 ** (growth_log2 * level)
        # Levels meant to be whole (128 and 2048 of the default) come out as 127.99... or 128.00...1
        if abs(vertices - round(vertices)) < 1e-9 * vertices:
            vertices = float(round(vertices))
        resolution = math.ceil(vertices - 1.0) + 1
        is_dense = resolution**3 <= 2**log2_table_size
        scales.append(vertices - 1.0)
        resolutions.append(resolution)
        is_hashed.append(not is_dense)
        offsets.append(offsets[-1] + (-(-(resolution**3) // 8) * 8 if is_dense else 2**log2_table_size))
    return GridLayout(
        bound=float(bound),
        features_per_level=features_per_level,
        hash_mask=2**log2_table_size - 1,
        scales=tuple(scales),
        resolutions=tuple(resolutions),
        offsets=tuple(offsets),
        is_hashed=tuple(is_hashed),
    )


def _check(levels: int, features: int, log2_size: int, base: int, finest: int, bound: float) -> None:
    # the hash is taken in 32-bit arithmetic on GPUs, and a vertex coordinate must stay well below 2^24 in float32
    requirements = {
        f"num_levels is {levels}, expected at least 1": levels >= 1,
        f"features_per_level is {features}, expected at least 1": features >= 1,
        f"log2_table_size is {log2_size}, expected 3 to 30": 3 <= log2_size <= 30,
        f"base_resolution is {base}, expected at least 2": base >= 2,
        f"finest_resolution is {finest}, expected base_resolution ({base}) to 2^20": base <= finest <= 2**20,
        f"finest_resolution is {finest}, expected base_resolution ({base}) of a single level": levels > 1
        or finest == base,
        f"bound is {bound}, expected a positive finite number": 0 < bound < math.inf,
    }
    for complaint, holds in requirements.items():
        if not holds:
            raise ValueError(f"Hash grid: {complaint}.")
