"""Markdown tables, made from results files only."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from .plan import BARE, OURS, RESIDUAL
from .store import Cell

NAMES = {
    OURS: "**lens-magic**",
    BARE: "lens-magic without the lens",
    RESIDUAL: "lens-magic, `resid_post` alone",
    "published": "(a) LogitLens4LLMs as published",
    "eager": "(b) cached, projected each step",
    "generate": "(c) transformers `generate`, no lens",
    "afterwards": "(d) generate, then one forward; `resid_post` alone",
    "afterwards-hooked": "(d′) the same, three sites",
    "deferred": "(f) the paper's method",
    "nnsight": "(e) nnsight 0.8.1",
    "transformer-lens": "(e) TransformerLens 4.3.0",
}
"""Names of the methods in tables."""

SAME_WORK = {"afterwards": RESIDUAL, "generate": BARE}
"""Which of our methods does the same work as a baseline; the whole lens for all others."""

Group = dict[str, Cell]


def groups(cells: Iterable[Cell]) -> dict[tuple[str, str, int, int], Group]:
    """Group the cells measured side by side, by (model, dtype, ranks, tokens)."""
    found: dict[tuple[str, str, int, int], Group] = {}
    for cell in sorted(cells, key=_natural):
        found.setdefault(cell.key[:4], {})[cell.method] = cell
    return found


def _natural(cell: Cell) -> tuple[Any, ...]:
    """Sort key of a cell in natural order: 4 layers before 16."""
    name, _, number = cell.model.rpartition("-")
    return (name, int(number)) if number.isdigit() else (cell.model, 0), cell.dtype, cell.ranks, cell.tokens


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Format mean ± standard deviation (median), to ``digits`` significant digits."""
    if not values:
        return "–"
    mean, median = statistics.fmean(values), statistics.median(values)
    places = max(0, digits - 1 - math.floor(math.log10(abs(mean)))) if mean else 0
    if len(values) == 1:
        return f"{mean:,.{places}f}"
    return f"{mean:,.{places}f} ± {statistics.stdev(values):,.{places}f} ({median:,.{places}f})"


def ratios(upper: Cell | None, lower: Cell | None, of: Callable[[dict[str, Any]], float]) -> list[float]:
    """Return the ratios of upper to lower, round by round, for the rounds that both have."""
    if upper is None or lower is None:
        return []
    below = {sample["round"]: of(sample) for sample in lower.samples}
    return [of(sample) / below[sample["round"]] for sample in upper.samples if sample["round"] in below]


def wall(sample: dict[str, Any]) -> float:
    """Seconds from request to result."""
    return float(sample["wall_s"])


def grown(sample: dict[str, Any]) -> float:
    """Bytes of the rank whose memory grew most."""
    return float(max(sample["grown"]))


def generating(sample: dict[str, Any]) -> float:
    """Seconds from request to result, less the projection afterwards if the method has one; one clock for all methods."""
    return wall(sample) - float(sample.get("project_s", 0.0))


def steps_a_second(sample: dict[str, Any], tokens: int) -> float:
    """Decode steps per second, if the method tells their seconds; else tokens per second, the prompt's pass included."""
    return (tokens - 1) / float(sample["decode_s"]) if "decode_s" in sample else tokens / generating(sample)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return "Not measured yet."
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _short(cell: Cell) -> str:
    """N, with a mark if it is less than requested."""
    return f"{len(cell.samples)}" + ("*" if len(cell.samples) < cell.wanted else "")


def against_published(cells: Sequence[Cell]) -> str:
    """Return the paper's Table 1."""
    rows = []
    for (model, dtype, ranks, tokens), group in groups(cells).items():
        theirs, ours = group.get("published"), group.get(OURS)
        if theirs is None or ours is None or not theirs.samples:
            continue
        rows.append(
            [
                f"{model}, {dtype}",
                str(ranks),
                str(tokens),
                spread([wall(s) for s in ours.samples]),
                spread([wall(s) for s in theirs.samples]),
                f"{1000 * statistics.median(wall(s) for s in theirs.samples) / tokens:,.0f}",
                f"**{spread(ratios(theirs, ours, wall))}**",
                f"{_short(ours)}, {_short(theirs)}",
            ]
        )
    return _table(["model", "ranks", "T", "lens-magic, s", "LogitLens4LLMs, s", "its ms a token", "ratio", "N"], rows)


