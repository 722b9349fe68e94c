"""Every backend of the hash encoding computes the same thing, and that thing is the published encoding."""

import importlib.util
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ops.hash_grid.grid import HashGrid
from ops.hash_grid.layout import grid_layout

# two dense and three hashed levels, two of whose scales are no whole numbers
SMALL = {
    "num_levels": 5,
    "features_per_level": 2,
    "log2_table_size": 9,
    "base_resolution": 4,
    "finest_resolution": 33,
    "bound": 1.5,
}
NUM_FEATURES = SMALL["num_levels"] * SMALL["features_per_level"]

NEEDS_TRITON = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="triton is not installed: its kernels of the hash grid are not tested",
)
BACKENDS = ["numba", pytest.param("triton", marks=NEEDS_TRITON)]


def _grid(backend: str, dtype: torch.dtype = torch.float64, **sizes: float | str) -> HashGrid:
    torch.manual_seed(0)
    grid = HashGrid(**(SMALL | sizes), backend=backend).to(dtype)
    with torch.no_grad():
        grid.table.normal_()
    return grid.to("cuda" if backend == "triton" and torch.cuda.is_available() else "cpu")


def _random_points(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(*shape, 3, generator=generator, dtype=torch.float64) * 2 - 1) * SMALL["bound"]


def _points_on_cell_borders() -> Tensor:
    """Vertices of every level, and points that share one or two coordinates with a vertex."""
    rows = []
    for scale in grid_layout(**SMALL).scales:
        on_border = torch.arange(0, math.floor(scale) + 1, dtype=torch.float64) / scale * 3.0 - 1.5
        picks = torch.randint(len(on_border), (12, 3), generator=torch.Generator().manual_seed(2))
        rows.append(on_border[picks])
    points = torch.cat(rows)
    points[::3, 0] += 0.01
    points[1::3, 1:] -= 0.02
    return points


def _taps_around(centers: Tensor, distance: float) -> Tensor:
    directions = torch.tensor([[0, 0, 0], [1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]], dtype=centers.dtype)
    return centers.unsqueeze(-2) + distance * directions


def _point_sets() -> Iterator[tuple[str, Tensor]]:
    bound = SMALL["bound"]
    yield "random", _random_points(40)
    yield "on_cell_borders", _points_on_cell_borders()
    yield "on_the_faces", torch.where(_random_points(24) > 0.5, bound, _random_points(24)).sign() * bound
    yield "outside", _random_points(24) * 2.5
    yield "duplicates", _random_points(1).expand(20, 3)  # also not contiguous
    yield "in_one_cell", _random_points(1) + 1e-3 * _random_points(20)
    yield "none", torch.zeros(0, 3, dtype=torch.float64)
    yield "none_of_many_dimensions", torch.zeros(4, 0, 3, dtype=torch.float64)
    yield "one", _random_points(1)[0]
    yield "taps", _taps_around(_random_points(12), 0.01)
    yield "transposed", _random_points(6, 5).transpose(0, 1)


POINT_SETS = dict(_point_sets())
POINT_SETS["some_of_each"] = torch.cat([points.reshape(-1, 3)[::3] for points in POINT_SETS.values()])
assert len(POINT_SETS["some_of_each"]) < 128  # one block of points, as triton's interpreter takes seconds for each

BACKENDS_AND_POINTS = [("numba", name) for name in POINT_SETS]
BACKENDS_AND_POINTS += [
    pytest.param("triton", name, marks=NEEDS_TRITON) for name in ("some_of_each", "none_of_many_dimensions")
]


