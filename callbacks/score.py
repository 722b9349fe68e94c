"""Scores of what a method returned: one row an object in ``objects.csv``, means over distinct objects in the log.

``scores.json`` beside it says what the numbers are: protocol, culling, seed, split, unit, how many objects.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.rank_zero import rank_zero_info
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from callbacks.results import gathered, object_ids, results_folder, training_steps, write_whole
from metrics.per_object import PerObjectMetric
from metrics.record import FACTS, Row, json_text, record, table_text
from ops.types import ObjectBatch, Reconstruction, Shape

MAX_PRINTED = 20
MAX_COLUMNS = 8


class Score(Callback):
    """Scores every tested object and logs the means; in validation, those that need only what validation has.

    An experiment may append a second ``Score`` to the default one: their columns share ``objects.csv``.

    Args:
        metrics: protocols to score by. One that needs something the dataset lacks is skipped and named.
    """

    def __init__(self, metrics: list[PerObjectMetric]) -> None:
        self.metrics = metrics
        self.rows: dict[int, Row] = {}
        self._facts: dict[int, Row] = {}
        self._said: set[str] = set()

    @property
    def state_key(self) -> str:
        return self._generate_state_key(columns=self.columns)

    @property
    def columns(self) -> list[str]:
        """Names of all scores, in the order of the metrics."""
        return [column for metric in self.metrics for column in metric.columns]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        columns = [column for score in _scores(trainer) for column in score.columns]
        twice = sorted({column for column in columns if columns.count(column) > 1})
        if twice:
            raise ValueError(
                f"callbacks: scores should have distinct names, but {', '.join(twice)} comes from two metrics; "
                "remove one of them, from the default callbacks or from the experiment's"
            )

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep what metrics remember: thresholds chosen on validation."""
        # not state_dict: Lightning then refuses two scores of equal columns with a message of its own
        checkpoint.setdefault("scores", {})[self.state_key] = [metric.state_dict() for metric in self.metrics]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take up what a checkpoint of the same columns remembers."""
        states = checkpoint.get("scores", {}).get(self.state_key, [])
        for metric, state in zip(self.metrics, states, strict=False):
            metric.load_state_dict(state)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(pl_module)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self._update(outputs, batch)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self._update(outputs, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        means = self._finish(is_validation=True)
        pl_module.log_dict({f"val/{name}": value for name, value in means.items()}, sync_dist=True)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        means = self._finish() | _category_means(self.rows.values(), self.columns)
        scores = _scores(trainer)
        # the last one speaks for all, whose rows are complete by now
        is_last = self is scores[-1]
        if is_last:
            rows = _merged([score.rows for score in scores])
            means["num_objects"] = len(rows)
            means["num_empty"] = sum(row.get("is_empty", False) for row in rows)
        pl_module.log_dict({f"test/{name}": float(value) for name, value in means.items()}, sync_dist=True)
        folder = results_folder(trainer)
        if is_last and rows and trainer.is_global_zero:
            metrics = [metric for score in scores for metric in score.metrics]
            columns = [column for score in scores for column in score.columns if any(column in row for row in rows)]
            if folder is not None:
                write_whole(folder / "objects.csv", table_text(rows, columns))
                write_whole(folder / "scores.json", json_text(_run_facts(trainer, pl_module) | record(metrics, rows)))
            Console().print(_table(rows, columns))

    def _start(self, pl_module: LightningModule) -> None:
        self.rows, self._facts = {}, {}
        for metric in self.metrics:
            metric.to(pl_module.device).reset()

    def _update(self, outputs: Any, batch: ObjectBatch) -> None:
        if not isinstance(outputs, dict):
            return
        for metric in self.metrics:
            obstacle = _obstacle(metric, outputs, batch)
            if obstacle is None:
                metric.update(outputs, batch)
            elif obstacle not in self._said:
                self._said.add(obstacle)
                rank_zero_info(obstacle)
        if "shapes" in outputs:
            self._facts |= _facts(outputs["shapes"], batch)

    def _finish(self, is_validation: bool = False) -> dict[str, float]:
        """Collect the rows of all ranks in ``rows`` and return each column's mean over distinct objects."""
        self.rows = {row["object_index"]: row for row in _merged(gathered(self._facts))}
        means: dict[str, float] = {}
        used = {k for ranks in gathered([k for k, m in enumerate(self.metrics) if m.update_called]) for k in ranks}
        for metric in (self.metrics[k] for k in sorted(used)):
            if not metric.update_called:
                _join_without_objects(metric)
            means |= {name: value.item() for name, value in metric.compute().items()}
            with metric.sync_context():
                for index, row in metric.rows().items():
                    self.rows.setdefault(index, {"object_index": index}).update(row)
                if is_validation and hasattr(metric, "choose_threshold"):
                    metric.choose_threshold()
            metric.reset()
        return means


def _scores(trainer: Trainer) -> list[Score]:
    return [callback for callback in trainer.callbacks if isinstance(callback, Score)]


