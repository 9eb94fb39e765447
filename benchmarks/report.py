"""Tables and plots from results files, and for publishing the pages in docs/ that hold them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lens_magic.errors import LensError

from . import ablation, aims, gpu_tables, plan, plots, steerability, store, tables
from .process import ROOT
from .store import Cell, read

PUBLISHED = ROOT / "benchmarks" / "results"
SEPARATE = {"ablation": ablation.table, "gpu": gpu_tables.table, "steerability": steerability.table}
"""Results other than cells of suites, and the functions that make tables of them."""
KNOWN = {suite.name for suite in plan.suites(full=True)} | set(SEPARATE)
PAGES = (ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "paper.md")


def write(out: Path, publish: Sequence[str] | None = None, force: bool = False) -> list[Path]:
    """Write ``out/tables.md`` and plots of the results in ``out``.

    Suites may come from different machines: every table names its machine, and no plot joins two machines in one line.

    Args:
        publish: suites to copy to the repository's results before updating the pages in docs/; if empty, only update these.
        force: publish a suite even if it has fewer samples than the published one.

    Raises:
        LensError: a suite to publish is missing, or has fewer samples; nothing was published.
    """
    made = []
    if files := _known(out.glob("*.json")):
        blocks, results = _read(files)
        made = [out / "tables.md", *plots.draw(results, out)]
        made[0].write_text("\n\n".join(f"## {name}\n\n{text}" for name, text in blocks.items()) + "\n", encoding="utf-8")
    if publish is not None:
        made += _publish([_to_publish(out / f"{suite}.json", force) for suite in dict.fromkeys(publish)])
    return made


def _to_publish(path: Path, force: bool) -> Path:
    """Return the file if it may replace the published one."""
    if not path.exists():
        raise LensError(f"there is no {path.name} in {path.parent} to publish")
    has = samples(path)
    for old in PUBLISHED.glob(f"*/{path.name}"):
        if has < (before := samples(old)) and not force:
            raise LensError(
                f"{path} has {has} samples, {before} are published ({old.parent.name}); --force puts it in their place"
            )
    return path


def samples(path: Path) -> int:
    """Number of samples; of an ablation, of prompts in all comparisons."""
    whole = json.loads(path.read_text(encoding="utf-8"))
    rounds = [*whole.get("cells", []), *whole.get("models", [])]
    counted = sum(len(one.get("samples", one.get("rounds", ()))) for one in rounds)
    counted += sum(len(seconds) for row in whole.get("results", ()) for seconds in row["seconds"].values())
    return counted + sum(one["n"] for one in whole.get("comparisons", ()))


def _known(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if path.stem in KNOWN)


def _read(files: list[Path]) -> tuple[dict[str, str], dict[str, list[Cell]]]:
    """Return every block of text by name, and the cells to plot by suite."""
    blocks: dict[str, str] = {}
    results: dict[str, list[Cell]] = {}
    abouts: dict[str, dict[str, Any]] = {}
    for path in files:
        suite = path.stem
        if suite in SEPARATE:
            whole = json.loads(path.read_text(encoding="utf-8"))
            made = {suite: SEPARATE[suite](whole)}
            if "about" not in whole:  # results from before this was recorded
                blocks[suite] = f"{made[suite]}\n\n{tables.NOT_RECORDED}"
                continue
            abouts[suite] = whole["about"]
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
    """Copy results to ``benchmarks/results/MACHINE``, replacing those of the same suites from any machine.

    Then write plots to ``docs/images`` and tables into the pages, from everything published.
    """
    made = []
    for path in files:
        whole = json.loads(path.read_text(encoding="utf-8"))
        about = whole["about"]
        if about.get("commit") is None and about.get("sources") == store.sources():  # measured in a copy without git
            about["commit"] = store.commit()
        folder = PUBLISHED / re.sub(r"[^a-z0-9]+", "-", tables.short_name(about["machine"]).lower()).strip("-")
        for old in PUBLISHED.glob(f"*/{path.name}"):
            old.unlink()
        made.append(folder / path.name)
        store.write(made[-1], whole)
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
