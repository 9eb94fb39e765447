"""Run the GPU's kernels without a GPU, in a separate process that can import Triton: interpret or compile them.

TRITON_INTERPRET=1 python kernel_probe.py run CASES.safetensors FOUND.safetensors
python kernel_probe.py compile
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lens_magic.gpu import attention, onepass, steps


def sums(logits: torch.Tensor, target: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Figures and the largest."""
    figures, maxima = onepass.sums(logits, target, weights)
    return *figures, *onepass.top(logits.flatten(0, 1), maxima, min(4, logits.shape[-1]))


def attend(*given: torch.Tensor) -> torch.Tensor:
    """Keys and values have room for more columns than are read, as a cache has."""
    queries, keys, values, mask, last = given
    keys, values = (each[:, :, : mask.shape[-1]] for each in (keys, values))
    return attention.attend(queries, keys, values, mask, 0.3, last)


# What kernels of attention take that is no whole number, and of it what is in float32 always.
_NO_NUMBERS = ("queries", "keys", "values", "mask", "last", "sums", "peaks", "totals", "out", "scale")
_WIDE = ("sums", "peaks", "totals")

FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "sums": sums,
    "rms_norm": lambda states, weight: steps.rms_norm(states, weight, 1e-6),
    "rotate": steps.rotate,
    "gated": steps.gated,
    "attend": attend,
}


def run(cases: Path, into: Path) -> None:
    """Each case by the interpreter: ``function/case/number`` are what a function is given, and what it gives."""
    given, found = load_file(cases), {}
    for name in {key.rpartition("/")[0] for key in given}:
        arguments = [given[key] for key in sorted(given) if key.startswith(f"{name}/")]
        results = FUNCTIONS[name.partition("/")[0]](*arguments)
        for number, result in enumerate(results if isinstance(results, tuple) else (results,)):
            found[f"{name}/{number}"] = result.contiguous()
    save_file(found, into)


def compiled() -> None:
    """What the compiler says of the kernels, by the GPU's compute capability and what they are called with, as JSON.

    Triton makes a kernel of its own where a number is divisible by 16, and one where it is 1.
    """
    from lens_magic.gpu.attention_kernels import attend_to_part, put_together
    from lens_magic.gpu.onepass_kernel import sums_of_cells
    from lens_magic.gpu.steps_kernels import gate, rms_norm_of_rows, rotate_heads

    found = {}
    sums: dict[str, Any] = {
        "constants": {"ROWS_AT_ONCE": onepass._ROWS_AT_ONCE, "GROUP": onepass.GROUP},
        "numbers": ("rows", "positions", "groups"),
        "warps": onepass._WARPS,
    }
    for capability in (80, 90):
        found[f"sums, {capability}"] = _compile(sums_of_cells, capability, **sums, divisible=("rows",))
        for dtype in ("bf16", "fp16", "fp32"):
            for kernel, constants, numbers, warps in (
                (rms_norm_of_rows, {"LANES": 4096}, ("width",), 8),
                (rms_norm_of_rows, {"LANES": 128}, ("width",), 1),
                (rotate_heads, {"LANES": 64}, ("query_heads", "key_heads", "half"), 1),
                (gate, {"LANES": 512}, ("count",), 4),
            ):
                name = f"{kernel.fn.__name__} {constants['LANES']} {dtype}, {capability}"
                found[name] = _compile(kernel, capability, constants, numbers, warps, dtype, divisible=numbers)
        for dtype, width in (("fp32", 64), ("bf16", 128), ("bf16", 256)):
            at_once = {attend_to_part: attention._at_once(width), put_together: attention._PARTS_AT_ONCE}
            for kernel in (attend_to_part, put_together):
                constants = {"ROWS": 16, "PARTS": 64, "LANES": width, "AT_ONCE": at_once[kernel]}
                constants = {name: constants[name] for name in kernel.arg_names if name in constants}
                numbers = [name for name in kernel.arg_names if name not in (*_NO_NUMBERS, *constants)]
                divisible = [name for name in numbers if name not in ("key_heads", "group", "parts")]
                name = f"{kernel.fn.__name__} {width} {dtype}, {capability}"
                found[name] = _compile(kernel, capability, constants, numbers, 4, dtype, divisible, wide=_WIDE)
    found["sums, 90, odd"] = _compile(sums_of_cells, 90, **sums)
    found["sums, 90, one row"] = _compile(sums_of_cells, 90, **sums, ones=("rows",))
    print(json.dumps(found))


def _compile(
    kernel: Any,
    capability: int,
    constants: Mapping[str, int],
    numbers: Sequence[str],
    warps: int,
    dtype: str = "fp32",
    divisible: Sequence[str] = (),
    ones: Sequence[str] = (),
    wide: Sequence[str] = (),
) -> dict[str, Any]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names, fixed = kernel.arg_names, {**constants, **dict.fromkeys(ones, 1)}
    known = {"epsilon": "fp32", "scale": "fp32", "mask": "*i1", "last": "*i64", **dict.fromkeys(wide, "*fp32")}
    known |= dict.fromkeys(numbers, "i32") | dict.fromkeys(fixed, "constexpr")
    signature = {name: known.get(name, f"*{dtype}") for name in names}
    pointers = [name for name in names if signature[name].startswith("*") and name not in kernel.do_not_specialize_on_alignment]
    aligned = [place for place, name in enumerate(names) if name in (*pointers, *divisible) and name not in fixed]
    attributes = {(place,): [["tt.divisibility", 16]] for place in aligned}
    source = ASTSource(kernel, signature, constexprs=fixed, attrs=attributes)
    made = triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": warps, "num_stages": 2, "enable_fp_fusion": kernel.fn.__name__ != "rotate_heads"},
    )
    assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(made.asm["ptx"])
        file.flush()
        target = f"-arch=sm_{capability}{'a' if capability == 90 else ''}"
        command = [str(assembler), "-v", target, file.name, "-o", "/dev/null"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    said = done.stdout + done.stderr
    return {
        "shared": made.metadata.shared,
        "registers": int(re.findall(r"Used (\d+) registers", said)[0]),
        "spilled": sum(map(int, re.findall(r"(\d+) bytes spill", said))),
        "fused": made.asm["ptx"].count("fma.rn.f32"),
        "wide_loads": made.asm["ptx"].count("ld.global.v4"),
        "rounds_to_16_bits": sorted(set(re.findall(r"cvt\.(\w+)\.b?f16", made.asm["ptx"])) - {"f32"}),
    }


if __name__ == "__main__":
    if sys.argv[1] == "run":
        run(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        compiled()