def every_method(cells: Sequence[Cell]) -> str:
    """Return all methods in every setting, with the ratio to our method that does the same work."""
    rows = []
    for (model, dtype, ranks, tokens), group in groups(cells).items():
        for method, cell in group.items():
            if not cell.samples:
                continue
            place = [f"{model}, {dtype}", str(ranks), str(tokens), NAMES[method]]
            seconds = [wall(s) for s in cell.samples]
            rate = f"{tokens / statistics.median(seconds):,.1f}"
            rows.append([*place, _short(cell), spread(seconds), rate, _times_ours(group, method, wall), _agreement(cell)])
    return _table(["model", "ranks", "T", "method", "N", "s", "tokens/s", "× ours", "as ours"], rows)


def _times_ours(group: Group, method: str, of: Callable[[dict[str, Any]], float]) -> str:
    """How many times what ours takes a method takes: ours with the same work to do. Empty for ours."""
    if method in (OURS, BARE, RESIDUAL):
        return ""
    return spread(ratios(group[method], group.get(SAME_WORK.get(method, OURS), group.get(OURS)), of))


def _agreement(cell: Cell) -> str:
    if cell.agrees is None:
        return ""
    tokens = f"{100 * cell.agrees['tokens']:.0f} %"
    if "first" not in cell.agrees:
        return tokens
    cells = f"{tokens}, {100 * cell.agrees['first']:.1f} %"
    # The paper's probabilities are over the k kept tokens, so their difference from ours says nothing about agreement.
    return cells if cell.method == "deferred" else f"{cells}, {cell.agrees['probability']:.0e}"


def overhead(cells: Sequence[Cell], copy_rate: float, read: Callable[[str, str, int], float]) -> str:
    """Return generation with and without capturing, and transformers' own, compared with memory bandwidth.

    Args:
        read: bytes that a token has to read, by (model, dtype, tokens).
    """
    rows = []
    for (model, dtype, ranks, tokens), group in groups(cells).items():
        if not (OURS in group and group[OURS].samples):
            continue

        ours, bare, plain = group[OURS], group.get(BARE), group.get("generate")
        rate = [tokens / generating(s) for s in ours.samples]
        steps = statistics.median(steps_a_second(s, tokens) for s in ours.samples)
        projection = [s["project_s"] / generating(s) for s in ours.samples]
        rows.append(
            [
                f"{model}, {dtype}",
                str(ranks),
                str(tokens),
                spread(rate),
                spread(ratios(bare, ours, generating)),
                spread(ratios(plain, ours, generating)),
                f"{100 * steps * read(model, dtype, tokens) / copy_rate:.0f} %",
                f"{100 * statistics.median(projection):.0f} %",
                _short(ours),
            ]
        )
    header = [
        "model",
        "ranks",
        "T",
        "tokens/s, capturing",
        "÷ not capturing",
        "÷ transformers",
        "of the copy rate",
        "projection",
        "N",
    ]
    return _table(header, rows)


def memory(cells: Sequence[Cell]) -> str:
    """Return peak bytes beyond the loaded model, per rank."""
    rows = []
    for (model, dtype, ranks, tokens), group in groups(cells).items():
        for method, cell in group.items():
            if not cell.samples:
                continue
            place = [f"{model}, {dtype}", str(ranks), str(tokens), NAMES[method]]
            captures = cell.samples[-1].get("captures")
            rows.append(
                [
                    *place,
                    _short(cell),
                    spread([grown(s) / 1e6 for s in cell.samples]),
                    f"{max(captures) / 1e6:.2f}" if captures else "",
                    _times_ours(group, method, grown),
                ]
            )
    return _table(["model", "ranks", "T", "method", "N", "peak, MB a rank", "of it captured states", "× ours"], rows)


def measured_on(about: dict[str, Any]) -> str:
    """Return the line below a table: the machine, the time, and the commit if it was recorded."""
    its = about["machine"]
    commit = f", commit {about['commit']}" if about.get("commit") else ""
    return f"*{short_name(its)}, {_begun(about)['time'][:10]}{commit}.*"


NOT_RECORDED = "*On which processor this was measured, when, and of which commit, was not recorded.*"
"""The line below a table whose results do not record this."""


