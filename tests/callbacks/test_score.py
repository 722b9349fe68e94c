"""Rows and means of scores: distinct objects, missing needs, two callbacks, two ranks."""

import csv
import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from rich.console import Console
from torch.utils.data import DataLoader

from callbacks.score import Score, _table
from metrics.record import json_text, record
from metrics.surface import SurfaceScore
from metrics.volume import VoxelIoU
from tests.callbacks.toy import Brightness, Size, ToyMethod, Volume, loader, run, sample, trainer

ROOT = Path(__file__).parents[2]


def _rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "run" / "test" / "objects.csv", newline="") as file:
        return list(csv.DictReader(file))


def _test(folder: Path, callbacks: list[Score], num_objects: int = 5, **kwargs: object) -> dict[str, float]:
    tester = trainer(folder, callbacks)
    tester.test(ToyMethod(empty=(3,)), loader(num_objects, **kwargs), verbose=False)
    return {name: value.item() for name, value in tester.callback_metrics.items()}


def test_means_are_those_of_the_rows_and_an_empty_shape_is_scored_and_counted(tmp_path: Path) -> None:
    metrics = _test(tmp_path, [Score([Size()])])
    rows = _rows(tmp_path)
    assert [row["object_index"] for row in rows] == list("01234")
    assert [float(row["size"]) for row in rows] == [1, 2, 3, -1, 5]
    assert [row["even_size"] for row in rows] == ["1", "", "3", "", "5"]
    assert rows[3] | {"size": "", "even_size": ""} == {
        "object_index": "3",
        "object_id": "thing/3",
        "category": "odd",
        "split": "",
        "is_empty": "True",
        "num_vertices": "0",
        "num_faces": "0",
        "size": "",
        "even_size": "",
    }
    assert (rows[0]["num_vertices"], rows[0]["num_faces"]) == ("4", "4")
    assert metrics["test/size"] == 2.0
    assert metrics["test/even_size"] == 3.0
    assert metrics["test/num_objects"] == 5
    assert metrics["test/num_empty"] == 1


def test_the_macro_mean_weighs_categories_alike(tmp_path: Path) -> None:
    metrics = _test(tmp_path, [Score([Size()])])
    assert metrics["test/even/size"] == 3.0
    assert metrics["test/odd/size"] == 0.5
    assert metrics["test/macro_size"] == 1.75
    assert metrics["test/macro_even_size"] == 3.0  # odd objects have none


def test_one_category_alone_has_no_macro_mean(tmp_path: Path) -> None:
    assert not [name for name in _test(tmp_path, [Score([Size()])], num_objects=1) if "macro" in name]


def test_a_repeated_object_counts_once(tmp_path: Path) -> None:
    tester = trainer(tmp_path, [Score([Size()])])
    samples = [sample(index) for index in (0, 1, 2, 0, 0)]
    batches = torch.utils.data.DataLoader(samples, batch_size=2, collate_fn=loader(1).collate_fn)
    tester.test(ToyMethod(), batches, verbose=False)
    assert tester.callback_metrics["test/size"] == 2.0
    assert tester.callback_metrics["test/num_objects"] == 3
    assert len(_rows(tmp_path)) == 3


def test_a_metric_whose_needs_are_absent_is_skipped_and_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        metrics = _test(tmp_path, [Score([Size(), Volume()])], without=("surface_points",))
    assert caplog.messages.count("no Size: the batch has no surface_points") == 1
    assert caplog.messages.count("no Volume: the batch has no query_occupancy, query_points") == 1
    assert not {"test/size", "test/iou"} & metrics.keys()
    # the objects are still counted
    assert metrics["test/num_objects"] == 5
    assert metrics["test/num_empty"] == 1
    assert "size" not in _rows(tmp_path)[0]


def test_validation_scores_only_what_needs_no_shape(tmp_path: Path) -> None:
    tester = trainer(tmp_path, [Score([Size(), Brightness()])])
    tester.validate(ToyMethod(), loader(3), verbose=False)
    assert tester.callback_metrics.keys() == {"val/brightness"}
    assert tester.callback_metrics["val/brightness"].item() == pytest.approx(0.2)
    assert not (tmp_path / "run" / "test" / "objects.csv").exists()


def test_two_scores_share_one_table_and_an_earlier_test_leaves_nothing_in_it(tmp_path: Path) -> None:
    _test(tmp_path, [Score([Size()])], num_objects=7)
    metrics = _test(tmp_path, [Score([Size()]), Score([Brightness()])], num_objects=4)
    rows = _rows(tmp_path)
    assert [float(row["size"]) for row in rows] == [1, 2, 3, -1]
    assert [float(row["brightness"]) for row in rows] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert metrics["test/num_objects"] == 4
    assert metrics["test/macro_brightness"] == pytest.approx(0.25)


def test_two_metrics_with_the_same_column_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="distinct names, but even_size, size comes from two metrics"):
        _test(tmp_path, [Score([Size()]), Score([Size()])])


def test_scores_of_one_trainer_have_distinct_state_keys() -> None:
    assert Score([Size()]).state_key != Score([Brightness()]).state_key


def test_a_second_test_starts_from_nothing(tmp_path: Path) -> None:
    tester = trainer(tmp_path, [Score([Size()])])
    for num_objects in (5, 2):
        tester.test(ToyMethod(), loader(num_objects), verbose=False)
        assert tester.callback_metrics["test/num_objects"] == num_objects
        assert len(_rows(tmp_path)) == num_objects


