"""Quantities that change during training, as pure functions of progress: the step divided by the length of the run.

A shorter run therefore passes through the same schedule, and a resumed one goes on exactly where it was.
"""

from dataclasses import dataclass, field
from typing import Protocol


class Schedule(Protocol):
    """A factor for every progress in [0, 1]."""

    def __call__(self, progress: float) -> float: ...


@dataclass(frozen=True)
class WarmupThenSteps:
    """Linear rise from 0 to 1, then constant, times ``factor`` after each milestone.

    Attributes:
        warmup: progress at which 1 is reached.
        milestones: progresses after which the value is multiplied by ``factor``.
        factor: what it is multiplied by.
    """

    warmup: float = 0.01
    milestones: list[float] = field(default_factory=lambda: [0.6, 0.8])
    factor: float = 0.1

    def __call__(self, progress: float) -> float:
        if progress < self.warmup:
            return progress / self.warmup
        return self.factor ** sum(progress > milestone for milestone in self.milestones)


@dataclass(frozen=True)
class WarmupThenDecay:
    """Linear rise from 0 to 1, then exponential decay to ``final`` at the end of the run.

    Attributes:
        warmup: progress at which 1 is reached.
        final: value at the end.
    """

    warmup: float = 0.01
    final: float = 0.1

    def __call__(self, progress: float) -> float:
        if progress < self.warmup:
            return progress / self.warmup
        return self.final ** ((progress - self.warmup) / (1 - self.warmup))
