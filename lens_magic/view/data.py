"""A run packed for drawing: a small JSON header and a few flat arrays.

This is the seam between results and what the browser draws; the static table is drawn from a `Packed` value too. (A table
of text and figures read the run itself.) The header says how each array is coded, so a reader follows it instead of
knowing sizes by heart (the browser's reader is `static/data.js`, Python's is `unpack`, the codings are in `codes.py`).

Codings, the aim being 1,500 positions × 80 layers × 3 sites × 5 candidates in less than 10 MB:

- `token`: row of the table of distinct tokens, uint16 (uint32 beyond 65,536 of them).
- `prob`: −ln p in steps of 1/2048 nat, uint16: every probability to 0.025 %, down to e⁻³². A cell may have no numbers (its
  states were not finite): the highest code of this, of `entropy` and of `kl_final` says so.
- `logit`: the first candidate's alone, 65,536 steps over the run's own range. The others follow from it, since
  logit_j − logit_0 = ln(p_j / p_0). `prob_topk` follows from `prob` in the same way, and neither is sent.
- `target_prob`, `entropy`, `kl_final`, `target_rank`: two bytes each; one in a large run, where the probability of a
  target that is not among the candidates is within 6 %, ranks from 64 on within 3 %, entropy within 1/32 nat.
- `tracked_prob`, `tracked_rank`: two bytes (ranks: four where needed) for each tracked token, where the run has any. Tokens
  tracked at their own positions alone (`track=True`) stay behind in a large run, whose size they would double.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from . import codes
from .text import SPACE, visible

if TYPE_CHECKING:
    import xarray as xr

SCHEMA = 4
LARGE_BYTES = 8_000_000


class Run(Protocol):
    """What views need of a `LensRun`."""

    @property
    def model(self) -> str: ...  # noqa: D102
    @property
    def prompt(self) -> str: ...  # noqa: D102
    @property
    def prompt_ids(self) -> Sequence[int]: ...  # noqa: D102
    @property
    def text(self) -> str: ...  # noqa: D102
    @property
    def output_ids(self) -> Sequence[int]: ...  # noqa: D102
    @property
    def sites(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def layers(self) -> Sequence[int]: ...  # noqa: D102
    @property
    def positions(self) -> Sequence[int]: ...  # noqa: D102
    @property
    def variables(self) -> Mapping[str, NDArray[Any]]: ...  # noqa: D102
    @property
    def token_texts(self) -> Mapping[int, str]: ...  # noqa: D102
    @property
    def candidate_texts(self) -> Mapping[int, str]: ...  # noqa: D102
    @property
    def interrupted(self) -> bool: ...  # noqa: D102
    @property
    def drawn(self) -> Run: ...  # noqa: D102
    def to_xarray(self) -> xr.Dataset: ...  # noqa: D102


@dataclass(frozen=True)
class Packed:
    """A run ready to be drawn.

    `header` is JSON: `schema`, `model`, `name` (what the run is called, if not by its model), `interrupted`, `sites`,
    `layers`, `positions`, `k`, `tokens` (display text of each distinct token), `raw` (its own text, only where it is not
    the display text with spaces for `space`), `inputs` and `targets` (a row of `tokens` for each position, −1 where there
    is none), `tracked` (rows of `tokens`: those tracked at every position), `followed` (how many are tracked in each cell),
    `encoding`.

    `buffers`: `token` and `prob` [site, layer, position, k]; `logit`, `target_prob`, `target_rank`, `entropy`,
    `kl_final` (where the run has it) [site, layer, position]; `tracked_prob` and `tracked_rank` (likewise)
    [site, layer, position, tracked]; `tracked` [position, tracked], whose they are where each position has its own
    (rows of `tokens`; their number where there is none); `ids` [distinct token], the vocabulary indices. All little-endian.
    """

    header: dict[str, Any]
    buffers: dict[str, NDArray[Any]]

    @property
    def nbytes(self) -> int:
        """Size of all arrays together."""
        return sum(buffer.nbytes for buffer in self.buffers.values())

    def to_bytes(self) -> dict[str, bytes]:
        """The arrays as they travel."""
        return {name: buffer.tobytes() for name, buffer in self.buffers.items()}


Shown = Sequence[tuple[Run, str]]
"""The runs on show, one or two, each with what it is called; "" where it has the name of its model."""


def on_show(run: Run, compare: Run | None, names: tuple[str, str] | None) -> Shown:
    """A run alone, or two with their names."""
    return [(run, "")] if compare is None else list(zip((run, compare), names or ("", ""), strict=True))


def header_of(
    model: str, sites: Iterable[str], layers: Iterable[int], k: int, encoding: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """The header of a run that has no positions as yet."""
    return {
        "schema": SCHEMA,
        "model": model,
        "name": "",
        "interrupted": False,
        "sites": [str(site) for site in sites],
        "layers": [int(layer) for layer in layers],
        "positions": [],
        "k": k,
        "space": SPACE,
        "tokens": [],
        "raw": {},
        "inputs": [],
        "targets": [],
        "tracked": [],
        "followed": 0,
        "encoding": encoding,
    }


def pack(run: Run, name: str = "") -> Packed:
    """Packs a run: see the module's text for the codings and `Packed` for the layout.

    Args:
        name: what it is called beside another.
    """
    run = run.drawn  # a run through a basis numbers directions apart from tokens
    data = run.to_xarray().transpose("site", "layer", "position", "k", ...)
    positions = [int(p) for p in data["position"].values]
    candidates = data["token_id"].values
    inputs, targets = path(run.prompt_ids, run.output_ids, positions)
    k = int(candidates.shape[3])
    large = candidates[..., 0].size * (4 * k + 8) > LARGE_BYTES if k else False
    tracked, own = _tracked(data, large)
    followed = tracked.size or own.shape[1]
    ids, rows = _distinct(candidates, inputs, targets, tracked, own)

    first = data["logit"].values[..., 0] if k else np.zeros(candidates.shape[:3], np.float32)
    coded: dict[str, codes.Coded] = {
        "ids": codes.plain(ids, "uint32"),
        "token": codes.plain(rows(candidates), "uint16" if len(ids) <= 1 << 16 else "uint32"),
        "prob": codes.neglog(data["prob"].values),
        "logit": codes.linear_over_range(first),
        "target_prob": codes.neglog(
            data["target_prob"].values, *(("uint8", codes.COARSE_PROB_STEP) if large else ("uint16", codes.PROB_STEP))
        ),
        "target_rank": codes.octaves(data["target_rank"].values) if large else codes.ranks(data["target_rank"].values),
        "entropy": codes.linear(data["entropy"].values, *(("uint8", 1 / 16) if large else ("uint16", 1 / 4096)), missing=True),
    }
    if "kl_final" in data:
        coded["kl_final"] = codes.square(data["kl_final"].values, "uint8" if large else "uint16")
    if followed:
        coded["tracked_prob"] = codes.neglog(data["tracked_prob"].values)
        coded["tracked_rank"] = codes.ranks(data["tracked_rank"].values)
    if own.size:
        coded["tracked"] = codes.plain(np.where(own < 0, len(ids), rows(own)), "uint32")

    shown, raw = token_table(run.token_texts, ids)
    encoding = {array: how for array, (_, how) in coded.items()}
    header = header_of(run.model, data["site"].values, data["layer"].values, k, encoding) | {
        "name": name,
        "interrupted": bool(run.interrupted),
        "positions": positions,
        "tokens": shown,
        "raw": raw,
        "inputs": rows(inputs).tolist(),
        "targets": rows(targets).tolist(),
        "tracked": rows(tracked).tolist(),
        "followed": followed,
    }
    return Packed(header, {array: np.ascontiguousarray(buffer) for array, (buffer, _) in coded.items()})


def unpack(packed: Packed) -> dict[str, NDArray[Any]]:
    """The arrays decoded again, by their names in the run's Dataset, `logit` and `prob_topk` included.

    Missing ranks come back as −1, other numbers that a cell has not as NaN. Used by the tests and the static table, and
    the specification of what a browser has to do.
    """
    buffers, encoding = packed.buffers, packed.header["encoding"]
    found = {
        name: codes.decoded_ranks(buffer, encoding[name]) if name.endswith("_rank") else codes.decoded(buffer, encoding[name])
        for name, buffer in buffers.items()
        if name not in ("ids", "token", "tracked")
    }
    prob = found["prob"]
    nats = np.where(np.isnan(prob), np.nan, buffers["prob"] * encoding["prob"]["step"])
    found["token_id"] = buffers["ids"][buffers["token"]].astype(np.int32)
    found["prob_topk"] = prob / prob.sum(axis=-1, keepdims=True)
    found["logit"] = found["logit"][..., None] - (nats - nats[..., :1])
    return found


def path(
    prompt_ids: Sequence[int], output_ids: Sequence[int], positions: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Vocabulary indices of what each position reads and of what it predicts; −1 where there is no such token."""
    sequence = [*prompt_ids, *output_ids]
    last = len(prompt_ids) - 1

    def at(i: int) -> int:
        return int(sequence[i]) if 0 <= i < len(sequence) else -1

    inputs = np.array([at(last + p) for p in positions], dtype=np.int64)
    targets = np.array([at(last + p + 1) for p in positions], dtype=np.int64)
    return inputs, targets


