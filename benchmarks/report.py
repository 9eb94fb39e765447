"""Tables and plots from results files; and, to publish, the pages in docs/ that hold them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from . import ablation, aims, gpu_tables, plan, plots, tables
from .process import ROOT
from .store import Cell, read

PUBLISHED = ROOT / "benchmarks" / "results"
SEPARATE = {"ablation": ablation.table, "gpu": gpu_tables.table}
"""Results that are no cells of suites, and what makes a table of them."""
KNOWN = {suite.name for suite in plan.suites(full=True)} | set(SEPARATE)
PAGES = (ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "paper.md")


def write(out: Path, publish: bool = False) -> list[Path]:
    """Write ``out/tables.md`` and plots of what is in ``out``; ``publish`` also puts it among the results in the repository.

    Suites may come from different machines: every table says from which, and no plot draws two of them as one line.
    """
    files = _known(out.glob("*.json"))
    if not files:
        return []
    blocks, results = _read(files)
    made = [out / "tables.md", *plots.draw(results, out)]
    made[0].write_text("\n\n".join(f"## {name}\n\n{text}" for name, text in blocks.items()) + "\n", encoding="utf-8")
    if publish:
        made += _publish(files)
    return made


def _known(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if path.stem in KNOWN)


def _read(files: list[Path]) -> tuple[dict[str, str], dict[str, list[Cell]]]:
    """Every block of text, by name, and by suite the cells to plot."""
    blocks: dict[str, str] = {}
    results: dict[str, list[Cell]] = {}
    abouts: dict[str, dict[str, Any]] = {}
    for path in files:
        suite = path.stem
        if suite in SEPARATE:
            whole = json.loads(path.read_text(encoding="utf-8"))
            abouts[suite], made = whole["about"], {suite: SEPARATE[suite](whole)}
        else:
            abouts[suite], results[suite] = read(path)
            made = _blocks(suite, abouts[suite], results[suite])
        blocks |= {name: f"{text}\n\n{tables.measured_on(abouts[suite])}" for name, text in made.items()}
    blocks["machine"] = tables.machines(abouts)
    if results:
        blocks["aims"], blocks["left-out"] = aims.table(results), tables.left_out(results)
    if {"speed", "lengths"} <= set(results) and abouts["speed"]["machine"] != abouts["lengths"]["machine"]:
        results = {suite: cells for suite, cells in results.items() if suite != "lengths"}  # they share a plot
    return blocks, results


def _blocks(suite: str, about: dict[str, Any], cells: list[Cell]) -> dict[str, str]:
    if suite == "memory":
        return {"memory": tables.memory(cells)}
    if suite == "overhead":
        return {"overhead": tables.overhead(cells, about["copy_bytes_per_s"], tables.bytes_a_token)}
    if suite == "speed":
        return {"published": tables.against_published(cells), "speed": tables.every_method(cells)}
    return {suite: tables.every_method(cells)}


def _publish(files: list[Path]) -> list[Path]:
    """Results to ``benchmarks/results/MACHINE`` in place of the same suites', wherever those were measured.

    Plots to ``docs/images`` and tables into the pages: of everything that is published then.
    """
    made = []
    for path in files:
        its = json.loads(path.read_text(encoding="utf-8"))["about"]["machine"]
        folder = PUBLISHED / re.sub(r"[^a-z0-9]+", "-", tables.short_name(its).lower()).strip("-")
        folder.mkdir(parents=True, exist_ok=True)
        for old in PUBLISHED.glob(f"*/{path.name}"):
            old.unlink()
        made.append(Path(shutil.copy(path, folder / path.name)))
    blocks, results = _read(_known(PUBLISHED.glob("*/*.json")))
    drawn = plots.draw(results, ROOT / "docs" / "images")
    blocks |= {f"plot-{path.stem.removeprefix('bench-')}": f"![{plots.WORDS[path.stem]}](images/{path.name})" for path in drawn}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in tables.names_in(page):
            if block in blocks:
                text = tables.between(text, block, blocks[block])
        page.write_text(text, encoding="utf-8")
    return [*made, *drawn, *PAGES]
