"""Run in a process of its own where Triton can be imported: what becomes of the GPU's kernel without a GPU.

TRITON_INTERPRET=1 python kernel_probe.py sums CASES.npz FOUND.npz
python kernel_probe.py compile
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from lens_magic.lens import onepass


def sums(cases: Path, into: Path) -> None:
    """The sums of all cases, by the interpreter."""
    given, found = np.load(cases), {}
    for name in {key.partition(".")[0] for key in given.files}:
        logits, target, weights = (torch.from_numpy(given[f"{name}.{part}"]) for part in ("logits", "target", "weights"))
        figures, maxima = onepass.sums(logits, target, weights)
        values, ids = onepass.top(logits.flatten(0, 1), maxima, min(4, logits.shape[-1]))
        results = zip(("total", "weighted", "crossed", "above", "values", "ids"), (*figures, values, ids), strict=True)
        found |= {f"{name}.{part}": result.numpy() for part, result in results}
    np.savez(into, **found)


def compiled() -> None:
    """What the compiler says of the kernel, by the GPU's compute capability and the numbers it is called with, as JSON.

    Triton makes a kernel of its own where a number is divisible by 16, and one where it is 1.
    """
    found = {}
    for capability in (80, 90):
        found[f"{capability}"] = _compile(capability, divisible=("rows",))
    found["90, odd"] = _compile(90)
    found["90, one position"] = _compile(90, divisible=("rows",), ones=("positions",))
    found["90, one of each"] = _compile(90, ones=("rows", "positions", "groups"))
    print(json.dumps(found))


def _compile(capability: int, divisible: Sequence[str] = (), ones: Sequence[str] = ()) -> dict[str, int]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from lens_magic.lens.onepass_kernel import sums_of_cells

    names = sums_of_cells.arg_names
    constants = {"ROWS_AT_ONCE": onepass._ROWS_AT_ONCE, "GROUP": onepass.GROUP} | dict.fromkeys(ones, 1)
    numbers = ("rows", "positions", "groups")
    signature = {name: "constexpr" if name in constants else "i32" if name in numbers else "*fp32" for name in names}
    aligned = [place for place, name in enumerate(names) if signature[name] == "*fp32" or name in divisible]
    attributes = {(place,): [["tt.divisibility", 16]] for place in aligned}
    source = ASTSource(sums_of_cells, signature, constexprs=constants, attrs=attributes)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": onepass._WARPS})
    assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(made.asm["ptx"])
        file.flush()
        target = f"-arch=sm_{capability}{'a' if capability == 90 else ''}"
        command = [str(assembler), "-v", target, file.name, "-o", "/dev/null"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    said = done.stdout + done.stderr
    return {
        "registers": int(re.findall(r"Used (\d+) registers", said)[0]),
        "spilled": sum(map(int, re.findall(r"(\d+) bytes spill", said))),
        "wide_loads": made.asm["ptx"].count("ld.global.v4"),
    }


if __name__ == "__main__":
    if sys.argv[1] == "sums":
        sums(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        compiled()
