"""Scores that are kept one row an object, so that tables, empty shapes and many ranks all come out right."""

import inspect
import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from ops.types import ObjectBatch, Reconstruction


class PerObjectMetric(Metric):
    """A row of named scores for every object; the mean over *distinct* objects as the summary.

    Lightning's distributed sampler repeats objects so that every rank has as many; rows are therefore keyed by
    ``object_index`` and a repeated object counts once. A score that does not exist for an object is NaN and is left
    out of that column's mean.

    Subclasses set ``columns`` and ``needs`` and implement ``score``.
    """

    columns: tuple[str, ...]
    """Names of the scores, snake case, with the unit where there is one."""
    needs: frozenset[str]
    """Keys of the ObjectBatch, and ``"renders"`` where views are compared, without which nothing can be scored."""
    unit: str = ""
    """What the numbers are in, a sentence for the files of results."""
    full_state_update = False

    @property
    def facts(self) -> dict[str, Any]:
        """What a reader must know to compare the scores: ``protocol``, ``unit`` and ``settings``.

        Settings are the arguments of the constructor that the metric keeps under their own names: seed, culling,
        thresholds. Of a tensor it is its value; NaN is ``None``.
        """
        names = [name for name in inspect.signature(type(self).__init__).parameters if hasattr(self, name)]
        settings = {name: _plain(getattr(self, name)) for name in names if name not in ("self", "kwargs")}
        protocol = f"{type(self).__module__}.{type(self).__qualname__}"
        return {"protocol": protocol, "unit": self.unit, "settings": settings}

    def obstacle(self) -> str | None:
        """Why nothing can be scored here whatever the data, as the end of a sentence; ``None`` if all is there."""
        return None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("object_index", default=[], dist_reduce_fx="cat")
        self.add_state("scores", default=[], dist_reduce_fx="cat")

    @abstractmethod
    def score(self, reconstruction: Reconstruction, batch: ObjectBatch, i: int) -> dict[str, float]:
        """Scores of object ``i`` of the batch, one value for each name in ``columns``."""

    def update(self, reconstruction: Reconstruction, batch: ObjectBatch) -> None:
        """Score every object of a batch."""
        for i, index in enumerate(batch["object_index"].tolist()):
            row = self.score(reconstruction, batch, i)
            assert tuple(row) == self.columns, (tuple(row), self.columns)
            self.object_index.append(torch.tensor([index], device=self.device))
            # float64: DTU compares hundredths of a millimetre in means over many objects
            self.scores.append(torch.tensor([list(row.values())], dtype=torch.float64, device=self.device))

    def rows(self) -> dict[int, dict[str, float]]:
        """``object_index`` -> row, each object once, ordered by index; call it where the state is synced."""
        index, scores = _joined(self.object_index), _joined(self.scores)
        return {
            k: dict(zip(self.columns, v, strict=True))
            for k, v in sorted(zip(index.tolist(), scores.tolist(), strict=True))
        }

    def compute(self) -> dict[str, Tensor]:
        """Mean of each column over distinct objects; NaN where no object has that score."""
        rows = list(self.rows().values())
        columns = {name: [row[name] for row in rows if not math.isnan(row[name])] for name in self.columns}
        return {n: torch.tensor(sum(v) / len(v) if v else math.nan, dtype=torch.float64) for n, v in columns.items()}


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, Tensor) else value
    return None if isinstance(value, float) and math.isnan(value) else value


def _joined(state: list[Tensor] | Tensor) -> Tensor:
    # torchmetrics turns a list state into one tensor once it is synced
    if isinstance(state, Tensor):
        return state
    return torch.cat(state) if state else torch.zeros(0)
