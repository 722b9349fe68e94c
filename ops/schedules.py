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


class RiseAndFall(Schedule):
    """0 until ``start``, linear rise to 1 at ``full``, constant until ``fall``, linear change to ``final`` at ``end``.

    Without arguments it is 1 all the way.

    Args:
        start: progress at which it leaves 0.
        full: progress at which 1 is reached.
        fall: progress at which it leaves 1.
        end: progress from which on it is ``final``.
        final: the value then.
    """

    def __init__(
        self, start: float = 0.0, full: float = 0.0, fall: float = 1.0, end: float = 1.0, final: float = 0.0
    ) -> None:
        if not 0 <= start <= full <= fall <= end <= 1:
            raise ValueError(
                f"RiseAndFall: start, full, fall and end are {start}, {full}, {fall} and {end}; "
                "expected fractions of the run in this order, between 0 and 1"
            )
        self.start, self.full, self.fall, self.end, self.final = start, full, fall, end, final

    def __call__(self, progress: float) -> float:
        if progress < self.start:
            return 0.0
        if progress < self.full:
            return (progress - self.start) / (self.full - self.start)
        if progress <= self.fall:
            return 1.0
        if progress >= self.end:
            return self.final
        return 1 + (self.final - 1) * (progress - self.fall) / (self.end - self.fall)
