"""The Triton kernels of rendering compile for GPUs, which running them in the interpreter does not show."""

import importlib.util
from pathlib import Path

import pytest

from tests.ahead_of_time import printed_by

# Needs no GPU, as Triton brings its own compiler. Prints of each kernel whether there is machine code for an H100, and
# whether it needs memory beside its registers.
COMPILE_ALL = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ops import rendering_triton

SAMPLES = {"BLOCK": rendering_triton._SAMPLES_PER_PROGRAM}
RAYS = {"BLOCK": 128, "C": 8}
KERNELS = {
    "_alpha_kernel": SAMPLES,
    "_alpha_backward_kernel": SAMPLES,
    "_composite_kernel": RAYS,
    "_composite_backward_kernel": RAYS,
}
for name, constants in KERNELS.items():
    kernel = getattr(rendering_triton, name)
    types = {arg: "i32" if arg.startswith("num_") else "*fp32" for arg in kernel.arg_names} | {"half_open": "fp32"}
    signature = {arg: "constexpr" if arg in constants else types[arg] for arg in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, arg in enumerate(kernel.arg_names) if arg.endswith("_ptr")}
    positions = {(kernel.arg_names.index(arg),): value for arg, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=positions, attrs=aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    print(name, len(compiled.asm["cubin"]) > 0, "st.local" in compiled.asm["ptx"])
"""


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="triton is not installed: its kernels of rendering are not compiled",
)
def test_kernels_compile_and_keep_a_ray_in_registers(tmp_path: Path) -> None:
    assert printed_by(COMPILE_ALL, tmp_path) == [
        "_alpha_kernel True False",
        "_alpha_backward_kernel True False",
        "_composite_kernel True False",
        "_composite_backward_kernel True False",
    ]
