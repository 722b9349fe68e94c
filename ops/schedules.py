"""Quantities that change during training, as pure functions of progress: the step divided by the length of the run.

A shorter run therefore passes through the same schedule, and a resumed one goes on exactly where it was.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence


class Schedule(ABC):
    """A factor for every progress in [0, 1]."""

    @abstractmethod
    def __call__(self, progress: float) -> float:
        """The factor."""


class WarmupThenSteps(Schedule):
    """Linear rise from 0 to 1, then constant, times ``factor`` after each milestone.

    Args:
        warmup: progress at which 1 is reached.
        milestones: progresses after which the value is multiplied by ``factor``.
        factor: what it is multiplied by.
    """

    def __init__(self, warmup: float = 0.01, milestones: Sequence[float] = (0.6, 0.8), factor: float = 0.1) -> None:
        self.warmup, self.milestones, self.factor = warmup, milestones, factor

    def __call__(self, progress: float) -> float:
        if progress < self.warmup:
            return progress / self.warmup
        return self.factor ** sum(progress > milestone for milestone in self.milestones)


class WarmupThenDecay(Schedule):
    """Linear rise from 0 to 1, then exponential decay to ``final`` at the end of the run.

    Args:
        warmup: progress at which 1 is reached.
        final: value at the end.
    """

    def __init__(self, warmup: float = 0.01, final: float = 0.1) -> None:
        self.warmup, self.final = warmup, final

    def __call__(self, progress: float) -> float:
        if progress < self.warmup:
            return progress / self.warmup
        return self.final ** ((progress - self.warmup) / (1 - self.warmup))
