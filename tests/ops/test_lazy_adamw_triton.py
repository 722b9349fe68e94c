"""The Triton kernels of the lazy AdamW: the same as the dense one in the interpreter, and machine code for an H100."""

import importlib.util
from pathlib import Path

import pytest
import torch

from ops.hash_grid.grid import HashGrid
from ops.lazy_adamw import LazyAdamW
from tests.ahead_of_time import printed_by

TINY = {"num_levels": 2, "features_per_level": 2, "log2_table_size": 5, "base_resolution": 3, "finest_resolution": 8}

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed: its kernels of the rows are not tried"
)

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
# the interpreter, which runs kernels on CPU tensors, is on only where there is no GPU (tests/conftest.py)
DEVICES = [
    pytest.param("cpu", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="kernels run on the GPU instead")),
    pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU]),
]

COMPILE_ALL = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ops import lazy_adamw_triton

TYPES = {"num_points": "i32", "now": "i32", "num_terms": "i32", "stamps_ptr": "*i32", "listed_ptr": "*i32",
         "counts_ptr": "*i32", "starts_ptr": "*i32", "stops_ptr": "*i32", "levels_ptr": "*i64"}
VARIANTS = {
    "_mark_kernel": {"WILL_LEARN": True, "BLOCK": lazy_adamw_triton._POINTS_PER_PROGRAM},
    "_replay_kernel": {"KEEPS_MARK": True, "F": 8, "BLOCK": lazy_adamw_triton._ROWS_PER_PROGRAM},
    "_step_kernel": {"F": 8, "BLOCK": lazy_adamw_triton._ROWS_PER_PROGRAM},
}
for name, constants in VARIANTS.items():
    kernel = getattr(lazy_adamw_triton, name)
    plain = {arg: "*fp32" if arg.endswith("_ptr") else "fp32" for arg in kernel.arg_names}
    signature = plain | TYPES | dict.fromkeys(constants, "constexpr")
    signature = {arg: signature[arg] for arg in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, arg in enumerate(kernel.arg_names) if arg.endswith("_ptr")}
    positions = {(kernel.arg_names.index(arg),): value for arg, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=positions, attrs=aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    ptx = compiled.asm["ptx"]
    print(name, len(compiled.asm["cubin"]) > 0, "ld.global.v4" in ptx, "st.global.v4" in ptx, "atom." in ptx)
"""


def test_kernels_compile_and_move_rows_as_vectors(tmp_path: Path) -> None:
    assert printed_by(COMPILE_ALL, tmp_path) == [
        "_mark_kernel True False False True",
        "_replay_kernel True True True False",
        "_step_kernel True True True False",
    ]


@pytest.mark.parametrize("eps", [1e-15, 1e-4])  # by the expansion, and by adding up
@pytest.mark.parametrize("device", DEVICES)
def test_rows_are_those_of_the_dense_optimizer(device: str, eps: float) -> None:
    sides = []
    for make in (LazyAdamW, torch.optim.AdamW):
        torch.manual_seed(0)
        grid = HashGrid(**TINY, bound=1.0, backend="triton" if make is LazyAdamW else "reference").to(device)
        backend = {"backend": "triton"} if make is LazyAdamW else {}
        sides.append((grid, make(grid.parameters(), eps=eps, weight_decay=0.1, **backend)))
    for i in range(6):
        source = torch.Generator().manual_seed(i)
        # points that are read twice, and others without learning in between
        points = torch.rand(2, 3, generator=source)[[0, 1, 0]].to(device) - 0.5 * (i % 2)
        seen = []
        for grid, optimizer in sides:
            with torch.no_grad():
                grid(points[1:] / 2)
            optimizer.zero_grad()
            features = grid(points)
            features.square().sum().backward()
            optimizer.step()
            seen.append(features.detach())
        torch.testing.assert_close(*seen, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(*(grid.state_dict()["table"] for grid, _ in sides), rtol=1e-5, atol=1e-7)
    for lazy, dense in zip(*(optimizer.state_dict()["state"][0].values() for _, optimizer in sides), strict=True):
        torch.testing.assert_close(lazy, dense, rtol=1e-5, atol=1e-6 * dense.abs().max().item())
