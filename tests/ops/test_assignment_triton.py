"""The parallel auction in Triton; without a GPU its interpreter runs it on CPU tensors, of few points."""

import importlib.util
from pathlib import Path

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import Tensor

from ops.assignment import FLOOR, SCALING, auction_assignment
from tests.ahead_of_time import printed_by

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed: its auction is not tested"
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def auction(x: Tensor, y: Tensor, epsilon: float = 0.01, *, squared: bool = False, **kwargs: int) -> Tensor:
    from ops.assignment_triton import parallel_auction

    settings = {"squared": squared, "scaling": SCALING, "floor": FLOOR}
    return parallel_auction(x.to(DEVICE), y.to(DEVICE), epsilon, **settings, **kwargs).cpu()


def random_points(batch: int, size: int, seed: int) -> Tensor:
    return torch.rand(batch, size, 3, generator=torch.Generator().manual_seed(seed))


def assert_near_the_best(x: Tensor, y: Tensor, partners: Tensor, epsilon: float, squared: bool = False) -> None:
    assert partners.dtype == torch.int64
    for a, b, own in zip(x, y, partners, strict=True):
        assert own.sort().values.tolist() == list(range(len(a)))
        costs = cdist(a.double(), b.double(), "sqeuclidean" if squared else "euclidean")
        best = costs[linear_sum_assignment(costs)].sum()
        assert costs[range(len(a)), own].sum() <= (1 + epsilon) * best + 1e-5


def two_clusters(size: int) -> tuple[Tensor, Tensor]:
    """Far apart, of which one has too few targets: prices there must climb by the gap."""
    x, y = (1e-3 * random_points(1, size, seed) for seed in (1, 2))
    x[:, : size // 2 + 2, 0] += 5
    y[:, : size // 2 - 2, 0] += 5
    return x, y


CASES = {
    "squared": (random_points(1, 12, 1), random_points(1, 12, 2), True),
    "more than a tile": (random_points(1, 130, 1) + 1e-4, random_points(1, 130, 1), False),
    "clusters": (*two_clusters(16), False),
    "repeated": (random_points(1, 6, 1).repeat(1, 3, 1), random_points(1, 6, 2).repeat(1, 3, 1), False),
    "one": (random_points(2, 1, 1), random_points(2, 1, 2), False),
    "two": (random_points(2, 2, 1), random_points(2, 2, 2), False),
}


@pytest.mark.parametrize("case", CASES)
def test_the_parallel_auction_is_a_bijection_within_epsilon_of_the_best(case: str) -> None:
    x, y, squared = CASES[case]
    assert_near_the_best(x, y, auction(x, y, 0.01, squared=squared), 0.01, squared)


def test_a_shuffled_copy_is_put_in_order_also_when_launches_are_short() -> None:
    x, order = random_points(2, 24, 1), torch.randperm(24, generator=torch.Generator().manual_seed(5))
    expected = order.expand(2, -1)
    assert torch.equal(auction(x[:, order], x), expected)
    assert torch.equal(auction(x[:, order], x, num_rounds=7), expected)


def test_a_smaller_epsilon_is_kept_and_objects_do_not_see_each_other() -> None:
    x, y = random_points(2, 10, 3), random_points(2, 10, 4)
    together = auction(x, y, 1e-4)
    assert_near_the_best(x, y, together, 1e-4)
    assert torch.equal(auction(x[1:], y[1:], 1e-4), together[1:])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_kernel_is_taken_for_many_points_and_gives_the_same_again() -> None:
    x, y = random_points(4, 1024, 1).cuda(), random_points(4, 1024, 2).cuda()
    partners = auction_assignment(x, y)
    assert_near_the_best(x.cpu(), y.cpu(), partners.cpu(), 0.01)
    assert torch.equal(auction_assignment(x, y), partners)


# Needs no GPU, as Triton brings its own compiler.
COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ops import assignment_triton

kernel = assignment_triton._auction_kernel
constants = {"SQUARED": False, "BIDDERS": assignment_triton.BIDDERS, "TARGETS": assignment_triton.TARGETS}
types = {name: "*i32" for name in ("owners_ptr", "waiting_ptr", "num_waiting_ptr", "is_done_ptr")}
types |= {"points_ptr": "*fp32", "targets_ptr": "*fp32", "prices_ptr": "*fp64", "scales_ptr": "*fp64"}
types |= {"epsilon": "fp32", "scaling": "fp32", "floor": "fp32"}
signature = {arg: "constexpr" if arg in constants else types.get(arg, "i32") for arg in kernel.arg_names}
positions = {(kernel.arg_names.index(arg),): value for arg, value in constants.items()}
compiled = triton.compile(ASTSource(kernel, signature, positions), target=GPUTarget("cuda", 90, 32))
print(len(compiled.asm["cubin"]) > 0, "ld.global.nc" in compiled.asm["ptx"], "atom" in compiled.asm["ptx"])
"""


def test_the_kernel_compiles_for_an_h100_without_atomics_or_reads_that_may_be_stale(tmp_path: Path) -> None:
    assert printed_by(COMPILE, tmp_path) == ["True False False"]
