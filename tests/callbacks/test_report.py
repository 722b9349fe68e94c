"""The page about runs: complete, self-contained, true to the files beside it. test_browser.py opens it."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from callbacks.draw import Draw
from callbacks.page.scores import MAX_ROWS
from callbacks.report import Report, main, report
from callbacks.save import SaveShapes
from callbacks.score import Score
from tests.callbacks.run_folders import ball, write_run
from tests.callbacks.toy import Size, ToyMethod, loader, trainer

VOID = {"meta", "img", "link", "wbr", "br", "input"}


class _Page(HTMLParser):
    """Links, sources, texts and rows of a page; fails on a tag that is not closed."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.scripts: dict[str, str] = {}
        self._open: list[str] = []
        self._script = ""
        self.feed(content)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value for name, value in attrs if name in ("href", "src") and value]
        self.tags.append(tag)
        if tag == "script":
            self._script = dict(attrs).get("id") or "code"
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            self.scripts[self._script] = data
        elif not self._open or self._open[-1] != "style":
            self.texts.append(data.strip())


def _page(*runs: Path, **kwargs: float) -> _Page:
    return _Page(report(list(runs), **kwargs).read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a test of three objects, the second of them empty, in a run that has been trained."""
    place = tmp_path_factory.mktemp("place")
    (place / "run").mkdir()
    (place / "run" / "metrics.csv").write_text("step,train/loss\n0,1.0\n50,0.1\n100,0.01\n")
    callbacks = [Score([Size()]), SaveShapes(), Draw(max_objects=1, size=32), Report()]
    trainer(place, callbacks).test(ToyMethod(empty=(1,)), loader(3), verbose=False)
    return place / "run" / "test"


def test_the_page_of_a_test_shows_scores_objects_views_and_the_training(folder: Path) -> None:
    shown = _Page((folder / "report.html").read_text())
    assert {"run", "Scores", "Shapes and views", "Objects", "Training"} <= set(shown.texts)
    assert "ToyMethod, 1,000 steps, 3 objects, 1 empty" in shown.texts
    assert "thing/1 (empty)" in shown.texts
    assert "1.5" not in shown.texts
    # mean of 1, -1 and 3; of the categories 2 and -1
    assert {"size", "1", "mean of categories", "0.5"} <= set(shown.texts)
    curves = json.loads(shown.scripts["curve-data"])
    assert curves["runs"][0]["curves"]["train/loss"] == [[0.0, 50.0, 100.0], [1.0, 0.1, 0.01]]
    assert {"object-0-0-model", "object-1-0-model", "viewer"} <= shown.scripts.keys()


def test_the_page_needs_no_network_and_every_link_leads_to_a_file_beside_it(folder: Path) -> None:
    content = (folder / "report.html").read_text()
    shown = _Page(content)
    links = [link for link in shown.links if not link.startswith(("data:", "#"))]
    assert {link for link in links if link.endswith(".ply")} == {"shapes/thing_0.ply", "shapes/thing_2.ply"}
    assert {"objects.csv", "panels/test_thing_0_shape.png", "panels/test_thing_0_views.png"} <= set(links)
    assert all((folder / link).is_file() for link in links)
    own = re.sub(r"base64,[^\"]*|<script type=\"text/plain\".*?</script>", "", content, flags=re.DOTALL)
    # the name of SVG is no address that anything is fetched from
    assert not re.search(r"https?:|@import|url\(|\bfetch\(", own.replace("http://www.w3.org/2000/svg", ""))
    assert "default-src 'none'" in content
    assert str(folder.parent.parent) not in content


def test_names_and_texts_from_the_data_cannot_break_the_page(tmp_path: Path) -> None:
    name = "</script><script>alert(1)</script>"
    run = write_run(
        tmp_path / "<b>&",
        {name: {"<i>iou": 0.5}, "plain": {"<i>iou": 0.25}},
        shapes={name: ball()},
        panels=[name],
        settings={"data": {"class_path": "</style><script>"}},
        environment={"command": ["python", "<script>", 'a "b"'], "versions": {"<u>": "1"}},
        record={
            "method": "<img src=x>",
            "protocols": [{"protocol": "<p>", "unit": "</script>", "settings": {"<": ">"}}],
        },
    )
    (run / "metrics.csv").write_text('step,"train/</script>"\n0,1\n1,2\n')
    shown = _page(run, output=tmp_path / "page.html")
    assert name in shown.texts
    assert "<img src=x>" in " ".join(shown.texts)
    assert shown.tags.count("img") == 2
    assert shown.tags.count("script") == 6  # of a shape, the viewer, the curves and three of our own
    assert "train/</script>" in json.loads(shown.scripts["curve-data"])["names"]
    assert "python '<script>' 'a \"b\"'" in shown.texts


def test_runs_are_compared_with_the_best_of_each_object_marked(tmp_path: Path) -> None:
    for name, values in {"a": (0.5, 0.1), "b": (0.75, 0.25)}.items():
        objects = {"x": {"volume_iou": values[0], "chamfer_l1": values[1]}, "y": {"volume_iou": 0.5}}
        settings = {"trainer": {"max_steps": 10 if name == "a" else 20}, "data": {"class_path": "toy.Data"}}
        write_run(tmp_path / name / "version_0", objects, settings=settings, losses=[2.0, 1.0])
    content = report([tmp_path]).read_text()
    assert (tmp_path / "report.html").is_file()
    rows = re.findall(r'<tr[^>]* data-words="x even">(.*?)</tr>', content)
    cells = re.findall(r"<td([^>]*)>([^<]*)</td>", rows[0])
    # higher is better for one, lower for the other; order of columns as in objects.csv
    assert [("best" in mark, value) for mark, value in cells if value not in ("x", "even")] == [
        (False, "0.5"), (True, "0.1"), (True, "0.75"), (False, "0.25"),
    ]  # fmt: skip
    assert "trainer.max_steps" in content
    assert "not tested" not in content
    texts = _Page(content).texts
    assert {"2 runs", "a", "b", "Settings that differ (1)"} <= set(texts)


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    for name, seed in {"a": 0, "b": 1}.items():
        protocol = {"protocol": "metrics.toy.Toy", "unit": "mm", "settings": {"seed": seed, "chosen_threshold": seed}}
        write_run(tmp_path / name, {name: {"iou": 0.5}, "both": {"iou": 0.5}}, record={"protocols": [protocol]})
    (tmp_path / "b/test/scores.json").unlink()
    text = " ".join(_page(tmp_path).texts)
    assert "not tested on the same objects (a 2, b 2; 1 in common)" in text
    assert "b: There is no scores.json" in text
    (tmp_path / "b/test/scores.json").write_text(
        (tmp_path / "a/test/scores.json").read_text().replace('"seed": 0', '"seed": 7')
    )
    assert "Toy was not set alike in all runs: seed." in " ".join(_page(tmp_path).texts)


def test_a_page_says_what_is_missing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("seed_everything: 3\n")
    text = " ".join(_page(run).texts)
    assert "It was not tested" in text
    assert "no metrics.csv" in text
    assert "no environment.json" in text
    assert "seed 3" in text


def test_a_page_shows_how_a_run_was_made(tmp_path: Path) -> None:
    environment = {
        "command": ["python", "main.py", "fit"], "started": "2030-01-01T00:00:00", "versions": {"torch": "9.9"},
        "git_revision": "abc123", "git_dirty": True, "hardware": {"cpu": "a loom"}, "python": "3.99",
    }  # fmt: skip
    text = " ".join(_page(write_run(tmp_path / "run", {"x": {"iou": 1.0}}, environment=environment)).texts)
    for words in ("python main.py fit", "torch 9.9", "abc123", "not committed", "cpu a loom", "3.99", "2030"):
        assert words in text


def test_a_page_stays_as_small_as_asked_and_says_what_it_left_out(tmp_path: Path) -> None:
    objects = {f"thing {k}": {"iou": 0.5} for k in range(8)}
    shapes = {name: ball(subdivisions=4) for name in objects}
    run = write_run(tmp_path / "run", objects, shapes=shapes, panels=list(objects))
    page = report([run], max_megabytes=0.55)
    assert page.stat().st_size < 0.55 * 10**6
    text = " ".join(_Page(page.read_text()).texts)
    assert re.search(r"The shapes of \d of 8 objects are not in the page", text)
    assert re.search(r"\d+ of 16 pictures are not in the page", text)
    assert "simplified to" in text
    assert {"test/shapes/thing_7.ply", "test/panels/test_thing_7_views.png"} <= set(_Page(page.read_text()).links)
    whole = report([run], tmp_path / "whole.html").read_text()
    assert "not in the page" not in whole
    assert "5,120 faces" in whole
    assert "of 5,120 faces" not in whole  # all of them fit


def test_a_long_table_says_how_much_of_it_is_shown(tmp_path: Path) -> None:
    objects = {f"thing {k}": {"size": 1.0} for k in range(MAX_ROWS + 5)}
    shown = _page(write_run(tmp_path / "run", objects))
    assert f"thing {MAX_ROWS - 1}" in shown.texts
    assert f"thing {MAX_ROWS}" not in shown.texts
    assert "5 of 505 objects are not in the table; objects.csv has them all." in shown.texts


def test_a_run_that_was_only_validated_shows_its_last_validation(tmp_path: Path, folder: Path) -> None:
    panels = tmp_path / "run" / "panels"
    panels.mkdir(parents=True)
    for step in (50, 100):
        (panels / f"val_step{step:06d}_a_b_views.png").write_bytes(
            (folder / "panels/test_thing_0_views.png").read_bytes()
        )
    (tmp_path / "run/metrics.csv").write_text("step,train/loss\n0,1\n")
    shown = _page(tmp_path / "run")
    assert {"a_b", "views of the validation at step 100,"} <= set(shown.texts)
    assert [unquote(link) for link in shown.links if link.endswith(".png")] == ["panels/val_step000100_a_b_views.png"]


def test_without_results_there_is_still_a_page_after_a_test(tmp_path: Path) -> None:
    trainer(tmp_path, [Report()]).test(ToyMethod(), loader(1), verbose=False)
    texts = _Page((tmp_path / "run" / "test" / "report.html").read_text()).texts
    assert {"run", "ToyMethod, 1,000 steps"} <= set(texts)


def test_a_broken_file_of_the_training_does_not_spoil_the_test(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.csv").write_text("step,train/loss\n0,x\n")
    with pytest.warns(UserWarning, match=r"no .*report\.html: .*metrics\.csv: line 2"):
        trainer(tmp_path, [Score([Size()]), Report()]).test(ToyMethod(), loader(1), verbose=False)
    assert (tmp_path / "run" / "test" / "objects.csv").is_file()


@pytest.mark.parametrize("kwargs", [{"logger": False}, {"fast_dev_run": True}])
def test_without_a_logger_there_is_no_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kwargs: dict[str, bool]
) -> None:
    monkeypatch.chdir(tmp_path)
    trainer(tmp_path / "unused", [Report()], **kwargs).test(ToyMethod(), loader(2), verbose=False)
    assert not list(tmp_path.rglob("*.html"))


def test_the_command_says_where_the_page_is_and_what_it_cannot_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", {"x": {"iou": 1.0}})
    main([str(run), "--output", str(tmp_path / "pages" / "one.html")])
    assert "pages/one.html" in capsys.readouterr().out
    assert "../run/test/objects.csv" in _Page((tmp_path / "pages/one.html").read_text()).links
    for arguments, message in (
        [[str(tmp_path / "none")], "no such folder"],
        [[str(run / "test/shapes")], "holds no run"],
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert message in capsys.readouterr().err
