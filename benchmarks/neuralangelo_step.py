"""Where the time of one training step of Neuralangelo goes, and how much of it a fast hash grid saves.

    python benchmarks/neuralangelo_step.py                                          the CPU demo's sizes
    python benchmarks/neuralangelo_step.py --preset faithful --device cuda          the paper's, on a GPU
    python benchmarks/neuralangelo_step.py --preset faithful --reference skip       the same on a CPU: 7 GB
    python benchmarks/neuralangelo_step.py --gradient numerical_4 --rays 1024       with four taps, and more rays

Sizes, optimizer, losses and derivatives are those of the shipped config where nothing else is asked for; rays are
random, so no dataset is needed. The fast backend of the hash grid (numba on a CPU, Triton on a GPU) and the plain
PyTorch reference take turns on one and the same model, so that a busy machine slows both; every number is the median of
the repeats, and of a whole step on a CPU its processor time stands beside the wall's.

- whole step: forward, backward, optimizer and zeroing of gradients, waiting for the GPU at its end alone.
- sampling, look-ups in it, encode forward, optimizer: measured in another step that waits for the GPU at each border.
- encode backward: measured apart, on the points and the incoming gradient of such a step.
- networks: what is left of forward and of backward, so rendering and losses are in it.
- refresh: of the cached SDF, measured apart; nine of a band and one of all of it, spread over the steps between them.

The model is untrained, a sphere of radius one half, at half of its run (``--progress``), which sets how many levels are
awake. The config's share of foreground rays is aimed into that sphere, all others into the unit sphere.
"""

import argparse
import math
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

# idle OpenMP threads of torch otherwise spin and take the cores from the hash grid's; before torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch
import torch.nn.functional as F
import yaml
from jsonargparse import ArgumentParser
from torch import Tensor

from benchmarks.machine import forget_peak_memory, machine, peak_memory_mib
from callbacks.compiled import compile_networks
from methods.neuralangelo import Neuralangelo
from ops.types import RayBatch

FAST = {"cpu": "numba", "cuda": "triton"}
PRESETS = {"demo": "neuralangelo_demo", "fast": "neuralangelo_dtu_fast", "faithful": "neuralangelo_dtu"}
ROWS = ("encode", "networks", "sampling", "refresh", "optimizer")


class WithoutTrainer(Neuralangelo):
    """The method at a step that we set, logging nothing."""

    at_step = 0

    @property
    def global_step(self) -> int:
        """The step that schedules see."""
        return self.at_step

    def log_dict(self, *_: Any, **__: Any) -> None:
        """Nobody listens."""


class Stopwatch:
    """Milliseconds of named pieces of a step, the GPU waited for at their borders; sums of a step where they repeat."""

    def __init__(self, device: str) -> None:
        self.device, self.is_running = device, False
        self.inside: list[str] = []
        self.sums: defaultdict[str, float] = defaultdict(float)

    def now(self) -> float:
        """Milliseconds on the wall's clock, once the GPU has nothing left to do."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() * 1e3

    @contextmanager
    def piece(self, name: str) -> Iterator[None]:
        """Time what is inside; nothing is waited for while the watch does not run."""
        if not self.is_running:
            yield
            return
        self.inside.append(name)
        start = self.now()
        yield
        self.sums["/".join(self.inside)] += self.now() - start
        self.inside.pop()

    def watch(self, owner: Any, method: str, name: str) -> None:
        """Time every call of a method of one object."""
        original = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.piece(name):
                return original(*args, **kwargs)

        setattr(owner, method, timed)


def shipped_config(preset: str) -> dict[str, Any]:
    """The YAML of a preset."""
    return yaml.safe_load((ROOT / "configs" / f"{PRESETS[preset]}.yaml").read_text())


def build(preset: str, device: str, progress: float = 0.5, **changes: Any) -> WithoutTrainer:
    """The model of a shipped config at that progress, with some of its settings changed."""
    config = shipped_config(preset)
    max_steps = config["trainer"]["max_steps"]
    parser = ArgumentParser()
    parser.add_class_arguments(WithoutTrainer, "model")
    torch.manual_seed(0)
    settings = config["model"]["init_args"] | {"max_steps": max_steps, "grid_backend": FAST[device]} | changes
    model = parser.instantiate(parser.parse_object({"model": settings})).model.to(device)
    # these columns start at zero, and so would the gradient be that reaches the table
    with torch.no_grad():
        model.sdf_network.hidden.parametrizations.weight.original1[:, 3:].normal_(std=1e-3)
    # from where a refresh of all of the cached SDF would be due
    period = 10 * model.occupancy_every
    model.at_step = round(progress * max_steps / period) * period
    return model


def random_rays(preset: str, device: str, num_rays: int | None = None) -> RayBatch:
    """Rays from a distance of 3: the config's share of them into the sphere of radius one half, others the unit one."""
    data = shipped_config(preset)["data"]["init_args"]
    num_rays, foreground_share = num_rays or data["rays_per_batch"], data.get("foreground_share", 0.0)
    generator = torch.Generator().manual_seed(0)
    origins = 3 * F.normalize(torch.randn(num_rays, 3, generator=generator), dim=-1)
    targets = F.normalize(torch.randn(num_rays, 3, generator=generator), dim=-1)
    targets = targets * torch.rand(num_rays, 1, generator=generator) ** (1 / 3)
    targets[: round(foreground_share * num_rays)] /= 2
    batch = {
        "origins": origins,
        "directions": F.normalize(targets - origins, dim=-1),
        "colors": torch.rand(num_rays, 3, generator=generator),
        "ray_masks": (targets.norm(dim=-1) < 0.5).float(),
        "image_index": torch.zeros(num_rays, dtype=torch.int64),
    }
    return {name: value.to(device) for name, value in batch.items()}


