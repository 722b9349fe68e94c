"""The page as a whole: one HTML file with all that it shows in it, which opens from a disk and asks no network."""

import base64
import gzip
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from callbacks.curves import read_curves, resumed_at, steps_of, thinned
from callbacks.page.facts import comparability, protocol_list, reproduction, setting_table
from callbacks.page.links import json_in_script, link
from callbacks.page.objects import Card, cards_of, fill, model_texts, object_cards
from callbacks.page.scores import Key, Shown, category_table, duration, figures, object_table, run_table, seed_of
from callbacks.runs import Run, lineage, training_seconds
from metrics.directions import higher_is_better

ASSETS = Path(__file__).parents[1] / "assets"
VIEWER = ASSETS / "model-viewer" / "model-viewer-umd.min.js"
MEGABYTE = 10**6
OWN_CODE = 40_000  # style and scripts, bytes
CONTENT_SHARE, PICTURE_SHARE = 0.9, 0.4
"""Of what a page may have: for shapes and pictures, and for pictures alone; the rest is for tables and curves."""
NUM_COLORS = 8
MANY = 8  # objects, after which tables and curves come before the long row of shapes

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'wasm-unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; connect-src data: blob:; base-uri 'none'; form-action 'none'"
)
"""What the browser itself holds the page to: nothing but what is in it."""


def page(runs: list[Run], root: Path, max_megabytes: float = 15.0) -> str:
    """The page about some runs, as HTML.

    Args:
        runs: at least one; several are compared side by side.
        root: folder that the page will lie in; links start there.
        max_megabytes: about how large it may become; what does not fit is left out, and the page says so.

    Raises:
        ValueError: a file of a run is broken; it names the file.
    """
    shown = _shown(runs)
    room = max_megabytes * MEGABYTE - len(_viewer()) - OWN_CODE
    cards = cards_of(shown)
    anchors = {key: f"object-{k}" for k, key in enumerate(cards)}
    left_out = fill(list(cards.values()), int(CONTENT_SHARE * room), int(PICTURE_SHARE * room))
    curves, notes = _curves(shown)
    rows, of_rows = object_table(shown, anchors)
    notes = [*comparability(shown), *_said_once(shown, notes), *left_out, *of_rows]
    title = shown[0].name if len(shown) == 1 else f"{len(shown)} runs"
    scores = figures(runs[0]) if len(runs) == 1 else run_table(shown) + setting_table(shown)
    shapes = {"Shapes and views": _hint(cards) + object_cards(cards, shown, anchors, root) if cards else ""}
    many = len(cards) > MANY
    sections = {
        "Scores" if len(runs) == 1 else "Runs": scores + category_table(shown) + protocol_list(shown),
        **({} if many else shapes),
        "Objects": rows + _tables_links(shown, root) if rows else "",
        "Training": '<div id="curves"></div>\n' if curves["names"] else "",
        **(shapes if many else {}),
        "How it was made": "".join(map(reproduction, shown)),
    }
    sections = {name: content for name, content in sections.items() if content}
    has_models = any(model is not None for card in cards.values() for model in card.models)
    return _document(title, _subtitle(shown), notes, sections) + (
        model_texts(cards, anchors)
        + (f'<script type="text/plain" id="viewer">{_viewer()}</script>\n' if has_models else "")
        + f'<script type="application/json" id="curve-data">{json_in_script(curves)}</script>\n'
        + "".join(f"<script>{_asset(name)}</script>\n" for name in ("tables.js", "curves.js", "viewer.js"))
        + "</body>\n</html>\n"
    )


