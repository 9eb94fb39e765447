"""Rescale a trained checkpoint without changing what it computes.

RMSNorm forgets the scale of its input, so everything written to the residual stream (embedding, attention output, MLP
output) can be multiplied by one factor, if the final norm undoes it for the tied head and epsilon follows; and the
scale after a block's second norm can be moved from its weight into the MLP's input matrices. Training leaves the
residual stream with a norm of some hundreds, where steering by α of order one is nothing; powers of two, which bfloat16
multiplies exactly, bring it down to where it is something.

`python -m lens_magic.demo.make.rescale SOURCE TARGET --stream -6 --mlp-input -3`
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file


def rescale(source: Path, target: Path, stream: int, mlp_input: int) -> None:
    """Write `source` to `target` with the stream times 2**stream and the MLPs' inputs times 2**mlp_input."""
    weights = load_file(source / "model.safetensors")
    for name, weight in weights.items():
        if name.endswith(("embed_tokens.weight", "o_proj.weight", "down_proj.weight")):
            weight *= 2.0**stream
        elif name == "model.norm.weight":
            weight *= 2.0**-stream
        elif name.endswith("post_attention_layernorm.weight"):
            weight *= 2.0**mlp_input
        elif name.endswith(("gate_proj.weight", "up_proj.weight")):
            weight *= 2.0**-mlp_input
    target.mkdir(parents=True, exist_ok=True)
    for file in (*source.glob("*.json"), *source.glob("*.jinja")):
        shutil.copyfile(file, target / file.name)
    settings = json.loads((source / "config.json").read_text(encoding="utf-8"))
    settings["rms_norm_eps"] *= 4.0**stream
    (target / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    """Rescale from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--stream", type=int, required=True, help="power of two for the residual stream")
    parser.add_argument("--mlp-input", type=int, required=True, help="power of two for the output of the second norm")
    args = parser.parse_args()
    rescale(args.source, args.target, args.stream, args.mlp_input)


if __name__ == "__main__":
    main()
