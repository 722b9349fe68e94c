import io
import os
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.file_proxy import FileProxy

from callbacks import progress
from callbacks.progress import MOST_SECONDS_BETWEEN_LINES, ProgressBar, _Lines, _Rate
from tests.callbacks.toy import ToyMethod, loader, trainer


def _fit(folder: Path, bar: ProgressBar, **kwargs: object) -> None:
    settings = {"max_steps": 6, "val_check_interval": 3, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0}
    run = trainer(folder, [bar], enable_progress_bar=True, **settings | kwargs)
    run.fit(ToyMethod(), loader(4), loader(3))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the module believes have passed, in a list of one."""
    seconds = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds[0])
    return seconds


def test_a_file_gets_lines_about_the_whole_run_and_no_control_character(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "LOOKS_PER_SECOND", 1e9)
    monkeypatch.setattr(progress, "SHARE_OF_AGE", 0)
    _fit(tmp_path, ProgressBar(line_seconds=1e-9))
    out = capsys.readouterr().out
    lines = out.splitlines()
    # two batches an epoch, and the run is three epochs long
    assert [line.split("  ")[0] for line in lines if line.startswith("step")][-1] == "step 6 of 6 (100%)"
    assert any(line.startswith("step 2 of 6 (33%)") for line in lines)
    assert all("loss 1" in line for line in lines if line.startswith("step"))
    assert sum(line.startswith("validation at step") for line in lines) == 2
    assert not any(character in out for character in "\x1b\r━")


def test_a_terminal_gets_a_bar_over_the_whole_run_with_the_losses(tmp_path, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(progress, "LOOKS_PER_SECOND", 1e3)
    monkeypatch.setattr(progress, "Console", lambda: Console(file=screen, force_terminal=True, width=120))
    _fit(tmp_path, ProgressBar())
    shown = screen.getvalue()
    assert "training" in shown
    assert "validation" in shown
    assert "6 of 6" in shown
    assert "loss 1" in shown
    assert "validation at step 3" in shown
    assert not isinstance(sys.stdout, FileProxy)  # what it took, it gave back


def test_test_and_prediction_count_batches(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "SHARE_OF_AGE", 0)
    bar = ProgressBar(line_seconds=1e-9)
    trainer(tmp_path, [bar], enable_progress_bar=True).test(ToyMethod(), loader(6), verbose=False)
    trainer(tmp_path, [bar], enable_progress_bar=True).predict(ToyMethod(), loader(6))
    starts = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    for label in ("test", "predict"):
        assert [line for line in starts if line.startswith(label)] == [
            f"{label} {k} of 3 ({share}%)" for k, share in ((1, 33), (2, 67), (3, 100))
        ]


def test_the_end_of_the_run_is_told_from_present_speed_and_past_validations(clock):
    bar = ProgressBar()
    bar._total, bar._first_step = 1000, 0
    bar._rate.add(0, 0, "rays")
    for step in range(1, 101):
        clock[0] += 0.5
        bar._rate.add(step, 512, "rays")
    assert bar._rate.text() == "2 steps/s  1,024 rays/s"
    assert bar._seconds_left(100) == pytest.approx(450)
    bar._eval_seconds = 10.0  # so far, so 90 more of them
    assert bar._seconds_left(100) == pytest.approx(540)


def test_a_validation_does_not_slow_the_speed(clock):
    rate = _Rate()
    for step in range(20):
        clock[0] += 1
        if step == 10:
            rate.pause()
            clock[0] += 500
            rate.go_on()
        rate.add(step, 4, "objects")
    assert rate.steps_per_second == pytest.approx(1)


def test_lines_become_rarer_but_never_rarer_than_every_ten_minutes(clock, capsys):
    lines = _Lines(10)
    lines.add("training", 0, 500_000)
    for step in range(200_000):
        clock[0] += 1
        if lines.is_due():
            lines.show(step, "", "", "")
    count = len(capsys.readouterr().out.splitlines())
    assert 200_000 / MOST_SECONDS_BETWEEN_LINES < count < 500


def test_a_forked_process_writes_past_the_bars(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "Console", lambda: Console(file=io.StringIO(), force_terminal=True))
    bar = ProgressBar()
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    bar._open()
    try:
        assert isinstance(sys.stdout, FileProxy)
        child = os.fork()
        if child == 0:
            os._exit(isinstance(sys.stdout, FileProxy) or isinstance(sys.stderr, FileProxy))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        bar._close()


def test_no_time_between_lines_is_refused():
    with pytest.raises(ValueError, match="line_seconds is 0, expected seconds above 0"):
        ProgressBar(line_seconds=0)