def _document(title: str, subtitle: str, notes: list[str], sections: dict[str, str]) -> str:
    ids = {name: name.lower().replace(" ", "-") for name in sections}
    nav = " ".join(f'<a href="#{ids[name]}">{name}</a>' for name in sections)
    said = "".join(f"<li>{escape(note)}</li>" for note in dict.fromkeys(notes))
    body = "\n".join(
        f'<section id="{ids[name]}"><h2>{name}</h2>\n{content}</section>' for name, content in sections.items()
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{_asset("report.css")}</style>
<noscript><style>[hidden] {{ display: revert !important }}</style></noscript>
</head>
<body>
<h1>{escape(title)}</h1>
<p>{subtitle}</p>
<nav>{nav}</nav>
{f'<ul class="notes">{said}</ul>' if said else ""}
<noscript><p>Without JavaScript tables do not sort, shapes do not turn and curves are not drawn.</p></noscript>
{body}
<footer><p>Shapes are turned by model-viewer (Apache-2.0). This page needs no network.</p></footer>
"""


def _shown(runs: list[Run]) -> list[Shown]:
    names = [run.name for run in runs]
    short = [name.split(" / ")[0] for name in names]
    if len(runs) > 1 and len(set(short)) == len(short):
        names = short
    elif len(set(names)) < len(names):
        names = [run.folder.as_posix() for run in runs]
    return [
        Shown(
            run,
            name,
            f'<span class="run" style="--run: var(--run-{k % NUM_COLORS})">{escape(name)}</span>',
            training_seconds(lineage(run)),
            steps_of(run),
        )
        for k, (run, name) in enumerate(zip(runs, names, strict=True))
    ]


def _subtitle(shown: list[Shown]) -> str:
    if len(shown) > 1:
        return escape(", ".join(dict.fromkeys(one.run.method for one in shown if one.run.method)))
    one, run = shown[0], shown[0].run
    facts = [run.method] if run.method else []
    facts += [f"{one.steps:,} steps"] if one.steps else []
    facts += [f"{duration(one.seconds)} of training"] if one.seconds else []
    facts += [f"seed {seed_of(run)}"] if seed_of(run) else []
    facts += [f"{len(run.objects):,} object{'s' if len(run.objects) > 1 else ''}"] if run.objects else []
    facts += [f"split {name}" for name in run.splits]
    facts += [f"{run.num_empty} empty"] if run.num_empty else []
    return escape(", ".join(facts))


def _said_once(shown: list[Shown], of_curves: list[list[str]]) -> list[str]:
    """Notes on single runs, each with the names of the runs that it is about."""
    about: dict[str, list[str]] = {}
    for one, notes in zip(shown, of_curves, strict=True):
        for note in [*one.run.notes, *notes]:
            about.setdefault(note, []).append(one.name)
    return [note if len(shown) == 1 else f"{', '.join(names)}: {note}" for note, names in about.items()]


def _curves(shown: list[Shown]) -> tuple[dict[str, Any], list[list[str]]]:
    """What ``curves.js`` draws, and of every run notes on what was left out."""
    runs, notes = [], []
    for one in shown:
        folders = lineage(one.run)
        logged, said = read_curves(folders)
        notes.append(said)
        curves = {name: thinned(points) for name, points in logged.items() if len(points) > 1}
        runs.append({"name": one.name, "resumed": resumed_at(folders), "curves": curves})
    order = {"train": 0, "val": 1}
    names = sorted(
        {n for run in runs for n in run["curves"]}, key=lambda n: (order.get(n.split("/")[0], 2), n != "train/loss", n)
    )
    better = {name: {True: "↑", False: "↓", None: ""}[higher_is_better(name)] for name in names}
    return {"names": names, "better": better, "runs": runs}, notes


def _hint(cards: dict[Key, Card]) -> str:
    words = "Drag to turn, also with the arrow keys; zoom with the wheel after a click, or with two fingers."
    few = (
        '<label class="filter">Filter objects <input type="search" id="filter" placeholder="name or category"></label>'
    )
    return f"<p>{words}</p>\n" + (few if len(cards) > 1 else "")


def _tables_links(shown: list[Shown], root: Path) -> str:
    links = [
        f'<a href="{link(path, root)}">objects.csv{f" of {escape(one.name)}" if len(shown) > 1 else ""}</a>'
        for one in shown
        if (path := one.run.results / "objects.csv").is_file()
    ]
    return f"<p>As a file: {', '.join(links)}</p>\n"


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


@cache
def _viewer() -> str:
    # without its last line, by which tools for developers would look for a file that is not there
    script = VIEWER.read_text(encoding="utf-8").rsplit("\n//# sourceMappingURL", 1)[0]
    return base64.b64encode(gzip.compress(script.encode(), 9, mtime=0)).decode()
