"""What Neuralangelo (arXiv:2306.03092, Sec. 3.2 and 3.3) changes in the course of a run, as functions of the step."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class CoarseToFine:
    """When levels of the hash grid wake up, and what follows from it: distance of the taps, weight of the curvature.

    Attributes:
        num_levels: levels of the grid.
        base_resolution: vertices an axis of the coarsest, over [-bound, bound].
        finest_resolution: the same of the finest.
        bound: half the edge of the grid's cube.
        initial_levels: levels that are awake from the start.
        warmup_steps: before the levels start to count, and over which the curvature weight rises.
        steps_per_level: after which each further level wakes up.
        epsilon_in_cells: distance of the taps, in cells of the level that the schedule has reached.
        largest_curvature_weight: at the end of the warm-up.
        anneal_steps: over which back-facing surfaces lose their opacity; 0 for none.
    """

    num_levels: int
    base_resolution: int
    finest_resolution: int
    bound: float
    initial_levels: int
    warmup_steps: int
    steps_per_level: int
    epsilon_in_cells: float
    largest_curvature_weight: float
    anneal_steps: float

    @property
    def level_growth(self) -> float:
        """Resolution of a level over that of the one before."""
        return (self.finest_resolution / self.base_resolution) ** (1 / max(self.num_levels - 1, 1))

    def annealed_levels(self, step: int) -> int:
        """Levels that the schedule has reached; it sets the taps and the curvature weight."""
        return min(max((step - self.warmup_steps) // self.steps_per_level, 1), self.num_levels)

    def active_levels(self, step: int) -> int:
        """Levels of the grid that are awake."""
        return min(max(self.initial_levels, self.annealed_levels(step)), self.num_levels)

    def epsilon(self, step: int) -> float:
        """Distance of the taps, normalised unit; a quarter of the reached level's cell in the paper's code."""
        level = self.annealed_levels(step) - 1
        # the rounding is the paper's code's; the nudge keeps an exact integer from falling below itself
        resolution = math.floor(self.base_resolution * self.level_growth**level + 1e-6) + 1
        return self.epsilon_in_cells * 2 * self.bound / resolution

    def curvature_weight(self, step: int) -> float:
        """Rises over the warm-up, then falls with every level as the taps come closer."""
        if step <= self.warmup_steps:
            return self.largest_curvature_weight * step / self.warmup_steps
        return self.largest_curvature_weight / self.level_growth ** (self.annealed_levels(step) - 1)

    def cosine_ratio(self, step: int) -> float:
        """Progress of the annealing of back-facing opacity, from 0 to 1."""
        return min(step / self.anneal_steps, 1.0) if self.anneal_steps else 1.0
