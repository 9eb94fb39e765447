"""A run packed for drawing: a small JSON header and a few flat arrays.

This is the interface between results and what the browser draws; the static table is drawn from a `Packed` value too. (Text
tables and figures read the run itself.) The header says how each array is coded, so a reader need not assume any sizes (the
browser's reader is `static/data.js`, Python's is `unpack`, the codings are in `codes.py`).

Codings, chosen so that 1,500 positions × 80 layers × 3 sites × 5 candidates take less than 10 MB with 20,000 different
tokens among them. Each of these takes about 16 bytes in the table; beyond 65,536 it is 14 MB in all, with 128,256 15 MB.

- `token`: row of the table of distinct tokens, uint16 (uint32 beyond 65,536 of them).
- `prob`: −ln p in steps of 1/2048 nat, uint16: accurate to 0.025 %, down to e⁻³². The highest code of this array, of
  `entropy` and of `kl_final` marks a cell without numbers (its states were not finite).
- `logit`: the first candidate's only, 65,536 codes over the run's own range. The others follow from
  logit_j − logit_0 = ln(p_j / p_0), except in a run with candidates less likely than e^−32 (a basis, read without a norm):
  there `below`, logit_0 − logit_j, is sent too, with 65,535 codes finest near 0. `prob_topk` follows from `prob`.
- `target_prob`, `entropy`, `kl_final`, `kl_apart`, `target_rank`: two bytes each. In a large run one byte: the probability of
  a target that is not among the candidates is then within 6 %, ranks from 64 on within 3 %, entropy within 1/32 nat.
- `tracked_prob`, `tracked_rank`: two bytes (ranks: four if needed) for each tracked token, if the run has any. Tokens
  tracked at individual positions (`track=True`) are left out of a large run, whose size they would double.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import LensError
from ..lens.made import how_made
from . import codes
from .text import SPACE, minus, visible

if TYPE_CHECKING:
    import xarray as xr

    from ..lens.run import LensRun

SCHEMA = 4
LARGE_BYTES = 8_000_000


FIRST_DIRECTION = 1 << 20
"""The number that views give the first direction of a basis: beyond every vocabulary, and the same in every run."""


@dataclass(frozen=True)
class Packed:
    """A run ready to be drawn.

    `header` is JSON: `schema`, `model`, `depth` (number of the model's layers; 0 if it is not known), `how` (how the run
    was made: `how_made`), `name` (the run's name, "" for the model's), `interrupted`, `basis` (what identifies the basis it
    was read in; "" for none), `sites`, `layers`, `positions`, `k`, `space` (the picture of a space), `tokens` (display text
    of each distinct token), `raw` (its actual text, only where replacing `space` by spaces in the display text does not
    give it), `inputs` and `targets` (a row of `tokens` for each position, −1 where there is none), `tracked` (rows of
    `tokens`: those tracked at every position), `followed` (how many are tracked in each cell), `parts` (of the
    second of two runs, if it is known: the layer at which each position parts from the first run, −1 for none), `encoding`.

    `buffers`: `token` and `prob` [site, layer, position, k]; `logit`, `target_prob`, `target_rank`, `entropy`,
    `kl_final`, `kl_apart` (of the second of two runs, if known: its KL from the first)
    [site, layer, position]; `below` (if needed), as `prob`; `tracked_prob` and `tracked_rank` (if it has them)
    [site, layer, position, tracked]; `tracked` [position, tracked], the tokens tracked if each position has its own (rows
    of `tokens`; the length of `tokens` where there is none); `ids` [distinct token], vocabulary indices (of a basis, see
    `drawn`). All little-endian.
    """

    header: dict[str, Any]
    buffers: dict[str, NDArray[Any]]

    @property
    def nbytes(self) -> int:
        """Total size of all arrays."""
        return sum(buffer.nbytes for buffer in self.buffers.values())

    def to_bytes(self) -> dict[str, bytes]:
        """The arrays as bytes, as they are sent."""
        return {name: buffer.tobytes() for name, buffer in self.buffers.items()}


class Shown(NamedTuple):
    """A run as it is shown."""

    run: LensRun
    name: str = ""
    """Its name beside another; "" for the name of its model."""
    apart: NDArray[Any] | None = None
    """KL(the other run ‖ this run) of every cell, nats, ``[site, layer, position]``, if it is known."""


def drawn(run: LensRun) -> LensRun:
    """Return a run as views read it, with one numbering for tokens and directions: see `FIRST_DIRECTION`."""
    if not run.labels:
        return run
    variables, options, texts = dict(run.variables), dict(run.options), dict(run.token_texts)
    texts |= {FIRST_DIRECTION + index: label for index, label in run.labels.items()}
    for name in {"token_id", "tracked_id"} & variables.keys():
        variables[name] = np.where(variables[name] >= 0, variables[name] + FIRST_DIRECTION, -1)
    if isinstance(options.get("track"), list):
        options["track"] = [FIRST_DIRECTION + index for index in options["track"]]
    return replace(run, variables=variables, options=options, token_texts=texts, labels={})


def on_show(
    run: LensRun, compare: LensRun | None = None, names: tuple[str, str] | None = None, apart: NDArray[Any] | None = None
) -> list[Shown]:
    """Return one run, or two with their names, and how far apart the two are if that is known.

    Raises:
        LensError: ``compare`` is no run, or ``names`` are not two texts.
    """
    if compare is None:
        return [Shown(run)]
    if not hasattr(compare, "candidate_texts"):
        raise LensError(f"compare= takes a run, not {type(compare).__name__}")
    first, second = ("", "") if names is None else _two_texts(names)
    return [Shown(run, first), Shown(compare, second, apart)]


def _two_texts(names: Any) -> tuple[str, str]:
    if not (isinstance(names, list | tuple) and len(names) == 2 and all(isinstance(name, str) for name in names)):
        raise LensError(f'names= takes two texts, not {names!r}; ("before", "after") would do')
    return names[0], names[1]


def header_of(
    model: str, depth: int, sites: Iterable[str], layers: Iterable[int], k: int, encoding: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Return the header of a run without positions."""
    return {
        "schema": SCHEMA,
        "model": model,
        "depth": depth,
        "how": "",
        "name": "",
        "interrupted": False,
        "basis": "",
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
        "parts": [],
        "encoding": encoding,
    }


