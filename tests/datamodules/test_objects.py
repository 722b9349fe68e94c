import itertools
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from datamodules.object_stream import EvalSampler, StreamSampler
from datamodules.synthetic import SyntheticObjects
from tests.datamodules.toy_objects import ALL_KEYS, ToyObjects, small_objects


def make(**settings: object) -> ToyObjects:
    data = ToyObjects(**{"batch_size": 4, "num_query_points": 50, "num_surface_points": 60, **settings})
    data.setup()
    return data


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[key], other[key]) if isinstance(one[key], Tensor) else one[key] == other[key] for key in one
    )


NAMES = {"object_index", "object_id", "category", "normalized_to_dataset"}


@pytest.mark.parametrize(
    ("reads", "shapes"),
    [
        ({"images", "voxels"}, {"images": (4, 1, 3, 24, 24), "voxels": (4, 32, 32, 32)}),
        ({"images", "surface_points"}, {"images": (4, 1, 3, 24, 24), "surface_points": (4, 60, 3)}),
        ({"query_points", "query_occupancy"}, {"query_points": (4, 50, 3), "query_occupancy": (4, 50)}),
        ({"surface_points", "surface_normals"}, {"surface_points": (4, 60, 3), "surface_normals": (4, 60, 3)}),
        (
            {"masks", "intrinsics", "camera_to_world"},
            {"masks": (4, 1, 24, 24), "intrinsics": (4, 1, 3, 3), "camera_to_world": (4, 1, 4, 4)},
        ),
    ],
)
def test_a_training_batch_holds_what_the_method_reads_and_names(reads: set[str], shapes: dict) -> None:
    batch = next(iter(make(reads=reads).train_dataloader()))
    assert set(batch) == reads | NAMES
    assert {key: tuple(batch[key].shape) for key in shapes} == shapes
    for name, category in zip(batch["object_id"], batch["category"], strict=True):
        assert name.startswith(category)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_views": [1, 3], "crop": 20, "augment": ["crop", "flip", "background"]},
        {"image_size": 32},
        {"image_size": 16, "crop": 21, "reads": {"images", "masks", "camera_to_world", "intrinsics"}},
    ],
)
def test_images_finished_on_the_device_are_those_of_the_workers_bit_for_bit(settings: dict) -> None:
    settings = {"reads": {"images"}, "background": 200} | settings
    plain, late = make(**settings), make(**settings, finish_on_device=True)
    for one, other in zip(plain.train_dataloader(), late.train_dataloader(), strict=True):
        assert "images" not in other
        assert other["pictures"].dtype == torch.uint8
        assert equal(one, late.on_after_batch_transfer(other, 0))
    shown = next(iter(late.test_dataloader()))
    assert late.on_after_batch_transfer(shown, 0) is shown


def test_drawn_truth_belongs_to_the_object_that_is_named() -> None:
    reads = {"voxels", "surface_points", "surface_normals", "query_points", "query_occupancy"}
    data = make(reads=reads, query_noise=0.0)
    batch = next(iter(data.train_dataloader()))
    for i, position in enumerate(batch["object_index"].tolist()):
        solid = data.source.solid(data.positions["train"][position])
        assert data.source.objects[data.positions["train"][position]].object_id == batch["object_id"][i]
        assert np.array_equal(solid.contains(batch["query_points"][i].numpy()), batch["query_occupancy"][i].numpy())
        assert solid.level(batch["surface_points"][i].double()).abs().max() < 1e-6
        assert np.array_equal(solid.voxels(32), batch["voxels"][i].numpy())
        assert torch.allclose(batch["surface_normals"][i].norm(dim=1), torch.ones(60))


def test_noise_hides_the_lattice_of_half_precision_and_occupancy_stays_that_of_the_point_kept() -> None:
    reads = {"query_points", "query_occupancy"}
    plain, noisy = (next(iter(make(reads=reads, query_noise=s).train_dataloader())) for s in (0.0, 1e-4))
    offsets = noisy["query_points"] - plain["query_points"]
    assert offsets.std().item() == pytest.approx(1e-4, rel=0.1)
    assert torch.equal(plain["query_occupancy"], noisy["query_occupancy"])
    assert torch.equal(plain["query_points"], plain["query_points"].half().float())


def test_imnets_sets_are_read_in_runs_without_repetition_and_without_noise() -> None:
    for resolution, wanted in ((16, 4096), (64, 4096)):
        reads = {"query_points", "query_occupancy"}
        data = make(reads=reads, query_resolution=resolution, num_query_points=wanted)
        batch = next(iter(data.train_dataloader()))
        cells = (batch["query_points"][0] + 0.5) * 256 - 0.5
        assert torch.equal(cells, cells.round())
        assert len(cells.unique(dim=0)) == wanted


