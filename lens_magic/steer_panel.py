"""The steering panel: sliders beside an unsteered and a steered generation that follows α and clip while it runs.

Browser messages are handled on another thread while the main thread works, so pressing a button does not start a generation
there: it queues one to the main thread, where cells run too, so that it starts after a cell that is running. Moving α or clip
only changes a number, which rank 0 sends to all ranks with the next token; Stop only sets the flag that an interrupt sets.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping
from html import escape
from math import floor, log10
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from . import comparing
from .errors import Interrupted, LensError
from .model.anatomy import SITES
from .options import ALPHAS
from .steer.spans import SCHEDULES
from .steer.term import OPERATORS, Strength
from .view.comms import hear_while_busy
from .view.static_table import as_fallback
from .view.steered import Growing, as_html
from .view.text import JOINERS, NO_MATH, visible

if TYPE_CHECKING:
    from .session import Session
    from .steer.compare import SteeredText
    from .steer.term import SteeringTerm
    from .steer.vector import SteeringVector

Queue = Callable[[Callable[[], None]], None]
_MOST_ALPHA = 20.0
_LABEL = {"description_width": "70px"}


class Panel(widgets.HBox):
    """``%steer panel``: choose, press Run, and move α or clip.

    ``panel.result`` is the newest :class:`SteeredText`; its ``alphas`` and ``clips`` are the values used for each token.

    Displaying it makes two outputs: the widgets, and the newest texts for readers without them (as `Explorer` does).

    Args:
        session: the session whose model is steered.
        vectors: the vectors to choose from, by name; or one, or several, by their own names.
        queue: a function that runs work in the main thread, later; by default :func:`main_thread_queue`.

    Raises:
        LensError: no model is loaded, there is no vector, something else is among them, or (without ``queue``) this is not a
            Jupyter kernel.
    """

    def __init__(
        self,
        session: Session,
        vectors: Mapping[str, SteeringVector] | Iterable[SteeringVector] | SteeringVector,
        queue: Queue | None = None,
    ) -> None:
        model = session.require_model()
        self._session, self._vectors = session, _by_name(vectors)
        if not self._vectors:
            raise LensError("there is no vector for the panel; %steer train NAME --pairs … makes one")
        self._queue = queue or main_thread_queue()
        self._pending = False
        self._running = False
        self._left = uuid.uuid4().hex  # the output for readers without widgets
        self._displayed = False
        self.result: SteeredText | None = None
        self.vector = widgets.Dropdown(options=sorted(self._vectors), description="vector", style=_LABEL)
        self.layers = widgets.SelectMultiple(description="layers", rows=4, style=_LABEL)
        self.site = widgets.Dropdown(options=SITES, description="site", style=_LABEL)
        self.operator = widgets.Dropdown(options=OPERATORS, description="operator", style=_LABEL)
        self.alpha = widgets.FloatSlider(
            value=0.0, min=-_MOST_ALPHA, max=_MOST_ALPHA, step=0.1, description="α", readout_format=".1f", style=_LABEL
        )
        self.schedule = widgets.Dropdown(options=list(SCHEDULES), description="schedule", style=_LABEL)
        self.clip = widgets.BoundedFloatText(
            value=0.0,
            min=0.0,
            max=100.0,
            step=0.1,
            description="clip",
            style=_LABEL,
            tooltip="the change is at most this many times as long as the state; 0: no limit",
        )
        self.tokens = widgets.BoundedIntText(value=64, min=1, max=model.context, description="tokens", style=_LABEL)
        self.prompt = widgets.Textarea(value="Once upon a time", description="prompt", rows=3, style=_LABEL)
        self.start = widgets.Button(description="Run", button_style="primary", icon="play")
        self.stop = widgets.Button(description="Stop", icon="stop", disabled=True)
        self.output = widgets.HTML()
        self.message = widgets.HTML()
        for child in (self.vector, self.layers, self.site, self.operator, self.alpha, self.schedule, self.clip, self.tokens):
            child.layout.width = "auto"
        self.prompt.layout.width = "auto"
        self.vector.observe(self._vector_chosen, "value")
        self.start.on_click(self._start_pressed)
        self.stop.on_click(self._stop_pressed)
        self._vector_chosen(None)
        controls = widgets.VBox(
            [
                *(self.vector, self.layers, self.site, self.operator, self.alpha, self.schedule),
                widgets.HBox([self.clip, widgets.Label("0: no limit")]),
                *(self.tokens, self.prompt),
                widgets.HBox([self.start, self.stop], layout={"margin": "0 0 0 78px"}),  # under the fields, beside their labels
                self.message,
            ],
            layout=widgets.Layout(flex="1 1 280px", min_width="240px", max_width="380px"),
        )
        shown = widgets.VBox([self.output], layout=widgets.Layout(flex="3 1 320px", min_width="240px"))
        rule = widgets.HTML(f'<style>[data-lens-for="{self._left}"]{{display:none}}</style>', layout={"display": "none"})
        layout = widgets.Layout(display="flex", flex_flow="row wrap", width="100%", grid_gap="12px")
        super().__init__([controls, shown, rule], layout=layout)
        # Disabled during a generation, which does not follow these; another vector would set α's slider, which it follows.
        self._fixed = (self.vector, self.layers, self.site, self.operator, self.schedule, self.tokens)
        for widget in (self.alpha, self.clip, self.start, self.stop):
            hear_while_busy(widget)

    # -- called by browser messages, possibly on another thread --------------------------------------------------------

    def _vector_chosen(self, _change: Any) -> None:
        vector = self._vectors[self.vector.value]
        self.layers.options = [str(layer) for layer in vector.layers]
        self.layers.value = tuple(self.layers.options)
        self.site.value = vector.site
        # Eight raw differences either way: wide enough for what is too weak to notice and for what breaks the text.
        most = max(ALPHAS[-1], 8 * max(abs(norm) for norm in vector.norms.values()))
        # A step of two digits, which the readout shows in full: what a reader notes down is what was used.
        step = float(f"{most / 100:.2g}")
        most = 100 * step
        self.alpha.min, self.alpha.max = -max(most, self.alpha.max), max(most, self.alpha.max)
        self.alpha.min, self.alpha.max, self.alpha.step = -most, most, step
        self.alpha.readout_format = f".{max(1, 1 - floor(log10(step)))}f"

    def _start_pressed(self, _button: Any) -> None:
        if self._pending or self._running:
            return
        self._pending, self.start.disabled = True, True
        self._say("waiting for the kernel …")
        self._queue(self.run)

    def _stop_pressed(self, _button: Any) -> None:
        group = self._session.running_group
        if self._running and group is not None:
            group.interrupt()

    # -- in the main thread ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Generate with the current settings, in the calling thread; errors are shown in the panel."""
        self._pending, self.start.disabled = True, True
        self._say("")
        self.output.value = ""  # what is shown belongs to the settings beside it
        done: SteeredText | None = None
        try:
            model = self._session.require_model()
            growing = Growing(model)

            def hear(event: tuple[Any, ...]) -> None:
                if growing.hear(event):
                    self.output.value = growing.html()
                self.heard(event)

            with self._session.group.exclusive():  # a Stop from here on is kept until the generation sees it
                self._pending, self._running, self.stop.disabled = False, True, False
                self._fix(True)
                done = comparing.compare(
                    self._session,
                    self.prompt.value,
                    [self.term()],
                    max_new_tokens=self.tokens.value,
                    live=lambda: [Strength(float(self.alpha.value), self.clip.value or None)],
                    on_event=hear,
                )
        except Interrupted as interrupted:
            done = interrupted.result
            self._say("stopped")
        except KeyboardInterrupt:
            self._say("stopped")
        except Exception as error:  # nobody would see it in an event loop's callback
            self._say(str(error) if isinstance(error, LensError) else f"{type(error).__name__}: {error}")
        else:
            self._say("")
        finally:
            self._pending = self._running = False
            self.start.disabled, self.stop.disabled = False, True
            self._fix(False)
        if done is not None:
            self.result = done
            self.output.value = as_html(done)
            if self._displayed:
                self._leave(update=True)

    def _ipython_display_(self, **kwargs: Any) -> None:
        from IPython.display import display

        display({**super()._repr_mimebundle_(**kwargs), "text/plain": ""}, raw=True)
        self._leave()
        self._displayed = True

    def _leave(self, update: bool = False) -> None:
        """Display, or update, what readers without widgets see: the prompt, the newest texts, and how they were made."""
        from IPython.display import display

        if (made := self.result) is None:
            text = "steering panel: nothing was generated with it"
            html = f"<p>{text}</p>"
        else:
            text = repr(made)
            style = "margin:0 0 6px;font:13px/1.5 system-ui,sans-serif"
            prompt = escape(visible(made.prompt, keep=" " + JOINERS))
            html = f'<p class="{NO_MATH}" style="{style}" dir="auto">{prompt} …</p>{as_html(made)}'
        data = {"text/html": as_fallback(html, self._left), "text/plain": text}
        display(data, raw=True, display_id=self._left, update=update)

    def heard(self, event: tuple[Any, ...]) -> None:
        """Called with each event of a generation: a hook to watch the panel from Python."""

    def term(self) -> SteeringTerm:
        """Return the current settings as a steering term.

        Raises:
            LensError: no layer is chosen, or the settings do not make a term.
        """
        if not self.layers.value:
            raise LensError("no layer is chosen; one or more would do")
        return self._vectors[self.vector.value].steer(
            float(self.alpha.value),
            layers=[int(layer) for layer in self.layers.value],
            site=self.site.value,
            operator=self.operator.value,
            schedule=self.schedule.value,
            clip=self.clip.value or None,
        )

    def _fix(self, fixed: bool) -> None:
        for widget in self._fixed:
            widget.disabled = fixed

    def _say(self, text: str) -> None:
        self.message.value = f'<span role="alert">{escape(text)}</span>' if text else ""  # so that screen readers say it


