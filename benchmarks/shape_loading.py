"""How many objects a second does one core make for each shape method, what of, and how many cores does a GPU need?

    python -m benchmarks.shape_loading                                   all methods, no GPU needed
    python -m benchmarks.shape_loading --step_ms 20 --workers 0 2 16     cores that keep a step of 20 ms from waiting
    python -m benchmarks.shape_loading --train 200                       beside it, training steps and their waits
    python -m benchmarks.shape_loading --objects 10 --points 1000 --batches 1 --train 2 --small     quickly

Procedural objects are written in the layouts of 3D-R2N2, Occupancy Networks and IM-Net, with pictures of 137 pixels,
and packed. Every method's training batches are then made as its config says, from the files as they are and from the
packed ones, with a warm page cache: a slow disk adds to the former. IM-Net's files of 35,019 models cost far more a
model than those of a few (see ``datamodules.shapenet_hdf5``).

The costs of an object in one process are CPU time: reading (of files, with what unpacks them; bytes of pictures),
decoding of pictures, images (crop, background, size), and the rest (draws, conversion, collating). A loader with
workers is timed by the clock, from its first batch to its last. Cores that are needed: those that make a batch in a
step's time, and 5 % more.
"""

import argparse
import csv
import logging
import math
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import CSVLogger

import datamodules.packed
import datamodules.shapenet_trees
from benchmarks.machine import machine
from benchmarks.shape_methods import NAMES, config_of, method_of, method_reads
from callbacks.throughput import Throughput
from datamodules.packed import pack
from datamodules.prepare.shapenet_layouts import write_imnet, write_onet, write_r2n2
from datamodules.shapenet import ShapeNet, open_shapenet
from datamodules.synthetic_objects import ProceduralObjects

WRITERS = {"r2n2": write_r2n2, "onet": write_onet, "imnet": write_imnet}
PARTS = ("reading", "decoding", "images", "rest")
READERS = ("pixels", "voxels", "surface", "surface_points", "queries", "cameras", "encoded_view")


class Account:
    """CPU seconds by what they were spent on; what is spent within another part counts for the inner one alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, on the account of a part."""

        def run(*args: Any, **kwargs: Any) -> Any:
            self._turn()
            self._open.append(part)
            try:
                return function(*args, **kwargs)
            finally:
                self._turn()
                self._open.pop()

        return run

    def _turn(self) -> None:
        now = time.process_time()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


class CachedObjects(ProceduralObjects):
    """Pictures are rendered once, for three layouts."""

    def encoded_view(self, index: int, view: int) -> bytes:
        """See ``ObjectSource``."""
        cache = self.__dict__.setdefault("_cache", {})
        if (index, view) not in cache:
            cache[index, view] = super().encoded_view(index, view)
        return cache[index, view]


def data_of(name: str, root: Path, **changes: Any) -> ShapeNet:
    """The data of a config, read from another folder."""
    settings = config_of(name)["data"]["init_args"] | {"root": str(root), "layout": None, "split": None} | changes
    data = ShapeNet(**settings, reads=set(method_reads(name)), reader=name)
    data.setup()
    return data


@contextmanager
def decoding_on(account: Account) -> Any:
    """Put the decoding of pictures on an account, wherever it is called from."""
    modules = (datamodules.packed, datamodules.shapenet_trees)
    original = datamodules.packed.decoded
    for module in modules:
        module.decoded = account.timed("decoding", original)
    try:
        yield
    finally:
        for module in modules:
            module.decoded = original


def costs(name: str, root: Path, num_batches: int) -> dict[str, float]:
    """CPU milliseconds an object in one process, by part."""
    data = data_of(name, root, num_workers=0)
    loader, account = data.train_dataloader(), Account()
    requests = [loader.sampler.request(number) for number in range(num_batches + 1)]
    loader.dataset[requests[0]]
    for reader in READERS:
        setattr(data.source, reader, account.timed("reading", getattr(data.source, reader)))
    data._drawn_views = account.timed("images", data._drawn_views)
    make = account.timed("rest", loader.dataset.__getitem__)
    with decoding_on(account):
        for request in requests[1:]:
            make(request)
    return {part: 1e3 * account.seconds[part] / num_batches / data.batch_size for part in PARTS}


