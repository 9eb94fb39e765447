"""The panel in a real kernel: α is moved on a subshell while the main thread generates, as a browser does."""

from __future__ import annotations

import queue
import time
from typing import Any

import pytest
from driver import PROMPT, Kernel

pytestmark = [pytest.mark.kernel, pytest.mark.ranks("own")]

ALPHA = 60.0
TOKENS = 60
MAKE = f"""
import time, torch
from dataclasses import replace
from lens_magic.steer.vector import SteeringVector
session = current()
session.model = replace(session.model, stop_ids=())  # so that it goes on
torch.manual_seed(0)
v = SteeringVector.of({{1: 10 * torch.randn(session.model.width)}}, site="resid_post", name="v")
panel = lens.panel({{"v": v}})
panel.prompt.value, panel.tokens.value = {PROMPT!r}, {TOKENS}
panel.heard = lambda event: time.sleep(0.02)
"""


def tell(kernel: Kernel, shell: str, comm: str, data: dict[str, Any]) -> None:
    """What a browser's widget sends, on a subshell."""
    message = kernel.client.session.msg("comm_msg", {"comm_id": comm, "data": data})
    message["header"]["subshell_id"] = shell
    kernel.client.shell_channel.send(message)


def wait_for_update(kernel: Kernel, comm: str, words: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            message = kernel.client.get_iopub_msg(timeout=1)
        except queue.Empty:
            continue
        if message["msg_type"] == "comm_msg" and message["content"]["comm_id"] == comm:
            state = message["content"]["data"].get("state", {})
            if words in str(state.get("value", "")):
                return
    raise AssertionError("the panel drew nothing")


def test_alpha_takes_effect_while_tokens_come(kernel: Kernel) -> None:
    kernel.ok(MAKE)
    parts = ", ".join(f"panel.{part}.model_id" for part in ("start", "stop", "alpha", "output"))
    start, stop, alpha, output = kernel.value(parts)
    shell = kernel.subshell()
    tell(kernel, shell, start, {"method": "custom", "content": {"event": "click"}})
    wait_for_update(kernel, output, "lens-steered")
    time.sleep(0.5)
    tell(kernel, shell, alpha, {"method": "update", "state": {"value": ALPHA}, "buffer_paths": []})
    alphas = kernel.value("[alpha for (alpha,) in panel.result.alphas]")  # after the generation: cells wait for it
    assert len(alphas) == TOKENS
    moved = alphas.index(ALPHA)
    assert 0 < moved < TOKENS - 1
    assert alphas == [0.0] * moved + [ALPHA] * (TOKENS - moved)
    expected = kernel.value(f"lens.generate({PROMPT!r}, {TOKENS}, steer=v.steer({ALPHA}, positions='{moved}:')).output_ids")
    assert kernel.value("list(panel.result.steered.output_ids)") == expected
    assert kernel.value("panel.result.first_difference") >= moved

    # Stop is heard too, and the kernel goes on.
    kernel.ok("panel.tokens.value = 400")
    tell(kernel, shell, start, {"method": "custom", "content": {"event": "click"}})
    wait_for_update(kernel, output, "lens-steered")
    tell(kernel, shell, stop, {"method": "custom", "content": {"event": "click"}})
    assert kernel.value("len(panel.result.steered.output_ids) < 400")
    assert kernel.value("panel.message.value") == '<span role="alert">stopped</span>'
    kernel.ok(f"%lens load {kernel.value('session.model.name')}")
