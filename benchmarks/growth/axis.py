"""How a cost grows along one axis: turns, a table and a plot, for every script beside this file.

python -m benchmarks.growth.rays                       a table, some minutes at most
python -m benchmarks.growth.rays --small               tiny sizes, seconds
python -m benchmarks.growth.rays --plot rays.svg       and a plot, which needs matplotlib: pip install -e ".[bench]"
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# idle OpenMP threads of torch otherwise spin and take the cores from the hash grid's; before torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

from benchmarks.machine import machine

Turn = Callable[[], dict[str, float]]


@dataclass(frozen=True)
class Growth:
    """One axis.

    Attributes:
        title: of the plot.
        axis: what grows, with its unit.
        sizes: from the smallest to the largest.
        small: the same, for a look whether all works.
        prepare: size -> what takes one turn and says what it measured, by column.
        plotted: columns in the plot, all of one unit, which is the label of the other axis.
        unit: that label.
        exponent: of the reference line; ``None`` draws none.
        repeats: turns of each size, of which the fastest counts.
        remark: below the table.
    """

    title: str
    axis: str
    sizes: Sequence[int]
    small: Sequence[int]
    prepare: Callable[[int], Turn]
    plotted: Sequence[str]
    unit: str
    exponent: float | None = 1.0
    repeats: int = 5
    remark: str = ""


def measure(growth: Growth, sizes: Sequence[int], repeats: int) -> list[dict[str, float]]:
    """What each size costs, the least of its turns in each column; sizes take turns, as the machine may be busy."""
    turns = [growth.prepare(size) for size in sizes]
    rows: list[dict[str, float]] = [{} for _ in sizes]
    for _ in range(repeats):
        for row, turn in zip(rows, turns, strict=True):
            for name, value in turn().items():
                row[name] = min(value, row.get(name, math.inf))
    return rows


def table(growth: Growth, sizes: Sequence[int], rows: Sequence[dict[str, float]]) -> str:
    """Markdown; ``slope`` is the exponent with which the first plotted column grew from the row before."""
    names = list(rows[0])
    lines = [
        "| " + " | ".join([growth.axis, *names, "slope"]) + " |",
        "|" + "---:|" * (len(names) + 2),
    ]
    for k, (size, row) in enumerate(zip(sizes, rows, strict=True)):
        slope = (
            "" if k == 0 else f"{_slope(sizes[k - 1 : k + 1], [r[growth.plotted[0]] for r in rows[k - 1 : k + 1]]):.2f}"
        )
        lines.append("| " + " | ".join([f"{size:,}", *(_number(row[name]) for name in names), slope]) + " |")
    return "\n".join(lines)


def plot(growth: Growth, sizes: Sequence[int], rows: Sequence[dict[str, float]], path: Path, caption: str) -> None:
    """Write the plot, both axes logarithmic, a dotted line where a cost in proportion to the axis would run."""
    import matplotlib

    matplotlib.use("Agg")
    # the same figures give the same file, and letters stay letters, which takes a third of the room
    matplotlib.rcParams |= {"svg.hashsalt": growth.title, "svg.fonttype": "none"}
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, NullFormatter

    figure, axes = pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")
    for name in growth.plotted:
        axes.loglog(sizes, [row[name] for row in rows], "o-", label=name)
    if growth.exponent is not None:
        first = rows[0][growth.plotted[0]]
        line = [first * (size / sizes[0]) ** growth.exponent for size in sizes]
        axes.loglog(sizes, line, ":", color="grey", label=f"slope {growth.exponent:g}")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.xaxis.set_minor_formatter(NullFormatter())
    for formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in "125" else ""))
    # at least from a labelled tick to the next one, 1, 2, 5, 10 and so on
    low, high = axes.get_ylim()
    labelled = [digit * 10.0**k for k in range(-9, 9) for digit in (1, 2, 5)]
    if sum(low <= value <= high for value in labelled) < 2:
        axes.set_ylim(max(v for v in labelled if v < low) * 0.95, min(v for v in labelled if v > high) * 1.05)
    axes.set(title=growth.title, xlabel=growth.axis, ylabel=growth.unit)
    axes.grid(which="major", alpha=0.3)
    axes.legend(frameon=False)
    figure.supxlabel(caption, fontsize=6, color="grey")
    path.parent.mkdir(parents=True, exist_ok=True)
    # no date in the file: the caption has it
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=110)
    pyplot.close(figure)


def run(growth: Growth, arguments: Sequence[str] | None = None, description: str | None = None) -> str:
    """Print the table of one axis, and write its plot where one is wanted.

    Returns:
        Table and remark, as they were printed, under the line that says on which machine.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny sizes, once each, to see that all works")
    parser.add_argument("--sizes", type=int, nargs="+", help="instead of the usual ones, from small to large")
    parser.add_argument(
        "--repeats", type=int, help=f"turns of each size, of which the fastest counts: {growth.repeats}"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="an .svg or .png")
    given = parser.parse_args(arguments)
    if given.plot and find_spec("matplotlib") is None:  # before minutes of measuring
        parser.error('--plot needs matplotlib; pip install -e ".[bench]"')
    sizes = given.sizes or (growth.small if given.small else growth.sizes)
    repeats = given.repeats or (1 if given.small else growth.repeats)
    caption = f"{machine('cpu')}, fastest of {repeats}"
    print(caption, flush=True)
    rows = measure(growth, sizes, repeats)
    text = table(growth, sizes, rows) + (f"\n\n{growth.remark}" if growth.remark else "")
    print(text, flush=True)
    if given.plot:
        plot(growth, sizes, rows, given.plot, caption)
    return f"{caption}\n\n{text}"


@contextmanager
def clocks(figures: dict[str, float], unit: float = 1.0) -> Any:
    """Add wall and processor time of what is inside to the figures, in seconds or, with 1e3, in milliseconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    suffix = "ms" if unit == 1e3 else "s"
    figures[f"wall {suffix}"] = (time.perf_counter() - wall) * unit
    figures[f"CPU {suffix}"] = (time.process_time() - cpu) * unit


def _slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    return math.log(values[1] / values[0]) / math.log(sizes[1] / sizes[0]) if min(values) > 0 else math.nan


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit("this is what the scripts beside it share; python -m benchmarks.growth.rays is one of them")
