"""The command line."""

from __future__ import annotations

import errno
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from unittest.mock import Mock

import models
import once
import pytest
import torch

import lens_magic as lens
from lens_magic import demo_run, doctor
from lens_magic.cli import _parser, main
from lens_magic.errors import LensError
from lens_magic.gpu import attention, onepass, steps
from lens_magic.ranks.environment import mpi_prefix

Checkpoints = Callable[[str], Path]
ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["kernel", "install", "--ranks", "0"], "is not a number of ranks"),
        (["kernel", "install", "--hostfile", "/nowhere"], "no host file"),
        (["kernel", "install", "--name", "a/b"], "cannot name a kernel"),
        (["kernel", "install", "--name", ""], "cannot name a kernel"),
        (["kernel", "install", "--name", ".."], "cannot name a kernel"),
        (["kernel", "install", "--prefix", ""], "--prefix is empty"),
        (["demo", "--out", "/proc/nowhere/out"], "--out '/proc/nowhere/out': there cannot be such a folder: No such file"),
        (["demo", "--out", "~nobody_of_that_name/out"], "is no path of a file or folder: Could not determine home directory"),
        (["run", "demo", "x", "--out", "~nobody_of_that_name/x.nc"], "is no path of a file or folder"),
        (["run", "demo", "x", "--out", "x\0.nc"], "is no path of a file or folder: it holds a zero byte"),
        (["run", "~nobody_of_that_name/model", "x", "--ranks", "1"], "is no path of a file or folder"),
        (["plan", "~nobody_of_that_name/model"], "is no path of a file or folder"),
        (["run", "demo", "x", "--out", "x.pickle"], "should end in one of"),
        (["run", "/nowhere", "x", "--ranks", "1"], "is not a folder"),
        (["run", "demo", "x", "--rank", "2"], "lens-magic run takes --help, --dtype"),
        (["run", "demo", "-hello"], "unknown option -hello; lens-magic run takes --help"),
        (["run", "demo", "-hello"], "; a prompt that begins with - goes last, after --\n"),
        (["run", "demo", "-now"], "--max-new-tokens 'ow' is not an integer; a prompt that begins with - goes last, after --"),
        (["run", "demo", "--now"], "required: PROMPT; a prompt that begins with - goes last, after --"),
        (["run", "demo", "-l", "-1", "--track", "x"], "--track takes the word after it, so the prompt goes before it"),
        (["plan", "demo", "--device", "cuda"], "goes with --free"),
        (["plan", "demo", "--free", ""], "--free '' is not a size; 80GB or 512MiB would do"),
        (["plan", "demo", "--tokens", "0"], "0 is too few; 1 or more would do; with --whole-prompt, 0 plans the prompt alone"),
        (["equivalence", "demo", "x", "-n", "0"], "max-new-tokens 0 is too few; 1 or more would do\n"),
        (["fly"], "'fly' is not a command of lens-magic; demo, run, plan, equivalence, bench, kernel, doctor are\n"),
        (["kernel", "instal"], "'instal' is not a command of lens-magic kernel; install, list are; did you mean install?\n"),
        (["plan", "demo", "--free", "1GB", "--device", "tpu"], "--device 'tpu' is not one of cpu, cuda\n"),
        ([], "arguments are required"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_the_package_is_the_command() -> None:
    told = subprocess.run([sys.executable, "-m", "lens_magic", "fly"], capture_output=True, text=True, check=False)
    assert told.returncode == 2
    assert "'fly' is not a command of lens-magic" in told.stderr


def test_a_kernel_is_installed_in_the_home_folder_that_a_path_begins_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hosts").write_text("localhost slots=4\n")
    assert main(["kernel", "install", "--prefix", "~/pp", "--hostfile", "~/hosts"]) == 0
    assert (tmp_path / "pp/share/jupyter/kernels/lens/kernel.json").is_file()
    assert not (tmp_path / "~").exists()


def test_an_installed_kernel_is_everyones(tmp_path: Path) -> None:
    assert main(["kernel", "install", "--prefix", str(tmp_path)]) == 0
    (folder,) = tmp_path.glob("share/jupyter/kernels/lens")
    assert folder.stat().st_mode & 0o055 == 0o055


def test_commands_take_values_that_begin_with_a_minus_sign() -> None:
    parsed = _parser().read(["run", "demo", "hi", "--layers", "-1,-2", "-t", "-.5"])
    assert (parsed.layers, parsed.temperature, parsed.prompt) == ("-1,-2", -0.5, "hi")
    assert _parser().read(["plan", "demo", "-l", "-3:"]).layers == "-3:"
    assert _parser().read(["run", "demo", "hi", "-l", "-1, -2"]).layers == "-1, -2"


@pytest.mark.parametrize(
    "command", ["", "demo", "run", "plan", "equivalence", "kernel", "kernel install", "kernel list", "doctor"]
)
def test_help_says_what_a_command_does(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--help"]) == 0
    said = capsys.readouterr().out.split("\n\n")[1]
    assert said[0].isupper(), said
    assert said.endswith("."), said


@pytest.mark.parametrize(
    ("words", "prompt", "tokens"),
    [
        (["-how are you", "-n", "1"], "-how are you", 1),
        (["-n 5 apples"], "-n 5 apples", 32),
        (["--track=and\ntrace", "-h\nx"], "-h\nx", 32),
        (["-n", "3", "--", "-hello"], "-hello", 3),
        (["--", "--help"], "--help", 32),
    ],
)
def test_a_prompt_may_begin_as_an_option_does(words: list[str], prompt: str, tokens: int) -> None:
    parsed = _parser().read(["run", "demo", *words])
    assert (parsed.prompt, parsed.max_new_tokens) == (prompt, tokens)


def test_a_file_that_cannot_be_written_costs_neither_the_run_nor_the_others(
    checkpoints: Checkpoints, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("lens_magic.lens.files.paper_record", full)
    first, second = tmp_path / "run.json", tmp_path / "run.nc"
    arguments = ["run", str(checkpoints("llama-gqa")), "To be", "-n", "2", "--ranks", "1", "-o", str(first), "-o", str(second)]
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert "most probable next token by layer" in told.out
    assert told.err.strip().endswith(f"lens-magic: {first} cannot be written: no space left")
    assert second.is_file()


def test_a_reader_that_has_gone_costs_no_file(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``lens-magic run … -o run.json | head -1``."""
    with (tmp_path / "output").open("w") as output:
        gone = io.StringIO()
        monkeypatch.setattr(gone, "write", Mock(side_effect=BrokenPipeError(errno.EPIPE, "Broken pipe")))
        monkeypatch.setattr(gone, "fileno", output.fileno)
        monkeypatch.setattr(sys, "stdout", gone)
        out = tmp_path / "run.json"
        assert main(["run", str(checkpoints("llama-gqa")), "To be", "-n", "2", "--ranks", "1", "-o", str(out)]) == 0
    assert json.loads(out.read_text())["step_0"]["input_text"] == "To be"


@pytest.mark.parametrize(
    ("environment", "redirected", "status", "said"),
    [
        ({"PYTHONIOENCODING": "ascii"}, "", 0, ""),
        ({}, ">/dev/full", 2, "lens-magic: the output cannot be written: No space left on device\n"),
    ],
    ids=["ascii", "full"],
)
def test_odd_outputs(environment: dict[str, str], redirected: str, status: int, said: str) -> None:
    """``equivalence --help`` has a character that is not ASCII."""
    command = f"{shlex.quote(sys.executable)} -m lens_magic.cli equivalence --help {redirected}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env={**os.environ, **environment}, timeout=60)
    assert (done.returncode, done.stderr) == (status, said)


def test_without_an_output(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    """``lens-magic run … >&-``, or a service that has none."""
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["run", str(checkpoints("llama-gqa")), "To be", "-n", "2", "--ranks", "1"]) == 0


def test_an_interrupt_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "examine", Mock(side_effect=KeyboardInterrupt))
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "lens-magic: interrupted\n"


def test_an_error_of_the_system_is_not_the_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO()))
    monkeypatch.setattr(doctor, "examine", Mock(side_effect=OSError(errno.EMFILE, "Too many open files")))
    with pytest.raises(OSError, match="Too many open files"):
        main(["doctor"])


def test_the_tutorials_model_may_be_a_folder_from_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The kernel that executes the tutorial stands in another folder."""
    import nbclient

    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LENS_MODEL", "models/mine")
    seen: list[str] = []

    async def execute(self: nbclient.NotebookClient) -> None:
        seen.extend(cell.source for cell in self.nb.cells)
        raise LensError("that will do")

    monkeypatch.setattr(nbclient.NotebookClient, "async_execute", execute)
    # In a thread: where browser tests came before, an event loop runs in this one.
    with ThreadPoolExecutor(1) as pool, pytest.raises(LensError, match="that will do"):
        pool.submit(demo_run.execute, tmp_path / "out").result()
    assert any(f"%lens load '{tmp_path}/models/mine'" in source for source in seen)


@pytest.mark.ranks(1)
def test_the_tutorials_answer_may_be_one_token(
    checkpoints: Checkpoints, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a chat model's that ends it at once: of one token there is no rate."""
    once.load(checkpoints("llama-gqa"), 1)
    for tokens, words in ((1, "\n1 token on 1 rank; 3 sites × 4 layers projected in "), (2, "\n2 tokens on 1 rank at ")):
        demo_run._report(lens.run("To be", tokens, ignore_eos=True).save(tmp_path / "run.nc"), 3.0, tmp_path)
        assert words in capsys.readouterr().out


def test_the_doctor_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda package: None)
    assert [
        str(look()).splitlines()[-1].split()[-1] for look in (doctor._torch, doctor._gpus, doctor._nccl, doctor._triton)
    ] == ["torch"] * 4


def test_a_kernel_that_jupyter_does_not_show_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the user's own beside one of the same name in the environment."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "environment"))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "user"))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "environment/share/jupyter"))
    assert main(["kernel", "install", "--sys-prefix"]) == 0
    assert main(["kernel", "install", "--prefix", str(tmp_path / "elsewhere")]) == 0
    assert capsys.readouterr().err == ""
    assert main(["kernel", "install", "--ranks", "8"]) == 0
    shown, own = tmp_path / "environment/share/jupyter/kernels/lens", tmp_path / "user/kernels/lens"
    told = capsys.readouterr()
    assert told.out == f"{own}\n"
    assert told.err == (
        f"lens-magic: Jupyter does not show it: it finds {shown} first; --name lens8, or --sys-prefix, would do\n"
    )
    assert main(["kernel", "list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert f"lens  {shown}" in listed
    assert f"{own} is not shown: lens is the one above" in listed
    assert main(["kernel", "install", "--ranks", "8", "--name", "lens8"]) == 0
    assert capsys.readouterr().err == ""


def test_listing_kernels(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share" / "jupyter"))
    assert main(["kernel", "install", "--prefix", str(tmp_path), "--name", "mine"]) == 0
    folder = capsys.readouterr().out.strip()
    assert main(["kernel", "list"]) == 0
    assert f"mine  {folder}" in capsys.readouterr().out.splitlines()


@pytest.mark.ranks("own")
def test_a_run_without_a_notebook(checkpoints: Checkpoints, tmp_path: Path) -> None:
    outs = [tmp_path / name for name in ("run.json", "run.html", "run.nc", "run.h5")]
    command = [sys.executable, "-m", "lens_magic.cli", "run", str(checkpoints("llama-gqa")), models.PROMPT, "-n", "4"]
    command += ["--ranks", "2", "--ignore-eos", *(word for path in outs for word in ("--save", str(path))), "--static"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "most probable next token by layer" in done.stdout
    run = lens.open_run(outs[2])
    assert run.provenance["ranks"] == 2
    assert json.loads(outs[0].read_text())["step_0"]["predicted_token"] == run.text
    assert outs[1].read_text().lower().startswith("<!doctype html>")
    assert lens.open_run(outs[3]).text == run.text


@pytest.mark.ranks("own")
@pytest.mark.parametrize("arguments", [["doctor"], ["equivalence", "demo", "x"]])
def test_commands_that_start_ranks_are_not_launched(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LENS_WORKER", raising=False)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    assert main(arguments) == 2
    assert (
        f"lens-magic {arguments[0]} starts ranks of its own; run it once, not as 2 with a launcher" in capsys.readouterr().err
    )


def test_equivalence(checkpoints: Checkpoints, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(checkpoints("llama-gqa"))
    assert main(["equivalence", folder, models.PROMPT, "--ranks", "1,2", "-n", "8"]) == 0
    assert "1 against 2 ranks: the same 8 tokens; states within" in capsys.readouterr().out
    assert main(["equivalence", folder, models.PROMPT, "--ranks", "2"]) == 2
    # Weights whose logits are compared in bfloat16 against float32: a text that does part is reported where it does.
    assert main(["equivalence", folder, "To be or not", "--ranks", "2,1", "-n", "150", "--dtype", "bfloat16"]) == 0
    assert "first differs at token" in capsys.readouterr().out


@pytest.mark.ranks("own")
def test_a_launched_world_is_joined(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """``mpiexec -n 2 lens-magic run …``, as a batch scheduler would start it.

    Rank 0 alone writes: the others may be where there is no such folder.
    """
    prefix = mpi_prefix()
    launcher = str(prefix / "bin" / "mpiexec") if prefix else shutil.which("mpiexec")
    if launcher is None:
        pytest.skip("there is no mpiexec")
    run = [sys.executable, "-m", "lens_magic.cli", "run", str(checkpoints("llama-gqa")), models.PROMPT]
    run += ["-n", "4", "--ignore-eos", "--out", "results/run.nc"]
    (tmp_path / "here" / "results").mkdir(parents=True)
    (tmp_path / "there").mkdir()
    command = [launcher, "--oversubscribe", "--allow-run-as-root"]
    command += ["-n", "1", "--wdir", str(tmp_path / "here"), *run, ":", "-n", "1", "--wdir", str(tmp_path / "there"), *run]
    prefixes = {f"{name}_PREFIX": str(prefix) for name in ("OPAL", "PMIX", "PRTE")} if prefix else {}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env={**os.environ, **prefixes})
    assert done.returncode == 0, done.stderr
    assert lens.open_run(tmp_path / "here" / "results" / "run.nc").provenance["ranks"] == 2


@pytest.mark.parametrize(("built_for", "remedy"), [(None, "a CUDA build"), ("13.0", "needs one for CUDA 13.0")])
def test_the_doctor_sees_gpus_that_torch_cannot_use(
    built_for: str | None, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Set up where there was none, or with a driver too old: all would run on the CPU, and nothing would say why."""
    monkeypatch.setattr(doctor, "_cards", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    found = doctor._gpus()
    assert not found.good
    assert f"2 there, which torch {torch.__version__} cannot use" in str(found)
    assert remedy in str(found)


@pytest.mark.parametrize("whose", [None, onepass, steps, attention])
def test_the_doctor_tries_our_kernels(whose: ModuleType | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    for kernels in (onepass, steps, attention):
        monkeypatch.setattr(kernels, "trouble", lambda *_, reason="no linker" if kernels is whose else None: reason)
    found = doctor._triton()
    assert found.good
    assert ("take longer (no linker)" if whose else "compiles our kernels") in str(found)


@pytest.mark.ranks("own")
def test_the_doctor_finds_all_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "Open MPI" in text
    assert "two were started and ended" in text
