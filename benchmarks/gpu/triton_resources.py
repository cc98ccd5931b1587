"""Compiles the kernels of decode steps for a GPU that need not be there, and prints each program's resources.

python -m benchmarks.gpu.triton_resources --capability 90
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from baton.cuda import triton_decode, triton_kernels

SHAPES = [("bf16", 64), ("bf16", 80), ("bf16", 128), ("bf16", 256), ("fp16", 128), ("fp32", 64), ("fp32", 128)]
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capability", type=int, default=90)
    args = parser.parse_args()
    for dtype, dim in SHAPES:
        for kernel, constants, warps in kernels(dim, dtype == "fp32"):
            usage = resources(kernel, constants, dtype, args.capability, warps)
            print(json.dumps({"kernel": kernel.__name__, "dtype": dtype, "head_dim": dim, **usage}), flush=True)


def kernels(dim: int, float32: bool) -> Iterator[tuple[Any, dict[str, Any], dict[str, int]]]:
    """Each kernel with its constants, and how it is launched."""
    launch = triton_decode.launch_of(dim, float32)
    block = launch.pop("BLOCK")
    padded = triton.next_power_of_2(dim)
    value = {"VALUE_DIM": dim, "PAD_VALUE": padded}
    seen = {"WINDOW": 0, "CHUNK": 0, "RING": False, "SPLITS": 16, "LEAST": 128, "BLOCK": block}
    group = {"GROUP": 4, "PAD_GROUP": 16, "SOFTCAP": False, "PRECISION": "ieee"}
    yield triton_kernels.attend_split, {"DIM": dim, "PAD_DIM": padded, **value, **seen, **group}, launch
    rings = {"WINDOW": 512, "RING": True, "SOFTCAP": True}
    yield triton_kernels.attend_split, {"DIM": dim, "PAD_DIM": padded, **value, **seen, **group, **rings}, launch
    yield triton_kernels.merge_splits, {**value, **seen, "SINKS": True}, {"num_warps": 4}
    yield triton_kernels.float8_rows, {"WIDTH": 64 * dim, "BLOCK": 2048, "LEAST": 1e-12}, {"num_warps": 8}
    yield triton_kernels.keep_tokens, {"DIM": dim, "PAD_DIM": padded, **value, "RING_COLUMNS": 512}, {"num_warps": 1}


def resources(
    kernel: Any, constants: dict[str, Any], dtype: str, capability: int, launch: dict[str, int]
) -> dict[str, int]:
    """Of one program: registers per thread, bytes of stack (spills) and of shared memory, warps."""
    kinds = dict.fromkeys(("rows", "stops"), "*i64") | dict.fromkeys(("parts", "peaks", "masses"), "*fp32")
    kinds |= dict.fromkeys(("q", "keys", "values", "new_keys", "new_values", "sinks", "out"), f"*{dtype}")
    kinds |= {"scale": "fp32", "softcap": "fp32", "inputs": f"*{dtype}", "numbers": "*fp8e4nv", "scales": "*fp32"}
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else kinds.get(name, "i32") for name in names}
    # Addresses and strides of real buffers are multiples of 16.
    even = [name for name in names if signature[name][0] == "*" or name.split("_")[0] in ("q", "k", "v", "nk", "nv")]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in even},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        said = subprocess.run([TOOLS / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True).stdout
    registers, stack = (int(re.findall(rf"{word}:(\d+)", said)[0]) for word in ("REG", "STACK"))
    return {"registers": registers, "stack": stack, "shared": compiled.metadata.shared, "warps": launch["num_warps"]}


if __name__ == "__main__":
    main()
