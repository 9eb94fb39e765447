"""Results on disk: a JSON file per suite, written after every sample, so that an interrupted run can continue."""

from __future__ import annotations

import hashlib
import json
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import machine
from .process import ROOT

# What the measurements depend on; pages and plots may change without measuring again.
_MEASURING = (
    *("ablation", "bench_process", "checkpoints", "gpu", "gpu_checks", "machine", "memory", "methods", "sharded"),
    "steerability",
)
_SOURCES = ("lens_magic/**/*.py", *(f"benchmarks/{name}.py" for name in _MEASURING), "benchmarks/peers/*.py")


@dataclass
class Cell:
    """One method in one setting, and its measurements.

    Attributes:
        samples: one per round: ``round``, ``wall_s``, and more if the method reports more.
        agrees: compared with ours on the same ranks: share of equal tokens and first candidates, largest difference of
            probability.
        left_out: why there are fewer samples than requested.
    """

    model: str
    dtype: str
    ranks: int
    tokens: int
    method: str
    wanted: int = 0
    samples: list[dict[str, Any]] = field(default_factory=list)
    agrees: dict[str, float] | None = None
    left_out: str | None = None

    @property
    def key(self) -> tuple[str, str, int, int, str]:
        return (self.model, self.dtype, self.ranks, self.tokens, self.method)


class Results:
    """The cells of a suite.

    Args:
        fresh: discard earlier measurements. Those of other sources or another machine are always discarded.
    """

    def __init__(self, folder: Path, suite: str, fresh: bool = False) -> None:
        self.path = folder / f"{suite}.json"
        self.suite = suite
        self.about: dict[str, Any] = {"suite": suite, **of_this_tree(), "machine": machine.describe()}
        self.cells: dict[tuple[str, str, int, int, str], Cell] = {}
        if not fresh and self.path.exists():
            known = json.loads(self.path.read_text(encoding="utf-8"))
            if all(known["about"].get(name) == self.about[name] for name in ("sources", "machine")):
                self.about = known["about"]
                self.cells = {cell.key: cell for cell in (Cell(**entry) for entry in known["cells"])}
        self.about.setdefault("begun", machine.now())

    def cell(self, *key: Any) -> Cell:
        """Return the cell of (model, dtype, ranks, tokens, method)."""
        return self.cells.setdefault(key, Cell(*key))

    def save(self) -> None:
        """Write the file."""
        about = {**self.about, "saved": machine.now()}
        write(self.path, {"about": about, "cells": [asdict(cell) for cell in self.cells.values()]})


def write(path: Path, whole: dict[str, Any]) -> None:
    """Write a results file atomically: readers see the old file or the new one, even if writing is interrupted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    new.replace(path)


def read(path: Path) -> tuple[dict[str, Any], list[Cell]]:
    """Read a results file: return what it says about itself, and its cells."""
    known = json.loads(path.read_text(encoding="utf-8"))
    return known["about"], [Cell(**entry) for entry in known["cells"]]


def of_this_tree() -> dict[str, Any]:
    """Identify what was measured: a digest of its sources, and their commit if git is available."""
    return {"sources": sources(), "commit": commit()}


def commit() -> str | None:
    """Return the commit checked out, and whether the measured sources differ from it; None without git."""
    if not (ROOT / ".git").exists():
        return None
    try:
        head = _git("rev-parse", "--short=10", "HEAD")
        changed = _git("status", "--porcelain", "--", *(f":(glob){pattern}" for pattern in _SOURCES))
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}, with changes" if changed else head


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def sources() -> str:
    """Return a digest of the code whose speed is measured."""
    digest = hashlib.sha256()
    for pattern in _SOURCES:
        for path in sorted(ROOT.glob(pattern)):
            digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]
