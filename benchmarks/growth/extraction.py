"""How time, memory and evaluations grow with the resolution at which a surface is extracted.

    python -m benchmarks.growth.extraction
    python -m benchmarks.growth.extraction --sizes 2048
    python -m benchmarks.growth.extraction --small --plot extraction.svg

The field is a torus joined with a sphere, analytic and cheap; a network's cost is in the evaluations, which count.
"""

import gc

from benchmarks.extraction import CountedField
from benchmarks.growth.axis import Growth, Turn, clocks, run
from benchmarks.machine import forget_peak_memory, peak_memory_mib
from ops.isosurface import extract_surface


def prepare(resolution: int) -> Turn:
    """A turn that extracts the surface at that resolution."""

    def turn() -> dict[str, float]:
        gc.collect()
        field, figures = CountedField(), {}
        forget_peak_memory("cpu")
        before = peak_memory_mib("cpu")
        with clocks(figures):
            shape = extract_surface(field, resolution)
        figures["peak MiB"] = peak_memory_mib("cpu") - before
        figures["million evaluations"] = field.num_points / 1e6
        figures["million faces"] = len(shape.faces) / 1e6
        return figures

    return turn


GROWTH = Growth(
    title="Extraction of a torus and a sphere",
    axis="cells along an axis",
    sizes=(64, 128, 256, 512, 1024, 2048),
    small=(32, 64),
    prepare=prepare,
    plotted=("wall s", "CPU s"),
    unit="seconds",
    exponent=2.0,
    repeats=1,
    remark="The surface grows with slope 2, all points of the lattice with slope 3. Peak memory is what the extraction "
    "adds to the process, the mesh included.",
)

if __name__ == "__main__":
    run(GROWTH, description=__doc__)
