"""What a file of results must say so that another can reproduce it: rows of scores, and what the scores are."""

import csv
import io
import json
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metrics.per_object import PerObjectMetric

FACTS = ("object_index", "object_id", "category", "split", "is_empty", "num_vertices", "num_faces")
"""Columns of a table of objects that are no scores."""

Row = dict[str, Any]


def record(metrics: "Iterable[PerObjectMetric]", rows: list[Row]) -> Row:
    """What the rows were scored by, and their means.

    Args:
        metrics: those that scored, in the order of the columns.
        rows: one an object, as in ``objects.csv``: facts and scores.

    Returns:
        ``num_objects``, ``splits`` (name -> objects), ``empty`` (names of the empty shapes, which are scored as the
        worst) and ``protocols``: of each metric its ``facts``, the number of objects that have any of its scores, and
        the mean of each score over those that have it.
    """
    splits: dict[str, int] = {}
    for row in rows:
        if row.get("split"):
            splits[row["split"]] = splits.get(row["split"], 0) + 1
    protocols = []
    for metric in metrics:
        numbers = {c: [row[c] for row in rows if c in row and not math.isnan(row[c])] for c in metric.columns}
        num_scored = sum(any(c in row and not math.isnan(row[c]) for c in metric.columns) for row in rows)
        if num_scored:
            means = {column: sum(values) / len(values) for column, values in numbers.items() if values}
            protocols.append({**metric.facts, "num_objects": num_scored, "means": means})
    return {
        "num_objects": len(rows),
        "num_empty": sum(bool(row.get("is_empty")) for row in rows),
        "empty": [row.get("object_id", str(row["object_index"])) for row in rows if row.get("is_empty")],
        "splits": splits,
        "protocols": protocols,
    }


def json_text(facts: Row) -> str:
    """A JSON file, whose numbers that are not finite are ``null``."""
    return json.dumps(_finite(facts), indent=2, allow_nan=False) + "\n"


def table_text(rows: list[Row], columns: list[str]) -> str:
    """A CSV file, one line an object; a score that does not exist is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*FACTS, *columns])
    for row in rows:
        scores = [row.get(column, math.nan) for column in columns]
        cells = ["" if math.isnan(score) else f"{score:.9g}" for score in scores]
        writer.writerow([*(row.get(fact, "") for fact in FACTS), *cells])
    return text.getvalue()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
