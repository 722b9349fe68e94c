"""What a training logged over its steps, read from ``metrics.csv`` of a run and of those that it goes on from."""

import csv
import math
from pathlib import Path
from typing import Any

from callbacks.runs import Run

MAX_POINTS = 300
NO_CURVES = ("epoch", "step")

Points = list[tuple[float, float]]


def read_curves(folders: list[Path]) -> tuple[dict[str, Points], list[str]]:
    """Logged values by name, (step, value) in the order of steps, and notes on what was left out.

    Args:
        folders: of a run and those before it, the oldest first: what an earlier one logged at steps that a later one
            went through again is left out.

    Raises:
        ValueError: a ``metrics.csv`` holds something that is no number.
    """
    curves: dict[str, Points] = {}
    notes: list[str] = []
    for folder in folders:
        logged, said = _logged(folder / "metrics.csv")
        notes += said
        # every name from the same step on, or a score of the abandoned steps would stay
        first = min((points[0][0] for points in logged.values()), default=math.inf)
        curves = {name: [point for point in points if point[0] < first] for name, points in curves.items()}
        for name, points in logged.items():
            curves.setdefault(name, []).extend(points)
    return {name: points for name, points in sorted(curves.items()) if points}, notes


def resumed_at(folders: list[Path]) -> list[float]:
    """The first logged step of every folder but the first."""
    starts = []
    for folder in folders[1:]:
        logged, _ = _logged(folder / "metrics.csv")
        starts += [min(points[0][0] for points in logged.values())] if logged else []
    return starts


def steps_of(run: Run) -> int | None:
    """Optimizer steps behind what was tested, or else those that were logged; ``None`` where neither is known."""
    if isinstance(run.record.get("steps"), int):
        return run.record["steps"]
    logged, _ = _logged(run.folder / "metrics.csv")
    # Lightning counts from 0
    return max((int(points[-1][0]) + 1 for points in logged.values()), default=None)


def thinned(points: Points) -> tuple[list[float], list[float]]:
    """Steps and values, averaged within ``MAX_POINTS`` stretches, as many as the eye can tell apart."""
    stride = -(-len(points) // MAX_POINTS) or 1
    stretches = [points[k : k + stride] for k in range(0, len(points), stride)]
    means = [[sum(column) / len(column) for column in zip(*stretch, strict=True)] for stretch in stretches]
    return [float(f"{step:.8g}") for step, _ in means], [float(f"{value:.6g}") for _, value in means]


def _logged(path: Path) -> tuple[dict[str, Points], list[str]]:
    if not path.is_file():
        return {}, []
    text, notes = path.read_text(encoding="utf-8", errors="replace"), []
    if text and not text.endswith("\n"):
        # a run that was killed while it wrote
        text = text[: text.rfind("\n") + 1]
        notes.append("metrics.csv ends in the middle of a line, which is left out.")
    logged: dict[str, Points] = {}
    not_finite: dict[str, int] = {}
    for number, row in enumerate(csv.DictReader(text.splitlines()), 2):
        step = _number(row.get("step"), path, number)
        for name, cell in row.items():
            value = _number(cell, path, number) if name is not None else None
            if value is None or step is None or name in NO_CURVES or name.startswith("test/"):
                continue
            if math.isfinite(value):
                logged.setdefault(name, []).append((step, value))
            elif not name.startswith("val/"):  # a score that no object has is NaN
                not_finite[name] = not_finite.get(name, 0) + 1
    if not_finite:
        counts = ", ".join(f"{name} {count} times" for name, count in not_finite.items())
        notes.append(f"Not finite, and not drawn: {counts}.")
    return {name: sorted(points) for name, points in logged.items()}, notes


def _number(cell: Any, path: Path, line: int) -> float | None:
    if not cell:
        return None
    try:
        return float(cell)
    except (ValueError, TypeError):
        raise ValueError(
            f"{path}: line {line}: {str(cell)[:40]!r} is no number; the file is damaged: restore it or remove that line"
        ) from None
