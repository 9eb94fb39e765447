"""Interrupts: in every phase of a run all ranks stop at the same point, partial results are kept, the next cell works."""

from __future__ import annotations

import time
from pathlib import Path

import driver
import pytest
from driver import PROMPT, Kernel, Reply

pytestmark = [pytest.mark.kernel, pytest.mark.ranks("own")]

WIDGET = "application/vnd.jupyter.widget-view+json"
PAUSE_S = 1.0  # how long rank 0 waits for the test's interrupts at the point the test is about


def stopped(reply: Reply, words: str) -> None:
    """The cell failed as interrupted, in one line."""
    assert (reply.status, reply.ename) == ("error", "KeyboardInterrupt"), reply
    assert reply.traceback == [f"KeyboardInterrupt: {words}"]


def interrupt_at(kernel: Kernel, event: str, count: int, code: str, times: int = 1) -> Reply:
    """Run a cell and interrupt it when its ranks come to an event for the count-th time."""
    kernel.ok(f"call(faulty.watch, ({event!r}, {count}), {PAUSE_S}, {times == 1})")
    cell = kernel.start(code).says("paused")
    for _ in range(times):
        kernel.interrupt()
    return cell.wait()


def seen(kernel: Kernel, event: str) -> list[int]:
    """How often each rank has come to an event."""
    return [counts.get(event, 0) for counts in kernel.value("call(faulty.seen)")]


def works(kernel: Kernel) -> None:
    """A run in the next cell, on all ranks, comes to its end."""
    kernel.ok("call(faulty.arm, '')")
    kernel.ok(f"%%lens -n 3 --ignore-eos -o after\n{PROMPT}")
    assert kernel.value("len(after.output_ids), after.interrupted") == (3, False)


@pytest.mark.parametrize("times", [1, 2], ids=["once", "twice quickly"])
def test_in_decode(kernel: Kernel, times: int) -> None:
    whole = kernel.value("tokens(12)")
    for _ in range(2):  # an interrupted run, and then another
        reply = interrupt_at(kernel, "token", 5, f"%%lens -n 400 --ignore-eos -o partial\n{PROMPT}", times)
        stopped(reply, "stopped after 6 tokens; the result so far is in `partial`")
        # Interrupted after the fifth token, no rank computed more than the one under way.
        assert seen(kernel, "token") == [6, 6]
        assert kernel.value("partial.output_ids") == whole[:6]
        assert kernel.value("partial.interrupted, partial.positions") == (True, [0, 1, 2, 3, 4, 5])
        assert kernel.value("partial.to_xarray().token_id.shape") == (3, 4, 6, 5)
        assert any(WIDGET in data for data in reply.displays), "the partial result is not shown"
        kernel.ok("del partial")
    works(kernel)


def test_without_a_variable_the_partial_result_is_shown(kernel: Kernel) -> None:
    reply = interrupt_at(kernel, "token", 2, f"%%lens -n 400 --ignore-eos --static\n{PROMPT}")
    stopped(reply, "stopped after 3 tokens; the result so far is in `_`")
    assert kernel.value("len(_.output_ids), _.interrupted") == (3, True)
    assert any("<table" in data.get("text/html", "") for data in reply.displays)


def test_is_kept_on_disk_too(kernel: Kernel) -> None:
    kernel.ok("%lens runs --clear")
    interrupt_at(kernel, "token", 2, f"%%lens -n 400 --ignore-eos\n{PROMPT}")
    kernel.ok("from lens_magic.lens import kept\n[(file, _)] = kept.listing().files\nold = lens.open_run(file)")
    assert kernel.value("len(old.output_ids)") == 3


def test_in_prefill(kernel: Kernel) -> None:
    prompt = "light and lamp " * 30
    kernel.ok("call(faulty.watch)")
    kernel.ok(f"call(faulty.pause_in_prefill, {PAUSE_S})")
    cell = kernel.start(f"%%lens -n 50 --ignore-eos -o partial\n{prompt}").says("paused")
    kernel.interrupt()
    stopped(cell.wait(), "stopped after 1 token; the result so far is in `partial`")
    assert kernel.value("len(partial.prompt_ids) > 100, len(partial.output_ids)") == (True, 1)
    assert seen(kernel, "token") == [1, 1]
    works(kernel)