def _by_name(given: Any) -> dict[str, SteeringVector]:
    from .steer.vector import SteeringVector

    single = isinstance(given, SteeringVector | str | bytes) or not isinstance(given, Iterable)
    listed = [given] if single else given
    named = list(given.items() if isinstance(given, Mapping) else ((getattr(one, "name", ""), one) for one in listed))
    for name, one in named:
        if not (isinstance(name, str) and isinstance(one, SteeringVector)):
            wrong = type(name if isinstance(one, SteeringVector) else one).__name__
            raise LensError(f"the panel takes steering vectors, or a dict of names and vectors, not {wrong}")
    if len(found := dict(named)) < len(named):
        raise LensError(f"vectors of the panel have the same name ({', '.join(found)}); a dict would give them others")
    return found


def main_thread_queue() -> Queue:
    """Return a function that queues work to the kernel's main thread, to run when that is free.

    Raises:
        LensError: this is not a Jupyter kernel.
    """
    try:
        from IPython import get_ipython
    except ImportError:
        loop = None
    else:
        loop = getattr(getattr(get_ipython(), "kernel", None), "io_loop", None)
    if loop is None:
        raise LensError("the panel needs a Jupyter kernel; %%steer works without")

    def queue(work: Callable[[], None]) -> None:
        loop.add_callback(work)

    return queue