def token_table(texts: Mapping[int, str], ids: Sequence[int] | NDArray[Any]) -> tuple[list[str], dict[str, str]]:
    """Display texts of these tokens, and by row (as text) the own texts that do not follow from them."""
    # Half a character (a lone surrogate) would keep the rest from being written as UTF-8.
    own = [texts.get(int(i), f"<{int(i)}>").encode("utf-8", "backslashreplace").decode() for i in ids]
    shown = [visible(text) for text in own]
    # Half the table would be sent twice if the own text were always sent.
    return shown, {str(i): t for i, (t, s) in enumerate(zip(own, shown, strict=True)) if s.replace(SPACE, " ") != t}


def _tracked(data: xr.Dataset, large: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Vocabulary indices of tokens tracked: the same at every position, ``[tracked]``, or its own, ``[position, tracked]``.

    The other of the two is empty; both where the run tracked none.
    """
    common, own = np.zeros(0, np.int64), np.zeros((data.sizes["position"], 0), np.int64)
    if "tracked_prob" in data and "tracked" in data.coords:
        common = np.asarray(data["tracked"].values, dtype=np.int64)
    elif "tracked_prob" in data and not large:
        own = np.asarray(data["tracked_id"].values, dtype=np.int64)
    return common, own


def _distinct(*arrays: NDArray[Any]) -> tuple[NDArray[np.int64], Callable[[NDArray[Any]], NDArray[np.int64]]]:
    """The sorted distinct token ids of all arrays, and the function from ids to rows among them (−1 stays −1)."""
    highest = max((int(a.max()) for a in arrays if a.size), default=-1)
    seen = np.zeros(highest + 1, dtype=bool)
    for array in arrays:
        flat = array.ravel()
        seen[flat[flat >= 0]] = True
    ids = np.flatnonzero(seen)
    # One spare entry at the end, which index −1 reaches.
    row = np.full(highest + 2, -1, dtype=np.int64)
    row[ids] = np.arange(len(ids))

    def rows(array: NDArray[Any]) -> NDArray[np.int64]:
        found: NDArray[np.int64] = row[array]
        return found

    return ids, rows
