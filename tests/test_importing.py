"""Interrupts in the middle of an import that a process cannot begin twice."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Interrupts its own process once, when the import of a module begins. Imports that go on elsewhere do so only once the main
# thread has got over it.
PROGRAM = """
import os, signal, sys, threading
import lens_magic as lens
signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal
stopped, interrupted = threading.Event(), threading.Event()
def interrupt(event, arguments):
    if event == "import" and arguments[0] == {within!r} and not interrupted.is_set():
        interrupted.set()
        os.kill(os.getpid(), signal.SIGINT)
        if threading.current_thread() is not threading.main_thread():
            stopped.wait(60)
def first():
    {first}
sys.addaudithook(interrupt)
try:
    first()
except KeyboardInterrupt:
    print("stopped", {within!r} in sys.modules)
stopped.set()
first()
print({then})
"""


@pytest.mark.parametrize(
    ("within", "first", "then"),
    [
        ("torch.nn", "lens.load('demo')", "len(lens.generate('Once', 2).output_ids)"),
        ("sympy.polys", "lens.load('demo')", "len(lens.generate('Once', 2).output_ids)"),
        ("torch.nn", "lens.SteeringVector", "sys.modules['torch'].ones(2).numel()"),
        (
            "pandas._libs.interval",
            "lens.load('demo'), lens.run('Once', 2).to_xarray()",
            "lens.run('Once', 2).to_xarray().sizes['position']",
        ),
    ],
    ids=["torch", "what transformers imports", "torch, by a class", "pandas"],
)
def test_an_interrupt_leaves_no_import_half_done(within: str, first: str, then: str) -> None:
    code = PROGRAM.format(within=within, first=first, then=then)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["stopped False", "2"]


def test_a_program_that_is_interrupted_ends_at_once() -> None:
    code = PROGRAM.format(within="torch.nn", first="lens.load('demo')", then="").replace(
        "except KeyboardInterrupt", "except OSError"
    )
    # Sooner than the import would go on.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert done.stderr.splitlines()[-1] == "KeyboardInterrupt"


def test_a_package_that_is_reloaded_watches_once() -> None:
    code = (
        "import importlib, sys, lens_magic; importlib.reload(lens_magic);"
        "print([type(finder).__module__ for finder in sys.meta_path].count('lens_magic.importing'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
