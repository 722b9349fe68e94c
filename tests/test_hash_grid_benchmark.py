"""The hash grid's benchmark runs, at sizes that say nothing."""

import sys

import pytest
import torch

from benchmarks import hash_grid


def test_every_way_to_encode_taps_is_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    flags = ["--cases", "demo", "--repeats", "1", "--points", "160", "--levels", "2", "--log2-table-size", "8"]
    monkeypatch.setattr(sys, "argv", ["hash_grid.py", *flags])
    hash_grid.main()
    lines = capsys.readouterr().out.splitlines()
    for way in ("numba, one call", "numba, each point", "plain PyTorch", "tiny-cuda-nn", "corners of a sample"):
        assert any(line.startswith(way) for line in lines), way


def test_corners_that_taps_share_are_counted_once() -> None:
    tap_in_the_same_cell = torch.full((1, 2, 3), 0.01)
    tap_in_the_next_cell = torch.tensor([[[0.01, 0.01, 0.01], [1.01, 0.01, 0.01]]])
    assert hash_grid.apart_corners(tap_in_the_same_cell, scales=(4.0,)) == 8
    assert hash_grid.apart_corners(tap_in_the_next_cell, scales=(4.0,)) == 12
