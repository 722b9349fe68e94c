import pytest
import torch
from torch import Tensor

from ops.object_groups import map_groups


def decoder(points: Tensor, codes: Tensor) -> Tensor:
    assert points.ndim == 3
    assert len(points) == len(codes)
    return (points * codes[:, None]).sum(-1).sin()


@pytest.mark.parametrize("counts", [[5, 1, 9], [0, 4, 0, 4, 3], [7], [0, 0, 6], [1, 1, 1], [0, 0]])
@pytest.mark.parametrize("group", [1, 4, 100])
def test_every_point_meets_its_own_code_also_in_second_derivatives(counts: list[int], group: int) -> None:
    codes = torch.randn(len(counts), 3, dtype=torch.float64, requires_grad=True)
    objects = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    points = torch.randn(len(objects), 3, dtype=torch.float64, requires_grad=True)
    results = []
    for values in (map_groups(decoder, points, objects, codes, group), decoder(points[:, None], codes[objects])[:, 0]):
        (slope,) = torch.autograd.grad(values.sum(), points, create_graph=True)
        seconds = torch.autograd.grad(slope.square().sum(), (points, codes))
        results.append((values, slope, *seconds))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


def test_no_more_than_a_group_of_each_object_is_evaluated_for_nothing() -> None:
    sizes = []

    def counted(points: Tensor, codes: Tensor) -> Tensor:
        sizes.append(points.shape[:2].numel())
        return decoder(points, codes)

    objects = torch.arange(3).repeat_interleave(torch.tensor([10, 21, 4]))
    map_groups(counted, torch.randn(35, 3), objects, torch.randn(3, 3), group=10)
    assert sizes == [10 + 30 + 10]
