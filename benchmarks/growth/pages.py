"""Measure every axis again and renew its section of docs/speed.md, table and plot.

    python -m benchmarks.growth.pages --docs                     all of them, about ten minutes on two cores
    python -m benchmarks.growth.pages --docs --only rays levels
    python -m benchmarks.growth.pages --small                    tiny sizes; nothing is written

A section lies between ``<!-- growth:NAME -->`` and ``<!-- /growth:NAME -->``; what stands between tables is kept. It
needs matplotlib: pip install -e ".[bench]".
"""

import argparse
import importlib
import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks.growth.axis import run

PAGE = Path(__file__).parents[2] / "docs/speed.md"
AXES = ("rays", "levels", "table_size", "samples", "images", "extraction", "objects", "ranks")


def renewed(page: str, name: str, text: str) -> str:
    """The page with other figures in one section.

    Raises:
        ValueError: the page has no such section.
    """
    start, end = f"<!-- growth:{name} -->", f"<!-- /growth:{name} -->"
    if page.count(start) != 1 or page.count(end) != 1:
        raise ValueError(
            f"{PAGE.name}: expected one section between {start} and {end}; put these lines where it belongs"
        )
    return re.sub(f"{start}.*{end}", lambda _: f"{start}\n{text}\n{end}", page, flags=re.DOTALL)


def section(name: str, title: str, printed: str) -> str:
    """Command, plot and table of one axis."""
    caption, _, rest = printed.partition("\n\n")
    return f"![{title}](growth/{name}.svg)\n\n`python -m benchmarks.growth.{name}`: {caption}.\n\n{rest}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the axes, and write the page where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", action="store_true", help="write docs/speed.md and docs/growth/")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that all works; not with --docs")
    parser.add_argument("--only", nargs="+", choices=AXES, default=AXES, help="these alone")
    given = parser.parse_args(arguments)
    if given.docs and given.small:
        parser.error("--docs shows the usual sizes; leave --small out")
    for name in given.only:
        growth = importlib.import_module(f"benchmarks.growth.{name}").GROWTH
        print(f"\n{growth.title}", flush=True)
        if not given.docs:
            run(growth, ["--small"] if given.small else [])
            continue
        printed = run(growth, ["--plot", str(PAGE.parent / "growth" / f"{name}.svg")])
        # one after the other, so that what was measured stays if the next one is stopped
        PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8"), name, section(name, growth.title, printed)))


if __name__ == "__main__":
    main()
