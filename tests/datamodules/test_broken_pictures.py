"""A picture that breaks while a run goes on: named, or by choice skipped, and then by everybody alike."""

import warnings

import pytest
import torch
from pytorch_lightning import Trainer

from callbacks.checkpoint import Checkpoint
from datamodules.object_stream import Request
from datamodules.packed import decoded
from datamodules.synthetic_objects import ProceduralObjects
from methods.mean_shape import MeanShape
from tests.datamodules.toy_objects import ToyObjects


class BreakingObjects(ProceduralObjects):
    """Procedural objects, some of whose pictures are no pictures."""

    broken = ("chair_0002", "solid_0005", "solid_0006")

    def __init__(self) -> None:
        super().__init__(("chair", "solid"), 10, 3, 24, num_surface_points=50, num_query_points=50)

    def encoded_view(self, index: int, view: int) -> bytes:
        if self.objects[index].object_id in self.broken:
            return b"these are not the bytes of a picture"
        return super().encoded_view(index, view)


def _data(**kwargs: object) -> ToyObjects:
    return ToyObjects(BreakingObjects(), batch_size=4, reads={"images"}, **kwargs)


def _batches(data: ToyObjects, count: int) -> list[dict]:
    data.setup("fit")
    batches: list[dict] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while len(batches) < count:
            data.load_state_dict({"batches_trained": data.batches_trained() + 3 if batches else data.batches_trained()})
            batches += list(data.train_dataloader())
    return batches


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_broken_picture_is_named_with_its_object_and_what_to_do(num_workers):
    with pytest.raises(
        ValueError, match=r"procedural objects, \w+ \w+_000\d: .* cannot be read as an image.*skip_broken"
    ):
        _batches(_data(num_workers=num_workers), 3)


def test_skipping_keeps_the_length_of_an_epoch_and_is_the_same_for_workers_and_resumed_runs(capsys):
    data = _data(skip_broken=True)
    straight = _batches(data, 6)
    assert [len(batch["object_id"]) for batch in straight] == [4] * 6
    seen = {name for batch in straight for name in batch["object_id"]}
    assert not seen & set(BreakingObjects.broken)
    assert len(seen) == 14 - 3
    data.teardown("fit")
    said = capsys.readouterr().out
    assert "skipped 3 of 14 training objects, as pictures are broken: the procedural objects, chair chair_0002" in said

    resumed = _data(skip_broken=True, num_workers=2)
    resumed.load_state_dict({"batches_trained": 3})
    for batch, other in zip(straight[3:], _batches(resumed, 3), strict=True):
        assert batch["object_id"] == other["object_id"]
        assert torch.equal(batch["images"], other["images"])
        assert torch.equal(batch["object_index"], other["object_index"])
    resumed.teardown("fit")
    assert "skipped" in capsys.readouterr().out  # told by other processes


def test_the_object_after_the_last_is_the_first_and_nothing_to_read_is_an_error():
    data = _data(skip_broken=True)
    data.setup("fit")
    positions = data.positions["train"]
    last = len(positions) - 1
    assert data.source.objects[positions[last]].object_id == "solid_0006"
    with pytest.warns(UserWarning, match="skipped: the procedural objects, solid solid_0006"):
        batch = data._train_batch(positions, Request((last,), (0,), 1))
    assert batch["object_id"] == ["chair_0000"]
    assert batch["object_index"].tolist() == [0]
    with pytest.raises(ValueError, match="no training object has pictures that can be read"):
        data._train_batch([positions[last]], Request((0,), (0,), 1))


def test_evaluation_never_skips():
    data = _data(skip_broken=True)
    data.setup("fit")
    broken = [k for k, name in enumerate(data.source.objects) if name.object_id in BreakingObjects.broken]
    with pytest.raises(ValueError, match=r"chair chair_0002: .* cannot be read as an image"):
        data._eval_batch("test", broken, Request((0,)))


def test_a_run_says_in_the_end_what_it_skipped(tmp_path, capsys):
    data = ToyObjects(BreakingObjects(), batch_size=4, reads={"images", "voxels"}, skip_broken=True)
    trainer = Trainer(
        accelerator="cpu", logger=False, default_root_dir=tmp_path, max_epochs=2, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, callbacks=[Checkpoint()],
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(MeanShape(), datamodule=data)
    assert "of 14 training objects, as pictures are broken" in capsys.readouterr().out


def test_what_breaks_is_a_value_error_for_whoever_reads_pictures_otherwise():
    with pytest.raises(ValueError, match=r"view 3 cannot be read as an image"):
        decoded(b"", "view 3")