def _same_numbers_on_every_call(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def _everything(grid: HashGrid, points: Tensor, active_levels: int | None) -> dict[str, Tensor]:
    """Values, and first and second derivatives of what both methods of the module return."""
    results: dict[str, Tensor] = {}

    def leaf() -> Tensor:
        grid.table.grad = None
        return points.to(grid.table).clone().requires_grad_()

    at = leaf()
    features = grid(at, active_levels)
    weights = _same_numbers_on_every_call(*features.shape).to(at)
    ((features * weights).sum() + (features**2).sum()).backward()
    results |= {"features": features, "grad_table": grid.table.grad, "grad_points": at.grad}

    at = leaf()
    features = grid(at, active_levels)
    (slopes,) = torch.autograd.grad((features * weights).sum() + (features**3).sum(), at, create_graph=True)
    (slopes**2).sum().backward()
    results |= {"slopes": slopes, "double_grad_table": grid.table.grad, "double_grad_points": at.grad}

    at = leaf()
    features, jacobian = grid.encode_with_jacobian(at, active_levels)
    ((jacobian**2).sum() + (features**3).sum()).backward()
    results |= {"fused_features": features, "jacobian": jacobian}
    results |= {"fused_grad_table": grid.table.grad, "fused_grad_points": at.grad}

    grid.table.grad = None
    _, jacobian = grid.encode_with_jacobian(points.to(grid.table), active_levels)
    (jacobian * _same_numbers_on_every_call(*jacobian.shape).to(at)).sum().backward()
    results["jacobian_alone_grad_table"] = grid.table.grad
    return {name: tensor.detach().cpu().clone() for name, tensor in results.items()}


@pytest.mark.parametrize(("backend", "name"), BACKENDS_AND_POINTS)
def test_backend_agrees_with_reference_in_values_and_derivatives(backend: str, name: str) -> None:
    points = POINT_SETS[name]
    expected = _everything(_grid("reference"), points, active_levels=None)
    found = _everything(_grid(backend), points, active_levels=None)
    assert expected["features"].shape == (*points.shape[:-1], NUM_FEATURES)
    assert expected["jacobian"].shape == (*points.shape[:-1], 3, NUM_FEATURES)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("features_per_level", [1, 8])
@pytest.mark.parametrize("backend", BACKENDS)
def test_backend_agrees_with_reference_for_other_widths(backend: str, features_per_level: int) -> None:
    sizes = {"features_per_level": features_per_level}
    expected = _everything(_grid("reference", **sizes), POINT_SETS["taps"], active_levels=4)
    found = _everything(_grid(backend, **sizes), POINT_SETS["taps"], active_levels=4)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("backend", BACKENDS)
def test_backend_agrees_with_reference_in_single_precision(backend: str) -> None:
    # at single precision a wrong choice of cell at a border shows in the Jacobian, far above this tolerance
    expected = _everything(_grid("reference", torch.float32), POINT_SETS["some_of_each"], active_levels=None)
    found = _everything(_grid(backend, torch.float32), POINT_SETS["some_of_each"], active_levels=None)
    for key in ("features", "grad_table", "grad_points", "jacobian", "jacobian_alone_grad_table"):
        scale = expected[key].abs().max().item()
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=2e-5 * scale)


@pytest.mark.parametrize("backend", BACKENDS)
def test_backend_encodes_many_blocks_of_points_the_last_partly_filled(backend: str) -> None:
    grid, points = _grid(backend), _random_points(300)
    torch.testing.assert_close(grid(points.to(grid.table)).cpu(), _grid("reference")(points))


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_inactive_levels_have_no_columns_and_no_gradient(backend: str) -> None:
    grid = _grid(backend)
    points = _random_points(30).to(grid.table)
    features, jacobian = grid.encode_with_jacobian(points, 3)
    assert grid(points, 3).shape == (30, 6)
    torch.testing.assert_close(grid(points, 3), grid(points)[:, :6], rtol=0, atol=1e-15)
    torch.testing.assert_close(jacobian, grid.encode_with_jacobian(points)[1][..., :6], rtol=0, atol=1e-12)
    (grid(points, 3).sum() + features.sum() + jacobian.sum()).backward()
    first_inactive_row = grid.layout.offsets[3]
    assert not grid.table.grad[first_inactive_row:].any()
    assert grid.table.grad[:first_inactive_row].any()


