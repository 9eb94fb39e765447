"""`%%lens --stream-lens` on a real kernel: rows reach the frontend while the cell runs, and its Stop button stops all ranks."""

from __future__ import annotations

import queue
import time
from typing import Any

import pytest
from driver import PROMPT, Kernel

pytestmark = [pytest.mark.kernel, pytest.mark.ranks("own"), pytest.mark.timeout(200)]


# Of a model as small as this one all tokens are there before a message arrives.
SLOWLY = """
import time
from lens_magic.lens.stream import Stream
def slowly(self, *given, step=Stream.after_step):
    time.sleep(0.01)
    return step(self, *given)
Stream.after_step, as_it_was = slowly, Stream.after_step
"""


def press_stop(kernel: Kernel, comm: str, shell: str) -> None:
    message = kernel.client.session.msg(
        "comm_msg", {"comm_id": comm, "data": {"method": "custom", "content": {"type": "stop"}}}
    )
    message["header"]["subshell_id"] = shell
    kernel.client.shell_channel.send(message)


def test_rows_come_while_the_cell_runs_and_stop_is_heard(kernel: Kernel) -> None:
    shell = kernel.subshell()
    kernel.ok(SLOWLY)
    cell = f"%%lens -n 400 --ignore-eos --stream-lens -o streamed\n{PROMPT}"
    request = kernel.client.execute(cell, allow_stdin=False, stop_on_error=False)
    comm, rows, error, pressed = "", 0, "", False
    deadline = time.monotonic() + 100
    while not error:
        assert time.monotonic() < deadline
        try:
            message = kernel.client.get_iopub_msg(timeout=1)
        except queue.Empty:
            continue
        if message["parent_header"].get("msg_id") != request:
            continue
        kind, content = message["msg_type"], message["content"]
        if kind == "comm_open" and "live" in content["data"].get("state", {}):
            comm = content["comm_id"]
        if kind == "comm_msg" and content["comm_id"] == comm:
            rows += len(_said(content).get("positions", ()))
        if kind == "error":
            error = content["evalue"]
        assert not (kind == "status" and content["execution_state"] == "idle"), "the cell ended before it was stopped"
        if rows >= 3 and not pressed:
            press_stop(kernel, comm, shell)
            pressed = True
    kernel.ok("Stream.after_step = as_it_was")
    assert error.startswith("stopped after")
    assert "`streamed`" in error
    made, seen = kernel.value("(len(streamed.output_ids), streamed.timings['streamed'])")
    assert rows <= seen <= made < 400
    assert kernel.value("len(streamed.positions)") == made


def _said(content: dict[str, Any]) -> dict[str, Any]:
    data = content["data"]
    return dict(data.get("content") or {}) if data.get("method") == "custom" else {}