def pack(run: LensRun, name: str = "", apart: NDArray[Any] | None = None) -> Packed:
    """Pack a run, `name` and `apart` as in `Shown`; see the module's docstring for the codings, `Packed` for the layout."""
    run = drawn(run)  # a run through a basis numbers its directions separately from tokens
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
        "kl_final": codes.square(data["kl_final"].values, "uint8" if large else "uint16"),
    }
    below = first[..., None] - data["logit"].values
    if np.any((data["prob"].values < codes.LEAST_PROB) & np.isfinite(below)):
        coded["below"] = codes.square(below, "uint16")
    if apart is not None:
        coded["kl_apart"] = codes.square(apart, "uint8" if large else "uint16")
    if followed:
        coded["tracked_prob"] = codes.neglog(data["tracked_prob"].values)
        coded["tracked_rank"] = codes.ranks(data["tracked_rank"].values)
    if own.size:
        coded["tracked"] = codes.plain(np.where(own < 0, len(ids), rows(own)), "uint32")

    shown, raw = token_table(run.token_texts, ids)
    encoding = {array: how for array, (_, how) in coded.items()}
    depth = int(data.attrs.get("model_layers", 0))
    header = header_of(run.model, depth, data["site"].values, data["layer"].values, k, encoding) | {
        "how": minus(how_made(run.options)),
        "name": name,
        "interrupted": bool(run.interrupted),
        "basis": _basis(run),
        "positions": positions,
        "tokens": shown,
        "raw": raw,
        "inputs": rows(inputs).tolist(),
        "targets": rows(targets).tolist(),
        "tracked": rows(tracked).tolist(),
        "followed": followed,
        "parts": _parts(run, apart),
    }
    return Packed(header, {array: np.ascontiguousarray(buffer) for array, (buffer, _) in coded.items()})


def unpack(packed: Packed) -> dict[str, NDArray[Any]]:
    """Decode the arrays, by their names in the run's Dataset, including `logit` and `prob_topk`.

    Missing ranks are −1, other missing numbers NaN. Used by the tests and the static table, and the specification of what
    a browser has to do.
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
    found["logit"] = found["logit"][..., None] - found.pop("below", nats - nats[..., :1])
    return found


def path(
    prompt_ids: Sequence[int], output_ids: Sequence[int], positions: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return vocabulary indices of the token each position reads and of the one it predicts; −1 where there is none."""
    sequence = [*prompt_ids, *output_ids]
    last = len(prompt_ids) - 1

    def at(i: int) -> int:
        return int(sequence[i]) if 0 <= i < len(sequence) else -1

    inputs = np.array([at(last + p) for p in positions], dtype=np.int64)
    targets = np.array([at(last + p + 1) for p in positions], dtype=np.int64)
    return inputs, targets


def token_table(texts: Mapping[int, str], ids: Sequence[int] | NDArray[Any]) -> tuple[list[str], dict[str, str]]:
    """Return the tokens' display texts, and by row (as text) the actual texts that do not follow from those."""
    # A lone surrogate (half a character) cannot be written as UTF-8.
    own = [texts.get(int(i), f"<{int(i)}>").encode("utf-8", "backslashreplace").decode() for i in ids]
    shown = [visible(text) for text in own]
    # Always sending the actual text would send half the table twice.
    return shown, {str(i): t for i, (t, s) in enumerate(zip(own, shown, strict=True)) if s.replace(SPACE, " ") != t}


def _basis(run: LensRun) -> str:
    """What identifies the basis a run was read in; empty for none."""
    lens = run.options.get("lens")
    return str(lens.get("digest")) if isinstance(lens, Mapping) and lens.get("kind") == "basis" else ""


def _parts(run: LensRun, apart: NDArray[Any] | None) -> list[int]:
    """For each position, the layer at which a second run parts from the first, from the KL itself: one byte is too coarse."""
    if apart is None or "resid_post" not in run.sites:
        return []
    from ..lens.difference import first_beyond

    return [int(layer) for layer in first_beyond(apart[list(run.sites).index("resid_post")], run.layers)]


def _tracked(data: xr.Dataset, large: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Vocabulary indices of tracked tokens: common to all positions, ``[tracked]``, or each one's own, ``[position, tracked]``.

    The other of the two is empty; both are if the run tracked none, or is large and positions have their own.
    """
    common, own = np.zeros(0, np.int64), np.zeros((data.sizes["position"], 0), np.int64)
    if "tracked_prob" in data and "tracked" in data.coords:
        common = np.asarray(data["tracked"].values, dtype=np.int64)
    elif "tracked_prob" in data and not large:
        own = np.asarray(data["tracked_id"].values, dtype=np.int64)
    return common, own


def _distinct(*arrays: NDArray[Any]) -> tuple[NDArray[np.int64], Callable[[NDArray[Any]], NDArray[np.int64]]]:
    """Return the sorted distinct token ids of all arrays, and a function from ids to rows among them (−1 stays −1)."""
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