def test_one_number_of_views_is_drawn_a_batch_and_no_view_twice() -> None:
    data = make(reads={"images", "camera_to_world"}, num_views=[1, 3])
    sampler = data.train_dataloader().sampler
    counts = [sampler.request(number).num_views for number in range(60)]
    assert set(counts) == {1, 2, 3}
    batch = data.train_dataloader().dataset[sampler.request(counts.index(3))]
    assert batch["images"].shape[:2] == (4, 3)
    for poses in batch["camera_to_world"]:
        assert len(poses.flatten(1).unique(dim=0)) == 3


def test_evaluation_shows_every_object_once_with_all_that_is_known() -> None:
    data = make(reads={"images", "voxels"}, eval_views=[2, 0], eval_query_points=100, eval_batch_size=3)
    for stage, loader in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        batches = list(loader)
        shown = torch.cat([batch["object_index"] for batch in batches]).tolist()
        assert shown == list(range(len(data.positions[stage])))
        for batch in batches:
            assert set(batch) == NAMES | ALL_KEYS | {"split"}
            assert batch["split"] == [f"synthetic/{stage}"] * len(batch["object_id"])
            assert batch["images"].shape[1:] == (2, 3, 24, 24)
            assert batch["surface_points"].shape[1:] == (400, 3)
            assert batch["query_points"].shape[1:] == (100, 3)
    assert equal(batches[0], next(iter(data.test_dataloader())))


def test_ranks_share_the_objects_of_a_round_and_rounds_differ() -> None:
    num_objects, stream = 14, []
    samplers = [StreamSampler(num_objects, 2, (1, 1), 0, rank, 3, lambda: 0) for rank in range(3)]
    assert {len(sampler) for sampler in samplers} == {2}
    for number in range(14):
        batches = [sampler.request(number) for sampler in samplers]
        assert len({slot for batch in batches for slot in batch.slots}) == 6
        assert len({batch.num_views for batch in batches}) == 1
        stream += [position for batch in batches for position in batch.positions]
    rounds = [stream[i : i + num_objects] for i in range(0, len(stream), num_objects)]
    assert all(sorted(turn) == list(range(num_objects)) for turn in rounds)
    assert len({tuple(turn) for turn in rounds}) == len(rounds)


def test_two_ranks_with_half_the_batch_see_what_one_sees() -> None:
    settings = {"reads": {"images", "query_points"}, "augment": ["crop", "flip"], "crop": 20}
    whole = make(batch_size=4, **settings)
    dataset, sampler = whole.train_dataloader().dataset, whole.train_dataloader().sampler
    one = dataset[sampler.request(1)]
    halves = [dataset[StreamSampler(len(dataset), 2, (1, 1), 0, rank, 2, lambda: 0).request(1)] for rank in range(2)]
    for key in ("images", "query_points", "object_index"):
        assert torch.equal(one[key], torch.cat([half[key] for half in halves]))


@pytest.mark.parametrize(("num_objects", "num_ranks", "batch_size"), [(7, 2, 2), (6, 3, 4), (1, 2, 3), (9, 1, 4)])
def test_ranks_evaluate_everything_in_equally_many_batches(num_objects: int, num_ranks: int, batch_size: int) -> None:
    samplers = [EvalSampler(num_objects, batch_size, rank, num_ranks) for rank in range(num_ranks)]
    assert len({len(sampler) for sampler in samplers}) == 1
    shown = [position for sampler in samplers for request in sampler for position in request.positions]
    assert set(shown) == set(range(num_objects))
    assert len(shown) < num_objects + num_ranks


def test_a_batch_larger_than_the_collection_repeats_objects_but_not_their_draws() -> None:
    data = make(batch_size=16, reads={"query_points", "query_occupancy"}, categories=["chair"])
    batch = next(iter(data.train_dataloader()))
    assert len(data.train_dataloader()) == 1
    first, second = (batch["object_index"] == batch["object_index"][0]).nonzero()[:2, 0].tolist()
    assert not torch.equal(batch["query_points"][first], batch["query_points"][second])


def test_a_seed_makes_the_same_batches_again_with_any_number_of_workers() -> None:
    settings = {"reads": {"images", "query_points"}, "augment": ["flip", "background"], "num_views": [1, 2]}
    batches = [list(make(**settings, num_workers=workers).train_dataloader()) for workers in (0, 2)]
    assert len(batches[0]) == 3
    assert all(equal(*pair) for pair in zip(*batches, strict=True))
    assert not equal(batches[0][0], next(iter(make(**settings, seed=1).train_dataloader())))


