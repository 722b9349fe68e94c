"""The DataModule of one scene: random rays of its training views, and the views that are held out."""

import math
from abc import abstractmethod
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, DistributedSampler

from datamodules.base import DataModule
from datamodules.normalization import check_similarity
from datamodules.preflight import check_before_training
from datamodules.rays import Photographs, RayChoice, RayDataset
from datamodules.scene import Scene, check_scene, object_batch
from ops.types import RayBatch

DEVICE_SHARE = 0.25
"""Of the free memory of a device, for photographs; the rest is for training."""


class SceneDataModule(DataModule):
    """Base of every dataset that is one scene of posed photographs.

    Args:
        rays_per_batch: Rays in a training batch, for each process.
        images_per_batch: Photographs that the rays of one batch come from; null draws every ray from any photograph.
        foreground_share: This share of the rays is drawn from pixels inside the dilated mask, the rest uniformly.
        mask_margin: Pixels by which the mask is dilated for that.
        sparse_points_per_batch: Most structure-from-motion points in a batch, where the method reads them.
        num_sources: Photographs that each one is compared with, where the method reads source images; they are chosen
            by the points that both saw and the angle between them, and travel with the batch.
        held_out: Views never trained on, by index, or every n-th (0, n, 2n, ...); validation and test show them.
        val_views: Number of held-out views that validation shows; null is all of them. Test always shows all.
        eval_downscale: Whole factor by which held-out views are made smaller.
        num_workers: Processes that draw batches beside the training process.
        images_on_device: Whether the photographs lie on the device that trains, as uint8, and rays are made there, so
            that no more than the numbers of the drawn pixels travels in a step. "auto" does so on CUDA where they and
            what is read beside them take at most a quarter of its free memory; true lets them take all of that. The
            rays drawn are the same.
        seed: Seed of the rays.
        reads: Keys that a training batch must hold; null is the rays alone. The command line takes it from the method.
        reader: Name of the method, for errors.
    """

    def __init__(
        self,
        *,
        rays_per_batch: int = 512,
        images_per_batch: int | None = 1,
        foreground_share: float = 0.0,
        mask_margin: int = 8,
        sparse_points_per_batch: int = 1024,
        num_sources: int = 9,
        held_out: list[int] | int | None = None,
        val_views: int | None = None,
        eval_downscale: int = 1,
        num_workers: int = 0,
        images_on_device: bool | Literal["auto"] = "auto",
        seed: int = 0,
        reads: set[str] | None = None,
        reader: str = "the method",
    ) -> None:
        super().__init__(frozenset({"rays"} if reads is None else reads), reader)
        self.rays_per_batch, self.images_per_batch = rays_per_batch, images_per_batch
        self.foreground_share, self.mask_margin = foreground_share, mask_margin
        self.sparse_points_per_batch, self.num_sources = sparse_points_per_batch, num_sources
        self.held_out, self.val_views, self.eval_downscale = held_out, val_views, eval_downscale
        self.num_workers, self.images_on_device, self.seed = num_workers, images_on_device, seed
        self.scene: Scene | None = None
        self.train_views: list[int] = []
        self.held_out_views: list[int] = []
        self._trained_similarity: list[list[float]] | None = None
        self._resident: Photographs | None = None

    def __init_subclass__(cls) -> None:
        """Where there are rays, there are the photographs that they come from."""
        super().__init_subclass__()
        cls.provides = cls.provides | ({"source_images"} if "rays" in cls.provides else set())

    @abstractmethod
    def load_scene(self) -> Scene:
        """Read the scene from disk; called once in every process."""

    def split(self, scene: Scene) -> tuple[list[int], list[int]]:
        """Views to train on and views to hold out."""
        return split_views(scene.name, len(scene.images), self.held_out)

    def setup(self, stage: str | None = None) -> None:
        """Load the scene, check it, and split its views.

        Raises:
            ValueError: the scene is broken, lacks what the method reads, is of another frame than the checkpoint's,
                or nothing could be learnt from it.
        """
        if self.scene is not None:
            return
        self.check_reads(self.provides, type(self).__name__)
        scene = self.load_scene()
        check_scene(scene)
        self._check_side(scene)
        self.check_reads(scene.keys, scene.name)
        self.train_views, self.held_out_views = self.split(scene)
        self._check_sampling(scene)
        self.scene = scene
        self._check_similarity()
        if stage == "fit":
            check_before_training(scene, self._run_folder(), self.train_views)

    def describe(self) -> str:
        """Name, views, sizes, and what is known beside the photographs."""
        scene = self.scene
        sizes = scene.sizes[self.train_views + self.held_out_views]
        heights, widths = ("-".join(map(str, sorted({*map(int, edges.aminmax())}))) for edges in sizes.unbind(-1))
        known = [f"{len(self.train_views)} training views of {widths} x {heights}, {len(self.held_out_views)} held out"]
        known += ["masks"] if scene.masks is not None else []
        known += [f"{len(scene.sparse_points.points):,} sparse points"] if scene.sparse_points is not None else []
        known += [f"{len(scene.surface_points):,} points of truth"] if scene.surface_points is not None else []
        return f"{scene.name}: {'; '.join(known)}"

    def describe_batch(self) -> str:
        """How many rays, and of how many views."""
        if "rays" not in self.reads:
            return "one object"
        views = len(self.train_views) if self.images_per_batch is None else self.images_per_batch
        return f"{self.rays_per_batch:,} rays of {views} view{'s' * (views > 1)}"

    def _run_folder(self) -> Path | None:
        """Where this process may write: the run's folder on the first one; every rank has to ask."""
        if self.trainer is None or not self.trainer.loggers or self.trainer.fast_dev_run:
            return None
        folder = self.trainer.log_dir
        return Path(folder) if folder and self.trainer.is_global_zero else None

    def state_dict(self) -> dict[str, Any]:
        """Where the stream of batches stands, and the similarity that the weights were trained under."""
        similarity = None if self.scene is None else self.scene.normalized_to_dataset.tolist()
        return super().state_dict() | ({} if similarity is None else {"normalized_to_dataset": similarity})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a saved run stood.

        Raises:
            ValueError: it was trained under another similarity.
        """
        super().load_state_dict(state_dict)
        self._trained_similarity = state_dict.get("normalized_to_dataset")
        self._check_similarity()

    def _check_similarity(self) -> None:
        # Lightning sets up before it loads a checkpoint, others may do it the other way round
        if self.scene is not None and self._trained_similarity is not None:
            check_similarity(self.scene.name, self._trained_similarity, self.scene.normalized_to_dataset.tolist())

    def _check_side(self, scene: Scene) -> None:
        model = self.trainer.lightning_module if self.trainer else None
        model_is_inside = getattr(model, "inside_out", scene.inside_out)
        if model_is_inside != scene.inside_out:
            raise ValueError(
                f"{scene.name}: inside_out is {scene.inside_out} of the data but {model_is_inside} of {self.reader}; "
                "set both (--data.init_args.inside_out and --model.init_args.inside_out) for a place photographed from "
                "inside, and neither for an object"
            )

    def _check_sampling(self, scene: Scene) -> None:
        if self.images_per_batch is not None and not 1 <= self.images_per_batch <= len(self.train_views):
            raise ValueError(
                f"{scene.name}: images_per_batch is {self.images_per_batch}, but there are {len(self.train_views)} "
                "training views; take fewer, or null for rays from all of them"
            )
        if not 0 <= self.foreground_share <= 1:
            raise ValueError(f"foreground_share is {self.foreground_share}, expected a share between 0 and 1")
        if self.foreground_share and scene.masks is None:
            raise ValueError(
                f"{scene.name}: foreground_share is {self.foreground_share}, but there are no masks; set it to 0"
            )
        if self.foreground_share:
            for view in self.train_views:
                if not (scene.masks[view] > 127).any():
                    raise ValueError(
                        f"{scene.name}: the mask of {scene.image_names[view]} is empty, so that no foreground ray can "
                        "be drawn there; repair it, hold this view out, or set foreground_share to 0"
                    )

    def train_dataloader(self) -> DataLoader:
        """Endless random rays, or, for a method that reads no rays, the training views as one object."""
        if "rays" not in self.reads:
            return self._object_loader(self.train_views, downscale=1)
        dataset = RayDataset(
            self.scene,
            self.train_views,
            self.reads,
            rays_per_batch=self.rays_per_batch,
            images_per_batch=self.images_per_batch,
            foreground_share=self.foreground_share,
            mask_margin=self.mask_margin,
            sparse_points_per_batch=self.sparse_points_per_batch,
            num_sources=self.num_sources,
            seed=self.seed,
            rank=self.trainer.global_rank if self.trainer else 0,
            num_ranks=self.trainer.world_size if self.trainer else 1,
        )
        self._resident = self._on_device(dataset.photographs)
        dataset.only_chooses = self._resident is not None
        return RayLoader(dataset, batches_trained=self.batches_trained, num_workers=self.num_workers)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Make rays of what was only chosen so far, where the photographs lie on the device."""
        return self._resident.batch(batch) if "pixel_index" in batch else batch

    def teardown(self, stage: str) -> None:
        """Give the device's memory back."""
        self._resident = None

    def _on_device(self, photographs: Photographs) -> Photographs | None:
        """The photographs on the device that trains; ``None`` where batches are gathered in memory.

        Raises:
            ValueError: they are wanted there and do not fit.
        """
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        if not self.images_on_device or (self.images_on_device == "auto" and device.type != "cuda"):
            return None
        needed, free = photographs.num_bytes, free_memory(device)
        if self.images_on_device == "auto":
            return photographs.to(device) if needed <= DEVICE_SHARE * free else None
        if needed > free:
            raise ValueError(
                f"{self.scene.name}: images_on_device is true, but the photographs and what is read beside them take "
                f"{needed / 2**20:,.0f} MiB, and {device} has {free / 2**20:,.0f} MiB free; take smaller or fewer "
                'photographs, or set images_on_device to "auto" or false'
            )
        return photographs.to(device)

    def val_dataloader(self) -> DataLoader:
        """The scene with the first ``val_views`` held-out views."""
        return self._object_loader(self.held_out_views[: self.val_views], self.eval_downscale)

    def test_dataloader(self) -> DataLoader:
        """The scene with all held-out views; without photographs where nothing is held out."""
        return self._object_loader(self.held_out_views, self.eval_downscale)

    def predict_dataloader(self) -> DataLoader:
        """As for test."""
        return self.test_dataloader()

    def _object_loader(self, views: list[int], downscale: int) -> DataLoader:
        objects = [object_batch(self.scene, views, downscale)]
        # every rank gets the one object: left to itself, Lightning would hand rank 1 nothing to predict and fail
        sampler = DistributedSampler(objects, num_replicas=1, rank=0, shuffle=False)
        # a generator of its own: else it draws from the global one, whose state checkpoints keep
        return DataLoader(
            dataset=objects, batch_size=1, sampler=sampler, collate_fn=itemgetter(0), generator=torch.Generator()
        )


