"""One page about a test: scores, objects, pictures, the loss curve."""

import base64
import csv
import io
import json
from html import escape
from pathlib import Path

from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.rank_zero import rank_zero_info

from callbacks.curve import loss_curve
from callbacks.results import file_name, results_folder, training_steps, write_whole
from metrics.record import FACTS

MAX_ROWS = 200

STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1a; --soft: #6d6a63; --line: #dedbd3; --paper: #fbfaf7; --mark: #9c3d1f }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e9e6df; --soft: #9b978d; --line: #3a3833; --paper: #191816; --mark: #e8906b }
}
* { box-sizing: border-box }
body { margin: 0 auto; padding: 3rem 1.5rem 5rem; max-width: 76rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif }
h1, h2 { font-family: Georgia, "Times New Roman", serif; font-weight: 400; line-height: 1.15 }
h1 { font-size: 2.5rem; margin: 0; overflow-wrap: anywhere }
h2 { font-size: 1.4rem; margin: 3rem 0 1rem; padding-top: .75rem; border-top: 1px solid var(--line) }
p, figcaption, caption { color: var(--soft); margin: .4rem 0 }
a { color: var(--mark); text-decoration-thickness: 1px; text-underline-offset: .15em }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(10.5rem, 1fr)); gap: 1.25rem 1.5rem;
  margin: 0 0 1.75rem }
dt { color: var(--soft); font-size: .85rem }
dd { margin: 0; font-size: 1.6rem; font-variant-numeric: tabular-nums; letter-spacing: -.01em }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .35rem .75rem; border-bottom: 1px solid var(--line); white-space: nowrap }
th:first-child, td:first-child { text-align: left; padding-left: 0 }
th { font-weight: 500; color: var(--soft); white-space: normal; vertical-align: bottom; line-height: 1.25 }
tr.empty td { color: var(--mark) }
figure { margin: 0 0 1.75rem }
figure img { display: block; max-width: 100%; border: 1px solid var(--line); background: white }
svg { display: block; width: 100%; height: auto; max-width: 52rem; color: var(--ink) }
svg text { fill: var(--soft); font: 12px system-ui, sans-serif }
"""


class Report(Callback):
    """Writes ``report.html`` after a test: one page that needs no network and links only to files beside it.

    It shows what the other callbacks wrote: scores, ``objects.csv``, ``panels/`` and ``shapes/``; it comes after them.
    """

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = results_folder(trainer)
        if folder is None or not trainer.is_global_zero:
            return
        scores = {
            name.removeprefix("test/"): value.item()
            for name, value in trainer.callback_metrics.items()
            if name.startswith("test/")
        }
        subtitle = f"{type(pl_module).__name__}, {training_steps(trainer, pl_module):,} steps"
        path = folder / "report.html"
        write_whole(path, page(folder, scores, subtitle))
        rank_zero_info(f"report in {path}")


def page(folder: Path, scores: dict[str, float], subtitle: str) -> str:
    """The page about a folder of test results, as HTML.

    Args:
        folder: where ``objects.csv``, ``panels/`` and ``shapes/`` lie as far as there are any; the training's
            ``metrics.csv`` is looked for here and in the folder above.
        scores: name -> mean; ``<category>/<name>`` and ``macro_<name>`` for tables by category.
        subtitle: what was tested.
    """
    run = folder.resolve().parent if folder.name in ("test", "validate", "predict") else folder.resolve()
    title = f"{run.parent.name} / {run.name}" if run.name.startswith("version_") else run.name
    rows = _rows(folder / "objects.csv")
    counts = [f"{len(rows)} object{'s' if len(rows) > 1 else ''}"] if rows else []
    counts += [f"split {name}" for name in dict.fromkeys(row.get("split", "") for row in rows) if name]
    num_empty = sum(row["is_empty"] == "True" for row in rows)
    counts += [f"{num_empty} empty"] if num_empty else []
    sections = {
        "Scores": _scores_section(scores),
        "Pictures": _pictures_section(folder, rows),
        "Objects": _objects_section(folder, rows),
        "Training": next(filter(None, map(loss_curve, (folder.parent / "metrics.csv", folder / "metrics.csv"))), ""),
    }
    body = "\n".join(f"<section><h2>{name}</h2>\n{content}</section>" for name, content in sections.items() if content)
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
<h1>{escape(title)}</h1>
<p>{escape(", ".join([subtitle, *counts]))}</p>
{body}
</html>
"""


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _scores_section(scores: dict[str, float]) -> str:
    """Means as large figures; under them the categories, where there are several, one line each."""
    counts = ("num_objects", "num_empty")
    names = [name for name in scores if "/" not in name and not name.startswith("macro_") and name not in counts]
    figures = "".join(f"<div><dt>{escape(name)}</dt><dd>{_number(scores[name])}</dd></div>" for name in names)
    content = f"<dl>{figures}</dl>\n" if names else ""
    categories = sorted({name.rsplit("/", 1)[0] for name in scores if "/" in name})
    if categories:
        lines = [[escape(c), *(_number(scores.get(f"{c}/{name}")) for name in names)] for c in categories]
        lines.append(["mean of categories", *(_number(scores.get(f"macro_{name}")) for name in names)])
        content += _table(["category", *names], lines)
    return content


