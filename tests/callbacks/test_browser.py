"""Pages of runs in a real browser: nothing is asked of a network, tables sort, curves are read, shapes turn."""

import hashlib
import os
import re
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch

from callbacks.page.document import VIEWER
from callbacks.report import report
from ops.types import Shape
from tests.callbacks.browser import Browser, find_chromium
from tests.callbacks.run_folders import ball, write_run

NAME = "</script><script>document.title='broken'</script>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory):
    """A browser for all tests; starting one takes seconds."""
    if find_chromium() is None:
        pytest.skip("no chromium, google-chrome or chrome found; install one: apt-get install chromium")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> Browser:
    """The browser with a page about two runs on a mesh, a point set and an object whose name is a script."""
    place = tmp_path_factory.mktemp("runs")
    points = Shape(550 + 100 * torch.rand(300, 3, generator=torch.Generator().manual_seed(0)))
    losses = [10 ** (-k / 10) for k in range(40)]
    objects = {
        NAME: {"volume_iou": 0.25, "size": 3.0},
        "thing 10": {"size": 1.0},
        "thing 9": {"volume_iou": 0.75, "size": 2.0},
    }
    for name, shape in {"first": ball(50.0, offset=600.0), "second": points}.items():
        write_run(
            place / name / "version_0",
            objects,
            shapes={NAME: shape, "thing 9": shape},
            panels=["thing 9"],
            losses=losses,
        )
    second = place / "second" / "version_1"
    write_run(
        second,
        objects,
        shapes={NAME: points, "thing 9": points},
        environment={"continues": "version_0/checkpoints/last.ckpt"},
    )
    (second / "metrics.csv").write_text("step,train/loss\n200,0.5\n500,0.0001\n")
    os.utime(second / "test/objects.csv", (2e9, 2e9))
    browser.open(report([place]))
    return browser


def _order(page: Browser) -> list[str]:
    return page.value("[...document.querySelectorAll('table.objects tbody tr')].map(row => row.cells[0].innerText)")


def _click(page: Browser, head: str) -> str:
    """Click on a head of the table of objects and return the order that it says."""
    heads = "[...document.querySelectorAll('table.objects thead tr:last-child th')]"
    found = f"{heads}.find(one => one.innerText.includes('{head}'))"
    page.value(f"{found}.querySelector('button').click()")
    return page.value(f"{found}.getAttribute('aria-sort')")


