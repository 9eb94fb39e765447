"""A run made of random numbers, for tests of code that draws and stores runs."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

_STARTS = """the of and to a in is was that it as for with on by he at from his an were are which this be had or not
but their one also has first they its who been after two when city river capital France Paris London Rome north century
small called between world people king water light"""
WORDS = [f" {word}" for word in _STARTS.split()] + [".", ",", "\n", "ing", "ed", "s", "’s", " (", ")", "un", "tion"]
HOSTILE = [
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    '"><img src=x onerror=alert(3)>',
    "'\"`${alert(4)}&amp;<!--",
    "]]>",
    "שלום",
    "مرحبا",
    "a\u202ecod.exe",
    "\u2066\u2069",
    "👩‍👩‍👧‍👦",
    "🇫🇷",
    "\u0301\u0302\u0303",
    "Z̸̡̛͈͎̖̦̈́̆a̵",
    "\x00\x07\x1b[31m",
    "\u200b\ufeff",
    "\r\n\t  ",
    "\u2028",
    "漢字",
    "\\xe2\\x80",
    "\ud800",
    "<|endoftext|>",
    "",
    "x" * 300,
    "__proto__",
]


@dataclass
class FakeRun:
    """What a view may rely on of a `LensRun`."""

    dataset: xr.Dataset
    token_texts: dict[int, str]
    prompt_ids: list[int]
    output_ids: list[int]
    model: str = "fake-model"
    interrupted: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    prompt: str = ""
    text: str = ""
    labels: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.prompt = self.prompt or "".join(self.token_texts[i] for i in self.prompt_ids)
        self.text = self.text or "".join(self.token_texts[i] for i in self.output_ids)

    @property
    def sites(self) -> list[str]:
        return [str(site) for site in self.dataset["site"].values]

    @property
    def layers(self) -> list[int]:
        return self.dataset["layer"].values.tolist()

    @property
    def positions(self) -> list[int]:
        return self.dataset["position"].values.tolist()

    @property
    def targets(self) -> list[int]:
        return [[*self.prompt_ids, *self.output_ids][len(self.prompt_ids) + position] for position in self.positions]

    @property
    def variables(self) -> dict[str, np.ndarray]:
        return {str(name): values.values for name, values in self.dataset.data_vars.items()}

    @property
    def candidate_texts(self) -> dict[int, str]:
        return self.token_texts

    def to_xarray(self) -> xr.Dataset:
        return self.dataset


def fake_run(
    positions: int = 12,
    layers: int = 6,
    sites: Sequence[str] = ("attn_out", "mlp_out", "resid_post"),
    k: int = 5,
    seed: int = 0,
    hostile: bool = False,
    prompt_positions: int = 0,
    vocabulary: int = 0,
) -> FakeRun:
    """A run that grows surer of its target from layer to layer.

    `positions` generated tokens after `prompt_positions` earlier ones of the prompt; `vocabulary` > 0 adds made-up
    tokens up to that number.
    """
    rng = np.random.default_rng(seed)
    texts = (HOSTILE if hostile else WORDS) + [f" w{i}" for i in range(max(0, vocabulary - len(WORDS)))]
    texts = texts if len(texts) > k + 1 else texts + WORDS
    n, prompt = len(texts), prompt_positions + 1
    path = rng.integers(0, n, prompt + positions)
    shape = (len(sites), layers, prompt_positions + positions)
    target = np.broadcast_to(path[1:], shape)

    # k different tokens: a random start and a random step, the target first where this cell has found it.
    start, step = rng.integers(0, n, shape), rng.integers(1, max(2, n // (k + 1)), shape)
    token = (start[..., None] + step[..., None] * np.arange(k)) % n
    sure = np.linspace(0.02, 0.95, layers)[None, :, None] * np.array([0.5, 0.7, 1.0] * 2)[: len(sites), None, None]
    found = rng.random(shape) < sure
    swap = found & ~(token == target[..., None]).any(-1)
    token[..., 0] = np.where(swap, target, token[..., 0])

    logit = np.sort(rng.gumbel(0, 1.5, (*shape, k)), axis=-1)[..., ::-1] + 8
    logit[..., 0] += 4 * sure * rng.random(shape)
    rest = rng.uniform(6, 10, shape)
    log_z = np.logaddexp(np.logaddexp.reduce(logit, axis=-1), rest)
    prob = np.exp(logit - log_z[..., None])
    here = token == target[..., None]
    rank = np.where(here.any(-1), here.argmax(-1), rng.integers(k, 50_000, shape))
    at_target = np.where(here.any(-1), (prob * here).sum(-1), rng.uniform(0, 1e-4, shape))
    share = np.exp(logit - np.logaddexp.reduce(logit, axis=-1)[..., None])
    cell = ("site", "layer", "position")
    dataset = xr.Dataset(
        {
            "token_id": ((*cell, "k"), token.astype(np.int32)),
            "logit": ((*cell, "k"), logit.astype(np.float32)),
            "prob": ((*cell, "k"), prob.astype(np.float32)),
            "prob_topk": ((*cell, "k"), share.astype(np.float32)),
            "entropy": (cell, rng.uniform(0, 9, shape).astype(np.float32)),
            "target_rank": (cell, rank.astype(np.int32)),
            "target_prob": (cell, at_target.astype(np.float32)),
            "kl_final": (cell, rng.uniform(0, 9, shape).astype(np.float32)),
        },
        coords={"site": list(sites), "layer": np.arange(layers), "position": np.arange(-prompt_positions, positions)},
        attrs={"model_layers": layers},
    )
    ids = [int(i) for i in path]
    return FakeRun(dataset, dict(enumerate(texts)), ids[:prompt], ids[prompt:])


def without_last_layer(run: FakeRun) -> FakeRun:
    """The run as if the model had one layer more, which was not captured."""
    run.dataset.attrs["model_layers"] += 1
    return run


def track(run: FakeRun, tokens: Sequence[int], seed: int = 1) -> FakeRun:
    """The run with figures of chosen tokens in every cell: made up where they are no candidates."""
    rng = np.random.default_rng(seed)
    token_id, prob = run.dataset.token_id.values, run.dataset.prob.values
    shape = token_id.shape[:3]
    ranks, probs = [], []
    for token in tokens:
        here = token_id == token
        there = here.any(-1)
        own = run.dataset.target_rank.values, run.dataset.target_prob.values
        path = np.array((run.prompt_ids + run.output_ids)[1:])
        target = np.broadcast_to(path[: shape[2]] == token, shape)
        guess = rng.integers(token_id.shape[-1], 40_000, shape), rng.uniform(0, 1e-4, shape)
        ranks.append(np.where(there, here.argmax(-1), np.where(target, own[0], guess[0])))
        probs.append(np.where(there, (prob * here).sum(-1), np.where(target, own[1], guess[1])))
    cell = ("site", "layer", "position", "tracked")
    run.dataset = run.dataset.assign(
        tracked_rank=(cell, np.stack(ranks, -1).astype(np.int32)), tracked_prob=(cell, np.stack(probs, -1).astype(np.float32))
    ).assign_coords(tracked=list(tokens))
    return run


def follow(run: FakeRun, most: int = 3, seed: int = 2) -> FakeRun:
    """The run with figures of each position's own tokens: at most so many of those first in a layer of the last site."""
    rng = np.random.default_rng(seed)
    leaders = run.dataset.token_id.values[-1, :, :, 0]  # [layer, position]
    ids = np.full((leaders.shape[1], most), -1, np.int32)
    for position, column in enumerate(leaders.T):
        own = list(dict.fromkeys(column[::-1].tolist()))[:most]
        ids[position, : len(own)] = own
    shape = (*run.dataset.token_id.shape[:3], most)
    missing = np.broadcast_to(ids < 0, shape)
    cell = ("site", "layer", "position", "tracked")
    run.dataset = run.dataset.assign(
        tracked_rank=(cell, np.where(missing, -1, rng.integers(5, 70_000, shape)).astype(np.int32)),
        tracked_prob=(cell, np.where(missing, np.nan, rng.uniform(0, 1e-3, shape)).astype(np.float32)),
    ).assign_coords(tracked_id=(("position", "tracked"), ids))
    return run


def spread(run: FakeRun, nats: float) -> FakeRun:
    """Let the last candidate of each cell be so much less likely than the first, as of a basis read without a norm."""
    logit, prob = run.dataset.logit.values, run.dataset.prob.values
    below = np.linspace(0, nats, logit.shape[-1], dtype=np.float32)
    logit[...] = logit[..., :1] - below
    prob[...] = np.exp(-below) / np.exp(-below).sum()
    run.dataset["prob_topk"] = run.dataset.prob
    return run


def without_numbers(run: FakeRun, layer: int, position: int) -> FakeRun:
    """The run whose cells at this layer and position (indices) hold no numbers, as where states are not finite."""
    for name in ("logit", "prob", "prob_topk", "entropy", "target_prob", "kl_final", "tracked_prob"):
        if name in run.dataset:
            run.dataset[name][:, layer, position] = np.nan
    for name in ("target_rank", "tracked_rank"):
        if name in run.dataset:
            run.dataset[name][:, layer, position] = -1
    return run


def encoded(buffers: dict[str, bytes]) -> dict[str, str]:
    """Buffers as JSON can carry them."""
    return {name: base64.b64encode(value).decode() for name, value in buffers.items()}
