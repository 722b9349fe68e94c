"""How far a run is: a bar over all of it in a terminal, a line every so often in a file or a SLURM log."""

import logging
import math
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

import pytorch_lightning.callbacks
from pytorch_lightning import LightningModule, Trainer
from rich.console import Console, RenderableType
from rich.file_proxy import FileProxy
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from callbacks.throughput import batch_items

LABELS = {"validate": "validation", "test": "test", "predict": "predict"}
LOOKS_PER_SECOND = 4
RATE_SECONDS = 30.0
MOST_SECONDS_BETWEEN_LINES = 600.0
SHARE_OF_AGE = 0.1
MAX_SCORES = 6


class ProgressBar(pytorch_lightning.callbacks.ProgressBar):
    """Shows steps, time to the end of the whole run, speed and the losses; also validation, test and prediction.

    The losses are what the method logs with ``prog_bar=True``, or ``train/loss`` alone where it does so with none.

    Args:
        line_seconds: where the output is no terminal, seconds between the first lines. As the run grows older, they
            come as seldom as a tenth of its age, though every ten minutes at least.
    """

    def __init__(self, line_seconds: float = 10.0) -> None:
        super().__init__()
        if line_seconds <= 0:
            raise ValueError(f"line_seconds is {line_seconds}, expected seconds above 0")
        self.line_seconds = line_seconds
        self._is_enabled = True
        self._display: _Bars | _Lines | None = None
        self._rate = _Rate()
        self._total = math.inf
        self._first_step = 0
        self._looked = self._eval_started = self._eval_seconds = 0.0

    def disable(self) -> None:
        self._is_enabled = False

    def enable(self) -> None:
        self._is_enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        if self._display is None:
            print(*args, **kwargs)
        else:
            self._display.say(kwargs.get("sep", " ").join(map(str, args)))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open()
        self._total, self._first_step = trainer.estimated_stepping_batches, trainer.global_step
        self._rate, self._eval_seconds = _Rate(), 0.0
        if self._display is not None:
            self._display.add("training", self._first_step, self._total)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._display is None:
            return
        count, kind = batch_items(batch)
        self._rate.add(trainer.global_step, count * trainer.world_size, kind)
        self._show_training(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._display is not None:
            self._show_training(trainer, is_last=True)
        self._close()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start_evaluation("validation", trainer.num_val_batches)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._count_batch()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end_evaluation(stays_open=trainer.state.fn == "fit")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._display is None or trainer.sanity_checking:
            return
        found = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        scores = dict([(name, value) for name, value in found.items() if not math.isnan(value)][:MAX_SCORES])
        took = _clock(time.monotonic() - self._eval_started)
        others = f"  and {len(found) - len(scores)} more in the log" if len(scores) < len(found) else ""
        self._display.say(f"validation at step {trainer.global_step:,}, {took}:  {_numbers(scores)}{others}")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start_evaluation("test", trainer.num_test_batches)

    def on_test_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._count_batch()

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # before the callbacks that print tables
        self._end_evaluation(stays_open=False)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start_evaluation("predict", trainer.num_predict_batches)

    def on_predict_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._count_batch()

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end_evaluation(stays_open=False)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_display": None}  # locks and threads cannot be copied to another process

    def _open(self) -> None:
        if self._is_enabled and self._display is None:
            console = Console()
            self._display = (
                _Bars(console) if console.is_terminal and not console.is_dumb_terminal else _Lines(self.line_seconds)
            )

    def _close(self) -> None:
        if self._display is not None:
            self._display.close()
            self._display = None

    def _show_training(self, trainer: Trainer, is_last: bool = False) -> None:
        # reading the losses waits for the GPU, so not in every step
        now = time.monotonic()
        if not is_last and (now - self._looked < 1 / LOOKS_PER_SECOND or not self._display.is_due()):
            return
        self._looked = now
        step = trainer.global_step
        left = self._seconds_left(step)
        self._display.show(step, "" if left is None else f"{_clock(left)} to go", self._rate.text(), _losses(trainer))

    def _seconds_left(self, step: int) -> float | None:
        """Until the end of the run: training at its present speed, evaluating as often and as long as until now."""
        if not self._rate.steps_per_second or math.isinf(self._total):
            return None
        evaluating = self._eval_seconds / max(step - self._first_step, 1)
        return (self._total - step) * (1 / self._rate.steps_per_second + evaluating)

    def _start_evaluation(self, label: str, num_batches: Iterable[float]) -> None:
        self._eval_started = time.monotonic()
        self._rate.pause()
        self._open()
        if self._display is not None:
            self._display.add(label, 0, sum(num_batches))

    def _count_batch(self) -> None:
        if self._display is not None:
            self._display.advance()

    def _end_evaluation(self, stays_open: bool) -> None:
        if stays_open and self._display is not None:
            self._display.drop()
        elif not stays_open:
            self._close()
        self._eval_seconds += time.monotonic() - self._eval_started
        self._rate.go_on()


class _Rate:
    """Steps and items a second over the last half minute, without what was no training."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int, int]] = deque()
        self._num_items, self._kind = 0, None
        self._paused_at: float | None = None
        self._pauses = 0.0

    def add(self, step: int, num_items: int, kind: str | None) -> None:
        self._num_items += num_items
        self._kind = kind
        now = time.monotonic() - self._pauses
        if not self._marks or now - self._marks[-1][0] > 0.2:
            self._marks.append((now, step, self._num_items))
        # the first step, which compiles, lies before the first mark
        while len(self._marks) > 2 and now - self._marks[0][0] > RATE_SECONDS:
            self._marks.popleft()

    def pause(self) -> None:
        self._paused_at = time.monotonic()

    def go_on(self) -> None:
        if self._paused_at is not None:
            self._pauses += time.monotonic() - self._paused_at
            self._paused_at = None

    @property
    def steps_per_second(self) -> float:
        """0 as long as it is not known."""
        return self._slope(1)

    def text(self) -> str:
        if not self.steps_per_second:
            return ""
        items = f"  {_count(self._slope(2))} {self._kind}/s" if self._kind else ""
        return f"{_count(self.steps_per_second)} steps/s{items}"

    def _slope(self, what: int) -> float:
        if len(self._marks) < 2:
            return 0.0
        first, last = self._marks[0], self._marks[-1]
        return (last[what] - first[what]) / (last[0] - first[0])


class _Bars:
    """Bars at the bottom of a terminal, the losses under them, and what is said above them."""

    def __init__(self, console: Console) -> None:
        self._progress = _ProgressWithLosses(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[speed]}"),
            console=console,
            refresh_per_second=LOOKS_PER_SECOND,
            expand=True,
        )
        self._tasks: list[TaskID] = []
        self._progress.start()
        # Lightning's handler took the stream before it led past the bars
        self._handlers = [
            (handler, handler.setStream(sys.stderr))
            for handler in logging.getLogger("pytorch_lightning").handlers
            if isinstance(handler, logging.StreamHandler) and handler.stream is sys.__stderr__
        ]

    def add(self, label: str, done: int, total: float) -> None:
        total = None if math.isinf(total) else total
        fields = {"count": _of(done, total), "left": "", "speed": ""}
        self._tasks.append(self._progress.add_task(label, completed=done, total=total, **fields))

    def is_due(self) -> bool:
        return True

    def show(self, done: int, left: str, speed: str, losses: str) -> None:
        total = self._progress.tasks[self._progress.task_ids.index(self._tasks[-1])].total
        self._progress.losses = losses
        self._progress.update(self._tasks[-1], completed=done, count=_of(done, total), left=left, speed=speed)

    def advance(self) -> None:
        self._progress.advance(self._tasks[-1])
        task = self._progress.tasks[self._progress.task_ids.index(self._tasks[-1])]
        left = "" if task.time_remaining is None else f"{_clock(task.time_remaining)} to go"
        self._progress.update(self._tasks[-1], count=_of(int(task.completed), task.total), left=left)

    def drop(self) -> None:
        self._progress.remove_task(self._tasks.pop())

    def say(self, text: str) -> None:
        self._progress.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        self._progress.stop()
        for handler, stream in self._handlers:
            handler.setStream(stream)


class _ProgressWithLosses(Progress):
    losses = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.losses:
            yield Text(self.losses, style="dim", no_wrap=True, overflow="ellipsis")


class _Lines:
    """One line after the other, rarer and rarer, without a character that a file would not show."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._tasks: list[tuple[str, int, float, float]] = []
        self._started = self._printed = time.monotonic()
        self._last = ""

    def add(self, label: str, done: int, total: float) -> None:
        self._tasks.append((label, done, total, time.monotonic()))

    def is_due(self) -> bool:
        now = time.monotonic()
        age = now - self._started
        wait = min(max(self._seconds, SHARE_OF_AGE * age), max(MOST_SECONDS_BETWEEN_LINES, self._seconds))
        return now - self._printed >= wait

    def show(self, done: int, left: str, speed: str, losses: str) -> None:
        label, _, total, started = self._tasks[-1]
        share = "" if math.isinf(total) else f" ({done / max(total, 1):.0%})"
        elapsed = f"{_clock(time.monotonic() - started)} so far"
        count = f"{'step' if label == 'training' else label} {_of(done, total)}{share}"
        self._print("  ".join(filter(None, (count, f"{elapsed}, {left}" if left else elapsed, speed, losses))))

    def advance(self) -> None:
        label, done, total, started = self._tasks[-1]
        self._tasks[-1] = (label, done + 1, total, started)
        if self.is_due():
            left = (time.monotonic() - started) / (done + 1) * (total - done - 1)
            self.show(done + 1, "" if math.isinf(left) else f"{_clock(left)} to go", "", "")

    def drop(self) -> None:
        self._tasks.pop()

    def say(self, text: str) -> None:
        print(text, flush=True)

    def close(self) -> None:
        self._tasks.clear()

    def _print(self, line: str) -> None:
        self._printed = time.monotonic()
        print(line, flush=True)


def _losses(trainer: Trainer) -> str:
    metrics: Mapping[str, Any] = trainer.progress_bar_metrics
    names = [name for name in metrics if name.startswith("train/")]
    if not names:
        metrics = trainer.callback_metrics
        names = [name for name in ("train/loss",) if name in metrics]
    return _numbers({name: metrics[name] for name in names})


def _numbers(values: Mapping[str, Any]) -> str:
    return "  ".join(f"{name.split('/', 1)[-1]} {float(value):.4g}" for name, value in values.items())


def _of(done: int, total: float | None) -> str:
    return f"{done:,}" if total is None or math.isinf(total) else f"{done:,} of {int(total):,}"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _past_the_bars() -> None:
    """A forked worker writes to the terminal itself: the thread that draws may have held its lock, for ever now."""
    sys.stdout, sys.stderr = (
        stream.rich_proxied_file if isinstance(stream, FileProxy) else stream for stream in (sys.stdout, sys.stderr)
    )


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_past_the_bars)