@pytest.mark.parametrize("kwargs", [{"logger": False}, {"fast_dev_run": True}])
def test_without_a_logger_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kwargs: dict[str, bool]
) -> None:
    monkeypatch.chdir(tmp_path)
    tester = trainer(tmp_path / "unused", [Score([Size()])], **kwargs)
    tester.test(ToyMethod(), loader(2), verbose=False)
    assert tester.callback_metrics["test/size"] == 1.5
    assert not list(tmp_path.rglob("*.csv"))


def test_many_scores_of_many_objects_are_shown_one_a_line_with_their_spread() -> None:
    columns = [f"score_{k}" for k in range(12)]
    rows = [{"object_index": i, "is_empty": False} | {name: float(i) for name in columns[:-1]} for i in range(5)]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(_table(rows, columns))
    lines = [line.split() for line in console.export_text().splitlines() if "score_" in line]
    assert lines[0] == ["score_0", "2", "0", "4"]
    assert [line[0] for line in lines] == columns
    assert lines[-1] == ["score_11"]  # nobody has it


class Half(LightningModule):
    """Predicts voxels that agree with the truth at one threshold in validation, and at another in a test."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: dict, batch_idx: int) -> torch.Tensor:
        return self.weight.square().sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)

    def validation_step(self, batch: dict, batch_idx: int) -> dict[str, torch.Tensor]:
        return {"voxels": torch.where(batch["voxels"], 0.35, 0.25)}

    def test_step(self, batch: dict, batch_idx: int) -> dict[str, torch.Tensor]:
        return {"voxels": torch.where(batch["voxels"], 0.9, 0.4)}


def test_a_threshold_chosen_on_validation_is_kept_in_the_checkpoint_and_used_in_the_test(tmp_path: Path) -> None:
    voxels = torch.zeros(4, 4, 4, dtype=torch.bool)
    voxels[:2] = True
    objects = DataLoader([{"voxels": voxels, "object_index": k} for k in range(3)], batch_size=2)
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    fitting = Trainer(max_epochs=1, default_root_dir=tmp_path, callbacks=[Score([VoxelIoU()])], **quiet)
    fitting.fit(Half(), objects, objects)
    checkpoint = fitting.checkpoint_callback.best_model_path
    testing = Trainer(default_root_dir=tmp_path, callbacks=[Score([VoxelIoU()])], **quiet)
    (means,) = testing.test(Half(), objects, ckpt_path=checkpoint, weights_only=True, verbose=False)
    assert means["test/voxel_iou_chosen_threshold"] == pytest.approx(0.3)
    assert means["test/voxel_iou_chosen"] == pytest.approx(0.5)  # 0.5 would have been right here


def test_seven_objects_on_two_ranks_give_the_table_and_the_means_of_one(tmp_path: Path) -> None:
    run("test", tmp_path / "one", empty=(3,))
    command = [sys.executable, "-m", "tests.callbacks.toy", "test", str(tmp_path / "two"), "--devices", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*command, "--empty", "3"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    one, two = ({p.name: p for p in (tmp_path / k).rglob("*") if p.is_file()} for k in ("one", "two"))
    assert one["objects.csv"].read_text() == two["objects.csv"].read_text()
    assert one["metrics.csv"].read_text() == two["metrics.csv"].read_text()
    means = next(csv.DictReader(two["metrics.csv"].read_text().splitlines()))
    assert float(means["test/size"]) == pytest.approx((1 + 2 + 3 - 1 + 5 + 6 + 7) / 7)
    # only the first rank saw an object that has this score
    assert float(means["test/outwardness"]) == 3.0
    assert {name for name in two if name.endswith(".ply")} == {f"thing_{k}.ply" for k in (0, 1, 2, 4, 5, 6)}
    assert one.keys() == two.keys()


def test_a_file_beside_the_table_says_what_the_scores_are(tmp_path: Path) -> None:
    _test(tmp_path, [Score([Size(), SurfaceScore(num_points=50, seed=4)]), Score([Brightness()])])
    facts = json.loads((tmp_path / "run" / "test" / "scores.json").read_text())
    assert facts["method"] == "tests.callbacks.toy.ToyMethod"
    assert facts["steps"] == 1000
    assert facts["checkpoint"] is None
    assert facts["seed_of_the_run"] == torch.initial_seed()
    assert (facts["num_objects"], facts["num_empty"], facts["empty"]) == (5, 1, ["thing/3"])
    protocols = {protocol["protocol"]: protocol for protocol in facts["protocols"]}
    assert list(protocols) == [
        *("tests.callbacks.toy.Size", "metrics.surface.SurfaceScore", "tests.callbacks.toy.Brightness")
    ]
    assert protocols["tests.callbacks.toy.Size"]["means"] == {"size": 2.0, "even_size": 3.0}
    surface = protocols["metrics.surface.SurfaceScore"]
    assert surface["settings"]["seed"] == 4
    assert surface["num_objects"] == 5
    assert "dataset's unit" in surface["unit"]


def test_the_file_counts_the_splits_and_writes_no_nan() -> None:
    rows = [
        {"object_index": k, "split": name, "size": value}
        for k, (name, value) in enumerate([("r2n2/test", 1.0), ("r2n2/test", float("nan")), ("other", float("inf"))])
    ]
    facts = record([Size()], rows)
    assert facts["splits"] == {"r2n2/test": 2, "other": 1}
    assert facts["protocols"][0]["num_objects"] == 2
    assert json.loads(json_text(facts))["protocols"][0]["means"] == {"size": None}  # infinite