@pytest.mark.parametrize("backend", ["reference", "numba"])  # triton shares numba's autograd, and would take minutes
def test_gradcheck(backend: str) -> None:
    grid = _grid(backend, log2_table_size=6, num_levels=2, finest_resolution=6)
    # far enough from borders for finite differences to stay in a cell; the last is outside on two axes
    points = torch.tensor([[0.11, -0.37, 0.52], [-1.21, 1.07, -0.03], [0.2, 1.7, -1.9]], dtype=torch.float64)
    points.requires_grad_()
    table = grid.table.detach().clone().requires_grad_()

    def features(points: Tensor, table: Tensor) -> Tensor:
        return torch.func.functional_call(grid, {"table": table}, (points,))

    assert torch.autograd.gradcheck(features, (points, table))
    assert torch.autograd.gradgradcheck(features, (points, table))


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_jacobian_is_the_derivative_of_the_features(backend: str) -> None:
    grid = _grid(backend)
    points = _random_points(10).to(grid.table).requires_grad_()
    features, jacobian = grid.encode_with_jacobian(points)
    for column in (0, 5, NUM_FEATURES - 1):
        (expected,) = torch.autograd.grad(grid(points)[:, column].sum(), points)
        torch.testing.assert_close(jacobian[..., column], expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(features, grid(points))


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_jacobian_vanishes_along_clamped_axes(backend: str) -> None:
    grid = _grid(backend)
    points = torch.tensor([[1.6, 0.1, 0.2], [0.1, -1.51, 0.2]], dtype=torch.float64).to(grid.table)
    features, jacobian = grid.encode_with_jacobian(points)
    assert not jacobian[0, 0].any()
    assert jacobian[0, 1:].any(dim=-1).all()
    assert not jacobian[1, 1].any()
    torch.testing.assert_close(features, grid(points.clamp(-1.5, 1.5)))


def test_reference_agrees_with_a_loop_over_corners() -> None:
    grid = _grid("reference")
    points = torch.cat([_random_points(4), torch.tensor([[1.5, -1.5, 1.5], [2.0, 0.3, -9.0]], dtype=torch.float64)])
    for point, features in zip(points.tolist(), grid(points).tolist(), strict=True):
        assert features == pytest.approx(_encoded_by_loop(point, grid.table.tolist()), abs=1e-12)


def _encoded_by_loop(point: list[float], table: list[list[float]]) -> list[float]:
    """Written from arXiv:2201.05989, Sec. 3, without the code under test."""
    levels, features, log2_size, base, finest, bound = SMALL.values()
    encoded, first_row = [], 0
    for level in range(levels):
        scale = base * (finest / base) ** (level / (levels - 1)) - 1
        side = math.ceil(round(scale, 9)) + 1
        is_hashed = side**3 > 2**log2_size
        position = [(min(max(x, -bound), bound) + bound) / (2 * bound) * scale for x in point]
        cell = [min(int(x), side - 2) for x in position]
        sums = [0.0] * features
        for corner in range(8):
            vertex = [c + (corner >> a & 1) for a, c in enumerate(cell)]
            weight = math.prod(1 - abs(x - v) for x, v in zip(position, vertex, strict=True))
            row = vertex[0] + side * vertex[1] + side * side * vertex[2]
            if is_hashed:
                row = (vertex[0] ^ vertex[1] * 2654435761 ^ vertex[2] * 805459861) % 2**log2_size
            sums = [s + weight * t for s, t in zip(sums, table[first_row + row], strict=True)]
        encoded += sums
        first_row += 2**log2_size if is_hashed else math.ceil(side**3 / 8) * 8
    return encoded


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_a_linear_function_on_a_dense_level_is_reproduced_exactly(backend: str) -> None:
    grid = _grid(backend, num_levels=1, base_resolution=6, finest_resolution=6)
    axis = torch.linspace(-1.5, 1.5, 6, dtype=torch.float64)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")  # x runs fastest in the table
    with torch.no_grad():
        grid.table[:216] = torch.stack([x + 2 * y - 3 * z, 1 + z], dim=-1).reshape(-1, 2)
    points = _random_points(20).to(grid.table)
    features, jacobian = grid.encode_with_jacobian(points)
    expected = torch.stack([points @ points.new_tensor([1.0, 2.0, -3.0]), 1 + points[:, 2]], dim=-1)
    torch.testing.assert_close(features, expected)
    slopes = points.new_tensor([[1.0, 0.0], [2.0, 0.0], [-3.0, 1.0]])
    torch.testing.assert_close(jacobian, slopes.expand_as(jacobian))