def test_in_projection(kernel: Kernel) -> None:
    try:
        kernel.ok("call(faulty.project_in_portions, 4 * 160 * 8)")  # 160 rows of the head on each rank: 8 positions at a time
        reply = interrupt_at(kernel, "projecting", 2, f"%%lens -n 40 --ignore-eos -o partial\n{PROMPT}")
    finally:
        kernel.ok("call(faulty.project_in_portions, 16 << 20)")
    stopped(reply, "stopped after 40 tokens; the result so far is in `partial`")
    assert seen(kernel, "projecting") == [2, 2]
    assert kernel.value("len(partial.output_ids), len(partial.positions), partial.interrupted") == (40, 16, True)
    assert kernel.value("partial.to_xarray().sizes['position']") == 16
    works(kernel)


def test_while_loading(kernel: Kernel, checkpoint: Path, tmp_path: Path) -> None:
    before = kernel.value("tokens()")
    other = tmp_path / "other"
    other.symlink_to(checkpoint)
    for _ in range(2):
        stopped(
            interrupt_at(kernel, "loading", 1, f"%lens load {other}/."),
            f"stopped loading {other}/.; {checkpoint} is still loaded",
        )
        assert seen(kernel, "loading") == [1, 1]
    assert kernel.value("lens.status().model") == str(checkpoint)
    assert kernel.value("tokens()") == before
    works(kernel)


SLOW_IMPORT = """
import sys, time
from IPython.display import display
def slow(event, arguments, slowed=[]):
    if event == "import" and arguments[0] == "torch.nn" and not slowed:
        slowed.append(True)
        display({"text/plain": "importing"}, raw=True)
        for _ in range(100):
            time.sleep(0.02)
sys.addaudithook(slow)
"""


def test_while_the_first_load_imports_torch(tmp_path: Path) -> None:
    """Which a process cannot begin anew."""
    with driver.kernel(tmp_path, LENS_RANKS="1") as fresh:
        fresh.ok(SLOW_IMPORT)
        cell = fresh.start("%lens load demo").says("importing")
        fresh.interrupt()
        nothing = "no model is loaded; `%lens load MODEL` loads one (`%lens load demo` the embedded one)"
        stopped(cell.wait(), f"stopped loading demo; {nothing}")
        fresh.ok("%lens load demo")
        fresh.ok(f"%%lens -n 3 --ignore-eos -o after\n{PROMPT}")
        assert fresh.value("len(after.output_ids)") == 3


def test_from_python(kernel: Kernel) -> None:
    code = f"""
try:
    lens.run({PROMPT!r}, max_new_tokens=300, ignore_eos=True)
except KeyboardInterrupt as error:
    caught = error
"""
    reply = interrupt_at(kernel, "token", 3, code)
    assert reply.status == "ok", reply
    assert kernel.value("len(caught.result.output_ids), caught.result.interrupted") == (4, True)
    reply = interrupt_at(kernel, "token", 3, code.replace("lens.run", "lens.generate"))
    assert reply.status == "ok", reply
    assert kernel.value("len(caught.result.output_ids), caught.result.interrupted") == (4, True)
    works(kernel)


def test_of_a_task(kernel: Kernel) -> None:
    """Whose KeyboardInterrupt goes through the kernel's event loop."""
    code = f"""
import asyncio
task = asyncio.create_task(asyncio.to_thread(lens.run, {PROMPT!r}, 300, ignore_eos=True))
while not task.done():
    await asyncio.sleep(0.05)
"""
    interrupt_at(kernel, "token", 3, code)
    assert kernel.value("len(task.exception().result.output_ids)") == 4
    works(kernel)


def test_of_a_cell_that_uses_no_ranks(kernel: Kernel) -> None:
    for _ in range(2):
        # Short sleeps: a signal that comes just before a long one begins would be noticed when it ends.
        cell = kernel.start("import time\nprint('waiting', flush=True)\nwhile True:\n    time.sleep(0.05)").says("waiting")
        begun = time.monotonic()
        kernel.interrupt()
        reply = cell.wait()
        assert (reply.status, reply.ename) == ("error", "KeyboardInterrupt")
        assert time.monotonic() - begun < 10
    works(kernel)


def test_of_a_loop_over_short_calls(kernel: Kernel) -> None:
    kernel.ok(f"seen = lens.run({PROMPT!r}, 3, ignore_eos=True)")
    for call in ("lens.status()", "seen.activations('resid_post')"):
        for _ in range(3):
            cell = kernel.start(f"print('looping', flush=True)\nwhile True:\n    {call}").says("looping")
            kernel.interrupt()
            reply = cell.wait(30)
            assert (reply.status, reply.ename) == ("error", "KeyboardInterrupt"), reply
    works(kernel)


def test_of_nothing(kernel: Kernel) -> None:
    kernel.interrupt()
    kernel.interrupt()
    time.sleep(1.0)  # the request is on its way; a cell sent at once would be what it interrupts
    assert kernel.value("6 * 7") == 42
    works(kernel)
