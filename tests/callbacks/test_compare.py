import os
from pathlib import Path

import pytest

from callbacks.compare import compare, main


def _write(folder: Path, rows: list[str], header: str = "chamfer_l1,volume_iou") -> Path:
    (folder / "test").mkdir(parents=True)
    facts = "object_index,object_id,category,split,is_empty,num_vertices,num_faces"
    (folder / "test/objects.csv").write_text("\n".join([f"{facts},{header}", *rows]) + "\n")
    return folder


def test_means_are_over_the_objects_that_have_the_score(tmp_path):
    _write(tmp_path / "a/version_0", ["0,x,chair,test,False,8,12,0.1,0.5", "1,y,chair,test,True,0,0,0.3,"])
    lines = compare([tmp_path / "a"]).splitlines()
    assert lines[0] == "| run | objects | empty | volume_iou | chamfer_l1 |"
    assert lines[2:] == ["| a | 2 | 1 | 0.5 | 0.2 |"]


def test_runs_on_other_objects_are_said(tmp_path):
    runs = [_write(tmp_path / name, [f"0,{name},chair,test,False,8,12,0.1,0.5"]) for name in ("a", "b")]
    assert "not tested on the same objects" in compare(runs)
    assert "not tested" not in compare(runs[:1])


def test_a_run_without_the_score_has_an_empty_cell(tmp_path):
    rows = ["0,x,chair,test,False,8,12,0.1"]
    runs = [_write(tmp_path / "a", rows, "chamfer_l1"), _write(tmp_path / "b", rows, "volume_iou")]
    assert compare(runs).splitlines()[2:4] == ["| a | 1 | 0 |  | 0.1 |", "| b | 1 | 0 | 0.1 |  |"]


def test_the_newest_version_counts(tmp_path):
    _write(tmp_path / "a/version_0", ["0,x,chair,test,False,8,12,0.1,0.5"])
    newer = _write(tmp_path / "a/version_1", ["0,x,chair,test,False,8,12,0.2,0.5"])
    old = (newer / "test/objects.csv").stat().st_mtime
    os.utime(newer / "test/objects.csv", (old + 10, old + 10))
    assert "| 0.2 |" in compare([tmp_path / "a"])


def test_what_cannot_be_compared_is_said(tmp_path, capsys):
    with pytest.raises(ValueError, match=r"has no test/objects\.csv.*python main\.py test"):
        compare([tmp_path])
    run = _write(tmp_path / "a", ["0,x,chair,test,False,8,12,0.1,0.5"])
    with pytest.raises(ValueError, match="no run has iou; there are chamfer_l1, volume_iou"):
        compare([run], ["iou"])
    with pytest.raises(SystemExit):
        main([str(tmp_path / "absent")])
    assert "absent" in capsys.readouterr().err
    main([str(run), "--scores", "chamfer_l1"])
    assert "| a | 1 | 0 | 0.1 |" in capsys.readouterr().out
