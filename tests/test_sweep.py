"""Sweeps with a stand-in for main.py, which takes no time; tests/test_slurm.py sweeps with the real one."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import sweep

STAND_IN = """
import json, os, signal, sys, time
from pathlib import Path

command, *words = sys.argv[1:]
given = dict(zip(words[::2], words[1::2]))
print("saw", command, os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
with open("calls.txt", "a") as file:
    file.write(f"{command} {given.get('--data.init_args.scan')} {given.get('--ckpt_path')}\\n")
if command == "fit":
    run = Path(given["--run_root"], given["--run_name"], "version_0")
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    (run / "checkpoints/last.ckpt").touch()
    if given["--data.init_args.scan"] == "broken" and not Path("mended").exists():
        sys.exit("error: scan broken has no images")
    if given["--data.init_args.scan"] == "slow":
        time.sleep(60)
else:
    run = Path(given["--run_root"], "version_0")
    (run / "test").mkdir(exist_ok=True)
    is_empty = run.parts[-2] == "empty"
    psnr = "" if is_empty else "20.0"
    (run / "test/objects.csv").write_text(
        "object_index,object_id,category,split,is_empty,num_vertices,num_faces,chamfer_l1,psnr_db\\n"
        f"0,it,thing,test,{is_empty},0,0,{2.0 if is_empty else 0.5},{psnr}\\n"
    )
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "main.py").write_text(STAND_IN)
    monkeypatch.setattr(sweep, "HERE", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _run(*scans: str, more: tuple[str, ...] = ()) -> int:
    return sweep.main(["run", "--config", "tiny.yaml", "--workers", "2", "--scans", *scans, *more])


def test_failures_and_empty_shapes_are_counted_and_never_dropped(place, capsys):
    assert _run("1", "broken", "empty") == 1
    folder = place / "runs/tiny_sweep"
    table = (folder / "table.md").read_text()
    assert table in capsys.readouterr().out
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    assert lines[0] == ["scan", "status", "objects", "empty", "chamfer_l1", "psnr_db", "minutes"]
    rows = {line[0]: line[1:-1] for line in lines[2:]}
    assert rows["1"] == ["finished", "1", "0", "0.5", "20"]
    assert rows["broken"] == ["failed", "", "", "", ""]
    assert rows["empty"] == ["finished", "1", "1", "2", ""]
    assert rows["mean of 2"] == ["of 3", "2", "1", "1.25", "20 (1)"]  # one of the two has a PSNR
    assert "- broken: failed, see runs/tiny_sweep/logs/broken.log" in table
    assert "error: scan broken has no images" in (folder / "logs/broken.log").read_text()
    rows = list(csv.DictReader((folder / "table.csv").open()))
    assert [(row["scan"], row["status"], row["chamfer_l1"]) for row in rows] == [
        ("1", "finished", "0.5"), ("broken", "failed", ""), ("empty", "finished", "2.0")
    ]  # fmt: skip


def test_the_same_command_again_does_what_is_missing(place):
    assert _run("1", "broken") == 1
    (place / "mended").touch()
    (place / "calls.txt").unlink()
    assert _run("1", "broken") == 0
    # the broken one goes on from what it had saved; the other one is left alone
    assert (place / "calls.txt").read_text() == "fit broken last\ntest None None\n"
    (place / "calls.txt").unlink()
    assert _run("1", "broken") == 0
    assert not (place / "calls.txt").exists()


def test_another_sweep_in_the_same_folder_is_refused(place, capsys):
    _run("1")
    assert _run("1", more=("--trainer.max_steps", "7")) == 2
    assert "a sweep with other arguments was begun here (runs/tiny_sweep/sweep.json)" in capsys.readouterr().err
    assert _run("a/b", "a:b", more=("--name", "same")) == 2
    assert "a/b, a:b would share a folder" in capsys.readouterr().err
    assert sweep.main(["gather", "nowhere"]) == 2
    assert "nowhere/sweep.json: no such file" in capsys.readouterr().err
    assert sweep.main(["one", "runs/tiny_sweep", "1"]) == 2
    assert "scan number 1, but there are 1, counted from 0" in capsys.readouterr().err
    assert sweep.main(["gather", "runs/tiny_sweep", "--scores", "beauty"]) == 2
    assert "no scan has beauty; there are chamfer_l1, psnr_db" in capsys.readouterr().err


def test_scans_come_from_a_file_and_each_worker_shows_its_commands_one_gpu(place):
    (place / "scans.txt").write_text("24  # of DTU\n\n37\n40\n")
    arguments = ["run", "--config", "tiny.yaml", "--scans", "scans.txt", "--devices", "3", "5"]
    assert sweep.main(arguments) == 0
    seen = {(place / f"runs/tiny_sweep/logs/{scan}.log").read_text().count(f"fit {gpu}")
            for scan in (24, 37, 40) for gpu in (3, 5)}  # fmt: skip
    assert seen == {0, 1}
    logs = "".join(path.read_text() for path in place.glob("runs/tiny_sweep/logs/*.log"))
    assert logs.count("saw fit 3") + logs.count("saw fit 5") == 3
    assert "saw fit 3" in logs
    assert "saw fit 5" in logs


def test_a_stopped_sweep_ends_its_commands_and_goes_on_later(place):
    code = f"import sys, sweep; from pathlib import Path; sweep.HERE = Path({str(place)!r}); sys.exit(sweep.main())"
    command = [sys.executable, "-c", code, "run", "--config", "tiny.yaml", "--scans", "slow", "--workers", "1"]
    root = str(Path(sweep.__file__).parent)
    process = subprocess.Popen(command, cwd=place, env=os.environ | {"PYTHONPATH": root}, stdout=subprocess.PIPE)
    log = place / "runs/tiny_sweep/logs/slow.log"
    deadline = time.monotonic() + 60
    while not (log.is_file() and "saw fit" in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=30)[0].decode()
    assert process.returncode == 1
    assert "| slow | unfinished |" in output
    assert sweep.Sweep.load(Path("runs/tiny_sweep")).state("slow")["status"] == "unfinished"
