"""User errors: each gives one clear line, and model, ranks and variables stay as they were."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from driver import PROMPT, Kernel, Reply

pytestmark = [pytest.mark.kernel, pytest.mark.ranks("own")]

STATE = "[*[(rank['rank'], rank['pid']) for rank in lens.status().ranks], lens.status().model, id(kept)]"


def refused(kernel: Kernel, code: str) -> str:
    """Run a cell that is refused, and return what it says."""
    kernel.ok("kept = [1]; result = 'as it was'")
    before = kernel.value(STATE)
    reply = kernel.run(code)
    line = one_line(reply)
    assert kernel.value(STATE) == before
    assert kernel.value("result") == "as it was"
    assert reply.displays == []
    return line


def one_line(reply: Reply) -> str:
    assert (reply.status, reply.ename) == ("error", "LensError"), reply
    assert reply.stdout == "", reply
    assert reply.stderr == "", reply
    (line,) = reply.traceback
    assert "\n" not in line
    assert line.startswith("LensError: ")
    return line


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--max-new-token 3", ["--max-new-token", "--max-new-tokens"]),
        ("--colour red", ["--colour"]),
        ("-n many", ["many"]),
        ("-n 0", ["0", "1"]),
        ("-n 10000", ["10000", "512"]),
        ("-k 0", ["0", "320"]),
        ("-k 321", ["321", "320"]),
        ("-l 4", ["4", "0 to 3"]),
        ("-l -5", ["-5", "0 to 3"]),
        ("-l 3-1", ["3-1", "1-3"]),
        ("-l 0-9", ["9", "0 to 3"]),
        ("-l first", ["first"]),
        ("-c resid", ["resid", "resid_post"]),
        ("-t -1", ["-1"]),
        ("--top-p 1.5", ["1.5"]),
        ("-o 2nd", ["2nd"]),
        ("--save run.txt", ["run.txt", ".nc"]),
        ("--chat", ["chat template"]),
        ("'unfinished", ["unfinished"]),
    ],
)
def test_options(kernel: Kernel, options: str, words: list[str]) -> None:
    given = options if " -o" in f" {options}" else f"{options} -o result"
    line = refused(kernel, f"%%lens {given}\n{PROMPT}")
    assert all(word in line for word in words), line


def test_an_empty_prompt(kernel: Kernel) -> None:
    assert "prompt is empty" in refused(kernel, "%%lens -o result\n\n")


def test_a_prompt_longer_than_the_context(kernel: Kernel) -> None:
    line = refused(kernel, f"%%lens -n 1 -o result\n{'光' * 600}")
    assert "context of 512" in line


@pytest.mark.parametrize("line", ["", "load", "restart now", "load demo --rank 2"])
def test_commands(kernel: Kernel, line: str) -> None:
    assert "--help" in refused(kernel, f"%lens {line}") or "takes" in refused(kernel, f"%lens {line}")


def test_a_command_that_is_none(kernel: Kernel) -> None:
    assert refused(kernel, "%lens lode demo").endswith("load, status, restart, runs are; did you mean load?")


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def without_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def truncated(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4096])


def nearly_empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x10")


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def part_missing(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")  # which alone would be read
    index = {"weight_map": {"model.norm.weight": "model-1.safetensors", "lm_head.weight": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def another_family(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "rwkv"}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (without_config, "config.json"),
        (broken_config, "config.json is not valid JSON"),
        (pickled, "pickled weights only"),
        (without_tokenizer, "tokenizer"),
        (truncated, "damaged or incomplete"),
        (nearly_empty, "damaged or incomplete"),
        (without_weights, "no *.safetensors"),
        (part_missing, "model-2.safetensors"),
        (another_family, "rwkv"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_folders(kernel: Kernel, checkpoint: Path, tmp_path: Path, damage: object, words: str) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(checkpoint, folder)
    damage(folder)  # type: ignore[operator]
    assert words in refused(kernel, f"%lens load {folder}")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--ranks 9", ["9 ranks", "8 attention heads"]),  # as many as the heads is the most
        ("--ranks 0", ["0"]),
        ("--ranks few", ["few"]),
        ("--dtype int8", ["int8", "bfloat16"]),
    ],
)
def test_load_options(kernel: Kernel, checkpoint: Path, options: str, words: list[str]) -> None:
    line = refused(kernel, f"%lens load {checkpoint} {options}")
    assert all(word in line for word in words), line


@pytest.mark.parametrize("name", ["/no/such/folder", "./no-such-folder", "what is this", "a/b/c"])
def test_names(kernel: Kernel, name: str) -> None:
    assert name.split()[0] in refused(kernel, f"%lens load '{name}'")


def test_the_ranks_still_work(kernel: Kernel) -> None:
    before = kernel.value("tokens()")
    refused(kernel, f"%%lens -k 0\n{PROMPT}")
    refused(kernel, "%lens load /no/such/folder --ranks 4")
    assert kernel.value("tokens()") == before
