"""Centre and taps in one call are what they are one by one, and a half-precision copy is as wrong as its rounding."""

import copy
import pickle

import pytest
import torch
from torch import Tensor

from ops.hash_grid.grid import HashGrid
from tests.ops.test_hash_grid import BACKENDS, NEEDS_TRITON, POINT_SETS, _grid

TAPS = torch.tensor([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]], dtype=torch.float64)
TINY = {"num_levels": 3, "features_per_level": 2, "log2_table_size": 8, "base_resolution": 4, "finest_resolution": 16}


def _results(grid: HashGrid, points: Tensor, offsets: Tensor, active_levels: int | None) -> list[Tensor]:
    """Features, and gradients of a loss by table, points and offsets."""
    grid.table.grad = None
    points, offsets = (tensor.to(grid.table).clone().requires_grad_() for tensor in (points, offsets))
    features = grid.encode_stencil(points, offsets, active_levels)
    (features.square().sum() + features.sum()).backward()
    return [tensor.detach().cpu() for tensor in (features, grid.table.grad, points.grad, offsets.grad)]


def _far_and_near() -> Tensor:
    """Taps that stay in the cell, straddle it, and leave the cube."""
    return torch.cat([TAPS[:2] * 0.01, TAPS[2:3] * 0.2, TAPS[3:] * 2.0])


CASES = [("numba", name) for name in POINT_SETS]
CASES += [pytest.param("triton", name, marks=NEEDS_TRITON) for name in ("some_of_each", "none")]


@pytest.mark.parametrize(("backend", "name"), CASES)
def test_taps_agree_with_the_reference_in_value_and_gradient(backend: str, name: str) -> None:
    points = POINT_SETS[name]
    expected = _results(_grid("reference"), points, _far_and_near(), active_levels=None)
    assert expected[0].shape == (*points.shape[:-1], 5, 10)
    for found, value in zip(_results(_grid(backend), points, _far_and_near(), None), expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_taps_are_encoded_as_points_are(backend: str, dtype: torch.dtype) -> None:
    grid = _grid(backend, dtype)
    points, offsets = POINT_SETS["some_of_each"].to(dtype), _far_and_near().to(dtype)
    expected = torch.stack([grid(points, 4), *(grid(points + offset, 4) for offset in offsets)], dim=-2)
    assert torch.equal(grid.encode_stencil(points, offsets, 4), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sleeping_levels_get_no_gradient_of_taps(backend: str) -> None:
    grid = _grid(backend)
    _results(grid, POINT_SETS["one"], TAPS[:1] * 0.01, active_levels=2)
    first_inactive_row = grid.layout.offsets[2]
    assert grid.table.grad[:first_inactive_row].any()
    assert not grid.table.grad[first_inactive_row:].any()


def test_nan_points_give_nan_taps_and_leave_others_alone() -> None:
    grid = _grid("numba")
    points = torch.zeros(3, 3, dtype=torch.float64)
    points[1, 2] = torch.nan
    features = grid.encode_stencil(points, TAPS * 0.01)
    assert features[1].isnan().all()
    assert features[[0, 2]].isfinite().all()


def test_second_derivatives_of_taps_are_refused_rather_than_zero() -> None:
    grid = _grid("numba")
    points = torch.rand(4, 3, dtype=torch.float64, requires_grad=True)
    features = grid.encode_stencil(points, TAPS * 0.01)
    (slope,) = torch.autograd.grad(features.square().sum(), points, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.square().sum().backward()


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        (torch.zeros(3), r"offsets have shape \(3,\), expected \(T, 3\)"),
        (torch.zeros(4, 2), r"offsets have shape \(4, 2\), expected"),
        (torch.zeros(4, 3, dtype=torch.float64), r"offsets are torch\.float64 on cpu"),
    ],
)
def test_misfitting_offsets_are_refused(offsets: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HashGrid(**TINY).encode_stencil(torch.zeros(2, 3), offsets)


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_half_precision_is_wrong_by_its_rounding_only(backend: str) -> None:
    full, half = _grid(backend), _grid(backend, precision="half")
    points = POINT_SETS["one"].expand(3, 3)
    rounding = 2.0**-11 * full.table.abs().max().item()
    expected, found = (_results(grid, points, TAPS * 0.1, active_levels=2) for grid in (full, half))
    assert (found[0] - expected[0]).abs().max() <= rounding  # an interpolant is as wrong as its corners at most
    for value, gradient in zip(expected, found, strict=True):
        assert not torch.equal(gradient, value)
        assert (gradient - value).abs().max() < 50 * rounding * value.abs().max().clamp(min=1)
    assert half.table.grad.dtype == half.table.dtype


@pytest.mark.parametrize("is_fused", [False, True])
def test_half_precision_copy_follows_optimizer_and_loading(is_fused: bool) -> None:
    grid = HashGrid(**TINY, backend="numba", precision="half")
    optimizer = torch.optim.AdamW(grid.parameters(), lr=0.1, fused=is_fused)
    points = torch.rand(20, 3)
    for _ in range(2):
        grid(points).sum().backward()
        optimizer.step()
        again = copy.deepcopy(grid)
        assert torch.equal(grid(points), again(points))
    loaded = HashGrid(**TINY, backend="numba", precision="half")
    loaded(points)
    loaded.load_state_dict(grid.state_dict())
    assert list(grid.state_dict()) == ["table"]
    assert torch.equal(loaded(points), grid(points))
    assert torch.equal(pickle.loads(pickle.dumps(grid))(points), grid(points))


def test_half_precision_copy_is_taken_once_a_step() -> None:
    grid = HashGrid(**TINY, backend="numba", precision="half")
    with torch.inference_mode():
        grid(torch.rand(2, 3))
    copies = {grid._half_copy.of(grid.table, torch.float32).data_ptr() for _ in range(3)}
    assert len(copies) == 1
    grid(torch.rand(2, 3)).sum().backward()  # what inference made can be trained on


def test_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="precision is 'bfloat16', expected full or half"):
        HashGrid(**TINY, precision="bfloat16")
