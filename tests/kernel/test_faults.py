"""Ranks that fail, die or hang, and what their output looks like."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from driver import PROMPT, Kernel, Reply, kill

pytestmark = [pytest.mark.kernel, pytest.mark.ranks("own")]

RUN = f"%%lens -n 10 --ignore-eos -o result\n{PROMPT}"
PATIENCE_S = 3.0  # as in lens_magic.ranks.group: how long an interrupt may go without effect


def lost(reply: Reply, words: str) -> None:
    """One clear line that says which rank is gone and what to do."""
    assert (reply.status, reply.ename) == ("error", "RanksLost"), reply
    (line,) = reply.traceback
    assert words in line
    assert "%lens restart" in line


def comes_back(kernel: Kernel, tokens: list[int], before: list[int]) -> None:
    """Variables are there, a restart brings new ranks and the model, and it says the same as ever."""
    assert kernel.value("kept.output_ids") == tokens
    reply = kernel.ok("%lens restart")
    assert "on 2 ranks" in reply.stdout
    after = kernel.pids()
    assert after[0] == before[0]
    assert after[1] not in before
    assert kernel.value("tokens(10)") == tokens
    running = {process.pid for process in kernel.processes()}
    assert set(after) <= running
    assert before[1] not in running


@pytest.fixture
def tokens(kernel: Kernel) -> list[int]:
    """What the model says; the run is in ``kept``."""
    kernel.ok("result = None")
    kernel.ok(RUN.replace("result", "kept"))
    return kernel.value("kept.output_ids")


def test_an_error_on_another_rank(kernel: Kernel, tokens: list[int]) -> None:
    kernel.ok("call(faulty.arm, 'raise:1:token:3')")
    reply = kernel.run(RUN)
    assert (reply.status, reply.ename) == ("error", "RankError"), reply
    first, remote, last = reply.traceback
    assert first == "Traceback on rank 1:"
    assert remote.startswith("Traceback (most recent call last)")
    assert remote.endswith("RuntimeError: a fault on purpose")
    assert "faults.py" in remote
    assert last == "RankError: rank 1: RuntimeError: a fault on purpose"
    assert kernel.value("result") is None
    for _ in range(2):
        kernel.ok(RUN)
        assert kernel.value("result.output_ids") == tokens


def test_an_error_on_rank_0(kernel: Kernel, tokens: list[int]) -> None:
    kernel.ok("call(faulty.arm, 'raise:0:token:3')")
    reply = kernel.run(RUN)
    assert (reply.status, reply.ename, reply.evalue) == ("error", "RuntimeError", "a fault on purpose"), reply
    assert "faults.py" in "".join(reply.traceback)
    kernel.ok(RUN)
    assert kernel.value("result.output_ids") == tokens


def test_an_error_in_projection_and_in_loading(kernel: Kernel, tokens: list[int], checkpoint: Path) -> None:
    kernel.ok("call(faulty.arm, 'raise:1:projecting:1')")
    assert kernel.run(RUN).ename == "RankError"
    kernel.ok("call(faulty.arm, 'raise:1:loading:2')")
    reply = kernel.run(f"%lens load {checkpoint}")
    assert reply.ename == "RankError", reply
    kernel.ok(RUN)
    assert kernel.value("result.output_ids") == tokens


def test_output_of_ranks(kernel: Kernel) -> None:
    for _ in range(10):  # the words come just before the run's end, and still belong to this cell
        kernel.ok("call(faulty.arm, 'print:1:projecting:1')")
        reply = kernel.ok(RUN)
        assert reply.stdout.count("[rank 1] words on purpose\n") == 1, reply


def test_a_rank_that_dies_while_nothing_runs(kernel: Kernel, tokens: list[int]) -> None:
    before = kernel.pids()
    kill(before[1])
    begun = time.monotonic()
    time.sleep(0.5)
    words = f"rank 1 (pid {before[1]}) ended unexpectedly"
    lost(kernel.run(RUN), words)
    assert time.monotonic() - begun < 10
    lost(kernel.run("%lens status"), words)
    assert kernel.value("2 + 2") == 4
    reply = kernel.run("kept.activations('resid_post', 0, [0])")
    assert reply.ename == "LensError", reply
    comes_back(kernel, tokens, before)


@pytest.mark.parametrize("phase", ["token", "projecting", "loading"])
def test_a_rank_that_dies_at_work(kernel: Kernel, tokens: list[int], phase: str, checkpoint: Path) -> None:
    before = kernel.pids()
    kernel.ok(f"call(faulty.arm, 'kill:1:{phase}:1')")
    begun = time.monotonic()
    lost(kernel.run(f"%lens load {checkpoint}" if phase == "loading" else RUN), f"rank 1 (pid {before[1]}) ended unexpectedly")
    assert time.monotonic() - begun < 10
    assert kernel.value("result") is None
    comes_back(kernel, tokens, before)


def test_a_rank_that_hangs(kernel: Kernel, tokens: list[int]) -> None:
    before = kernel.pids()
    kernel.ok("call(faulty.arm, 'hang:1:token:3')")
    cell = kernel.start(RUN)
    time.sleep(1.0)
    kernel.interrupt()
    time.sleep(PATIENCE_S + 0.5)
    kernel.interrupt()
    begun = time.monotonic()
    lost(cell.wait(), "the ranks did not stop and were given up")
    assert time.monotonic() - begun < 10
    comes_back(kernel, tokens, before)
