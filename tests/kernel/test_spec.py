"""The kernel's specification, and what the kernel reads from its command line and environment."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from lens_magic import kernelspec
from lens_magic.cli import main
from lens_magic.kernel import connection_file

ROOT = Path(__file__).parents[2]


def test_the_file_is_what_the_code_says() -> None:
    written = json.loads((ROOT / "kernels" / "lens" / "kernel.json").read_text(encoding="utf-8"))
    assert written == kernelspec.specification()
    assert "LENS_RANKS" not in written["env"]  # it would override the user's own
    assert written["interrupt_mode"] == "message"


def test_install(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("localhost slots=2\n")
    arguments = ["--prefix", str(tmp_path), "--name", "two", "--ranks", "2", "--hostfile", str(hosts)]
    assert main(["kernel", "install", *arguments]) == 0
    folder = tmp_path / "share" / "jupyter" / "kernels" / "two"
    assert capsys.readouterr().out.strip() == str(folder)
    written = json.loads((folder / "kernel.json").read_text(encoding="utf-8"))
    assert written == kernelspec.specification(2, str(hosts), sys.executable, "Lens (two)")
    assert written["env"]["LENS_DEFAULT_RANKS"] == "2"


@pytest.mark.parametrize("arguments", [["--ranks", "0"], ["--name", "a b"], ["--hostfile", "/no/such/file"], ["--slots", "2"]])
def test_install_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert main(["kernel", "install", "--prefix", str(tmp_path), *arguments]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        (["-f", "a.json"], "a.json"),
        (["--f", "a.json"], "a.json"),
        (["-f=a.json"], "a.json"),
        (["--f=a=b.json"], "a=b.json"),
        (["--connection-file=a.json", "--debug"], "a.json"),
        (["-f", "a.json", "--f=b.json"], "b.json"),  # as an editor appends its own
        (["--HistoryManager.hist_file=:memory:"], None),
        (["-f"], None),
    ],
)
def test_connection_file(arguments: list[str], path: str | None) -> None:
    assert connection_file(arguments) == path
