"""Does sharding change what one sees? The same tokens on 1, 2 and 4 ranks, in float32 and bfloat16.

    python -m benchmarks ablation

Every number of ranks is compared with one rank in the same dtype, prompt by prompt, on the tokens that one rank generates in
float32. bfloat16 is also compared with float32 on one rank, to separate the effect of sharding from that of rounding.
Intervals are 95 % bootstrap intervals of the mean over prompts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import lens_magic as lens

from . import machine
from .store import of_this_tree, write

DATA = Path(lens.__file__).parent / "demo" / "data"
DTYPES, RANKS = ("float32", "bfloat16"), (1, 2, 4)
TOKENS, K, RESAMPLES = 16, 5, 10_000

METRICS = {
    "states": "states: mean ‖difference‖ / ‖state‖",
    "states, largest": "states: largest ‖difference‖ / ‖state‖",
    "first": "cells with another first candidate",
    "candidates": f"of {K} candidates, share not in common",
    "probability": "first candidate's probability: mean absolute difference",
    "kl": "KL to the output, nats: mean absolute difference",
    "parted": "texts that part within 16 tokens",
    "slope": "steering slope: difference",
}
"""The metrics and what they compare; 0 means no difference in each of them."""


@dataclass
class Seen:
    """The results of one setting; lists have one entry per prompt."""

    output_ids: list[list[int]]  # generated freely
    states: list[np.ndarray]  # [site, layer, position, d], on the common tokens
    variables: list[Mapping[str, np.ndarray]]
    slopes: np.ndarray


def measure(out: Path, full: bool = False, model: str = "demo") -> Path:
    """Run every setting, compare them, and write ``out/ablation.json``; return its path."""
    prompts = held_out_prompts(48 if full else 12)
    seen: dict[tuple[str, int], Seen] = {}
    common: list[list[int]] | None = None
    vector: lens.SteeringVector | None = None
    for dtype in DTYPES:
        for ranks in RANKS:
            lens.load(model, dtype=dtype, ranks=ranks)
            free = [list(lens.generate(prompt, TOKENS, ignore_eos=True).output_ids) for prompt in prompts]
            common = common or free
            vector = vector or steering_vector()
            seen[dtype, ranks] = _look(prompts, free, common, vector)
    whole = {"about": _about(len(prompts)), "comparisons": _compare_all(seen), "slopes": _slopes(seen)}
    path = out / "ablation.json"
    write(path, whole)
    print(table(whole))
    return path


def held_out_prompts(count: int) -> list[str]:
    """Return ``count`` prompts of the demo model's held-out items, spread evenly over its tasks."""
    items = json.loads((DATA / "heldout.json").read_text(encoding="utf-8"))
    return [items[at * len(items) // count]["prompt"] for at in range(count)]


def steering_vector() -> lens.SteeringVector:
    """Train a steering vector for the model that is loaded."""
    return lens.train_vector(str(DATA / "persona-pairs.jsonl"), layers=[2], site="resid_post", position="mean")


def _look(prompts: Sequence[str], free: list[list[int]], common: Sequence[Sequence[int]], vector: lens.SteeringVector) -> Seen:
    states, variables = [], []
    for prompt, ids in zip(prompts, common, strict=True):
        run = lens.run(prompt, top_k=K, force=ids)
        states.append(np.stack([run.activations(site).float().numpy() for site in run.sites]))
        variables.append(dict(run.variables))
    report = lens.evaluate(vector, str(DATA / "persona-heldout.jsonl"))
    slopes = np.asarray(report.slopes, dtype=float).reshape(-1)
    return Seen(free, states, variables, slopes)


def _slopes(seen: Mapping[tuple[str, int], Seen]) -> list[dict[str, Any]]:
    """The steerability slopes of each setting."""
    return [
        {
            "dtype": dtype,
            "ranks": ranks,
            "mean": float(one.slopes.mean()),
            "std": float(one.slopes.std(ddof=1)),
            "n": len(one.slopes),
        }
        for (dtype, ranks), one in seen.items()
    ]


def _compare_all(seen: Mapping[tuple[str, int], Seen]) -> list[dict[str, Any]]:
    pairs = [((dtype, ranks), (dtype, RANKS[0])) for dtype in DTYPES for ranks in RANKS[1:]]
    pairs.append(((DTYPES[1], RANKS[0]), (DTYPES[0], RANKS[0])))
    found = []
    for one, other in pairs:
        for metric, values in compare(seen[one], seen[other]).items():
            low, high = interval(values)
            place = {"dtype": one[0], "ranks": one[1], "against": {"dtype": other[0], "ranks": other[1]}}
            figures = {"mean": float(values.mean()), "low": low, "high": high, "n": len(values)}
            found.append({**place, "metric": metric, **figures})
    return found


def compare(one: Seen, other: Seen) -> dict[str, np.ndarray]:
    """Return the metrics, with one value per prompt."""
    apart = [np.linalg.norm(a - b, axis=-1) / np.linalg.norm(b, axis=-1) for a, b in zip(one.states, other.states, strict=True)]
    pairs = list(zip(one.variables, other.variables, strict=True))
    return {
        "states": np.array([each.mean() for each in apart]),
        "states, largest": np.array([each.max() for each in apart]),
        "first": np.array([(a["token_id"][..., 0] != b["token_id"][..., 0]).mean() for a, b in pairs]),
        "candidates": np.array([_not_in_common(a["token_id"], b["token_id"]) for a, b in pairs]),
        "probability": np.array([np.abs(a["prob"][..., 0] - b["prob"][..., 0]).mean() for a, b in pairs]),
        "kl": np.array([np.abs(a["kl_final"] - b["kl_final"]).mean() for a, b in pairs]),
        "parted": np.array([float(a != b) for a, b in zip(one.output_ids, other.output_ids, strict=True)]),
        "slope": one.slopes - other.slopes,
    }


def _not_in_common(a: np.ndarray, b: np.ndarray) -> float:
    """Share of ``a``'s k candidates that are not among ``b``'s; both are ``[…, k]``."""
    return float(1 - (a[..., :, None] == b[..., None, :]).any(-1).mean())


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean."""
    random = np.random.default_rng(0)
    means = values[random.integers(0, len(values), (RESAMPLES, len(values)))].mean(-1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def _about(prompts: int) -> dict[str, Any]:
    return {"machine": machine.describe(), **of_this_tree(), "prompts": prompts, "tokens": TOKENS, **machine.now()}


def table(whole: Mapping[str, Any]) -> str:
    """Return a Markdown table: one row per metric, one column per comparison."""
    columns: dict[str, dict[str, str]] = {}
    counts: dict[str, int] = {}
    for entry in whole["comparisons"]:
        against = entry["against"]
        name = f"{entry['dtype']}, {entry['ranks']} against {against['ranks']}"
        if against["dtype"] != entry["dtype"]:
            name = f"{entry['dtype']} against {against['dtype']}, 1 rank"
        told = f"{entry['mean']:.1e} [{entry['low']:.1e}, {entry['high']:.1e}]"
        columns.setdefault(name, {})[entry["metric"]] = told if entry["mean"] or entry["high"] else "0"
        counts[entry["metric"]] = entry["n"]
    lines = ["| difference, mean [95 %] | n | " + " | ".join(columns) + " |", "| --- " * (len(columns) + 2) + "|"]
    for metric, words in METRICS.items():
        if metric in counts:
            cells = " | ".join(column.get(metric, "") for column in columns.values())
            lines.append(f"| {words} | {counts[metric]} | {cells} |")
    slopes = [f"{s['dtype']}, {s['ranks']} ranks: {s['mean']:.4f} ± {s['std']:.4f}" for s in whole.get("slopes", [])]
    if slopes:
        lines += ["", f"Mean slope ± std over prompts: {'; '.join(slopes)}."]
    return "\n".join(lines)