def _obstacle(metric: PerObjectMetric, outputs: Reconstruction, batch: ObjectBatch) -> str | None:
    """Why a metric cannot score this batch, as a sentence; ``None`` if it can."""
    output = getattr(metric, "output", "renders" if "renders" in metric.needs else "shapes")
    if (obstacle := metric.obstacle()) is not None:
        return f"no {type(metric).__name__}: {obstacle}"
    missing = sorted(metric.needs - {"renders"} - batch.keys())
    if missing:
        return f"no {type(metric).__name__}: the batch has no {', '.join(missing)}"
    # a method that renders nothing may return empty renders
    has_output = outputs.get(output) is not None and len(outputs[output]) > 0
    return None if has_output else f"no {type(metric).__name__}: the method returned no {output}"


def _run_facts(trainer: Trainer, pl_module: LightningModule) -> Row:
    return {
        "method": f"{type(pl_module).__module__}.{type(pl_module).__qualname__}",
        "steps": training_steps(trainer, pl_module),
        "checkpoint": None if trainer.ckpt_path is None else str(trainer.ckpt_path),
        "seed_of_the_run": torch.initial_seed(),
    }


def _facts(shapes: list[Shape], batch: ObjectBatch) -> dict[int, Row]:
    facts = {}
    unknown = [""] * len(shapes)
    words = zip(object_ids(batch), batch.get("category", unknown), batch.get("split", unknown), strict=True)
    for shape, index, names in zip(shapes, batch["object_index"].tolist(), words, strict=True):
        num_faces = 0 if shape.faces is None else len(shape.faces)
        values = (index, *names, shape.is_empty, len(shape.vertices), num_faces)
        facts[index] = dict(zip(FACTS, values, strict=True))
    return facts


def _join_without_objects(metric: PerObjectMetric) -> None:
    # torchmetrics lets a rank without data send shape (0,) in float32, which does not fit the other ranks' rows
    metric.object_index.append(torch.zeros(0, dtype=torch.int64, device=metric.device))
    metric.scores.append(torch.zeros(0, len(metric.columns), dtype=torch.float64, device=metric.device))


def _merged(tables: Iterable[dict[int, Row]]) -> list[Row]:
    rows: dict[int, Row] = {}
    for table in tables:
        for index, row in table.items():
            rows.setdefault(index, {}).update(row)
    return [rows[index] for index in sorted(rows)]


def _mean(values: Iterable[float]) -> float:
    numbers = [value for value in values if not math.isnan(value)]
    return sum(numbers) / len(numbers) if numbers else math.nan


def _category_means(rows: Iterable[Row], columns: list[str]) -> dict[str, float]:
    """Means within each category and their mean over categories (macro); nothing where there is only one."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.get("category", ""), []).append(row)
    if len(groups) < 2:
        return {}
    means = {}
    for column in columns:
        scored = {category: [row[column] for row in group if column in row] for category, group in groups.items()}
        within = {category: _mean(values) for category, values in scored.items() if values}
        if within:
            means[f"macro_{column}"] = _mean(within.values())
            means |= {f"{category or 'no_category'}/{column}": mean for category, mean in sorted(within.items())}
    return means


def _table(rows: list[Row], columns: list[str]) -> Table:
    """One line an object; or one line a score, of each object if they are few, of their spread if both are many."""
    names = [str(row.get("object_id", row["object_index"])) + " (empty)" * row.get("is_empty", False) for row in rows]
    lines = [[_number(row.get(column, math.nan)) for column in columns] for row in rows]
    style = {"box": SIMPLE_HEAD, "collapse_padding": True, "pad_edge": False}
    if len(rows) <= 3:
        table = Table("score", *(Column(name, justify="right", overflow="fold") for name in names), **style)
        for column, *values in zip(columns, *lines, strict=True):
            table.add_row(column, *values)
        return table
    means = [_mean(row.get(column, math.nan) for row in rows) for column in columns]
    if len(columns) > MAX_COLUMNS:
        table = Table(
            "score", *(Column(name, justify="right") for name in (f"mean of {len(rows)}", "from", "to")), **style
        )
        for column, mean, values in zip(columns, means, zip(*lines, strict=True), strict=True):
            numbers = sorted((value for value in values if value), key=float)
            table.add_row(column, _number(mean), *(numbers[:1] + numbers[-1:] if numbers else ()))
        return table
    table = Table("object", *(Column(column, justify="right", overflow="fold") for column in columns), **style)
    for name, line, row in zip(names[:MAX_PRINTED], lines, rows, strict=False):
        table.add_row(name, *line, style="red" if row.get("is_empty") else None)
    if len(rows) > MAX_PRINTED:
        table.add_row(f"and {len(rows) - MAX_PRINTED} more in objects.csv", style="dim")
    table.add_section()
    table.add_row(f"mean of {len(rows)}", *map(_number, means))
    return table


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4g}"
