"""Collections of objects: the DataModule of every dataset that is many small things rather than one scene."""

import warnings
from abc import abstractmethod
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from datamodules.base import DataModule
from datamodules.object_source import PHOTOGRAPH_KEYS, ObjectSource, Rows, Views
from datamodules.object_stream import BatchDataset, EvalSampler, Request, StreamSampler, object_generator
from datamodules.packed import UnreadableError
from datamodules.views import Augmentation, ViewTransform, finished, split_channels
from ops.types import ObjectBatch

CAMERA_KEYS = frozenset({"intrinsics", "camera_to_world"})
SURFACE_KEYS = frozenset({"surface_points", "surface_normals"})
QUERY_KEYS = frozenset({"query_points", "query_occupancy"})
TRANSIT_KEYS = frozenset({"pictures", "backgrounds"})
"""Of a batch on its way to the device, where ``finish_on_device`` asks for it: (B, V, H, W, C) uint8, (B, V, 3)."""
STAGES = ("train", "val", "test")
MAX_NAMED = 5


class ObjectDataModule(DataModule):
    """Base of every dataset that is a collection of objects.

    A training batch holds what the method reads; batches of validation and test hold all that the dataset knows.

    Args:
        batch_size: Objects in a training batch, for each process.
        eval_batch_size: Objects in a batch of validation, test and prediction; null is batch_size.
        num_views: Views of each training object, drawn without repetition; two numbers are the fewest and the most, of
            which one is drawn for each batch.
        num_query_points: Query points of each training object, drawn with repetition (Occupancy Networks); of IM-Net's
            sets a random run of that length.
        num_surface_points: Surface samples of each training object, drawn with repetition.
        query_resolution: Train on IM-Net's query points of this resolution (16, 32 or 64); null on uniform ones.
        query_noise: Standard deviation of the noise on training query points that are kept in half precision, which
            hides its lattice (Occupancy Networks).
        voxel_resolution: Edge of the grid of voxels.
        image_size: Height and width of the images; null keeps what the crop leaves.
        crop: Edge of the square cut from each picture before resizing; null takes all of it.
        background: Grey level behind pictures with alpha.
        background_range: Lowest and highest level of each channel of a random background.
        augment: What is random in training: crop, flip, background, zoom.
        eval_views: Numbers of the views shown in validation, test and prediction.
        eval_surface_points: Most surface samples of an object in validation and test.
        eval_query_points: Most query points of an object in validation and test.
        categories: Names of the categories to use; null is all.
        num_workers: Processes that make batches beside the training process.
        finish_on_device: Hand training pictures over as the bytes that were cut, and compute background, colours in
            [0, 1] and size where the model is: a tenth of the traffic, and less work for the processes.
        skip_broken: Where a picture of a training object cannot be read, take the next object of the split instead of
            stopping. An epoch stays as long as it is, a resumed run skips as a straight one, and how many objects
            were skipped is said in the end. Validation and test never skip.
        seed: Seed of all that is random.
        reads: Keys that a training batch must hold. The command line takes them from the method.
        reader: Name of the method, for errors.
    """

    def __init__(
        self,
        *,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_views: int | list[int] = 1,
        num_query_points: int = 2048,
        num_surface_points: int = 2048,
        query_resolution: int | None = None,
        query_noise: float = 1e-4,
        voxel_resolution: int = 32,
        image_size: int | None = None,
        crop: int | None = None,
        background: int = 255,
        background_range: list[int] | None = None,
        augment: list[Augmentation] | None = None,
        eval_views: list[int] | None = None,
        eval_surface_points: int = 100_000,
        eval_query_points: int = 100_000,
        categories: list[str] | None = None,
        num_workers: int = 0,
        finish_on_device: bool = False,
        skip_broken: bool = False,
        seed: int = 0,
        reads: set[str] | None = None,
        reader: str = "the method",
    ) -> None:
        super().__init__(frozenset(reads or ()), reader)
        self.skip_broken = skip_broken
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.num_views = (num_views, num_views) if isinstance(num_views, int) else tuple(num_views)
        self.num_query_points, self.num_surface_points = num_query_points, num_surface_points
        self.query_resolution, self.query_noise, self.voxel_resolution = query_resolution, query_noise, voxel_resolution
        levels = (225, 255) if background_range is None else tuple(background_range)
        self.transform = ViewTransform(image_size, crop, background, levels, frozenset(augment or ()))
        self.finish_on_device = finish_on_device
        if finish_on_device and "zoom" in self.transform.augment:
            raise ValueError(
                "augment: 'zoom' cuts squares of several sizes, which cannot be handed over as one array; set "
                "finish_on_device to false"
            )
        self.eval_views = [0] if eval_views is None else eval_views
        self.eval_surface_points, self.eval_query_points = eval_surface_points, eval_query_points
        self.categories, self.num_workers, self.seed = categories, num_workers, seed
        self.source: ObjectSource | None = None
        self.split_name = ""
        self.positions: dict[str, list[int]] = {}
        counts = {"batch_size": batch_size, "num_query_points": num_query_points}
        counts |= {"num_surface_points": num_surface_points, "eval_batch_size": self.eval_batch_size}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} is {count}, expected at least 1")

    @abstractmethod
    def load_source(self) -> ObjectSource:
        """Open the collection; called once in every process."""

    @abstractmethod
    def load_split(self, source: ObjectSource) -> tuple[str, dict[str, list[int]]]:
        """The split's name, and the positions in ``source.objects`` that are ``train``, ``val`` and ``test``."""

    def setup(self, stage: str | None = None) -> None:
        """Open the collection, check that it has what the method reads, and split it.

        Raises:
            ValueError: something is missing or does not fit.
        """
        if self.source is not None:
            return
        self.check_reads(self.provides, type(self).__name__)
        source = self.load_source()
        self.check_reads(source.keys | {"normalized_to_dataset"}, source.name)
        self._check_settings(source)
        self.split_name, positions = self.load_split(source)
        self.positions = {name: self._of_categories(source, positions.get(name, [])) for name in STAGES}
        if not any(self.positions.values()):
            raise ValueError(f"{source.name}: the split {self.split_name!r} has none of the objects that are there")
        self.source = source
        # shared memory: processes that make batches tell this one
        self._is_broken = torch.zeros(len(source.objects), dtype=torch.bool).share_memory_()

    def describe(self) -> str:
        """Name, split, counts, and what is known of each object."""
        source = self.source
        counts = ", ".join(f"{len(self.positions[name]):,} {name}" for name in STAGES)
        chosen = {source.objects[position].category for name in STAGES for position in self.positions[name]}
        categories = f"{len(chosen)} categories" if len(chosen) > 1 else f"category {min(chosen)}"
        known = [f"split {self.split_name}: {counts} objects of {categories}"]
        known += [f"{source.num_views} pictures each"] if source.num_views else []
        known += [f"voxels of {', '.join(map(str, source.voxel_resolutions))}"] if source.voxel_resolutions else []
        known += ["surface points"] if "surface_points" in source.keys else []
        known += ["query points"] if source.query_sets else []
        return f"{source.name}: {'; '.join(known)}"

    def describe_batch(self) -> str:
        """How many objects."""
        return f"{self.batch_size:,} objects"

    def _check_settings(self, source: ObjectSource) -> None:
        low, high = self.num_views if len(self.num_views) == 2 else (0, 0)
        if self.reads & PHOTOGRAPH_KEYS and not 1 <= low <= high <= source.num_views:
            raise ValueError(
                f"num_views is {self.num_views}, but objects of {source.name} have {source.num_views} views; expected "
                "a number, or the fewest and the most, from 1 to that"
            )
        wrong = [view for view in self.eval_views if not 0 <= view < source.num_views]
        if "images" in source.keys and (wrong or not self.eval_views):
            raise ValueError(
                f"eval_views {self.eval_views}: objects of {source.name} have views 0 to {source.num_views - 1}"
            )
        if "voxels" in self.reads and self.voxel_resolution not in source.voxel_resolutions:
            raise ValueError(
                f"voxel_resolution is {self.voxel_resolution}, but {source.name} has voxels of "
                f"{', '.join(map(str, source.voxel_resolutions))}"
            )
        if self.reads & QUERY_KEYS and self.query_resolution not in source.query_sets:
            there = ", ".join("null" if name is None else str(name) for name in source.query_sets)
            query_set = "null" if self.query_resolution is None else self.query_resolution
            raise ValueError(f"query_resolution is {query_set}, but {source.name} has query points of {there}")

    def _of_categories(self, source: ObjectSource, positions: list[int]) -> list[int]:
        if self.categories is None:
            return positions
        there = {name.category for name in source.objects}
        unknown = sorted(set(self.categories) - there)
        if unknown:
            raise ValueError(
                f"categories: {source.name} has no {', '.join(unknown)}; it has {', '.join(sorted(there))}"
            )
        return [position for position in positions if source.objects[position].category in self.categories]

    def train_dataloader(self) -> DataLoader:
        """Random batches of the training objects; each epoch goes on where the last one stopped."""
        positions = self._objects_of("train")
        sampler = StreamSampler(
            len(positions),
            self.batch_size,
            self.num_views,
            self.seed,
            self.trainer.global_rank if self.trainer else 0,
            self.trainer.world_size if self.trainer else 1,
            self.batches_trained,
        )
        return self._loader(BatchDataset(partial(self._train_batch, positions), len(positions)), sampler)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Every validation object; no loader where the split has none."""
        return self._eval_loader("val") if self.positions["val"] else []

    def test_dataloader(self) -> DataLoader:
        """Every test object."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> DataLoader:
        """As for test."""
        return self.test_dataloader()

    def _objects_of(self, stage: str) -> list[int]:
        if not self.positions[stage]:
            raise ValueError(
                f"{self.source.name}: the split {self.split_name!r} has no {stage} objects"
                + (f" of {', '.join(self.categories)}" if self.categories else "")
            )
        return self.positions[stage]

    def _eval_loader(self, stage: str) -> DataLoader:
        positions = self._objects_of(stage)
        rank, num_ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        sampler = EvalSampler(len(positions), self.eval_batch_size, rank, num_ranks)
        return self._loader(BatchDataset(partial(self._eval_batch, stage, positions), len(positions)), sampler)

    def _loader(self, dataset: BatchDataset, sampler: StreamSampler | EvalSampler) -> DataLoader:
        return DataLoader(
            dataset=dataset,
            batch_size=None,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            generator=torch.Generator(),  # else it draws from the global one, whose state checkpoints keep
            pin_memory=torch.cuda.is_available(),
        )

    def _train_batch(self, positions: list[int], request: Request) -> ObjectBatch:
        rows, shown = [], []
        for position, slot in zip(request.positions, request.slots, strict=True):
            # a function of the slot alone, so that ranks, workers and resumed runs agree
            for candidate in [*range(position, len(positions)), *range(position)]:
                try:
                    rows.append(self._drawn(positions[candidate], request.num_views, object_generator(self.seed, slot)))
                except UnreadableError as error:
                    self._note_broken(positions[candidate], error)
                    continue
                shown.append(candidate)
                break
            else:
                raise ValueError(f"{self.source.name}: no training object has pictures that can be read")
        return self._batch(positions, replace(request, positions=tuple(shown)), rows)

    def _note_broken(self, index: int, error: UnreadableError) -> None:
        message = f"{self._where(index)}: {error}"
        if not self.skip_broken:
            raise ValueError(f"{message}; or set --data.init_args.skip_broken true to train without it") from error
        if not self._is_broken[index]:
            warnings.warn(f"skipped: {message}", stacklevel=2)
        self._is_broken[index] = True

    def teardown(self, stage: str) -> None:
        """Say which objects were skipped."""
        broken = [] if self.source is None else self._is_broken.nonzero()[:, 0].tolist()
        if stage == "fit" and broken:
            names = ", ".join(self._where(index) for index in broken[:MAX_NAMED])
            more = f" and {len(broken) - MAX_NAMED} more" if len(broken) > MAX_NAMED else ""
            rank = f"rank {self.trainer.global_rank}: " if self.trainer and self.trainer.world_size > 1 else ""
            count = len(self.positions["train"])
            print(f"{rank}skipped {len(broken)} of {count} training objects, as pictures are broken: {names}{more}")

    def _eval_batch(self, stage: str, positions: list[int], request: Request) -> ObjectBatch:
        rows = []
        for position in request.positions:
            try:
                rows.append(self._shown(positions[position]))
            except UnreadableError as error:
                raise ValueError(f"{self._where(positions[position])}: {error}") from error
        batch = self._batch(positions, request, rows)
        batch["split"] = [f"{self.split_name}/{stage}"] * len(request.positions)
        return batch

    def _batch(self, positions: list[int], request: Request, rows: list[dict[str, Tensor]]) -> ObjectBatch:
        names = [self.source.objects[positions[position]] for position in request.positions]
        matrices = np.stack([self.source.normalized_to_dataset(positions[position]) for position in request.positions])
        batch = ObjectBatch(
            object_index=torch.tensor(request.positions),
            object_id=[name.object_id for name in names],
            category=[name.category for name in names],
            normalized_to_dataset=torch.from_numpy(matrices).float(),
        )
        for key in rows[0]:
            sizes = {tuple(row[key].shape) for row in rows}
            if len(sizes) > 1:
                raise ValueError(
                    f"{self.source.name}: {key} has different sizes in one batch, {sorted(sizes)}, among "
                    f"{', '.join(batch['object_id'])}; set image_size for pictures of several sizes (and leave "
                    "finish_on_device false), a lower eval_surface_points or eval_query_points for points, or "
                    "eval_batch_size to 1"
                )
            batch[key] = _stacked([row[key] for row in rows])
        return batch

    def on_after_batch_transfer(self, batch: ObjectBatch, dataloader_idx: int) -> ObjectBatch:
        """Make images of pictures that were handed over as bytes."""
        if "pictures" not in batch:
            return batch
        pictures, backgrounds = batch["pictures"], batch["backgrounds"]
        with_masks = "masks" in self.reads
        size = self.transform.image_size
        images = finished(pictures.flatten(0, 1), backgrounds.flatten(0, 1), size, with_masks=with_masks)
        kept = {key: value for key, value in batch.items() if key not in TRANSIT_KEYS}
        parts = split_channels(images.unflatten(0, pictures.shape[:2]))
        return ObjectBatch(**kept, **{key: value.contiguous() for key, value in parts.items() if key in self.reads})

    def _drawn(self, index: int, num_views: int, generator: np.random.Generator) -> dict[str, Tensor]:
        """What the method reads of one training object."""
        source, row = self.source, {}
        if self.reads & PHOTOGRAPH_KEYS:
            views = generator.choice(source.num_views, num_views, replace=False)
            shown = source.views(index, views.tolist(), with_cameras=bool(self.reads & CAMERA_KEYS))
            row |= self._drawn_views(shown, self._where(index), generator)
        if "voxels" in self.reads:
            row["voxels"] = torch.from_numpy(source.voxels(index, self.voxel_resolution))
        if self.reads & SURFACE_KEYS:
            rows = generator.integers(source.num_surface_points(index), size=self.num_surface_points)
            needs_normals = "surface_normals" in self.reads
            row |= _surface(*(source.surface(index, rows) if needs_normals else (source.surface_points(index, rows),)))
        if self.reads & QUERY_KEYS:
            row |= self._drawn_queries(index, generator)
        return {key: value for key, value in row.items() if key in self.reads or key in TRANSIT_KEYS}

    def _drawn_views(self, views: Views, where: str, generator: np.random.Generator) -> dict[str, Tensor]:
        if not self.finish_on_device:
            return self.transform(views, where, generator, with_masks="masks" in self.reads)
        drawn = self.transform.drawn(views, where, generator)
        pictures = torch.from_numpy(np.stack(drawn.pictures))
        return {"pictures": pictures, "backgrounds": drawn.backgrounds} | drawn.cameras

    def _drawn_queries(self, index: int, generator: np.random.Generator) -> dict[str, Tensor]:
        count, wanted = self.source.num_query_points(index, self.query_resolution), self.num_query_points
        rows: Rows
        if self.query_resolution is None:
            rows = generator.integers(count, size=wanted)
        else:
            first = int(generator.integers(max(count // wanted, 1))) * wanted
            rows = slice(first, min(first + wanted, count))
        points, occupancy = self.source.queries(index, self.query_resolution, rows)
        is_coarse = points.dtype == np.float16 and self.query_resolution is None
        positions = _floats(points)
        if is_coarse and self.query_noise:
            noise = generator.standard_normal(points.shape, dtype=np.float32)
            positions += self.query_noise * torch.from_numpy(noise)
        return {"query_points": positions, "query_occupancy": torch.from_numpy(occupancy)}

    def _shown(self, index: int) -> dict[str, Tensor]:
        """All that is known of one object, nothing of it random."""
        source, row = self.source, {}
        if "images" in source.keys:
            row |= self.transform(source.views(index, self.eval_views), self._where(index))
        if self.voxel_resolution in source.voxel_resolutions:
            row["voxels"] = torch.from_numpy(source.voxels(index, self.voxel_resolution))
        if "surface_points" in source.keys:
            rows = slice(0, min(self.eval_surface_points, source.num_surface_points(index)))
            row |= _surface(*source.surface(index, rows))
        if source.query_sets:
            # the uniform set measures volumes; the others crowd about the surface
            query_set = None if None in source.query_sets else (self.query_resolution or source.query_sets[-1])
            rows = slice(0, min(self.eval_query_points, source.num_query_points(index, query_set)))
            points, occupancy = source.queries(index, query_set, rows)
            row["query_points"] = _floats(points)
            row["query_occupancy"] = torch.from_numpy(occupancy)
        return row

    def _where(self, index: int) -> str:
        name = self.source.objects[index]
        return f"{self.source.name}, {name.category} {name.object_id}"


def _surface(points: np.ndarray, normals: np.ndarray | None = None) -> dict[str, Tensor]:
    out = {"surface_points": _floats(points)}
    if normals is not None:
        # half precision leaves them short of unit length by up to a thousandth
        out["surface_normals"] = torch.nn.functional.normalize(_floats(normals), dim=1)
    return out


def _floats(array: np.ndarray) -> Tensor:
    # torch widens half precision eight times as fast as NumPy; what is mapped from a file may not be written to
    return torch.from_numpy(np.require(array, requirements=["C", "W"])).float()


def _stacked(rows: list[Tensor]) -> Tensor:
    """As ``torch.stack``; a worker writes straight into the memory in which the batch leaves it."""
    if get_worker_info() is None:
        return torch.stack(rows)
    shape = (len(rows), *rows[0].shape)
    storage = rows[0].untyped_storage()._new_shared(rows[0].nbytes * len(rows), device="cpu")
    out = torch.empty(0, dtype=rows[0].dtype).set_(storage, 0, shape)
    return torch.stack(rows, out=out)
