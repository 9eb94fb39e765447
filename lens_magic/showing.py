"""Display of a run in progress: its text as it is generated, and a progress bar or rows of the table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from IPython.display import display

from . import options, prompts
from .model.tokens import TextStream, token_texts
from .view import show
from .view.progress import Bars
from .view.text import running

if TYPE_CHECKING:
    from .lens.run import LensRun
    from .session import Model, Session


class Answer:
    """Shows a run in progress: its text as it is generated, then a progress bar while the states are projected."""

    def __init__(self, model: Model) -> None:
        self._stream = TextStream(model.tokenizer, model.stop_ids)
        self._bars = Bars()
        self._wrote = False

    def __enter__(self) -> Answer:
        return self

    def __call__(self, event: tuple[Any, ...]) -> None:
        """Take in an event of the ranks."""
        if event[0] == "token":
            self._say(running(self._stream.add(event[1])))
        else:
            self._bars(event)

    def __exit__(self, *exception: object) -> None:
        if self._wrote:
            print(flush=True)  # noqa: T201
        self._bars.close()

    def _say(self, text: str) -> None:
        self._wrote = self._wrote or bool(text)
        print(text, end="", flush=True)  # noqa: T201 - the answer is this cell's output

    def show(self, run: LensRun, static: bool) -> None:
        """Display the finished run."""
        display(show(run, static=static))


class LiveAnswer(Answer):
    """Shows a run in its own table from the first event on (none comes if it is refused); rows appear as they are projected.

    Args:
        given: the options of the run.
    """

    def __init__(self, session: Session, prompt: prompts.Prompt, given: dict[str, Any]) -> None:
        from .view import LiveView

        model = session.require_model()
        super().__init__(model)
        self._model = model
        self._prompt = prompts.read(model, prompt, given["chat"]).ids
        self._ids = list(self._prompt)
        self._before = len(self._prompt) - 1 if given["prompt_tokens"] else 0
        sites, layers = options.parse_sites(given["capture"]), options.parse_layers(given["layers"], model.layers)
        self._view = LiveView(model.name, sites, layers, given["top_k"], session.group.interrupt, model.layers)
        self._text = ""
        self._place: Any = None  # of the text, above the view; the view shows it while it grows

    def __call__(self, event: tuple[Any, ...]) -> None:
        """Take in an event of the ranks."""
        if self._place is None:
            self._place = display({"text/plain": ""}, display_id=True, raw=True)
            display(self._view)
        if event[0] == "token":
            self._ids.append(event[1])
        if event[0] == "rows":
            self._append(range(event[1] - self._before, event[2] - self._before), event[3])
        else:
            super().__call__(event)

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        if self._place is None:
            return
        if exception[0] is not None:
            self._view.end()
        self._place.update({"text/plain": self._text}, raw=True)

    def _say(self, text: str) -> None:
        self._text += text
        self._view.say(text)

    def _append(self, positions: Sequence[int], variables: dict[str, Any]) -> None:
        last = len(self._prompt) - 1
        inputs, targets = [self._ids[last + p] for p in positions], [self._ids[last + p + 1] for p in positions]
        occurring = {*inputs, *targets, *variables["token_id"].reshape(-1).tolist()}
        self._view.append(positions, variables, inputs, targets, token_texts(self._model.tokenizer, occurring))

    def show(self, run: LensRun, static: bool) -> None:
        """Turn the live view into the view of the whole run."""
        if self._place is None:  # there was no event
            super().show(run, static)
            return
        try:
            self._view.finish(run)
        except KeyboardInterrupt:
            self._view.end()
            raise
        from .lens.stream import SHARE

        live, tokens = run.timings.get("streamed", 0), len(run.positions)
        if 2 * live < tokens:
            print(  # noqa: T201
                f"{live} of {tokens} rows were shown while generating, the others afterwards: showing them may take "
                f"{SHARE:.0%} of the time; fewer layers or sites (-l, -c) show more"
            )