def _red_and_blue(pixels: np.ndarray) -> bool:
    """Whether both are in more than a tenth of the middle third of a picture."""
    middle = pixels[len(pixels) // 3 : 2 * len(pixels) // 3].reshape(-1, 3).astype(int)
    return (middle[:, 0] > middle[:, 2] + 60).mean() > 0.1 and (middle[:, 2] > middle[:, 0] + 60).mean() > 0.1


def _wait_for(claim: Callable[[], bool], seconds: float = 30.0) -> None:
    """A browser paints when it comes to it."""
    deadline = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < deadline, "not seen in time"
        time.sleep(0.2)


def test_the_page_says_no_error_and_asks_for_nothing(page):
    page.wait("document.querySelectorAll('.viewer').length === 4")
    assert [line for line in page.console if not line.startswith("warning")] == []
    assert len(page.requests) == 1  # itself
    assert page.value("document.title") == "2 runs"
    assert page.value("document.querySelector('#object-0 h3').firstChild.textContent.trim()") == NAME


def test_the_table_sorts_by_numbers_and_names_with_the_missing_last(page):
    assert _click(page, "volume_iou") == "descending"  # the best first
    assert _order(page) == ["thing 9", NAME, "thing 10 (empty: first, second)"]
    assert _click(page, "volume_iou") == "ascending"
    assert _order(page) == [NAME, "thing 9", "thing 10 (empty: first, second)"]
    assert _click(page, "object") == "ascending"
    assert [name.split(" (")[0] for name in _order(page)] == [NAME, "thing 9", "thing 10"]
    sorted_heads = (
        "document.querySelectorAll('table.objects th[aria-sort=ascending], table.objects th[aria-sort=descending]')"
    )
    assert page.value(f"{sorted_heads}.length") == 1


def test_the_heads_are_reached_and_pressed_by_keys(page):
    page.value("document.querySelector('table.objects thead tr:last-child button').focus()")
    for _ in range(2):
        for kind in ("keyDown", "keyUp"):
            page.call(
                "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r", windowsVirtualKeyCode=13
            )
    assert [name.split(" (")[0] for name in _order(page)][1:] == ["thing 9", "thing 10"]
    page.call("Input.dispatchKeyEvent", type="keyDown", key="Tab", code="Tab", windowsVirtualKeyCode=9)
    assert "category" in page.value("document.activeElement.innerText")


def test_a_score_is_shown_and_hidden_by_its_box(page):
    cells = "[...document.querySelectorAll('table.objects td[data-score=size]')]"
    box = "document.querySelector('.choice[data-table=objects] input[value=size]')"
    assert page.value(f"{cells}.every(cell => cell.hidden)")
    page.value(f"{box}.click()")
    assert page.value(f"{cells}.length > 0 && {cells}.every(cell => !cell.hidden)")
    assert page.value("document.querySelector('table.objects th[data-group]').colSpan") == 2


def test_the_filter_leaves_what_was_asked_for(page):
    field = "document.getElementById('filter')"
    shown = "[...document.querySelectorAll('article, table.objects tbody tr')].filter(one => !one.hidden).length"
    page.value(f"{field}.value = 'thing 9'; {field}.dispatchEvent(new Event('input'))")
    assert page.value(shown) == 2
    page.value(f"{field}.value = ''; {field}.dispatchEvent(new Event('input'))")
    assert page.value(shown) == 5


def test_curves_are_drawn_read_and_bent(page):
    figure = "document.querySelector('figure[data-name=\"train/loss\"]')"
    path = page.value(f"{figure}.querySelector('path.curve').getAttribute('d')")
    points = np.array([[float(n) for n in pair.split(",")] for pair in re.split("[ML]", path)[1:]])
    # a loss that falls tenfold in equal times is a straight line on the axis that it has at first
    slopes = np.diff(points[:, 1]) / np.diff(points[:, 0])
    assert slopes.min() > 0
    assert np.ptp(slopes) < 0.1 * slopes.mean()
    assert points.min() >= 0
    assert points.max(0).tolist() <= [440, 230]
    assert page.value(f"{figure}.querySelectorAll('.resumed').length") == 1
    page.value(f"{figure}.querySelector('svg').dispatchEvent(new KeyboardEvent('keydown', {{key: 'ArrowLeft'}}))")
    assert "first 0.0001" in page.value(f"{figure}.querySelector('.reading').innerText").replace("\n", " ")
    page.value(f"{figure}.querySelector('header button').click()")
    assert page.value(f"{figure}.querySelector('path.curve').getAttribute('d')") != path
    assert page.value(f"{figure}.querySelector('header button').innerText") == "linear"


def test_a_mesh_and_points_are_drawn_turn_under_the_mouse_and_turn_together(page):
    frames = [f"[data-model=object-0-{k}-model]" for k in range(2)]
    page.value(f"document.querySelector('{frames[0]}').scrollIntoView({{block: 'center'}})")
    for frame in frames:
        page.wait(f"document.querySelector('{frame}').dataset.state === 'drawn'")
    # a ball that is red on one side and blue on the other, seen from where both are in sight; and dots
    _wait_for(lambda: _red_and_blue(page.pixels(frames[0])))
    _wait_for(lambda: page.pixels(frames[1]).std() > 3)
    before = [page.pixels(frame).astype(int) for frame in frames]
    orbit = "document.querySelector('{} model-viewer').getCameraOrbit().theta"
    theta = page.value(orbit.format(frames[0]))
    page.drag(f"{frames[0]} model-viewer", 90, 0)
    for frame, old in zip(frames, before, strict=True):
        _wait_for(lambda: (np.abs(old - page.pixels(frame)).max(2) > 25).mean() > 0.01)  # noqa: B023
    page.wait(f"Math.abs({orbit.format(frames[0])} - {theta}) > 0.3")
    page.wait(f"Math.abs({orbit.format(frames[0])} - {orbit.format(frames[1])}) < 0.01")
    assert [line for line in page.console if not line.startswith("warning")] == []
    assert len(page.requests) == 1


def test_a_shape_far_out_of_view_is_given_back(page):
    page.value("document.body.style.paddingTop = '9000px'; scrollTo(0, 0)")
    page.wait("document.querySelectorAll('model-viewer').length === 0")
    page.value("document.body.style.paddingTop = ''; document.querySelector('article').scrollIntoView()")
    page.wait("document.querySelector('.viewer').dataset.state === 'drawn'")


def test_the_viewer_is_the_one_that_was_published() -> None:
    folder = VIEWER.parent
    assert hashlib.sha256(VIEWER.read_bytes()).hexdigest() in (folder / "README.md").read_text()
    assert "Apache License" in (folder / "LICENSE").read_text()
    for part in ("three", "lit", "fflate", "gainmap-js"):
        assert "opyright" in (folder / f"LICENSE.{part}").read_text()
