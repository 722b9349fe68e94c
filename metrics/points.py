"""Earth mover's distance between a reconstruction and the true surface."""

import torch
from torch import Tensor

from metrics.per_object import PerObjectMetric
from metrics.surface import true_surface
from ops.assignment import auction_assignment, exact_assignment
from ops.meshes import sample_surface
from ops.types import ObjectBatch, Reconstruction, Shape


class EarthMovers(PerObjectMetric):
    """``earth_movers_1024``: mean distance between partners under the best bijection of 1024 points of each surface.

    In the dataset's unit. The number of points is in the name because the distance depends on it: two samples of one
    surface are as far apart as their density makes them, so zero is not within reach. A point set of fewer points is
    repeated as evenly as it goes, a larger one sampled. An empty shape scores the diagonal of the truth's bounding box.

    Args:
        num_points: of each side; the time grows with its cube.
        epsilon: largest relative excess over the least distance; 0 is exact and slower, tenths of a second an object.
        seed: together with ``object_index`` it fixes the samples, so that a score does not depend on the batch.
    """

    needs = frozenset({"surface_points"})
    unit = "the dataset's unit"

    def __init__(self, num_points: int = 1024, epsilon: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        if num_points < 1:
            raise ValueError(f"num_points: {num_points}, expected at least 1")
        if epsilon < 0:
            raise ValueError(f"epsilon: {epsilon}, expected 0 or more")
        self.num_points, self.epsilon, self.seed = num_points, epsilon, seed
        self.columns = (f"earth_movers_{num_points}",)

    def score(self, reconstruction: Reconstruction, batch: ObjectBatch, i: int) -> dict[str, float]:
        """Score of object ``i`` of the batch."""
        shape = reconstruction["shapes"][i]
        truth, _ = true_surface(batch, i)
        if shape.is_empty:
            return {self.columns[0]: (truth.amax(0) - truth.amin(0)).norm().item()}
        generator = torch.Generator().manual_seed(self.seed + int(batch["object_index"][i]))
        prediction = Shape(shape.vertices.double().cpu(), None if shape.faces is None else shape.faces.cpu())
        x, y = (self._sample(side, generator)[None] for side in (prediction, Shape(truth)))
        partners = auction_assignment(x, y, self.epsilon) if self.epsilon else exact_assignment(x, y)
        return {self.columns[0]: (x[0] - y[0, partners[0]]).norm(dim=1).mean().item()}

    def _sample(self, shape: Shape, generator: torch.Generator) -> Tensor:
        points, _ = sample_surface(shape, self.num_points, generator)
        return points[torch.arange(self.num_points) % len(points)]
