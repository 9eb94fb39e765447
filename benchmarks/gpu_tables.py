"""Tables of GPU measurements, made from the results file only."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from .tables import generating, spread, steps_a_second


def table(whole: Mapping[str, Any]) -> str:
    """Return Markdown: one row per model, another if transformers was measured, and the checks."""
    about = whole["about"]
    header = ["shape", "tokens/s", "of the copy rate", "÷ not capturing", "÷ transformers"]
    header += ["projection ÷ generation", "peak beyond weights, GB", "N"]
    lines = [
        f"{about['machine']['gpu']}, copies at {about['copy_bytes_per_s'] / 1e9:,.0f} GB/s (read and written)"
        f"; T = {about['tokens']}, bfloat16, one rank. Rates are by the seconds from asking to having, less the projection's;"
        " ours of the copy rate by those of the decode steps alone, of which each reads weights, keys and values once.",
        *(f"Without {whose} kernels: {reason}." for whose, reason in about["kernels_not_used"].items()),
        "",
        "| " + " | ".join(header) + " |",
        "| --- " * len(header) + "|",
        *(line for model in whole["models"] for line in _rows(model, about)),
    ]
    if "checks" in whole:
        lines += ["", checked(whole["checks"])]
    return "\n".join(lines)


def _rows(model: Mapping[str, Any], about: Mapping[str, Any]) -> list[str]:
    rounds, reason = model.get("rounds"), f"left out: {model.get('left_out', 'the run was cut short')}"
    if not rounds:
        return [f"| {model['model']} | {reason} | | | | | | 0 |"]
    ours = [each["capturing"] for each in rounds]
    beside = [each for each in rounds if "transformers" in each]
    kept, against = (
        [generating(each[way]) / generating(each["capturing"]) for each in some]
        for way, some in (("not_capturing", rounds), ("transformers", beside))
    )
    projection = [100 * each["project_s"] / generating(each) for each in ours]
    peak = statistics.median(each["peak_beyond_weights"] for each in rounds) / 1e9
    name = model["model"] if model["steps_replayed"] else f"{model['model']} (steps not replayed)"
    figures = [*_rate(model, about, ours), spread(kept), spread(against) if against else ""]
    short = "*" if len(rounds) < model["wanted"] else ""
    rows = [f"| {name} | {' | '.join(figures)} | {spread(projection)} % | {peak:.2f} | {len(rounds)}{short} |"]
    theirs = f"{model['model']}, transformers' `generate`, no lens"
    if beside:
        figures = _rate(model, about, [each["transformers"] for each in beside])
        rows.append(f"| {theirs} | {' | '.join(figures)} | | | | | {len(beside)} |")
    elif "transformers_left_out" in model:
        rows.append(f"| {theirs} | left out: {model['transformers_left_out']} | | | | | | 0 |")
    if short and "left_out" in model:
        rows.append(f"| {model['model']}, {model['wanted'] - len(rounds)} of {model['wanted']} rounds | {reason} | | | | | | |")
    return rows


def _rate(model: Mapping[str, Any], about: Mapping[str, Any], samples: Sequence[dict[str, Any]]) -> list[str]:
    """Tokens per second, and how close that is to memory bandwidth."""
    rate = [about["tokens"] / generating(sample) for sample in samples]
    steps = [steps_a_second(sample, about["tokens"]) for sample in samples]
    reached = [100 * speed * model["bytes_a_token"] / about["copy_bytes_per_s"] for speed in steps]
    return [spread(rate), f"{spread(reached)} %"]


def checked(found: Mapping[str, Any]) -> str:
    """Return Markdown: what was checked of the demo model and of the kernels."""
    lines = [
        f"Checked before on the demo model, {found['prompts']} prompts of {found['tokens']} tokens:",
        "",
        "| dtype | against | first candidates alike | largest difference of a logit | tokens before the first other |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in found["models"]:
        place = f"| {row['dtype']} | {row['against']} |"
        if "left_out" in row:
            lines.append(f"{place} left out: {row['left_out']} | | |")
            continue
        margin = f", then {row['margin']:.1e} of a logit apart at most" if row["margin"] else ""
        steps = "" if row["replayed"] else " (no step was replayed)"
        alike = f"{row['alike']} of {row['of']}{margin}{steps}"
        lines.append(f"{place} {100 * row['first']:.2f} % | {row['logit']:.1e} | {alike} |")
    lines += [
        "",
        "Kernels at the sizes of a step, largest error over the largest number:",
        "",
        "| kernel | dtype | ours | torch's |",
        "| --- | --- | --- | --- |",
    ]
    for row in found["kernels"]:
        place = f"| {row['kernel']} | {row['dtype']} |"
        if "left_out" in row:
            lines.append(f"{place} left out: {row['left_out']} | |")
            continue
        exactly = "" if row.get("exactly", True) else " (counts or the largest differ)"
        lines.append(f"{place} {row['ours']:.1e}{exactly} | {row['torch']:.1e} |")
    return "\n".join(lines)
