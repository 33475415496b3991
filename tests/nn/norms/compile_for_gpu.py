"""Compiles every Triton kernel for a GPU that need not be there, and prints its global loads.

    python compile_for_gpu.py FEATURES CAPABILITY OPTIONS KERNEL...

OPTIONS are names of what a call may have, with commas between. Prints one line each: name, then the
width in bits of the widest load, as ``moments_of_tiles 128``.
"""

import re
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from seqtrain.nn.norms.kernels import triton_kernels as kernels

NUMBERS = {"momentum": "fp32", "eps": "fp32"}
CONSTANTS = {"stride_c": 1, "T": 64}
ABSENT = {"residual": None, "running_weight": None, "RELU": False}
MULTIPLES_OF_16 = ("length", "channels", "stride_b", "stride_l")
BYTES = {"counts": "*i64", "counted": "*i64", "num_batches": "*i64", "mask": "*u8"}
PER_CHANNEL = (
    *("table", "mean", "invstd", "weight", "bias", "share", "sums"),
    *("running_mean", "running_var", "running_weight"),
)


def widest_load(
    kernel: triton.JITFunction, features: str, capability: int, options: list[str]
) -> int:
    names = [parameter.name for parameter in kernel.params]
    constants = {**CONSTANTS, **ABSENT, "S": 64, "K": 16 if "S" in names else 64}
    for option in options:
        if constants.pop(option) is False:
            constants[option] = True
    signature, values, attributes = {}, {}, {}
    for at, name in enumerate(names):
        if name in constants:
            signature[name] = "constexpr"
            values[(at,)] = constants[name]
            continue
        wide = "*fp32" if name in PER_CHANNEL else "i32"
        pointers = features if name in ("features", "grad", "out", "residual") else wide
        signature[name] = {**NUMBERS, **BYTES}.get(name, pointers)
        if signature[name].startswith("*") or name in MULTIPLES_OF_16:
            attributes[(at,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert compiled.asm["cubin"]
    loads = re.findall(r"ld\.global(?:\.v(\d))?\.b(\d+)", compiled.asm["ptx"])
    return max(int(lanes or 1) * int(bits) for lanes, bits in loads)


features, capability, options, *names = sys.argv[1:]
for name in names:
    kernel = getattr(kernels, name)
    print(name, widest_load(kernel, features, int(capability), options.split(",")))
