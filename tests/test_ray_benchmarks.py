"""The benchmarks of rendering and of the loading of rays run, at sizes that say nothing."""

import sys

import pytest

from benchmarks import ray_loading, rendering


def test_both_sides_of_rendering_are_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(rendering, "CASES", {"demo": (4, 3)})
    monkeypatch.setattr(sys, "argv", ["rendering.py", "--cases", "demo", "--repeats", "2"])
    rendering.main()
    assert (
        len([line for line in capsys.readouterr().out.splitlines() if line.startswith(("pixels", "sec", "four"))]) == 4
    )


def test_both_ways_of_loading_rays_are_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    flags = ["--rays", "16", "--sizes", "12", "24", "--batches", "2", "--workers", "0", "--views", "3"]
    monkeypatch.setattr(sys, "argv", ["ray_loading.py", *flags])
    ray_loading.main()
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table[-5:] if line] == ["16", "16", "16", "32"]
