"""Runs and their curves read back from their folders."""

import json
import os
from pathlib import Path

import pytest

from callbacks.curves import MAX_POINTS, read_curves, resumed_at, steps_of, thinned
from callbacks.report import report
from callbacks.runs import find_runs, lineage, read_run, training_seconds
from tests.callbacks.run_folders import ball, write_run


def _metrics(folder: Path, *lines: str, end: str = "\n") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.csv").write_text("\n".join(lines) + end)
    return folder


def test_a_run_an_experiment_and_a_tree_are_found(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for name in ("a/version_0", "a/version_2", "b/version_0"):
        write_run(runs / name, {"x": {"iou": 1.0}})
    _metrics(runs / "a/version_10", "step,train/loss")
    _metrics(runs / "c/version_2", "step,train/loss")
    _metrics(runs / "c/version_10", "step,train/loss")
    old, new = (runs / f"a/version_{k}/test/objects.csv" for k in (2, 0))
    os.utime(old, (1, 1))
    assert find_runs([runs / "a/version_2"]) == [runs / "a/version_2"]
    assert find_runs([runs / "a/version_2/test"]) == [runs / "a/version_2"]
    assert find_runs([runs / "a"]) == [new.parents[1]]  # the newest test, not the newest start
    assert find_runs([runs / "c"]) == [runs / "c/version_10"]
    assert find_runs([runs, runs / "a"]) == [runs / "a/version_0", runs / "b/version_0", runs / "c/version_10"]
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match=r"nothing: holds no run; expected config\.yaml"):
        find_runs([tmp_path / "nothing"])
    with pytest.raises(ValueError, match="absent: no such folder; expected a run"):
        find_runs([tmp_path / "absent"])


def test_a_resumed_run_joins_the_curve_of_its_predecessor(tmp_path: Path) -> None:
    first = _metrics(tmp_path / "version_0", "step,train/loss,val/iou", "0,8,", "10,4,", "15,,0.9", "20,100,")
    second = _metrics(tmp_path / "version_1", "step,train/loss", "15,2", "25,1")
    third = _metrics(tmp_path / "version_2", "step,train/loss", "22,0.5")
    (second / "environment.json").write_text(json.dumps({"continues": "elsewhere/version_0/checkpoints/last.ckpt"}))
    (third / "config.yaml").write_text("ckpt_path: elsewhere/version_1/checkpoints/last.ckpt\n")
    folders = lineage(read_run(third))
    assert [one.name for one in folders] == ["version_0", "version_1", "version_2"]
    curves, notes = read_curves(folders)
    # what was gone through again is gone, the score of step 15 too
    assert curves == {"train/loss": [(0, 8), (10, 4), (15, 2), (22, 0.5)]}
    assert resumed_at(folders) == [15, 22]
    assert notes == []
    assert lineage(read_run(first)) == [first]


def test_a_run_that_goes_on_from_itself_is_no_endless_story(tmp_path: Path) -> None:
    run = _metrics(tmp_path / "version_0", "step,train/loss", "1,2")
    (run / "environment.json").write_text(json.dumps({"continues": "version_0/checkpoints/last.ckpt"}))
    assert lineage(read_run(run)) == [run]


def test_half_a_line_and_what_is_not_finite_are_left_out_and_said(tmp_path: Path) -> None:
    run = _metrics(tmp_path, "step,train/loss,val/iou", "0,1,nan", "10,nan,", "20,0.5,", "30,0.", end="")
    curves, notes = read_curves([run])
    assert curves == {"train/loss": [(0, 1), (20, 0.5)]}
    assert notes == [
        "metrics.csv ends in the middle of a line, which is left out.",
        "Not finite, and not drawn: train/loss 1 times.",
    ]
    assert steps_of(read_run(run)) == 21
    assert read_curves([tmp_path / "absent"]) == ({}, [])


def test_long_curves_are_means_of_stretches() -> None:
    points = [(float(step), float(step % 2)) for step in range(10 * MAX_POINTS)]
    steps, values = thinned(points)
    assert len(steps) == MAX_POINTS
    assert set(values) == {0.5}
    assert steps[:2] == [4.5, 14.5]
    assert thinned(points[:2]) == ([0.0, 1.0], [0.0, 1.0])


def test_training_lasts_from_the_first_file_to_the_last_checkpoint(tmp_path: Path) -> None:
    runs = [tmp_path / f"version_{k}" for k in range(2)]
    for run in runs:
        (run / "checkpoints").mkdir(parents=True)
        for name, seconds in {
            "config.yaml": 1000,
            "checkpoints/step1.ckpt": 1050,
            "checkpoints/last.ckpt": 1100,
        }.items():
            (run / name).write_text("")
            os.utime(run / name, (seconds, seconds))
    assert training_seconds(runs) == 200
    (runs[1] / "config.yaml").unlink()
    assert training_seconds(runs) is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("test/scores.json", "{", r"scores\.json: is no JSON"),
        ("test/scores.json", "[]", r"scores\.json: holds list"),
        ("test/objects.csv", "a,b\n1,2\n", r"objects\.csv: has no column"),
        ("test/objects.csv", "object_index,object_id,is_empty\n1,2\n", r"objects\.csv: line 2 has not as many cells"),
        ("test/shapes/x.json", "{", r"x\.json: is no JSON"),
        ("test/shapes/x.ply", "ply", r"x\.ply: cannot be read"),
        ("test/panels/test_x_views.png", "no", r"test_x_views\.png: is no whole picture"),
        ("config.yaml", "a: [", r"config\.yaml: is no YAML"),
        ("config.yaml", "5", r"config\.yaml: expected settings"),
        ("metrics.csv", "step,train/loss\n1,x\n", r"metrics\.csv: line 2: 'x' is no number"),
        ("environment.json", "\0", r"environment\.json: is no JSON"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    run = write_run(tmp_path / "run", {"x": {"iou": 1.0}}, shapes={"x": ball()}, panels=["x"])
    (run / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        report([run])
