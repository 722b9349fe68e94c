"""The table of a sweep: a line a scan, the means over scans, and what is missing, as Markdown and as CSV."""

import csv
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from callbacks.compare import SCORES, newest_test
from metrics.record import FACTS


@dataclass
class Line:
    """What a sweep has of one scan.

    Attributes:
        scan: its name.
        status: "finished", "failed", or "unfinished" for one that was not begun or is not at its end.
        log: where its commands wrote.
        num_objects: tested objects, one for a scene.
        num_empty: of them, those without a surface; they are scored as the worst.
        minutes: of training, over all its starts.
        scores: mean over its objects of every score that has a number.
    """

    scan: str
    status: str
    log: Path
    num_objects: int = 0
    num_empty: int = 0
    minutes: float | None = None
    scores: dict[str, float] = field(default_factory=dict)


def line_of(scan: str, folder: Path, state: Path, log: Path) -> Line:
    """What there is of one scan.

    Args:
        scan: its name.
        folder: of its runs.
        state: the JSON file in which ``sweep.py`` keeps what has been done.
        log: of its commands.
    """
    known = json.loads(state.read_text(encoding="utf-8")) if state.is_file() else {}
    seconds = known.get("fit_seconds")
    line = Line(scan, known.get("status", "unfinished"), log, minutes=None if seconds is None else seconds / 60)
    if line.status == "finished":
        with newest_test(folder).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        line.num_objects, line.num_empty = len(rows), sum(row["is_empty"] == "True" for row in rows)
        for name in (name for name in rows[0] if name not in FACTS):
            values = [float(row[name]) for row in rows if row[name]]
            values = [value for value in values if value == value]
            if values:
                line.scores[name] = fmean(values)
    return line


def score_names(lines: list[Line], asked: list[str] | None = None) -> list[str]:
    """Scores to show.

    Args:
        lines: of all scans.
        asked: their names; ``None`` takes the overall error of DTU's protocol and the best known others.

    Raises:
        ValueError: no scan has a score that was asked for.
    """
    known = list(dict.fromkeys(name for line in lines for name in line.scores))
    if unknown := sorted(set(asked or []) - set(known)):
        raise ValueError(f"--scores: no scan has {', '.join(unknown)}; there are {', '.join(sorted(known)) or 'none'}")
    return asked or [name for name in known if name.endswith("_overall_mm")] + [n for n in SCORES if n in known]


def markdown(lines: list[Line], names: list[str]) -> str:
    """A Markdown table; the means are over finished scans, and a number in brackets says over how many if not all."""
    finished = [line for line in lines if line.status == "finished"]
    header = ["scan", "status", "objects", "empty", *names, "minutes"]
    rows = [header, ["---", "---", *["--:"] * (len(header) - 2)]]
    for line in lines:
        scores = [_number(line.scores.get(name)) for name in names]
        is_done = line.status == "finished"
        counts = [str(line.num_objects), str(line.num_empty)] if is_done else ["", ""]
        rows.append([line.scan, line.status, *counts, *scores, _number(line.minutes)])
    means = []
    for name in names:
        values = [line.scores[name] for line in finished if name in line.scores]
        some = f" ({len(values)})" if len(values) < len(finished) else ""
        means.append(f"{_number(fmean(values))}{some}" if values else "")
    minutes = [line.minutes for line in finished if line.minutes is not None]
    totals = [str(sum(line.num_objects for line in finished)), str(sum(line.num_empty for line in finished))]
    title = f"mean of {len(finished)}"
    rows.append([title, f"of {len(lines)}", *totals, *means, _number(fmean(minutes) if minutes else None)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def csv_text(lines: list[Line]) -> str:
    """All scores, a line a scan, nothing averaged over scans."""
    names = list(dict.fromkeys(name for line in lines for name in line.scores))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["scan", "status", "num_objects", "num_empty", "fit_minutes", *names])
    for line in lines:
        facts = [line.scan, line.status, line.num_objects, line.num_empty, "" if line.minutes is None else line.minutes]
        writer.writerow([*facts, *(line.scores.get(name, "") for name in names)])
    return text.getvalue()


def complaints(lines: list[Line]) -> list[str]:
    """A sentence a scan that has no scores."""
    return [f"{line.scan}: {line.status}, see {line.log}" for line in lines if line.status != "finished"]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
