"""Compiles every Triton kernel for a GPU that need not be there, and prints its global loads.

One line each: name, then the width in bits of the widest load, as ``moments_of_tiles 128``.
"""

import re
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from seqtrain.nn.norms.kernels import triton_kernels as kernels

NUMBERS = {"momentum": "fp32", "eps": "fp32"}
CONSTANTS = {"stride_c": 1, "residual": None, "running_weight": None, "RELU": True, "T": 64}
MULTIPLES_OF_16 = ("length", "channels", "stride_b", "stride_l")
BYTES = {"counts": "*i64", "counted": "*i64", "num_batches": "*i64", "mask": "*u8"}
PER_CHANNEL = (
    *("table", "mean", "invstd", "weight", "bias", "share", "sums"),
    *("running_mean", "running_var"),
)


def widest_load(kernel: triton.JITFunction, features: str, capability: int) -> int:
    names = [parameter.name for parameter in kernel.params]
    constants = {**CONSTANTS, "S": 64, "K": 16 if "S" in names else 64}
    signature, values, attributes = {}, {}, {}
    for at, name in enumerate(names):
        if name in constants:
            signature[name] = "constexpr"
            values[(at,)] = constants[name]
            continue
        wide = "*fp32" if name in PER_CHANNEL else "i32"
        pointers = features if name in ("features", "grad", "out") else wide
        signature[name] = {**NUMBERS, **BYTES}.get(name, pointers)
        if signature[name].startswith("*") or name in MULTIPLES_OF_16:
            attributes[(at,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert compiled.asm["cubin"]
    loads = re.findall(r"ld\.global(?:\.v(\d))?\.b(\d+)", compiled.asm["ptx"])
    return max(int(lanes or 1) * int(bits) for lanes, bits in loads)


for name in sys.argv[3:]:
    print(name, widest_load(getattr(kernels, name), sys.argv[1], int(sys.argv[2])))