def short_name(its: dict[str, Any]) -> str:
    """Name a machine by what was measured on it: its GPU, or its processor and cores."""
    name: str = its["gpu"] if "gpu" in its else f"{_plain(its['processor'])}, {its['cores']} cores"
    return name


def machines(abouts: dict[str, dict[str, Any]]) -> str:
    """Return one list item per machine: what it is, and which suites were measured on it.

    Args:
        abouts: what each results file says about itself, by suite.
    """
    suites: dict[str, list[str]] = {}
    for suite, about in abouts.items():
        suites.setdefault(_machine(about["machine"]), []).append(suite)
    items = []
    for words, measured in suites.items():
        rates = [abouts[suite]["copy_bytes_per_s"] / 1e9 for suite in measured if "copy_bytes_per_s" in abouts[suite]]
        copies = f" Memory copied at {_range(rates)} GB/s (read and written)." if rates else ""
        loads = [f"{suite} ({_begun(abouts[suite])['load']})" for suite in measured]
        items.append(f"- {words}.{copies} Measured, with the load before it: {', '.join(loads)}.")
    return "\n".join(items)


def _range(values: Sequence[float]) -> str:
    least, most = (f"{value:,.1f}" for value in (min(values), max(values)))
    return least if least == most else f"{least} to {most}"


def _machine(its: dict[str, Any]) -> str:
    if "gpu" not in its:
        return _host(its)
    capability = f", capability {its['gpu_capability']}" if "gpu_capability" in its else ""
    driver = f", driver {its['driver']}" if "driver" in its else ""
    return f"{its['gpu']}, {its['gpu_bytes'] / 2**30:.0f} GiB{capability}, CUDA {its['cuda']}{driver}; host: {_host(its)}"


def _host(its: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in its["versions"].items())
    virtual = " (virtual)" if its["hypervisor"] else ""
    return (
        f"{_plain(its['processor'])}{virtual}, {its['cores']} cores, {its['memory_bytes'] / 2**30:.0f} GiB, "
        f"{', '.join(its['simd'])}; governor: {its['governor']}; {its['system']}, Python {its['python']}, {versions}"
    )


def _plain(processor: str) -> str:
    return processor.replace("(R)", "")


def _begun(about: dict[str, Any]) -> dict[str, Any]:
    """Time and load; an ablation stores them at the top level."""
    return about.get("begun", about)


def bytes_a_token(model: str, dtype: str, tokens: int, prompt: int = 12) -> float:
    """Bytes that a cached step reads: every weight but the embedding's other rows, and on average half the keys and values."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from . import checkpoints

    config = AutoConfig.from_pretrained(checkpoints.DEMO) if model == "demo" else checkpoints.config(model)
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    weights = sum(parameter.numel() for parameter in built.parameters())
    if not config.tie_word_embeddings:
        weights -= built.get_input_embeddings().weight.numel()
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cached = 2 * config.num_hidden_layers * config.num_key_value_heads * head * (prompt + tokens / 2)
    return (weights + cached) * (4 if dtype == "float32" else 2)


def left_out(results: dict[str, list[Cell]]) -> str:
    """Return what was not measured as planned, and why."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for suite, cells in results.items():
        for cell in cells:
            if cell.left_out:
                where = f"{suite}: {cell.model}, {cell.dtype}, ranks: {cell.ranks}, T = {cell.tokens}"
                part = f"{NAMES[cell.method].strip('*')}, {len(cell.samples)} of {cell.wanted} rounds"
                reasons.setdefault((where, cell.left_out), []).append(part)
    lines = [f"- {where}: {reason} ({'; '.join(parts)})" for (where, reason), parts in reasons.items()]
    return "\n".join(lines) or "Nothing."


def between(text: str, name: str, new: str) -> str:
    """Replace the block between ``<!-- name -->`` and the next ``<!-- end -->``."""
    begin = text.index(f"<!-- {name} -->") + len(f"<!-- {name} -->")
    end = text.index("<!-- end -->", begin)
    return f"{text[:begin]}\n{new.strip()}\n{text[end:]}"


def names_in(page: Path) -> list[str]:
    """Return the names of the blocks that a page has."""
    import re

    return re.findall(r"<!-- ([a-z-]+) -->\n", page.read_text(encoding="utf-8").replace("<!-- end -->", ""))
