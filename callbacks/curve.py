"""The loss curve of a run as a picture in the text of a page."""

import csv
import math
from pathlib import Path

WIDTH, HEIGHT = 720, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 30
MAX_POINTS = 240
LOSSES = ("train/loss", "train/loss_step", "train/loss_epoch")

Point = tuple[float, float]


def loss_curve(path: Path) -> str:
    """``train/loss`` over steps as inline SVG, with a logarithmic axis where every loss is positive.

    Args:
        path: ``metrics.csv`` of a run.

    Returns:
        HTML; empty where the file or the loss is missing.
    """
    points = _points(path)
    if len(points) < 2:
        return ""
    low, high = min(y for _, y in points), max(y for _, y in points)
    is_log = low > 0
    last = points[-1][0]
    ticks = _log_ticks(low, high) if is_log else _linear_ticks(low, high)
    low, high = min(low, *ticks), max(high, *ticks)

    def x(step: float) -> float:
        return LEFT + step / max(last, 1) * (WIDTH - LEFT - RIGHT)

    def y(loss: float) -> float:
        a, b, c = (math.log(v) if is_log else v for v in (loss, low, high))
        return TOP + (1 - (a - b) / (c - b or 1)) * (HEIGHT - TOP - BOTTOM)

    lines = [
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(t):.1f}" y2="{y(t):.1f}" stroke="var(--line)"/>'
        f'<text x="{LEFT - 8}" y="{y(t) + 4:.1f}" text-anchor="end">{t:g}</text>'
        for t in ticks
    ]
    steps = [t for t in _linear_ticks(0, last) if t <= last]
    lines += [f'<text x="{x(t):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{t:,.0f}</text>' for t in steps]
    path_data = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in points)
    lines.append(f'<polyline points="{path_data}" fill="none" stroke="var(--mark)" stroke-width="1.6"/>')
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="training loss">{"".join(lines)}</svg>'
    return f"{svg}<p>train/loss over steps{', logarithmic' if is_log else ''}</p>\n"


def _points(path: Path) -> list[Point]:
    """(step, loss) in the order of steps, averaged within as many stretches as the eye can tell apart."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    name = next((loss for loss in LOSSES if any(row.get(loss) for row in rows)), None)
    if name is None:
        return []
    points = sorted((float(row["step"]), float(row[name])) for row in rows if row.get(name) and row.get("step"))
    points = [point for point in points if math.isfinite(point[1])]
    stride = -(-len(points) // MAX_POINTS) or 1
    stretches = [points[k : k + stride] for k in range(0, len(points), stride)]
    return [tuple(sum(values) / len(values) for values in zip(*stretch, strict=True)) for stretch in stretches]


def _linear_ticks(low: float, high: float) -> list[float]:
    """About five round numbers from at or below ``low`` to at or above ``high``."""
    rough = max(high - low, 1e-12) / 4
    unit = 10 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= rough)
    return [k * step for k in range(math.floor(low / step), math.ceil(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten about the range, with 2 and 5 between them where the range is short."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if len(decades) > 3 else (1, 2, 5)
    ticks = [float(f"{factor}e{decade}") for decade in decades for factor in factors]
    below, above = max(t for t in ticks if t <= low), min((t for t in ticks if t >= high), default=ticks[-1])
    return [t for t in ticks if below <= t <= above]
