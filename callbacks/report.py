"""One page about runs: ``python -m callbacks.report runs/...``, and after every test a page about that one.

The page is a single HTML file. It needs no network and no server; what it links to lies beside it.
"""

import argparse
import os
from pathlib import Path

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.rank_zero import rank_zero_info, rank_zero_warn

from callbacks.page.document import page
from callbacks.results import results_folder, training_steps, write_whole
from callbacks.runs import RESULTS, find_runs, read_run


class Report(Callback):
    """Writes ``report.html`` after a test: one page that needs no network and links only to files beside it.

    It shows what the other callbacks wrote: ``objects.csv``, ``scores.json``, ``panels/`` and ``shapes/``; it comes
    after them. ``python -m callbacks.report`` makes the same kind of page of several runs.

    Args:
        max_megabytes: about how large the page may become; what does not fit is left out, and the page says so.
    """

    def __init__(self, max_megabytes: float = 15.0) -> None:
        self.max_megabytes = max_megabytes

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = results_folder(trainer)
        if folder is None or not trainer.is_global_zero:
            return
        path = folder / "report.html"
        try:
            run = read_run(folder.parent if folder.name in RESULTS else folder, folder)
            if not run.record:
                run.record.update(method=type(pl_module).__name__, steps=training_steps(trainer, pl_module))
            write_whole(path, page([run], folder, self.max_megabytes))
        except ValueError as error:
            # a training that was killed may have left a broken file; what was tested is saved and is no worse for it
            rank_zero_warn(f"no {path}: {error}")
        else:
            rank_zero_info(f"report in {path}")


def report(paths: list[Path], output: Path | None = None, max_megabytes: float = 15.0) -> Path:
    """Write one page about runs.

    Args:
        paths: folders of runs, of experiments or of many experiments, as ``find_runs`` takes them.
        output: the page; ``report.html`` in the folder that all the paths lie in, where not given.
        max_megabytes: about how large it may become.

    Returns:
        Where it was written.

    Raises:
        ValueError: a path holds no run, or a file of a run is broken.
    """
    runs = [read_run(folder) for folder in find_runs(paths)]
    if output is None:
        output = Path(os.path.relpath(os.path.commonpath([path.resolve() for path in paths])), "report.html")
    write_whole(output, page(runs, output.parent, max_megabytes))
    return output


def main(arguments: list[str] | None = None) -> None:
    """Write one HTML page about runs, which opens without a network; several runs are compared side by side."""
    parser = argparse.ArgumentParser(prog="python -m callbacks.report", description=main.__doc__)
    parser.add_argument(
        "runs", nargs="+", type=Path, help="run folders, experiments' folders with version_* in them, or all of runs/"
    )
    parser.add_argument("--output", type=Path, help="the page; report.html in the folder that the runs share")
    parser.add_argument("--max_megabytes", type=float, default=15.0, help="about how large the page may become")
    given = parser.parse_args(arguments)
    try:
        path = report(given.runs, given.output, given.max_megabytes)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"report in {path} ({path.stat().st_size / 10**6:.1f} MB)")


if __name__ == "__main__":
    main()
