"""Tables of a page: cells that can be sorted by their values, scores that say which way they are better."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from statistics import fmean

from metrics.directions import higher_is_better, unit_in_name

PRIMARY = (
    *("voxel_iou_chosen", "volume_iou", "chamfer_l1", "f_score_1pct", "f_score_2pct", "normal_consistency"),
    *("psnr_db", "psnr_masked_db", "ssim", "dtu_neuralwarp_overall_mm", "tanks_f_score", "omniobject3d_chamfer"),
)
"""Scores that are shown at first, as far as there are any; the others are a click away."""


@dataclass(frozen=True)
class Cell:
    """HTML, what it is sorted by (nothing comes last), and its classes."""

    html: str
    value: str | float | None = None
    classes: str = ""


@dataclass(frozen=True)
class Column:
    """A column: its head, HTML, whether it holds numbers, and the score that it shows, by which it can be hidden."""

    html: str
    is_number: bool = True
    score: str = ""
    group: int = 0


def text(value: str, classes: str = "") -> Cell:
    """A cell of words."""
    return Cell(escape(value), value, classes)


def number(value: float | None, classes: str = "", form: str = "{:.4g}") -> Cell:
    """A cell of a number; empty where there is none or it is not finite."""
    if value is None or not math.isfinite(value):
        return Cell("")
    return Cell(form.format(value), value, classes)


def score_head(score: str) -> str:
    """A score's name that may be broken after an underscore, its unit and an arrow to where it is better."""
    better = higher_is_better(score)
    arrow = ""
    if better is not None:
        words = "higher is better" if better else "lower is better"
        arrow = f'&nbsp;<abbr title="{words}">{"↑" if better else "↓"}</abbr>'
    unit = unit_in_name(score)
    return escape(score).replace("_", "_<wbr>") + (f" <small>[{unit}]</small>" if unit else "") + arrow


def best_of(score: str, values: Iterable[float | None]) -> float | None:
    """The best of several values where there are several different ones and the score has a better side."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    better = higher_is_better(score)
    if better is None or len(finite) < 2 or len(set(finite)) < 2:
        return None
    return max(finite) if better else min(finite)


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the numbers there are."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return fmean(finite) if finite else None


def primary_scores(scores: list[str], most: int) -> list[str]:
    """Those to show at first: the best known ones, or else the first."""
    return ([score for score in PRIMARY if score in scores] or scores)[:most]


def table(
    columns: list[Column],
    rows: list[list[Cell]],
    *,
    caption: str,
    shown: list[str] | None = None,
    groups: list[str] | None = None,
    foot: list[Cell] | None = None,
    attributes: list[str] | None = None,
    classes: str = "",
) -> str:
    """An HTML table whose columns sort by a click on their heads; the rows stand in the order given.

    Args:
        columns: heads.
        rows: cells, as many as columns.
        caption: what it shows, for those who do not see it.
        shown: scores whose columns are not hidden at first; ``None`` hides none.
        groups: HTML of a second head above, for ``Column.group`` 1, 2, ...
        foot: cells of a last line that stays last.
        attributes: of every row's tag.
        classes: of the table.
    """

    marks = [_marks(columns, k, shown, bool(groups)) for k in range(len(columns))]
    heads = "".join(
        f'<th scope="col" aria-sort="none" data-first="{_first(column)}"{_attributes(*mark)}>'
        f'<button type="button">{column.html}</button></th>'
        for column, mark in zip(columns, marks, strict=True)
    )
    above = f'<tr class="groups">{_group_heads(columns, groups, shown)}</tr>\n' if groups else ""
    body = "\n".join(
        f"<tr{attribute}>{_line(cells, marks)}</tr>"
        for cells, attribute in zip(rows, attributes or [""] * len(rows), strict=True)
    )
    last = f"\n<tfoot><tr>{_line(foot, marks)}</tr></tfoot>" if foot else ""
    name = escape(caption)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{name}"><table class="sortable {classes}">'
        f"<caption>{name}</caption>\n<thead>{above}<tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody>{last}"
        "</table></div>\n"
    )


def score_choice(scores: list[str], shown: list[str], table_id: str) -> str:
    """Boxes to tick the scores that a table shows; nothing where it shows all."""
    if set(scores) <= set(shown):
        return ""
    boxes = "".join(
        f'<label><input type="checkbox" value="{escape(score)}"{" checked" if score in shown else ""}> '
        f"{escape(score)}</label>"
        for score in scores
    )
    summary = f"Scores shown ({len(shown)} of {len(scores)})"
    return f'<details class="choice" data-table="{table_id}"><summary>{summary}</summary><div>{boxes}</div></details>\n'


def _marks(columns: list[Column], k: int, shown: list[str] | None, has_groups: bool) -> tuple[str, str]:
    """Classes and other attributes that all cells of a column have."""
    column = columns[k]
    classes = "number" if column.is_number else "words"
    classes += " edge" if has_groups and k and column.group != columns[k - 1].group else ""
    score = f' data-score="{escape(column.score)}"' if column.score else ""
    return classes, score + ("" if _is_shown(column, shown) else " hidden")


def _attributes(classes: str, others: str) -> str:
    return f' class="{classes}"{others}'


def _line(cells: list[Cell], marks: list[tuple[str, str]]) -> str:
    line = ""
    for cell, (classes, others) in zip(cells, marks, strict=True):
        value = "" if cell.value is None else f' data-value="{escape(str(cell.value))}"'
        line += f"<td{_attributes(f'{classes} {cell.classes}'.strip(), others)}{value}>{cell.html}</td>"
    return line


def _group_heads(columns: list[Column], groups: list[str], shown: list[str] | None) -> str:
    num_leading = sum(column.group == 0 for column in columns)
    heads = f'<td colspan="{num_leading}"></td>'
    for k, html in enumerate(groups, 1):
        count = max(1, sum(column.group == k and _is_shown(column, shown) for column in columns))
        heads += f'<th scope="colgroup" class="edge" colspan="{count}" data-group="{k}">{html}</th>'
    return heads


def _is_shown(column: Column, shown: list[str] | None) -> bool:
    return shown is None or not column.score or column.score in shown


def _first(column: Column) -> str:
    """The order of the first click: the best first."""
    is_descending = column.score and higher_is_better(column.score)
    return "descending" if is_descending else "ascending"