class StepBenchmark:
    """One model, one batch, and what is measured of a step on either backend."""

    def __init__(self, model: WithoutTrainer, batch: RayBatch, device: str) -> None:
        self.model, self.batch, self.clock = model, batch, Stopwatch(device)
        self.grid = model.sdf_network.grid
        self.optimizer = model.configure_optimizers()["optimizer"]
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0  # the same work, and every repeat sees the same surface
        self.method = "encode_with_jacobian" if model.gradient == "analytic" else "encode_stencil"
        # its arguments, and the gradients that come back to what it gave
        self.encoded: tuple[tuple[Any, ...], list[Tensor]] | None = None
        for method in ("forward", self.method):
            self.clock.watch(self.grid, method, "encode")
        self.clock.watch(model, "_samples", "sampling")
        self.measured: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    def step(self) -> None:
        """One training step, in the pieces that follow each other."""
        with self.clock.piece("forward"):
            loss = self.model.training_step(self.batch, 0)
        with self.clock.piece("backward"):
            loss.backward()
        with self.clock.piece("optimizer"):
            self.optimizer.step()
        self.optimizer.zero_grad()

    def record(self) -> None:
        """A step whose look-ups are kept: their points, and the gradients of the loss by what they gave."""
        encode, calls = getattr(self.grid, self.method), []

        def keep(*arguments: Any) -> Any:
            outputs = encode(*arguments)
            calls.append((arguments, gradients := [None] * len(tuple_of(outputs))))
            for place, output in enumerate(tuple_of(outputs)):
                output.register_hook(partial(gradients.__setitem__, place))
            return outputs

        setattr(self.grid, self.method, keep)
        self.step()
        setattr(self.grid, self.method, encode)
        (self.encoded,) = calls  # one call a step

    def measure(self, backend: str) -> None:
        """Add one turn of a backend to what was measured."""
        self.grid.backend = backend
        clock, measured = self.clock, self.measured[backend]
        self.step()  # so that caches hold what this backend left there
        start, busy = clock.now(), time.process_time()
        self.step()
        measured["whole step"].append(clock.now() - start)
        measured["processor"].append((time.process_time() - busy) * 1e3)

        clock.is_running = True
        clock.sums.clear()
        self.step()
        clock.is_running = False
        for name, milliseconds in clock.sums.items():
            measured[name].append(milliseconds)

        arguments, gradients = self.encoded
        outputs = tuple_of(getattr(self.grid, self.method)(*arguments))
        start = clock.now()
        torch.autograd.backward(outputs, gradients)
        measured["encode backward"].append(clock.now() - start)
        self.optimizer.zero_grad()
        measured["refresh"].append(self._refresh())

    def _refresh(self) -> float:
        """Milliseconds a step that the refreshes of the cached SDF come to."""
        if self.model.sdf_grid is None:
            return 0.0
        start = self.clock.now()
        self.model.on_train_batch_start(self.batch, 0)
        whole = self.clock.now() - start
        self.model.at_step += self.model.occupancy_every
        start = self.clock.now()
        self.model.on_train_batch_start(self.batch, 0)
        band = self.clock.now() - start
        self.model.at_step -= self.model.occupancy_every
        return (whole + 9 * band) / (10 * self.model.occupancy_every)

    def peak_memory(self, backend: str) -> float:
        """MiB at the peak of a step, weights and the optimizer's moments included."""
        self.grid.backend, self.encoded = backend, None
        forget_peak_memory(self.clock.device)
        self.step()
        return peak_memory_mib(self.clock.device)

    def table(self, backend: str) -> dict[str, tuple[float, float]]:
        """Forward and backward milliseconds of each piece."""
        medians = defaultdict(float, {k: statistics.median(v) for k, v in self.measured[backend].items()})
        encode = medians["forward/encode"], medians["encode backward"]
        forward = medians["forward"] - medians["forward/sampling"] - encode[0]
        return {
            "encode": encode,
            "networks": (forward, medians["backward"] - encode[1]),
            "sampling": (medians["forward/sampling"], 0.0),
            "look-ups in it": (medians["forward/sampling/encode"], 0.0),
            "refresh": (medians["refresh"], 0.0),
            "optimizer": (medians["optimizer"], 0.0),
            "whole step": (medians["whole step"], medians["processor"]),
        }