def _objects_section(folder: Path, rows: list[dict[str, str]]) -> str:
    if not rows:
        return ""
    files = _shape_files(folder)
    names = [name for name in rows[0] if name not in FACTS]
    has_categories = len({row["category"] for row in rows}) > 1
    lines = []
    for row in rows[:MAX_ROWS]:
        name, file = escape(row["object_id"]), files.get((row["object_index"], row["object_id"]))
        if row["is_empty"] == "True":
            name += " (empty)"
        elif file is not None:
            name = f'<a href="{escape(file)}">{name}</a>'
        counts = [f"{int(row[fact]):,}" if row[fact] else "" for fact in ("num_vertices", "num_faces")]
        scores = [_number(float(row[score])) if row[score] else "" for score in names]
        lines.append([name, *([escape(row["category"])] if has_categories else []), *counts, *scores])
    header = ["object", *(["category"] if has_categories else []), "vertices", "faces", *names]
    more = f"{len(rows) - MAX_ROWS:,} more in " if len(rows) > MAX_ROWS else "As a file: "
    marks = ["empty" if row["is_empty"] == "True" else "" for row in rows[:MAX_ROWS]]
    return _table(header, lines, marks) + f'<p>{more}<a href="objects.csv">objects.csv</a></p>\n'


def _pictures_section(folder: Path, rows: list[dict[str, str]]) -> str:
    figures = []
    for row in rows:
        for kind in ("shape", "views"):
            path = folder / "panels" / f"test_{file_name(row['object_id'])}_{kind}.png"
            if path.is_file():
                name = escape(row["object_id"])
                image = f'<img src="{_embedded(path)}" alt="{name}, {kind}" loading="lazy">'
                caption = f'{name}, {kind} (<a href="panels/{escape(path.name)}">PNG</a>)'
                figures.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>\n")
    return "".join(figures)


def _embedded(path: Path) -> str:
    # JPEG: a page of ten panels stays small enough to send by mail
    content = io.BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").save(content, format="JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"


def _shape_files(folder: Path) -> dict[tuple[str, str], str]:
    """(object_index, object_id) -> path of the PLY relative to ``folder``."""
    files = {}
    for path in sorted(folder.glob("*/*.json")):
        facts = json.loads(path.read_text(encoding="utf-8"))
        ply = path.with_suffix(".ply")
        if "object_index" in facts and ply.is_file():
            files[str(facts["object_index"]), facts["object_id"]] = ply.relative_to(folder).as_posix()
    return files


def _table(header: list[str], lines: list[list[str]], classes: list[str] | None = None) -> str:
    """An HTML table; cells are HTML already."""
    # a long name may go on in the next line after an underscore
    head = "".join(f"<th>{escape(name).replace('_', '_<wbr>')}</th>" for name in header)
    body = "\n".join(
        f'<tr class="{name}">' + "".join(f"<td>{cell}</td>" for cell in line) + "</tr>"
        for line, name in zip(lines, classes or [""] * len(lines), strict=True)
    )
    return f'<div class="scroll"><table><tr>{head}</tr>\n{body}\n</table></div>\n'


def _number(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.4g}"