def objects_a_second(name: str, root: Path, num_workers: int, num_batches: int) -> float:
    """Of the loader itself, by the clock, once its workers are there."""
    data = data_of(name, root, num_workers=num_workers)

    def endless() -> Any:
        loader = data.train_dataloader()
        while True:
            yield from loader

    # the first batches were made while workers started
    batches, spare = endless(), 1 + 2 * num_workers
    for _ in islice(batches, spare):
        pass
    start = time.perf_counter()
    count = sum(len(batch["object_index"]) for batch in islice(batches, num_batches + spare))
    return count / (time.perf_counter() - start)


def trained(name: str, root: Path, num_steps: int, num_workers: int, is_small: bool) -> dict[str, float]:
    """What ``Throughput`` logged of the last half of some training steps of the method itself."""
    data = data_of(name, root, num_workers=num_workers)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_steps=num_steps,
            log_every_n_steps=max(1, num_steps // 2),
            limit_val_batches=0,
            callbacks=[Throughput()],
            logger=CSVLogger(folder, name=""),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(method_of(name, is_small=is_small), data)
        with (Path(trainer.logger.log_dir) / "metrics.csv").open() as file:
            last = [row for row in csv.DictReader(file) if row.get("speed/steps_per_s")][-1]
    return {key: float(last[f"speed/{key}"]) for key in ("steps_per_s", "data_wait_s", "data_wait_share")}


def report(name: str, sides: dict[str, Path], arguments: argparse.Namespace) -> None:
    """Print the figures of one method."""
    batch_size = config_of(name)["data"]["init_args"]["batch_size"]
    print(f"{name}, {batch_size} objects a batch")
    delivered = {}
    for side, root in sides.items():
        parts = costs(name, root, arguments.batches)
        delivered[side] = 1e3 / sum(parts.values())
        print(
            f"  {side:9s} {sum(parts.values()):7.3f} ms an object: "
            + ", ".join(f"{part} {parts[part]:.3f}" for part in PARTS)
            + f"; {delivered[side]:.0f} objects/s a core, ratio {delivered[side] / delivered['files']:.1f}",
            flush=True,
        )
        cores = 1.05 * batch_size / (arguments.step_ms / 1e3) / delivered[side]
        print(f"            a step of {arguments.step_ms:g} ms needs {math.ceil(cores)} cores")
        for workers in arguments.workers:
            speed = objects_a_second(name, root, workers, arguments.batches)
            print(f"            {workers:2d} workers: {speed:.0f} objects/s", flush=True)
    if arguments.train:
        for side, root in sides.items():
            figures = trained(name, root, arguments.train, max(arguments.workers), arguments.small)
            print(
                f"  {side:9s} trained with {max(arguments.workers)} workers: {1e3 / figures['steps_per_s']:.1f} ms a "
                f"step, of which {1e3 * figures['data_wait_s']:.1f} ms waiting ({figures['data_wait_share']:.1%})",
                flush=True,
            )


def main() -> None:
    """Write objects in every layout, pack them, and report on every method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--objects", type=int, default=96, help="of which seven in ten are for training")
    parser.add_argument("--points", type=int, default=100_000, help="of each kind and object")
    parser.add_argument("--batches", type=int, default=4, help="that are timed")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="processes; training takes the most")
    parser.add_argument("--step_ms", type=float, default=20.0, help="a step that is to be fed")
    parser.add_argument("--train", type=int, default=0, help="training steps of each method, on a GPU if there is one")
    parser.add_argument("--small", action="store_true", help="train small networks")
    arguments = parser.parse_args()
    for message in (".*srun.*", ".*LeafSpec.*"):
        warnings.filterwarnings("ignore", message)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    print(machine("cuda" if torch.cuda.is_available() else "cpu"))
    torch.set_num_threads(1)
    # of every ten objects of a category seven are for training
    categories = ["chair", "lamp", "sofa", "table"][: max(1, arguments.objects // 10)]
    per_category = max(10, math.ceil(arguments.objects / len(categories)))
    points = {"num_surface_points": arguments.points, "num_query_points": arguments.points}
    with tempfile.TemporaryDirectory() as scratch:
        objects = CachedObjects(categories, per_category, **points)
        for layout in sorted({config_of(name)["data"]["init_args"]["layout"] for name in arguments.methods}):
            WRITERS[layout](objects, Path(scratch) / layout)
            source = open_shapenet(Path(scratch) / layout)
            pack(source, Path(scratch) / f"{layout}_packed")
        for name in arguments.methods:
            layout = config_of(name)["data"]["init_args"]["layout"]
            sides = {"files": Path(scratch) / layout, "packed": Path(scratch) / f"{layout}_packed"}
            report(name, sides, arguments)


if __name__ == "__main__":
    main()
