"""Points of several objects, handed to a network that takes as many points of every object."""

from collections.abc import Callable

import torch
from torch import Tensor

GROUP = 256  # points of one object beside each other; the last group of each is filled up


def map_groups(
    decoder: Callable[[Tensor, Tensor], Tensor], points: Tensor, objects: Tensor, codes: Tensor, group: int = GROUP
) -> Tensor:
    """What a decoder says of points, each beside the code of its own object, in one call for all objects.

    Points are put into groups of one object each, so that a code is read once a group rather than once a point. At most
    ``group - 1`` points an object are evaluated for nothing. Differentiable by points and codes.

    Args:
        decoder: (G, P, 3) points and (G, C) codes -> (G, P) values.
        points: (n, 3).
        objects: (n,) int64, ascending, rows of ``codes``.
        codes: (B, C).
        group: P, where there are several objects.

    Returns:
        (n,) values.
    """
    if len(points) == 0 or bool(objects[0] == objects[-1]):
        return decoder(points[None], codes[objects[:1]] if len(points) else codes[:1])[0]
    present, counts = torch.unique_consecutive(objects, return_counts=True)
    num_groups = (counts + group - 1) // group
    # as many free places before an object's points as fill up the groups before
    places_before = group * (num_groups.cumsum(0) - num_groups) - (counts.cumsum(0) - counts)
    places = torch.arange(len(points), device=points.device) + places_before.repeat_interleave(counts)
    rows = places.new_zeros(int(num_groups.sum()) * group)
    rows[places] = torch.arange(len(points), device=points.device)
    values = decoder(points[rows].view(-1, group, 3), codes[present.repeat_interleave(num_groups)])
    return values.flatten()[places]
