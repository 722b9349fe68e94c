"""One table over the tests of many runs: a line a run, a column a score, printed as Markdown."""

import argparse
import math
from pathlib import Path
from statistics import fmean

from callbacks.runs import newest_test, read_objects
from metrics.record import FACTS

SCORES = ("voxel_iou_chosen", "volume_iou", "chamfer_l1", "f_score_1pct", "f_score_2pct", "psnr_db")
"""Columns that are shown where none are asked for and some run has them."""


def compare(runs: list[Path], scores: list[str] | None = None) -> str:
    """Means over the objects of each run's newest test.

    Args:
        runs: run folders, or folders of experiments.
        scores: columns of ``objects.csv`` to show; ``None`` shows the best known ones that there are.

    Returns:
        A Markdown table with the number of objects and of empty shapes; a note below it where the runs were not tested
        on the same objects.

    Raises:
        ValueError: a run was not tested, or no run has a score that was asked for.
    """
    tests = {}
    for run in runs:
        path = newest_test(run)
        tests[path.parents[2 if path.parents[1].name.startswith("version_") else 1].name] = read_objects(path)
    known = {column for rows in tests.values() for column in next(iter(rows), {}) if column not in FACTS}
    unknown = sorted(set(scores or []) - known)
    if unknown:
        raise ValueError(f"--scores: no run has {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    columns = scores or [column for column in SCORES if column in known]
    header = ["run", "objects", "empty", *columns]
    lines = [header, ["---", *["--:"] * (len(header) - 1)]]
    for name, rows in tests.items():
        num_empty = sum(row["is_empty"] == "True" for row in rows)
        lines.append([name, str(len(rows)), str(num_empty), *(_mean(rows, column) for column in columns)])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    objects = {tuple(sorted((row["object_id"], row["split"]) for row in rows)) for rows in tests.values()}
    return table if len(objects) == 1 else f"{table}\n\nThese runs were not tested on the same objects."


def _mean(rows: list[dict[str, str]], column: str) -> str:
    values = [float(row[column]) for row in rows if row.get(column)]
    mean = fmean(values) if values else math.nan
    return "" if math.isnan(mean) else f"{mean:.4g}"


def main(arguments: list[str] | None = None) -> None:
    """Compare the tests of several runs."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "runs", nargs="+", type=Path, help="run folders, or experiments' folders with version_* in them"
    )
    parser.add_argument("--scores", nargs="+", help="columns of objects.csv; by default the best known ones")
    given = parser.parse_args(arguments)
    try:
        print(compare(given.runs, given.scores))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
