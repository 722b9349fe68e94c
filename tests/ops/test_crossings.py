import pytest
import torch

from ops.crossings import first_crossings


def test_a_linear_field_is_crossed_exactly_where_it_is_zero(generator):
    distances = torch.rand(50, 12, generator=generator, dtype=torch.float64).cumsum(-1)
    at = distances[:, 2] + 0.7 * (distances[:, 7] - distances[:, 2])
    crossings = first_crossings(distances, 0.8 * (at[:, None] - distances))
    assert crossings.found.all()
    torch.testing.assert_close(crossings.distances, at)
    torch.testing.assert_close(crossings.interpolate(distances[..., None])[:, 0], at)


def test_the_first_entry_counts_and_leaving_does_not():
    distances = torch.arange(6.0).repeat(5, 1)
    sdf = torch.tensor(
        [
            [2.0, 1, -1, 1, -1, -1],  # enters twice
            [-1.0, -1, 1, 1, -3, -3],  # starts inside, so it leaves first
            [1.0, 1, 1, 1, 1, 1],  # never
            [-1.0, -1, -1, 1, 1, 1],  # only leaves
            [1.0, 0, -1, -1, -1, -1],  # a sample on the surface
        ]
    )
    crossings = first_crossings(distances, sdf)
    assert crossings.found.tolist() == [True, True, False, False, True]
    assert crossings.before[crossings.found].tolist() == [1, 3, 0]
    torch.testing.assert_close(crossings.distances[crossings.found], torch.tensor([1.5, 3.25, 1.0]))


def test_a_surface_that_comes_nearer_is_crossed_earlier_and_nothing_is_nan():
    sdf = torch.tensor([[0.5, 0.25, -0.25, -0.5], [1.0, 1, 1, 1], [0.0, 0, 0, 0]], requires_grad=True)
    crossings = first_crossings(torch.arange(4.0).repeat(3, 1), sdf)
    crossings.distances.sum().backward()
    # half of a section of length 1 over a fall of one half: dt / df = 1 / fall at both ends, halved
    torch.testing.assert_close(sdf.grad[0], torch.tensor([0.0, 1, 1, 0]))
    assert sdf.grad.isfinite().all()
    assert not sdf.grad[1:].any()
    assert crossings.distances.isfinite().all()


@pytest.mark.parametrize(("min_slope", "expected"), [(0.0, True), (0.05, True), (0.2, False)])
def test_grazing_crossings_are_left_out_by_choice(min_slope, expected):
    sdf = torch.tensor([[0.1, -0.1]])  # falls by 0.1 for each unit of distance
    assert first_crossings(torch.tensor([[0.0, 2.0]]), sdf, min_slope).found.item() is expected
