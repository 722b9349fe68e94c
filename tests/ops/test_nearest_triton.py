"""The search over all pairs in Triton; without a GPU its interpreter runs the kernel on CPU tensors."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from torch import Tensor

import losses.points
from losses.points import chamfer
from ops.nearest import _by_kernel, fused_search, nearest_distances
from tests.ahead_of_time import printed_by

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="triton is not installed: its search for neighbours is not tested",
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def search(queries: Tensor, points: Tensor, **kwargs: int) -> tuple[Tensor, Tensor]:
    from ops.nearest_triton import nearest_neighbours

    squared, indices = nearest_neighbours(queries.to(DEVICE), points.to(DEVICE), **kwargs)
    return squared.cpu(), indices.cpu()


def random_points(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(*shape, 3, generator=torch.Generator().manual_seed(seed), dtype=dtype)


CASES = {
    "several blocks, none full": (random_points(3, 70, seed=1), random_points(3, 150, seed=2)),
    "full blocks": (random_points(1, 64, seed=1), random_points(1, 128, seed=2)),
    "one point": (random_points(2, 5, seed=1), random_points(2, 1, seed=2)),
    "one query": (random_points(2, 1, seed=1), random_points(2, 90, seed=2)),
    "duplicates": (random_points(2, 30, seed=1), random_points(2, 10, seed=2).repeat(1, 13, 1)),
    "all in one place": (torch.ones(1, 9, 3), torch.ones(1, 100, 3)),
    "a lattice's points amid cells": (
        torch.cartesian_prod(*[torch.arange(3.0)] * 3)[None] + 0.5,
        torch.cartesian_prod(*[torch.arange(5.0)] * 3)[None],
    ),
    "far from the origin": (1e6 + random_points(1, 40, seed=1).round(decimals=1), 1e6 + random_points(1, 70, seed=2)),
    "beyond what squares can be": (random_points(1, 3, seed=1), 1e30 * random_points(1, 4, seed=2)),
    "not contiguous": (random_points(40, 2, seed=1).transpose(0, 1), random_points(70, 2, seed=2).transpose(0, 1)),
    "double": (random_points(1, 20, seed=1).double(), random_points(1, 70, seed=2).double()),
}


@pytest.mark.parametrize("case", CASES)
def test_neighbours_are_the_first_of_the_nearest(case: str) -> None:
    queries, points = CASES[case]
    squared, indices = search(queries, points)
    # the same sums in the same order, of which NumPy's argmin takes the first
    with np.errstate(over="ignore"):
        x, y, z = np.moveaxis(queries.numpy()[:, :, None] - points.numpy()[:, None], 3, 0) ** 2
        expected = x + y + z
    assert squared.dtype == queries.dtype
    assert indices.dtype == torch.int64
    chosen = np.take_along_axis(expected, indices.numpy()[..., None], 2)[..., 0]
    np.testing.assert_allclose(squared.numpy(), chosen, rtol=1e-6)
    if DEVICE == "cpu" or case in ("duplicates", "all in one place", "a lattice's points amid cells"):
        np.testing.assert_array_equal(indices.numpy(), expected.argmin(2))
    np.testing.assert_allclose(squared.numpy(), expected.min(2), rtol=1e-6)


def test_distances_equal_those_of_the_tree() -> None:
    queries, points = random_points(100, seed=1), random_points(80, seed=2)
    distances, indices = _by_kernel(search, queries, points)
    expected, expected_indices = cKDTree(points.double().numpy()).query(queries.double().numpy())
    torch.testing.assert_close(distances, torch.from_numpy(expected).float())
    assert indices.tolist() == expected_indices.tolist()
    half, of_half = _by_kernel(search, queries.half(), points.half())
    assert half.dtype == torch.float16
    assert of_half.tolist() == nearest_distances(queries.half().float(), points.half().float())[1].tolist()


@pytest.mark.parametrize("num_programs", [1, 3, 7, 100])
def test_results_do_not_depend_on_how_points_are_split_among_programs(num_programs: int) -> None:
    queries, points = random_points(2, 70, seed=1), random_points(2, 50, seed=2).repeat(1, 6, 1)
    expected, expected_indices = search(queries, points)
    squared, indices = search(queries, points, num_programs=num_programs)
    assert torch.equal(squared, expected)
    assert torch.equal(indices, expected_indices)


def test_small_distances_far_from_the_origin_keep_their_digits() -> None:
    points = torch.tensor([[[1000.0, 0, 0], [1001.0, 0, 0]]], dtype=torch.float64).repeat(1, 20, 1)
    squared, _ = search(points + torch.tensor([0, 1e-6, 0]), points)
    torch.testing.assert_close(squared.sqrt(), torch.full((1, 40), 1e-6, dtype=torch.float64), rtol=1e-5, atol=0)


def test_nobody_gets_a_neighbour_outside_of_the_set_even_where_coordinates_are_not_finite() -> None:
    queries, points = random_points(1, 5, seed=1), random_points(1, 7, seed=2)
    queries[0, 2, 1], points[0, :3, 0] = torch.nan, torch.tensor([torch.nan, torch.inf, -torch.inf])
    _, indices = search(queries, points)
    assert bool(((indices >= 0) & (indices < 7)).all())
    assert bool((indices[0, [0, 1, 3, 4]] >= 3).all())
    _, indices = search(queries, torch.full((1, 7, 3), torch.nan))
    assert bool(((indices >= 0) & (indices < 7)).all())


def test_no_query_is_no_neighbour() -> None:
    squared, indices = search(torch.zeros(2, 0, 3), torch.zeros(2, 4, 3))
    assert squared.shape == indices.shape == (2, 0)


def test_chamfer_by_the_kernel_equals_chamfer_by_the_tree_with_its_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for is_by_kernel in (False, True):
        if is_by_kernel:
            monkeypatch.setattr(losses.points, "nearest_indices", lambda x, y, _: search(x, y)[1])
        x, y = (random_points(2, n, seed=n).requires_grad_() for n in (70, 90))
        to_y, to_x = chamfer(x, y)
        (to_y + 2 * to_x).sum().backward()
        results.append((to_y, to_x, x.grad, y.grad))
    for expected, found in zip(*results, strict=True):
        assert torch.equal(expected, found)


def test_only_a_gpu_is_searched_by_the_kernel() -> None:
    assert fused_search("cpu") is None
    assert fused_search("mps") is None
    assert fused_search("cuda") is not None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_kernel_is_taken_and_equals_the_tree() -> None:
    queries, points = random_points(2, 3000, seed=1), random_points(2, 5000, seed=2)
    found = losses.points.nearest_indices(queries.cuda(), points.cuda()).cpu()
    assert (found == losses.points.nearest_indices(queries, points)).float().mean() > 0.999
    distances, _ = nearest_distances(queries[0].cuda(), points[0].cuda())
    torch.testing.assert_close(distances.cpu(), nearest_distances(queries[0], points[0])[0])


# Needs no GPU, as Triton brings its own compiler.
COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ops import nearest_triton

kernel = nearest_triton._nearest_kernel
constants = {"QUERIES": nearest_triton.QUERIES, "POINTS": nearest_triton.POINTS}
types = {"queries_ptr": "*fp32", "targets_ptr": "*fp32", "squared_ptr": "*fp32", "indices_ptr": "*i32"}
signature = {arg: "constexpr" if arg in constants else types.get(arg, "i32") for arg in kernel.arg_names}
positions = {(kernel.arg_names.index(arg),): value for arg, value in constants.items()}
compiled = triton.compile(ASTSource(kernel, signature, positions), target=GPUTarget("cuda", 90, 32))
# within the loop a thread reads one point, for the 16 queries that it holds
ptx = compiled.asm["ptx"]
loop = ptx[ptx.index("fma.rn.f32") : ptx.index("bra", ptx.index("fma.rn.f32"))]
print(len(compiled.asm["cubin"]) > 0, loop.count("fma.rn.f32"), "bar.sync" in loop)
"""


def test_the_kernel_compiles_for_an_h100_and_its_loop_waits_for_no_other_thread(tmp_path: Path) -> None:
    assert printed_by(COMPILE, tmp_path) == ["True 32 False"]
