"""The aims beside what was measured, in the same lines whether an aim is met or missed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

from .plan import BARE, OURS, RESIDUAL
from .store import Cell
from .tables import Group, generating, groups, grown, ratios, spread, wall

Results = dict[str, list[Cell]]
Line = tuple[str, list[float], float]
"""An aim: its wording, the ratios measured, and the least their median should be."""

MOST_TOKENS = 500  # where the paper's Table 1 ends


def table(results: Results) -> str:
    """Return a Markdown table with one row per aim and setting, and the number of aims missed."""
    rows = ["| aim | at least | measured | N | met |", "| --- | --- | --- | --- | --- |"]
    found: list[str] = []
    for words, values, least in (*_time(results), *_memory(results), *_overhead(results)):
        found.append(("yes" if statistics.median(values) >= least else "**no**") if values else "not measured")
        rows.append(f"| {words} | {least:g} | {spread(values)} | {len(values)} | {found[-1]} |")
    measured = len(found) - found.count("not measured")
    missed = found.count("**no**")
    return "\n".join([*rows, "", f"Of {measured} measured, {missed or 'none'} {'are' if missed > 1 else 'is'} missed."])


def _time(results: Results) -> Iterator[Line]:
    found = groups(results.get("speed", []))
    for (model, _, ranks, tokens), group in found.items():
        if tokens != max((key[3] for key in found if key[2] == ranks), default=0):
            continue
        where = f"{model}, {ranks} rank{'s' * (ranks > 1)}, T = {tokens}"
        if ranks == 4 and tokens == MOST_TOKENS:
            yield f"time, (a) ÷ ours; {where}", _over(group, "published", OURS, wall), 41
        yield f"time, (b) ÷ ours; {where}", _over(group, "eager", OURS, wall), 1
        if "afterwards" in group:
            yield f"time, (d) ÷ ours, `resid_post` alone; {where}", _over(group, "afterwards", RESIDUAL, wall), 1
        yield f"time, (f) ÷ ours; {where}", _over(group, "deferred", OURS, wall), 1
        yield f"time, (d′) ÷ ours, three sites; {where}", _over(group, "afterwards-hooked", OURS, wall), 1


def _memory(results: Results) -> Iterator[Line]:
    for (model, _, ranks, tokens), group in groups(results.get("memory", [])).items():
        where = f"{model}, {ranks} rank{'s' * (ranks > 1)}, T = {tokens}"
        yield f"peak memory a rank, (a) ÷ ours; {where}", _over(group, "published", OURS, grown), 7 * ranks


def _overhead(results: Results) -> Iterator[Line]:
    for (model, dtype, ranks, tokens), group in groups(results.get("overhead", [])).items():
        where = f"{model}, {dtype}, {ranks} rank{'s' * (ranks > 1)}, T = {tokens}"
        yield f"tokens/s, capturing ÷ not capturing; {where}", _over(group, BARE, OURS, generating), 0.97
        yield f"tokens/s, capturing ÷ transformers; {where}", _over(group, "generate", OURS, generating), 1


def _over(group: Group, upper: str, lower: str, of: Callable[[dict[str, Any]], float]) -> list[float]:
    return ratios(group.get(upper), group.get(lower), of)
