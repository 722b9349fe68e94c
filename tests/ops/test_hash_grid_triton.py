"""The Triton kernels compile for GPUs, which running them in the interpreter does not show."""

import importlib.util
from pathlib import Path

import pytest

from tests.ahead_of_time import printed_by

# Needs no GPU, as Triton brings its own compiler. Prints of each kernel whether there is machine code for an H100,
# whether it reads vectors of four, and whether it adds such vectors atomically.
COMPILE_ALL = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ops.hash_grid import triton_gpu, triton_kernels, triton_stencil

JACOBIAN = [{"WITH_JACOBIAN": False}, {"WITH_JACOBIAN": True}]
VARIANTS = {
    "encode_kernel": JACOBIAN,
    "scatter_kernel": [{"WITH_FEATURES": True} | switch for switch in JACOBIAN]
    + [{"WITH_FEATURES": False, "WITH_JACOBIAN": True}],
    "second_derivatives_kernel": [{}],
    "encode_stencil_kernel": [{"T": 4}],
    "scatter_stencil_kernel": [{"T": 4}],
}
for name, variants in VARIANTS.items():
    kernel = getattr(triton_stencil if "stencil" in name else triton_kernels, name)
    # eight features of float16 are one read
    types = {"num_points": "i32", "levels_ptr": "*i64"} | ({"table_ptr": "*fp16"} if "stencil" in name else {})
    for switches in variants:
        constants = {"F": 8, "BLOCK": triton_gpu._POINTS_PER_PROGRAM} | switches
        signature = {arg: "constexpr" if arg in constants else types.get(arg, "*fp32") for arg in kernel.arg_names}
        aligned = {(i,): [["tt.divisibility", 16]] for i, arg in enumerate(kernel.arg_names) if arg.endswith("_ptr")}
        positions = {(kernel.arg_names.index(arg),): value for arg, value in constants.items()}
        source = ASTSource(fn=kernel, signature=signature, constexprs=positions, attrs=aligned)
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
        ptx = compiled.asm["ptx"]
        print(name, len(compiled.asm["cubin"]) > 0, "ld.global.v4" in ptx, "add.v4.f32" in ptx)
"""


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="triton is not installed: its kernels of the hash grid are not compiled",
)
def test_kernels_compile_and_move_features_as_vectors(tmp_path: Path) -> None:
    assert printed_by(COMPILE_ALL, tmp_path) == [
        "encode_kernel True True False",
        "encode_kernel True True False",
        "scatter_kernel True True True",
        "scatter_kernel True True True",
        "scatter_kernel True True True",
        "second_derivatives_kernel True True False",
        "encode_stencil_kernel True True False",
        "scatter_stencil_kernel True True True",
    ]