def tuple_of(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What an encoding gave, one tensor or two."""
    return outputs if isinstance(outputs, tuple) else (outputs,)


def show(name: str, table: dict[str, tuple[float, float]], memory: float) -> None:
    """Print one backend's table."""
    total = sum(sum(table[row]) for row in ROWS)
    print(f"\n{name:18}{'forward ms':>12}{'backward ms':>13}{'share':>8}")
    for row, (forward, backward) in table.items():
        if row == "look-ups in it":
            print(f"  {row:16}{forward:12.1f}" if forward else "  (no look-ups in it)")
        elif row != "whole step":
            second = f"{backward:13.1f}" if row in ("encode", "networks") else " " * 13
            print(f"{row:18}{forward:12.1f}{second}{(forward + backward) / total:8.1%}")
    whole, processor = table["whole step"]
    print(f"{'sum of the pieces':18}{total:12.1f}")
    print(f"{'whole step':18}{whole:12.1f}   (without refresh; {processor:.1f} ms of the processor)")
    print(f"peak memory {memory:,.0f} MiB")


def main() -> None:
    """Parse the command line, take turns, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=list(PRESETS), default="demo", help="sizes of this shipped config")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--progress", type=float, default=0.5, help="share of the run that is over")
    parser.add_argument("--rays", type=int, help="of a step, where not the config's")
    parser.add_argument(
        "--gradient", choices=["numerical_4", "numerical_6", "analytic"], help="how the SDF is differentiated"
    )
    parser.add_argument("--threads", type=int, help="of PyTorch and the kernels")
    parser.add_argument("--compile", nargs="+", default=[], metavar="NETWORK", help="such as color_network")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--reference", choices=["run", "skip"], default="run", help="the alternative, slow on a CPU")
    arguments = parser.parse_args()

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    print(f"{machine(arguments.device)}, median of {arguments.repeats}")
    preset, device = arguments.preset, arguments.device
    changes = {"gradient": arguments.gradient} if arguments.gradient else {}
    model = build(preset, device, arguments.progress, **changes)
    compile_networks(model, arguments.compile)
    benchmark = StepBenchmark(model, random_rays(preset, device, arguments.rays), device)
    start = benchmark.clock.now()
    model.on_train_batch_start(benchmark.batch, 0)
    benchmark.record()
    seconds = (benchmark.clock.now() - start) / 1e3
    (points, *_), _ = benchmark.encoded
    print(
        f"configs/{PRESETS[preset]}.yaml, step {model.at_step:,} of {model.max_steps:,}, {model.gradient} derivatives: "
        f"{len(benchmark.batch['origins'])} rays, {math.prod(points.shape[:-1]):,} points, "
        f"{model.coarse_to_fine.active_levels(model.at_step)} levels, "
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters\n"
        f"first step, with compilation or loading from its cache: {seconds:.1f} s"
    )
    fast = FAST[device]
    backends = [fast] if arguments.reference == "skip" else [fast, "reference"]
    for _ in range(arguments.repeats):
        for backend in backends:
            benchmark.measure(backend)
    tables = {backend: benchmark.table(backend) for backend in backends}
    for backend, table in tables.items():
        show(backend, table, benchmark.peak_memory(backend))
    if "reference" in tables:
        ratios = [("encode", sum(tables["reference"]["encode"]) / sum(tables[fast]["encode"]))]
        ratios += [("whole step", tables["reference"]["whole step"][0] / tables[fast]["whole step"][0])]
        print(f"\n{fast} is faster than reference by {', '.join(f'{ratio:.1f} ({row})' for row, ratio in ratios)}")


if __name__ == "__main__":
    main()
