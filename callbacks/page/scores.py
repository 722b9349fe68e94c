"""The part of a page that compares: means of runs, the objects one by one, categories, and what cannot be compared."""

import math
from collections import Counter
from dataclasses import dataclass
from html import escape

from callbacks.page.tables import (
    Cell,
    Column,
    best_of,
    mean,
    number,
    primary_scores,
    score_choice,
    score_head,
    table,
    text,
)  # fmt: skip
from callbacks.runs import Run
from metrics.record import FACTS

MAX_ROWS = 500
MAX_CELLS = 40_000

Row = dict[str, str]
Key = tuple[str, int]
"""An object's name, and which one of that name it is in its run."""


@dataclass(frozen=True)
class Shown:
    """A run and how the page calls it: ``label`` is HTML with the run's colour."""

    run: Run
    name: str
    label: str
    seconds: float | None
    steps: int | None


def score_names(runs: list[Run]) -> list[str]:
    """All scores of some runs' objects, in the order of their tables."""
    return list(dict.fromkeys(name for run in runs for row in run.objects[:1] for name in row if name not in FACTS))


def objects_by_key(run: Run) -> dict[Key, Row]:
    """Rows by names that are the same in every run of the same data."""
    seen: Counter[str] = Counter()
    rows = {}
    for row in run.objects:
        rows[row["object_id"], seen[row["object_id"]]] = row
        seen[row["object_id"]] += 1
    return rows


def value(row: Row | None, score: str) -> float | None:
    """A score of an object; ``None`` where it has none, or none that is a number."""
    try:
        return float(row[score]) if row and row.get(score) else None
    except ValueError:
        return None


def run_table(shown: list[Shown]) -> str:
    """One line a run: what it is and the means of its scores, the best of each marked."""
    runs = [one.run for one in shown]
    scores = score_names(runs)
    first = primary_scores(common_scores(shown, scores), 5)
    facts = [Column("run", False), Column("method", False), Column("steps"), Column("training"), Column("seed")]
    columns = [*facts, Column("objects"), Column("empty"), *(Column(score_head(s), score=s) for s in scores)]
    means = [{s: mean(value(row, s) for row in run.objects) for s in scores} for run in runs]
    best = {s: best_of(s, [one[s] for one in means]) for s in scores}
    rows = [
        [
            Cell(one.label, one.name),
            text(one.run.method),
            number(one.steps, form="{:,.0f}"),
            Cell("" if one.seconds is None else duration(one.seconds), one.seconds),
            text(seed_of(one.run)),
            number(len(one.run.objects) or None, form="{:,.0f}"),
            number(one.run.num_empty if one.run.objects else None, form="{:,.0f}"),
            *(number(m[s], "best" if m[s] is not None and m[s] == best[s] else "") for s in scores),
        ]
        for one, m in zip(shown, means, strict=True)
    ]
    choice = score_choice(scores, first, "runs")
    return choice + table(columns, rows, caption="Runs, means over their objects", shown=first, classes="runs")


