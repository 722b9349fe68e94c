"""How the time of a training step grows with the size of its hash tables.

python -m benchmarks.growth.table_size
python -m benchmarks.growth.table_size --small --plot table_size.svg
"""

from benchmarks.growth.axis import Growth, Turn, run
from benchmarks.growth.step import demo_step


def prepare(entries: int) -> Turn:
    """The demo's step with so many entries a level, fine enough that all levels but the coarsest fill their table."""
    return demo_step(512, log2_table_size=entries.bit_length() - 1, base_resolution=32, finest_resolution=2048)


GROWTH = Growth(
    title="One training step, 512 rays, 8 levels from 32 to 2048 cells",
    axis="entries a level",
    sizes=tuple(2**k for k in (12, 14, 16, 18, 20)),
    small=(2**8, 2**10),
    prepare=prepare,
    plotted=("wall ms", "CPU ms"),
    unit="ms a step",
    repeats=3,
    remark="Entries are powers of two: log2_table_size is 12 to 20. What grows is what touches the whole table: its "
    "gradient, the optimizer's moments, and misses of the cache.",
)

if __name__ == "__main__":
    run(GROWTH, description=__doc__)
