"""How fast a run goes, how long it waits for data and how much memory it takes, as ``speed/…`` in every log."""

import os
import time
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.profilers import PassThroughProfiler

_FETCH = ".train_dataloader_next"
_STATM = Path("/proc/self/statm")


class Throughput(Callback):
    """Logs speed, waiting, memory and learning rate of a fit, wherever the losses are logged.

    What is logged is a mean since the last log, validation left out: ``speed/steps_per_s``, ``speed/rays_per_s`` or
    ``speed/objects_per_s`` (of all processes together), ``speed/data_wait_s`` of a step and ``speed/data_wait_share``
    of its time, ``speed/memory_gib`` of this process, ``speed/gpu_memory_peak_gib`` since the start, and ``train/lr``.
    """

    # Lightning's ThroughputMonitor waits for the GPU in every step and cannot tell the wait for data; its
    # DeviceStatsMonitor logs forty counters; its LearningRateMonitor names its key after the optimizer's class.

    def __init__(self) -> None:
        self._timer: _FetchTimer | None = None
        self._started = self._paused_at = self._paused = 0.0
        self._first_step = self._num_items = 0
        self._kind: str | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # whoever profiles has the time of fetching from there
        if stage == "fit" and type(trainer.profiler) is PassThroughProfiler:
            trainer.profiler = self._timer = _FetchTimer()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restart(trainer.global_step)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._paused_at = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._paused += time.perf_counter() - self._paused_at

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        count, self._kind = batch_items(batch)
        self._num_items += count
        steps = trainer.global_step - self._first_step
        if steps and trainer.log_every_n_steps and trainer.global_step % trainer.log_every_n_steps == 0:
            pl_module.log_dict(self._figures(trainer, steps))
            self._restart(trainer.global_step)

    def _figures(self, trainer: Trainer, steps: int) -> dict[str, float]:
        seconds = time.perf_counter() - self._started - self._paused
        figures = {"speed/steps_per_s": steps / seconds}
        if self._kind is not None:
            figures[f"speed/{self._kind}_per_s"] = self._num_items * trainer.world_size / seconds
        if self._timer is not None:
            figures["speed/data_wait_s"] = self._timer.seconds / steps
            figures["speed/data_wait_share"] = self._timer.seconds / seconds
        if (memory := resident_memory()) is not None:
            figures["speed/memory_gib"] = memory / 2**30
        device = trainer.strategy.root_device
        if device.type == "cuda":
            figures["speed/gpu_memory_peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        if trainer.optimizers:
            figures["train/lr"] = float(trainer.optimizers[0].param_groups[0]["lr"])
        return figures

    def _restart(self, step: int) -> None:
        self._started, self._paused = time.perf_counter(), 0.0
        self._first_step, self._num_items = step, 0
        if self._timer is not None:
            self._timer.seconds = 0.0


class _FetchTimer(PassThroughProfiler):
    """Adds up the time that training waits for its next batch, which no hook of a callback encloses."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = self._since = 0.0

    def start(self, action_name: str) -> None:
        if action_name.endswith(_FETCH):
            self._since = time.perf_counter()

    def stop(self, action_name: str) -> None:
        if action_name.endswith(_FETCH):
            self.seconds += time.perf_counter() - self._since


def batch_items(batch: Any) -> tuple[int, str | None]:
    """How many rays or objects a batch holds, and which of the two; 0 and ``None`` where it is neither."""
    for key, kind in (("origins", "rays"), ("object_index", "objects")):
        if isinstance(batch, dict) and key in batch:
            return len(batch[key]), kind
    return 0, None


def resident_memory() -> int | None:
    """Bytes of this process that are in memory; ``None`` where the system does not tell in a file."""
    if not _STATM.is_file():
        return None
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
