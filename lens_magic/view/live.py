"""A view of a run that is still being made: rows and text appear as they come, and a button asks for it to stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from . import codes
from .comms import hear_while_busy
from .data import Run, header_of, pack, token_table
from .explorer import RunView

EVERY_S = 0.1  # between messages: faster is not seen, and each costs the kernel and the browser something
# A growing run's range and tokens are not known beforehand: codings that fit any.
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
    """The explorer of a run that is being made. Display it, `append` to it, then `finish` it: it is like an `Explorer` from
    then on. Of a run that fails, `end` it.

    ```python
    view = LiveView("demo", sites, layers, top_k=5, on_stop=group.interrupt)
    display(view)
    view.say(" Troy")                      # text, as it is generated
    view.append([10], variables, inputs=[id_read], targets=[id_emitted], token_texts=texts)
    view.finish(run)
    ```

    `on_stop` is called when the reader presses Stop, on the thread that hears the browser (a subshell of the kernel), while
    the main thread is busy: it may set a flag or call `Group.interrupt`, and start nothing. In a kernel without
    subshells the press is heard only after the cell, so the host's own ■ is the way there.

    Args:
        model: name of the model.
        sites, layers: the run's.
        top_k: candidates a cell.
        on_stop: called without arguments at the first press of Stop.
    """

    def __init__(
        self,
        model: str,
        sites: Sequence[str],
        layers: Sequence[int],
        top_k: int,
        on_stop: Callable[[], object] | None = None,
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
        header = header_of(model, sites, layers, top_k, encoding)
        super().__init__([], header=header, buffers=dict.fromkeys(CODINGS, b""), live=True)
        self.on_msg(self._heard)
        hear_while_busy(self)

    def say(self, text: str) -> None:
        """More of the text that is being generated; sent at most every tenth of a second, and with the next rows."""
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
        """New positions at the end.

        Args:
            positions: their numbers, ascending.
            variables: as in `LensRun.variables`: [site, layer, position] or [site, layer, position, k], of these alone.
            inputs, targets: vocabulary indices of what each reads and what came next; −1 where there is none.
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

    def finish(self, run: Run) -> None:
        """The run is made: the view is that of an `Explorer` from now on, and leaves the static table for a reopened notebook.

        What the browser may have missed does not matter, as the whole run is sent.
        """
        packed = pack(run)
        self._forget_stop()
        self._shown = [(run, "")]
        with self.hold_sync():
            self.header, self.live = packed.header, False
            self.buffers = packed.to_bytes()
        self._sent.clear()
        if self._displayed:
            self._display_fallback()

    def end(self) -> None:
        """The run has failed: what there is of it stays, and Stop is gone."""
        self._forget_stop()
        self._say_rows([], {}, [], [], {}, over=True)

    def _forget_stop(self) -> None:
        """A press that comes from now on would stop another run."""
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
            display({**kept, "text/plain": repr(self)}, metadata=metadata, raw=True)
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
        """The arrays as they travel, and the vocabulary indices that have no row in the browser's table yet."""
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
        """What the browser says: stop, or that it has seen the messages before number `seq` alone."""
        kind = content.get("type") if isinstance(content, dict) else None
        if kind == "stop" and not self.stopped:
            self.stopped = True
            with self._lock:  # nor may the run end, and another begin, between the two
                if self._on_stop is not None:
                    self._on_stop()
        elif kind == "since" and isinstance(content.get("seq"), int):
            with self._lock:
                for message, buffers in self._sent[max(0, content["seq"]) :]:
                    self.send(message, buffers)
