"""How the time of a training step grows with its rays.

python -m benchmarks.growth.rays
python -m benchmarks.growth.rays --small --plot rays.svg
"""

from benchmarks.growth.axis import Growth, run
from benchmarks.growth.step import demo_step

GROWTH = Growth(
    title="One training step of the CPU demo",
    axis="rays a step",
    sizes=(64, 128, 256, 512, 1024, 2048, 4096),
    small=(16, 64),
    prepare=demo_step,
    plotted=("wall ms", "CPU ms"),
    unit="ms a step",
    remark="What does not grow is the optimizer's pass over the table and the overhead of some hundred operations.",
)

if __name__ == "__main__":
    run(GROWTH, description=__doc__)