class RayLoader(DataLoader):
    """A DataLoader whose every epoch continues the stream of rays instead of starting it again.

    Args:
        dataset: the stream.
        batches_trained: says how many of its batches were trained on.
        num_workers: processes that draw batches.
    """

    def __init__(self, dataset: RayDataset, batches_trained: Any, num_workers: int) -> None:
        super().__init__(
            dataset=dataset,
            batch_size=None,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            generator=torch.Generator(),
        )
        self.batches_trained = batches_trained

    def __iter__(self) -> Iterator[RayBatch | RayChoice]:
        self.dataset.start_at(self.batches_trained())
        return super().__iter__()


def free_memory(device: torch.device) -> float:
    """Bytes that can still be had on a device; without end where it shares the memory that photographs are in."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else math.inf


def split_views(name: str, num_views: int, held_out: list[int] | int | None) -> tuple[list[int], list[int]]:
    """Views to train on and views to hold out, in that order.

    Args:
        name: the scene, for errors.
        num_views: photographs there are.
        held_out: indices, or n for every n-th from the first on, or ``None`` to hold none out.

    Raises:
        ValueError: an index that does not exist, or nothing is left to train on.
    """
    if isinstance(held_out, int) and held_out < 2:
        raise ValueError(f"{name}: held_out is {held_out}, every n-th view needs n >= 2; null holds none out")
    views = list(range(0, num_views, held_out)) if isinstance(held_out, int) else sorted(set(held_out or []))
    wrong = [view for view in views if not 0 <= view < num_views]
    if wrong:
        raise ValueError(f"{name}: held-out views {wrong} do not exist, there are {num_views}, counted from 0")
    train = [view for view in range(num_views) if view not in views]
    if not train:
        raise ValueError(f"{name}: all {num_views} views are held out and none is left to train on")
    return train, views
