"""The page about a test: complete, self-contained, and true to the files beside it."""

import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from callbacks.curve import loss_curve
from callbacks.draw import Draw
from callbacks.report import MAX_ROWS, Report, page
from callbacks.save import SaveShapes
from callbacks.score import Score
from tests.callbacks.toy import Size, ToyMethod, loader, trainer

VOID = {"meta", "img", "line", "polyline", "wbr"}


class _Page(HTMLParser):
    """Links, sources and texts of a page; fails on a tag that is not closed."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(content)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value for name, value in attrs if name in ("href", "src") and value]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Results of a test of three objects, the second of them empty, in a run that has been trained."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.csv").write_text("step,train/loss\n0,1.0\n50,0.1\n100,0.01\n")
    callbacks = [Score([Size()]), SaveShapes(), Draw(max_objects=1, size=32), Report()]
    trainer(tmp_path, callbacks).test(ToyMethod(empty=(1,)), loader(3), verbose=False)
    return tmp_path / "run" / "test"


def test_the_page_shows_scores_objects_pictures_and_the_training(folder: Path) -> None:
    shown = _Page((folder / "report.html").read_text())
    assert {"run", "Scores", "Pictures", "Objects", "Training"} <= set(shown.texts)
    assert "ToyMethod, 1,000 steps, 3 objects, 1 empty" in shown.texts
    assert "thing/1 (empty)" in shown.texts
    assert "1.5" not in shown.texts
    # mean of 1, -1 and 3; of the categories 2 and -1
    assert {"size", "1", "mean of categories", "0.5"} <= set(shown.texts)


def test_the_page_needs_no_network_and_every_link_leads_to_a_file_beside_it(folder: Path) -> None:
    content = (folder / "report.html").read_text()
    links = [link for link in _Page(content).links if not link.startswith("data:image/jpeg;base64,")]
    plys = {link for link in links if link.endswith(".ply")}
    assert plys == {"shapes/thing_0.ply", "shapes/thing_2.ply"}
    assert {"objects.csv", "panels/test_thing_0_shape.png", "panels/test_thing_0_views.png"} <= set(links)
    assert all((folder / link).is_file() for link in links)
    assert not re.search(r"https?:|//\w|<script|@import|url\(", re.sub(r"base64,[^\"]*", "", content))
    assert str(folder.parent.parent) not in content


def test_names_from_the_data_cannot_break_the_page(tmp_path: Path) -> None:
    (tmp_path / "objects.csv").write_text(
        "object_index,object_id,category,is_empty,num_vertices,num_faces,size\n"
        "0,<b>&,<i>,False,4,4,1\n1,plain,<u>,True,0,0,\n"
    )
    content = page(tmp_path, {"size": 1.0, "<i>/size": 1.0, "macro_size": 1.0}, "<Method>")
    assert {"<b>&", "<i>", "plain (empty)"} <= set(_Page(content).texts)
    assert "<b>" not in content


def test_a_long_table_ends_with_a_link_to_the_rest(tmp_path: Path) -> None:
    rows = [f"{k},thing {k},,False,4,4,1" for k in range(MAX_ROWS + 5)]
    header = "object_index,object_id,category,is_empty,num_vertices,num_faces,size"
    (tmp_path / "objects.csv").write_text("\n".join([header, *rows]) + "\n")
    texts = _Page(page(tmp_path, {}, "")).texts
    assert f"thing {MAX_ROWS - 1}" in texts
    assert f"thing {MAX_ROWS}" not in texts
    assert "5 more in" in texts


def test_a_run_is_titled_by_its_name_and_version(tmp_path: Path) -> None:
    folder = tmp_path / "neuralangelo_demo" / "version_3" / "test"
    folder.mkdir(parents=True)
    assert "neuralangelo_demo / version_3" in _Page(page(folder, {}, "")).texts


def test_without_results_there_is_still_a_page(tmp_path: Path) -> None:
    trainer(tmp_path, [Report()]).test(ToyMethod(), loader(1), verbose=False)
    assert "run" in _Page((tmp_path / "run" / "test" / "report.html").read_text()).texts


@pytest.mark.parametrize("kwargs", [{"logger": False}, {"fast_dev_run": True}])
def test_without_a_logger_there_is_no_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kwargs: dict[str, bool]
) -> None:
    monkeypatch.chdir(tmp_path)
    trainer(tmp_path / "unused", [Report()], **kwargs).test(ToyMethod(), loader(2), verbose=False)
    assert not list(tmp_path.rglob("*.html"))


def _polyline(svg: str) -> list[tuple[float, float]]:
    found = re.search(r'<polyline points="([^"]*)"', svg)
    assert found
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in found[1].split())]


def test_a_loss_that_falls_tenfold_in_equal_times_is_a_straight_line(tmp_path: Path) -> None:
    rows = [f"{step},,{10 ** (-step / 100):.12g}" for step in (0, 100, 200, 300)]
    # validation rows have no loss, and rows need not come in order
    (tmp_path / "metrics.csv").write_text("\n".join(["step,val/psnr,train/loss", "150,20.0,", *rows[::-1]]) + "\n")
    points = _polyline(loss_curve(tmp_path / "metrics.csv"))
    slopes = {round((b[1] - a[1]) / (b[0] - a[0]), 2) for a, b in pairwise(points)}
    assert len(points) == 4
    assert len(slopes) == 1
    assert slopes.pop() > 0  # downwards in a picture


def test_a_loss_that_goes_below_zero_has_a_linear_axis(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,train/loss\n0,1\n10,0\n20,-1\n")
    svg = loss_curve(tmp_path / "metrics.csv")
    (_, a), (_, b), (_, c) = _polyline(svg)
    assert a - b == pytest.approx(b - c, abs=0.2)
    assert "logarithmic" not in svg


@pytest.mark.parametrize("content", ["", "step,train/loss\n", "step,train/loss\n1,0.5\n", "step,val/psnr\n1,2\n2,3\n"])
def test_where_there_is_no_curve_nothing_is_drawn(tmp_path: Path, content: str) -> None:
    (tmp_path / "metrics.csv").write_text(content)
    assert loss_curve(tmp_path / "metrics.csv") == ""
    assert loss_curve(tmp_path / "missing.csv") == ""


@pytest.mark.parametrize("losses", [[2.0, 2.0], [1e-9, 1e9], [0.31, 0.32], [0.0, 0.0], [1000.0] * 5000, [3e-5, 2e-5]])
def test_every_curve_stays_in_its_picture(tmp_path: Path, losses: list[float]) -> None:
    rows = [f"{step},{loss}" for step, loss in enumerate(losses)]
    (tmp_path / "metrics.csv").write_text("\n".join(["step,train/loss", *rows]) + "\n")
    points = _polyline(loss_curve(tmp_path / "metrics.csv"))
    assert len(points) <= 240
    assert all(0 <= x <= 720 and 0 <= y <= 260 for x, y in points)
