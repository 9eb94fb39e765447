"""A view of a run in progress: rows and text appear as they are generated, and a button stops the run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from . import codes
from .comms import hear_while_busy
from .data import Shown, header_of, pack, token_table
from .explorer import RunView

if TYPE_CHECKING:
    from ..lens.run import LensRun

EVERY_S = 0.1  # between messages: nobody would notice more, and each costs the kernel and the browser time
# A growing run's range and tokens are not known in advance, so these codings fit any.
CODINGS: dict[str, Callable[[np.ndarray], codes.Coded]] = {
    "ids": partial(codes.plain, dtype="uint32"),
    "token": partial(codes.plain, dtype="uint32"),
    "prob": codes.neglog,
    "logit": partial(codes.plain, dtype="float32"),
    "target_prob": codes.neglog,
    "target_rank": partial(codes.ranks, dtype="uint32"),
    "entropy": partial(codes.linear, dtype="uint16", step=1 / 4096, missing=True),
    "kl_final": partial(codes.plain, dtype="float32"),
}
NEEDED = ("token_id", "logit", "prob", "target_rank", "target_prob", "entropy", "kl_final")


class LiveView(RunView):
    """Explorer of a run in progress. Display it, `append` to it, then `finish` it: from then on it is like an `Explorer`.
    If the run fails, `end` it instead.

    ```python
    view = LiveView("demo", sites, layers, top_k=5, on_stop=group.interrupt)
    display(view)
    view.say(" Troy")                      # text, as it is generated
    view.append([10], variables, inputs=[id_read], targets=[id_emitted], token_texts=texts)
    view.finish(run)
    ```

    `on_stop` is called when the reader presses Stop, on the thread that receives the browser's messages (a subshell of the
    kernel), while the main thread is busy: it may set a flag or call `Group.interrupt`, but must not start work. In a kernel
    without subshells the press arrives only after the cell has ended; there, use the host's own ■.

    Args:
        model: name of the model.
        sites, layers: those of the run.
        top_k: candidates per cell.
        on_stop: called without arguments at the first press of Stop.
        depth: number of the model's layers, if it is known.
    """

    def __init__(
        self,
        model: str,
        sites: Sequence[str],
        layers: Sequence[int],
        top_k: int,
        on_stop: Callable[[], object] | None = None,
        depth: int = 0,
    ) -> None:
        self._shape, self._k = (len(sites), len(layers)), top_k
        self._on_stop = on_stop
        self._lock = threading.Lock()
        self._rows: dict[int, int] = {}  # vocabulary index → row of the table of tokens
        self._sent: list[tuple[dict[str, Any], list[bytes]]] = []
        self._text = ""
        self._last = 0.0
        self.stopped = False
        self._displayed = False
        encoding = {name: coding(np.zeros(0))[1] for name, coding in CODINGS.items()}
        header = header_of(model, depth, sites, layers, top_k, encoding)
        super().__init__([], header=header, buffers=dict.fromkeys(CODINGS, b""), live=True)
        self.on_msg(self._heard)
        hear_while_busy(self)

    def say(self, text: str) -> None:
        """Add generated text; it is sent at most every tenth of a second, or with the next rows."""
        self._text += text
        if self._text and time.monotonic() - self._last >= EVERY_S:
            self._say_rows([], {}, [], [], {})

    def append(
        self,
        positions: Sequence[int],
        variables: Mapping[str, np.ndarray],
        inputs: Sequence[int],
        targets: Sequence[int],
        token_texts: Mapping[int, str],
    ) -> None:
        """Append positions.

        Args:
            positions: their numbers, ascending.
            variables: as in `LensRun.variables`, of these positions only: [site, layer, position] or
                [site, layer, position, k].
            inputs, targets: vocabulary indices of the token each position reads and of the next one; −1 where there is none.
            token_texts: texts of the tokens that occur.

        Raises:
            ValueError: a variable is missing or has another shape.
        """
        shape = (*self._shape, len(positions))
        for name in NEEDED:
            wanted = (*shape, self._k) if name in ("token_id", "logit", "prob") else shape
            found = np.shape(variables[name]) if name in variables else None
            if found != wanted:
                raise ValueError(f"{name} should have the shape {wanted}, not {found}")
        if len(positions):
            self._say_rows(positions, variables, inputs, targets, token_texts)

    def finish(self, run: LensRun) -> None:
        """Show the finished run: from now on the view is like an `Explorer`, with the static table for a reopened notebook.

        The whole run is sent, so messages that the browser missed do not matter.
        """
        packed = pack(run)
        self._forget_stop()
        self._shown = [Shown(run)]
        with self.hold_sync():
            self.header, self.live = packed.header, False
            self.buffers = packed.to_bytes()
        self._sent.clear()
        if self._displayed:
            self._display_fallback()

    def end(self) -> None:
        """Mark the run as failed: its rows so far stay, and the Stop button is removed."""
        self._forget_stop()
        self._say_rows([], {}, [], [], {}, over=True)

    def _forget_stop(self) -> None:
        """Ignore Stop from now on: a late press would stop another run."""
        with self._lock:
            self._on_stop = None

    def _ipython_display_(self, **kwargs: Any) -> None:
        if not self.live:
            super()._ipython_display_(**kwargs)
            return
        from IPython.display import display

        bundled = super()._repr_mimebundle_(**kwargs)
        if bundled is not None:
            data, metadata = bundled
            kept = {kind: value for kind, value in data.items() if kind != "text/html"}
            display({**kept, "text/plain": ""}, metadata=metadata, raw=True)
            self._displayed = True

    def _say_rows(
        self,
        positions: Sequence[int],
        variables: Mapping[str, np.ndarray],
        inputs: Sequence[int],
        targets: Sequence[int],
        token_texts: Mapping[int, str],
        over: bool = False,
    ) -> None:
        with self._lock:
            coded, fresh = self._coded(variables, inputs, targets) if len(positions) else ({}, [])
            shown, raw = token_table(token_texts, fresh)
            rows = [self._rows.get(int(i), -1) for i in inputs], [self._rows.get(int(i), -1) for i in targets]
            message = {
                "type": "rows",
                "seq": len(self._sent),
                "text": self._text,
                "positions": [int(p) for p in positions],
                "inputs": rows[0],
                "targets": rows[1],
                "tokens": shown,
                "raw": raw,
                "names": list(coded),
                "over": over,
            }
            buffers = [array.tobytes() for array in coded.values()]
            self._sent.append((message, buffers))
            self._text, self._last = "", time.monotonic()
            self.send(message, buffers)

    def _coded(
        self, variables: Mapping[str, np.ndarray], inputs: Sequence[int], targets: Sequence[int]
    ) -> tuple[dict[str, np.ndarray], list[int]]:
        """Return the coded arrays, and the vocabulary indices that have no row in the browser's table yet."""
        token = np.asarray(variables["token_id"])
        occurring = np.unique(np.concatenate([token.reshape(-1), np.asarray(inputs, int), np.asarray(targets, int)]))
        fresh = [int(i) for i in occurring if i >= 0 and int(i) not in self._rows]
        for index in fresh:
            self._rows[index] = len(self._rows)
        arrays = {
            **variables,
            "ids": np.asarray(fresh, np.int64),
            "token": np.vectorize(self._rows.__getitem__, otypes=[np.int64])(token),
            "logit": np.asarray(variables["logit"])[..., 0],
        }
        return {name: coding(arrays[name])[0] for name, coding in CODINGS.items()}, fresh

    def _heard(self, _widget: Any, content: Any, _buffers: Any) -> None:
        """Handle the browser's messages: stop, or a request for the messages from number `seq` on."""
        kind = content.get("type") if isinstance(content, dict) else None
        if kind == "stop" and not self.stopped:
            self.stopped = True
            with self._lock:  # the run must not end, and another begin, between the check and the call
                if self._on_stop is not None:
                    self._on_stop()
        elif kind == "since" and isinstance(content.get("seq"), int):
            with self._lock:
                for message, buffers in self._sent[max(0, content["seq"]) :]:
                    self.send(message, buffers)
