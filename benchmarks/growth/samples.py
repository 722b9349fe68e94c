"""How the time of a training step grows with the samples of a ray.

python -m benchmarks.growth.samples
python -m benchmarks.growth.samples --small --plot samples.svg
"""

from benchmarks.growth.axis import Growth, Turn, run
from benchmarks.growth.step import demo_step


def prepare(samples: int) -> Turn:
    """The demo's step with so many sections a ray, which the cached SDF places."""
    return demo_step(512, num_grid_samples=samples)


GROWTH = Growth(
    title="One training step of the CPU demo, 512 rays",
    axis="samples a ray",
    sizes=(4, 8, 16, 32, 64, 128),
    small=(4, 8),
    prepare=prepare,
    plotted=("wall ms", "CPU ms"),
    unit="ms a step",
)

if __name__ == "__main__":
    run(GROWTH, description=__doc__)
