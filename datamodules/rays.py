"""Random rays of one scene, drawn as whole batches.

A batch is chosen and then gathered. The choice, which pixels of which photographs, is made on the CPU: choice number b
of a rank is a pure function of (seed, rank, b), and workers only share out the numbers. So a run resumed at batch b
continues exactly as a straight one, with any number of workers, and no two ranks draw the same rays. Rays, colours and
masks of these pixels are gathered where the photographs are: in memory, or on the device that trains.
"""

import copy
import itertools
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from datamodules.source_views import SourceViews
from ops.cameras import pixel_rays
from ops.types import RayBatch

if TYPE_CHECKING:
    from datamodules.scene import Scene


class RayChoice(TypedDict, total=False):
    """What a batch will hold, as indices into what :class:`Photographs` has."""

    image_index: Tensor  # (R,) int64, which photograph
    pixel_index: Tensor  # (R,) int64, which of its pixels, row by row
    sparse_index: Tensor  # (P,) int64, which sparse points
    shown_rows: Tensor  # (I,) int64, which grey photographs; this and the rest for "source_images"
    reference_row: Tensor  # (R,) int64, see RayBatch
    source_rows: Tensor  # (R, S) int64, see RayBatch


class Photographs:
    """What batches are gathered from, on one device: photographs as uint8, their cameras, and what is read beside them.

    Args:
        scene: the photographs and their cameras.
        reads: see :class:`RayDataset`.
        sources: the stacks of grey photographs; empty where nobody reads them.
    """

    def __init__(self, scene: "Scene", reads: Collection[str], sources: dict[str, Tensor]) -> None:
        self.height, self.width = scene.images.shape[1:3]
        self.tensors = {
            "pixels": scene.images.reshape(-1, 3),
            "intrinsics": scene.intrinsics,
            "camera_to_world": scene.camera_to_world,
        }
        if "ray_masks" in reads:
            self.tensors["coverage"] = scene.masks.reshape(-1)
        if "sparse_points" in reads:
            self.tensors["sparse_points"] = scene.sparse_points.points
        self.sources = sources

    @property
    def num_bytes(self) -> int:
        """Memory that all of it takes."""
        return sum(tensor.nbytes for tensor in (*self.tensors.values(), *self.sources.values()))

    def to(self, device: torch.device | str) -> "Photographs":
        """A copy on that device; the same tensors where they are there already."""
        moved = copy.copy(self)
        moved.tensors = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        moved.sources = {name: tensor.to(device) for name, tensor in self.sources.items()}
        return moved

    def batch(self, choice: RayChoice) -> RayBatch:
        """Rays, colours and all else of a choice that is on the same device; nothing of it goes to the host."""
        image_index, pixel_index = choice["image_index"], choice["pixel_index"]
        flat_index = image_index * (self.height * self.width) + pixel_index
        centers = torch.stack([pixel_index % self.width, pixel_index // self.width], dim=-1) + 0.5
        cameras = self.tensors["intrinsics"][image_index], self.tensors["camera_to_world"][image_index]
        origins, directions = pixel_rays(centers, *cameras)
        batch = RayBatch(
            origins=origins,
            directions=directions,
            colors=self.tensors["pixels"][flat_index].float() / 255,
            image_index=image_index,
        )
        if "coverage" in self.tensors:
            batch["ray_masks"] = self.tensors["coverage"][flat_index].float() / 255
        if "sparse_index" in choice:
            batch["sparse_points"] = self.tensors["sparse_points"][choice["sparse_index"]]
        if self.sources:
            shown, stacks = choice["shown_rows"], self.sources
            if len(shown) < len(stacks["source_images"]):  # else all of them, and nothing is copied
                stacks = {name: stack[shown] for name, stack in stacks.items()}
            rows = RayBatch(reference_row=choice["reference_row"], source_rows=choice["source_rows"])
            batch |= RayBatch(pixels=centers.float(), **rows, **stacks)
        return batch


class RayDataset(IterableDataset):
    """An endless stream of RayBatches from the photographs of a scene, or of the RayChoices that they are made from.

    Pixels stay uint8 until they are drawn, and rays are made for drawn pixels only.

    Args:
        scene: the photographs and their cameras.
        views: indices of the photographs to draw from.
        reads: which of "rays", "ray_masks", "sparse_points" and "source_images" a batch holds.
        rays_per_batch: rays in a batch.
        images_per_batch: photographs that the rays of one batch come from, each visited equally often in a shuffled
            order that all ranks share; ``None`` draws every ray from any photograph.
        foreground_share: this share of the rays is drawn from pixels inside the dilated mask, the rest uniformly.
        mask_margin: by how many pixels (up, down, left and right) the mask is dilated for that.
        sparse_points_per_batch: most sparse points in a batch.
        num_sources: photographs that each one is compared with, where "source_images" are read.
        seed: first part of the seed of every batch.
        rank: second part, the process among ``num_ranks`` that train together.
        num_ranks: processes that train together.

    Attributes:
        photographs: what batches are gathered from, in memory.
        only_chooses: yields choices, for whoever gathers them on another device.
    """

    def __init__(
        self,
        scene: "Scene",
        views: list[int],
        reads: Collection[str] = ("rays",),
        *,
        rays_per_batch: int = 512,
        images_per_batch: int | None = 1,
        foreground_share: float = 0.0,
        mask_margin: int = 8,
        sparse_points_per_batch: int = 1024,
        num_sources: int = 9,
        seed: int = 0,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        self.views = torch.tensor(views)
        self.rays_per_batch, self.images_per_batch = rays_per_batch, images_per_batch
        self.num_foreground = round(foreground_share * rays_per_batch)
        self.sparse_points_per_batch = sparse_points_per_batch
        self.seed, self.rank, self.num_ranks = seed, rank, num_ranks
        self.height, self.width = scene.images.shape[1:3]
        self.image_sizes = scene.image_sizes
        self.sparse_points = scene.sparse_points if "sparse_points" in reads else None
        self.source_views = SourceViews(scene, views, num_sources) if "source_images" in reads else None
        self.photographs = Photographs(scene, reads, self.source_views.stacks if self.source_views else {})
        self.only_chooses = False
        if self.num_foreground:
            self.foreground, self.foreground_offsets = foreground_pixels(scene.masks, mask_margin, scene.image_sizes)
        # shared memory: workers that live on into the next epoch must see where it starts
        self._first_batch = torch.zeros((), dtype=torch.int64).share_memory_()

    def start_at(self, batch: int) -> None:
        """Let the next iteration begin with this batch number."""
        self._first_batch.fill_(batch)

    def __iter__(self) -> Iterator[RayBatch | RayChoice]:
        worker = get_worker_info()
        # a DataLoader takes batches from its workers in turn, so worker w of n owns the numbers w, w + n, w + 2n, ...
        offset, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        for index in itertools.count(int(self._first_batch) + offset, stride):
            yield self.choice(index) if self.only_chooses else self.batch(index)

    def batch(self, index: int) -> RayBatch:
        """Batch number ``index`` of this rank."""
        return self.photographs.batch(self.choice(index))

    def choice(self, index: int) -> RayChoice:
        """What batch number ``index`` of this rank is made from."""
        generator = _generator(self.seed, self.rank, index)
        views = self._batch_views(index)
        if views is None:
            image_index = self.views[torch.randint(len(self.views), (self.rays_per_batch,), generator=generator)]
        else:
            image_index = views[torch.arange(self.rays_per_batch) % len(views)]
        choice = RayChoice(image_index=image_index, pixel_index=self._draw_pixels(image_index, generator))
        if self.sparse_points is not None:
            seen_in = image_index.unique() if views is None else views.unique()
            choice["sparse_index"] = self._draw_sparse_points(seen_in, generator)
        if self.source_views is not None:
            choice.update(self.source_views.choice(image_index))
        return choice

    def _batch_views(self, index: int) -> Tensor | None:
        if self.images_per_batch is None:
            return None
        first = (index * self.num_ranks + self.rank) * self.images_per_batch
        turns = [divmod(turn, len(self.views)) for turn in range(first, first + self.images_per_batch)]
        # the order of one round through all photographs; -1 is no rank, so no batch shares its seed
        orders = {
            turn: torch.randperm(len(self.views), generator=_generator(self.seed, -1, turn))
            for turn in {turn for turn, _ in turns}
        }
        return self.views[torch.stack([orders[turn][position] for turn, position in turns])]

    def _draw_pixels(self, image_index: Tensor, generator: torch.Generator) -> Tensor:
        pixels = self._draw_anywhere(image_index, generator)
        if self.num_foreground:
            image_index = image_index[: self.num_foreground]
            first, last = self.foreground_offsets[image_index], self.foreground_offsets[image_index + 1]
            # float64, since float32 steps over pixels where a photograph has more than 2^24
            uniform = torch.rand(self.num_foreground, generator=generator, dtype=torch.float64)
            pixels[: self.num_foreground] = self.foreground[first + (uniform * (last - first)).long()].long()
        return pixels

    def _draw_anywhere(self, image_index: Tensor, generator: torch.Generator) -> Tensor:
        if self.image_sizes is None:
            return torch.randint(self.height * self.width, image_index.shape, generator=generator)
        heights, widths = self.image_sizes[image_index].unbind(-1)
        uniform = torch.rand(image_index.shape, generator=generator, dtype=torch.float64)
        inside = (uniform * (heights * widths)).long()
        return inside // widths * self.width + inside % widths

    def _draw_sparse_points(self, views: Tensor, generator: torch.Generator) -> Tensor:
        offsets, point_index = self.sparse_points.view_offsets, self.sparse_points.view_point_index
        counts = offsets[views + 1] - offsets[views]
        ends = counts.cumsum(0)
        total = int(ends[-1])
        if total <= self.sparse_points_per_batch:
            seen = [point_index[offsets[view] : offsets[view + 1]] for view in views.tolist()]
            return torch.cat(seen).unique()
        slots = torch.randint(total, (self.sparse_points_per_batch,), generator=generator)
        which = torch.searchsorted(ends, slots, right=True)
        return point_index[offsets[views[which]] + slots - (ends - counts)[which]]


def foreground_pixels(masks: Tensor, margin: int, image_sizes: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Pixels inside the dilated masks, photograph after photograph.

    Args:
        masks: (V, H, W) uint8 coverage; foreground is at least one half.
        margin: pixels by which the foreground grows to each side (a square, so corners grow further).
        image_sizes: (V, 2) height and width within which it stays; ``None`` is all of the mask.

    Returns:
        ``pixels`` (F,) int32 row-major indices within their photograph, and ``offsets`` (V + 1,) int64: those of
        photograph v are ``pixels[offsets[v]:offsets[v + 1]]``.

    Raises:
        ValueError: the margin is negative.
    """
    if margin < 0:
        raise ValueError(f"mask_margin is {margin} pixels; expected 0 or more, masks are never shrunk")
    pixels, counts = [], [0]
    for view, mask in enumerate(masks):
        grown = (mask > 127).float()[None, None]
        for kernel, padding in (((1, 2 * margin + 1), (0, margin)), ((2 * margin + 1, 1), (margin, 0))):
            grown = torch.nn.functional.max_pool2d(grown, kernel, stride=1, padding=padding)
        if image_sizes is not None:
            height, width = image_sizes[view].tolist()
            grown[..., height:, :], grown[..., width:] = 0, 0
        pixels.append(grown.flatten().nonzero()[:, 0].int())
        counts.append(len(pixels[-1]))
    return torch.cat(pixels), torch.tensor(counts).cumsum(0)


def _generator(seed: int, rank: int, index: int) -> torch.Generator:
    # seeds that merely add up would give neighbouring ranks each other's batches
    mixed = np.random.SeedSequence([seed, rank + 1, index]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed >> 1))
