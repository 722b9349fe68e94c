"""How the time of a training step grows with the levels of its hash grid.

python -m benchmarks.growth.levels
python -m benchmarks.growth.levels --small --plot levels.svg
"""

from benchmarks.growth.axis import Growth, Turn, run
from benchmarks.growth.step import demo_step


def prepare(levels: int) -> Turn:
    """The demo's step with so many levels between its coarsest and finest."""
    return demo_step(512, num_levels=levels, initial_levels=min(4, levels))


GROWTH = Growth(
    title="One training step, 512 rays, tables of 2^16 entries",
    axis="levels of the hash grid",
    sizes=(2, 4, 8, 16),
    small=(2, 4),
    prepare=prepare,
    plotted=("wall ms", "CPU ms"),
    unit="ms a step",
    remark="Sampling, the networks and rendering are the same at any number of levels.",
)

if __name__ == "__main__":
    run(GROWTH, description=__doc__)