class Recorder(LightningModule):
    """Remembers what it was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[Tensor] = []

    def training_step(self, batch: dict, batch_index: int) -> Tensor:
        self.seen.append(batch["query_points"])
        return self.weight.square()

    def validation_step(self, batch: dict, batch_index: int) -> None:
        pass

    def predict_step(self, batch: dict, batch_index: int) -> list[str]:
        return batch["object_id"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer_of(**arguments: object) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", **quiet, **arguments)


def train(folder: Path, checkpoint: Path | None = None, num_workers: int = 0, **arguments: object) -> list[Tensor]:
    recorder = Recorder()
    saver = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    # four batches an epoch
    data = ToyObjects(batch_size=3, num_query_points=5, num_workers=num_workers, reads={"query_points"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer_of(callbacks=[saver], **arguments).fit(recorder, data, ckpt_path=checkpoint, weights_only=True)
    return recorder.seen


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_steps": 8},
        {"max_steps": 8, "num_workers": 2},
        {"max_steps": 4, "accumulate_grad_batches": 2},
        {"max_steps": 8, "limit_train_batches": 2},
    ],
    ids=["straight", "workers", "accumulating", "short epochs"],
)
def test_a_resumed_run_draws_exactly_the_batches_of_a_straight_one(tmp_path: Path, arguments: dict) -> None:
    straight = train(tmp_path, **arguments)
    assert len(straight) == 8
    assert len({tuple(points.flatten().tolist()) for points in straight}) == 8
    steps_each = arguments.get("accumulate_grad_batches", 1)
    resumed = train(tmp_path / "again", tmp_path / "step=2.ckpt", **arguments)
    assert len(resumed) == 8 - 2 * steps_each
    for one, other in zip(resumed, straight[2 * steps_each :], strict=True):
        assert torch.equal(one, other)


def test_a_method_is_handed_finished_images_by_lightning() -> None:
    class Shown(Recorder):
        def training_step(self, batch: dict, batch_index: int) -> Tensor:
            self.seen.append(batch["images"])
            return self.weight.square()

    settings, method = {"reads": {"images"}, "batch_size": 4}, Shown()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer_of(max_steps=1, enable_checkpointing=False).fit(method, ToyObjects(**settings, finish_on_device=True))
    assert torch.equal(method.seen[0], next(iter(make(**settings).train_dataloader()))["images"])


def test_prediction_goes_through_lightning() -> None:
    data = ToyObjects(reads={"images"}, batch_size=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        predicted = trainer_of().predict(Recorder(), data)
    names = list(itertools.chain.from_iterable(predicted))
    assert names == ["chair_0008", "chair_0009", "solid_0008", "solid_0009"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reads": {"rays"}}, "R2N2 reads 'rays', which ToyObjects does not have; .*: DTU, .*SyntheticScene"),
        ({"reads": {"images"}, "num_views": 4}, r"num_views is \(4, 4\), but objects .* have 3 views"),
        ({"reads": {"images"}, "num_views": [2, 1]}, r"num_views is \(2, 1\)"),
        ({"reads": {"images"}, "num_views": [1, 2, 3]}, r"num_views is \(1, 2, 3\)"),
        ({"eval_views": [3]}, r"eval_views \[3\]: objects .* have views 0 to 2"),
        ({"eval_views": []}, r"eval_views \[\]"),
        ({"reads": {"voxels"}, "voxel_resolution": 48}, "voxel_resolution is 48, but .* has voxels of 16, 32, 64"),
        (
            {"reads": {"query_points"}, "query_resolution": 8},
            "query_resolution is 8, but .* has query points of null, 16, 32, 64",
        ),
        ({"categories": ["sofa"]}, "categories: .* has no sofa; it has chair, solid"),
        ({"batch_size": 0}, "batch_size is 0, expected at least 1"),
        ({"num_query_points": 0}, "num_query_points is 0"),
        (
            {"augment": ["zoom"], "image_size": 16, "finish_on_device": True},
            "'zoom' cuts squares of several sizes, .*; set finish_on_device to false",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(reader="R2N2", **settings)


def test_pictures_of_several_sizes_in_a_batch_are_refused_with_the_remedy() -> None:
    source = small_objects()
    sizes = iter([24, 25])
    source.pixels = lambda index, views: np.zeros((1, *[next(sizes)] * 2, 4), np.uint8)
    data = make(toy=source, batch_size=2, reads={"images"})
    with pytest.raises(ValueError, match=r"images has different sizes in one batch.*set image_size"):
        next(iter(data.train_dataloader()))


def test_a_split_without_training_objects_says_so() -> None:
    data = make()
    data.positions["train"], data.positions["val"] = [], []
    assert data.val_dataloader() == []
    with pytest.raises(ValueError, match="the split 'synthetic' has no train objects"):
        data.train_dataloader()


def test_the_command_line_builds_a_collection_from_yaml_keys(tmp_path: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    config = {
        "class_path": "datamodules.synthetic.SyntheticObjects",
        "init_args": {
            "root": str(tmp_path),
            "objects_per_category": 10,
            "num_views": [1, 5],
            "augment": ["crop", "flip", "background"],
            "background_range": [225, 255],
            "crop": 127,
            "image_size": 127,
            "categories": ["chair"],
        },
    }
    data = parser.instantiate(parser.parse_object({"data": config})).data
    assert isinstance(data, SyntheticObjects)
    assert (data.num_views, data.transform.crop, data.transform.background_range) == ((1, 5), 127, (225, 255))
    for name, value in (("augment", ["blur"]), ("num_views", "many"), ("croop", 3)):
        wrong = {**config, "init_args": {**config["init_args"], name: value}}
        with pytest.raises(ArgumentError, match=name):
            parser.parse_object({"data": wrong})