def figures(run: Run) -> str:
    """The best known means of one run as large figures, and all of them with their spread in a table."""
    scores = score_names([run])
    if not scores:
        return ""
    first = primary_scores(scores, 8)
    large = "".join(
        f"<div><dt>{score_head(s)}</dt><dd>{number(mean(value(row, s) for row in run.objects)).html}</dd></div>"
        for s in first
    )
    content = f"<dl>{large}</dl>\n"
    if len(scores) > len(first) or len(run.objects) > 1:
        names = ("mean", "median", "lowest", "highest", "objects")
        rows = []
        for s in scores:
            numbers = sorted(v for row in run.objects if (v := value(row, s)) is not None and math.isfinite(v))
            spread = [mean(numbers), numbers[len(numbers) // 2], numbers[0], numbers[-1]] if numbers else [None] * 4
            rows.append([Cell(score_head(s), s), *map(number, spread), number(len(numbers), form="{:,.0f}")])
        columns = [Column("score", False), *map(Column, names)]
        all_scores = table(columns, rows, caption="Every score, over the objects that have it")
        content += f"<details><summary>All {len(scores)} scores</summary>{all_scores}</details>\n"
    return content


def category_table(shown: list[Shown]) -> str:
    """Means within each category and their mean over categories; nothing where there is only one."""
    categories = sorted({row.get("category", "") for one in shown for row in one.run.objects})
    if len(categories) < 2:
        return ""
    scores = score_names([one.run for one in shown])
    means = [
        {
            c: {s: mean(value(r, s) for r in one.run.objects if r.get("category", "") == c) for s in scores}
            for c in categories
        }
        for one in shown
    ]
    rows = [([text(c or "none")], [m[c] for m in means], "") for c in categories]
    foot = [{s: mean(m[c][s] for c in categories) for s in scores} for m in means]
    content = _grouped(
        shown, scores, [Column("category", False)], rows, ([Cell("mean of categories")], foot), "categories"
    )
    return f"<details{' open' if len(shown) == 1 else ''}><summary>By category</summary>{content}</details>\n"


def object_table(shown: list[Shown], anchors: dict[Key, str]) -> tuple[str, list[str]]:
    """One line an object, a group of columns a run, and notes on what was left out.

    Args:
        shown: the runs.
        anchors: id of the place in the page where an object is shown.
    """
    tables = [objects_by_key(one.run) for one in shown]
    keys = list(dict.fromkeys(key for rows in tables for key in rows))
    scores, notes = score_names([one.run for one in shown]), []
    if not keys:
        return "", []
    if len(keys) > MAX_ROWS:
        notes.append(
            f"{len(keys) - MAX_ROWS:,} of {len(keys):,} objects are not in the table; objects.csv has them all."
        )
    if min(len(keys), MAX_ROWS) * len(scores) * len(shown) > MAX_CELLS:
        few = primary_scores(scores, 6)
        notes.append(
            f"{len(scores) - len(few)} scores of single objects are not in the table; objects.csv has them all."
        )
        scores = few
    has_categories = len({row.get("category", "") for rows in tables for row in rows.values()}) > 1
    heads = [Column("object", False), *([Column("category", False)] if has_categories else [])]
    if len(shown) == 1:
        heads += [Column("vertices"), Column("faces")]
    rows = []
    for key in keys[:MAX_ROWS]:
        found = [rows_of.get(key) for rows_of in tables]
        some = next(row for row in found if row)
        empty = [one.name for one, row in zip(shown, found, strict=True) if row and row["is_empty"] == "True"]
        cells = [_object_cell(key[0], anchors.get(key), empty, len(shown))]
        cells += [text(some.get("category", ""))] if has_categories else []
        if len(shown) == 1:
            cells += [number(value(some, fact), form="{:,.0f}") for fact in ("num_vertices", "num_faces")]
        mark = " class=empty" if empty else ""
        words = escape(f"{key[0]} {some.get('category', '')}".lower())
        rows.append((cells, [{s: value(row, s) for s in scores} for row in found], f'{mark} data-words="{words}"'))
    foot = [{s: mean(value(row, s) for row in rows_of.values()) for s in scores} for rows_of in tables]
    blank = [Cell(f"mean of {len(keys):,}"), *(Cell("") for _ in heads[1:])]
    return _grouped(shown, scores, heads, rows, (blank, foot) if len(keys) > 1 else None, "objects"), notes


def _grouped(
    shown: list[Shown],
    scores: list[str],
    heads: list[Column],
    rows: list[tuple[list[Cell], list[dict[str, float | None]], str]],
    foot: tuple[list[Cell], list[dict[str, float | None]]] | None,
    name: str,
) -> str:
    """A table with columns of each run side by side; in each line the best run of every score is marked."""
    first = primary_scores(common_scores(shown, scores), 6 if len(shown) == 1 else 2)
    columns = heads + [Column(score_head(s), score=s, group=k) for k in range(1, len(shown) + 1) for s in scores]

    def cells(of_runs: list[dict[str, float | None]]) -> list[Cell]:
        best = {s: best_of(s, [values[s] for values in of_runs]) for s in scores}
        return [number(v[s], "best" if v[s] is not None and v[s] == best[s] else "") for v in of_runs for s in scores]

    content = table(
        columns,
        [leading + cells(values) for leading, values, _ in rows],
        caption=f"Scores of {name}",
        shown=first,
        groups=[one.label for one in shown] if len(shown) > 1 else None,
        foot=None if foot is None else foot[0] + cells(foot[1]),
        attributes=[attribute for _, _, attribute in rows],
        classes=name,
    )
    return score_choice(scores, first, name) + content


def common_scores(shown: list[Shown], scores: list[str]) -> list[str]:
    """Scores that all runs have, or else all: a column that is mostly empty is no comparison."""
    common = [s for s in scores if all(any(row.get(s) for row in one.run.objects) for one in shown if one.run.objects)]
    return common or scores


def _object_cell(name: str, anchor: str | None, empty: list[str], num_runs: int) -> Cell:
    content = f'<a href="#{anchor}">{escape(name)}</a>' if anchor else escape(name)
    if empty:
        content += " (empty)" if num_runs == 1 else f" (empty: {escape(', '.join(empty))})"
    return Cell(content, name)


def seed_of(run: Run) -> str:
    """``seed_everything`` of the training."""
    seed = run.settings.get("seed_everything")
    return "" if seed is None else str(seed)


def duration(seconds: float) -> str:
    """Seconds as a reader says them."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
