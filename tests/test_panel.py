"""The panel without a browser: its widgets are moved from Python, and its work runs on a queue of the test's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import once
import pytest
from test_steering import direction, width_of

import lens_magic as lens
from lens_magic.errors import LensError
from lens_magic.session import current
from lens_magic.steer.vector import SteeringVector
from lens_magic.steer_panel import Panel, main_thread_queue

Checkpoints = Callable[[str], Path]
ALPHA = 60.0
TOKENS = 10


@pytest.fixture
def panel(checkpoints: Checkpoints) -> Panel:
    folder = checkpoints("qwen3-gqa")
    once.load(folder, 2)
    vector = SteeringVector.of({1: direction(width_of(folder)) * 10}, site="resid_post", name="v")
    queued: list[Callable[[], None]] = []
    made = Panel(current(), {"v": vector}, queued.append)
    made.queued = queued
    made.prompt.value, made.tokens.value = models.PROMPT, TOKENS
    return made


@pytest.mark.ranks(2)
def said(text: str) -> str:
    """What the panel shows of a text, which screen readers are to say at once."""
    return f'<span role="alert">{text}</span>'


def test_alpha_moved_meanwhile_acts_from_then_on(panel: Panel) -> None:
    def heard(event: tuple[Any, ...]) -> None:
        tokens.append(event)
        if len(tokens) == 8:  # four of each text
            panel.alpha.value = ALPHA

    tokens: list[Any] = []
    panel.heard = heard
    panel.start.click()
    assert tokens == [], "a press of the button starts nothing by itself"
    assert panel.start.disabled
    panel.start.click()
    assert len(panel.queued) == 1
    panel.queued.pop()()
    result = panel.result
    assert result is not None
    moved = [alpha for (alpha,) in result.alphas].index(ALPHA)
    assert moved in (4, 5)
    term = panel.term()
    later = panel._vectors["v"].steer(ALPHA, site="resid_post", positions=f"{moved}:")
    assert term.alpha == ALPHA
    count = len(result.steered.output_ids)
    assert list(result.steered.output_ids) == lens.generate(models.PROMPT, TOKENS, steer=later).output_ids[:count]
    assert result.first_difference is not None
    assert result.first_difference >= moved
    assert "lens-first" in panel.output.value
    assert "α was moved from 0 to 60" in panel.output.value
    assert not panel.start.disabled


@pytest.mark.ranks(2)
def test_stop_and_errors_are_said_in_the_panel(panel: Panel) -> None:
    panel.heard = lambda event: panel.stop.click()
    panel.start.click()
    panel.queued.pop()()
    assert panel.message.value == said("stopped")
    assert panel.result.interrupted
    assert len(panel.result.steered.output_ids) < TOKENS
    assert "lens-steered" in panel.output.value
    panel.layers.value = ()
    panel.run()
    assert panel.message.value == said("no layer is chosen; one or more would do")
    assert panel.output.value == ""  # or the texts above would stand beside other settings
    panel.layers.value = ("1",)
    panel.operator.value = "ablate"
    panel.schedule.value = "linear"
    panel.run()
    assert "ablate removes the whole projection" in panel.message.value


@pytest.mark.ranks(2)
def test_stop_counts_from_the_moment_it_can_be_pressed(panel: Panel) -> None:
    def press(change: dict[str, Any]) -> None:
        if not change["new"]:
            panel.stop.click()

    panel.stop.observe(press, "disabled")
    panel.start.click()
    panel.queued.pop()()
    assert panel.message.value == said("stopped")
    assert len(panel.result.steered.output_ids) < 3


@pytest.mark.ranks(2)
def test_it_leaves_its_newest_texts_to_readers_without_widgets(panel: Panel, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs: list[tuple[dict[str, str], dict[str, Any]]] = []
    monkeypatch.setattr("IPython.display.display", lambda data, **options: outputs.append((data, options)))
    panel.run()
    assert outputs == []  # nowhere to leave them yet
    panel.result = None
    panel._ipython_display_()
    panel.alpha.value = ALPHA
    panel.run()
    (widget, _), (before, _), (after, options) = outputs
    assert set(widget) == {"application/vnd.jupyter.widget-view+json", "text/plain"}
    assert widget["text/plain"] == ""
    assert "nothing was generated" in before["text/html"]
    assert options == {"raw": True, "display_id": outputs[1][1]["display_id"], "update": True}
    for told in (panel.output.value, models.PROMPT, "v add α=60.0 at resid_post of layer 1"):
        assert told in after["text/html"]
    assert after["text/plain"] == repr(panel.result)
    # Hidden while the panel itself is there, by a rule that is one of its widgets.
    name = options["display_id"]
    assert f'data-lens-for="{name}"' in after["text/html"]
    assert f'[data-lens-for="{name}"]' in panel.children[-1].value


@pytest.mark.parametrize("norm", [0.01, 0.2, 0.4087, 1.6, 10, 1234.5])
def test_the_readout_shows_alpha_in_full(checkpoints: Checkpoints, norm: float) -> None:
    folder = checkpoints("qwen3-gqa")
    once.load(folder, 2)
    vector = SteeringVector.of({1: direction(width_of(folder)) * norm}, site="resid_post", name="v")
    alpha = Panel(current(), vector, list[Any]().append).alpha
    assert alpha.max == -alpha.min == pytest.approx(max(1.5, 8 * norm), rel=0.05)
    for steps in (1, 7, 100):
        value = alpha.min + steps * alpha.step
        assert float(format(value, alpha.readout_format)) == pytest.approx(value, rel=1e-9)


def test_outside_a_kernel_it_says_so() -> None:
    with pytest.raises(LensError, match="needs a Jupyter kernel"):
        main_thread_queue()


def test_vectors_are_given_by_name_or_have_names_of_their_own(checkpoints: Checkpoints) -> None:
    folder = checkpoints("qwen3-gqa")
    once.load(folder)
    one, other = (SteeringVector.of({1: direction(width_of(folder))}, site="resid_post", name=name) for name in ("v", "w"))
    for given, names in [(one, ["v"]), ([one, other], ["v", "w"]), ({"a": one, "b": one}, ["a", "b"])]:
        assert list(Panel(current(), given, list[Any]().append).vector.options) == names
    for wrong, told in [
        (5, "takes steering vectors, or a dict of names and vectors, not int$"),
        ("a", "not str$"),
        ([one, "a"], "not str$"),
        ({"a": 5}, "not int$"),
        ({5: one}, "not int$"),
        (one * 2.0, "not SteeringTerm$"),
        ([one, one], r"have the same name \(v\); a dict would give them others"),
        ([], "there is no vector for the panel"),
    ]:
        with pytest.raises(LensError, match=told):
            Panel(current(), wrong, list[Any]().append)  # type: ignore[arg-type]
