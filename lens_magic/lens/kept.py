"""Results kept on disk: every run of a ``%%lens`` cell, so that a lost kernel does not lose them."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from ..errors import LensError, reason_of, warn
from ..paths import path_of
from ..tables import as_html
from ..words import counted, quoted, size
from .files import prompt_of
from .run import LensRun

MOST = 100
"""How many runs are kept; the oldest are deleted first."""

_NAME = re.compile(r"(\d{8}-\d{6})-(\d{9})(Z?)\.nc")  # any other file in that folder is the user's own
_TIME = "%Y%m%d-%H%M%S"


def folder() -> Path:
    """Return ``LENS_RUNS_DIR`` if set, else ``lens-magic/runs`` in ``XDG_DATA_HOME``, by default ``~/.local/share``."""
    if stated := os.environ.get("LENS_RUNS_DIR"):
        return path_of(stated)
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return path_of(data) / "lens-magic" / "runs"


def keep(run: LensRun) -> Path | None:
    """Save a run among the kept and return its file. A full or read-only disk must not fail a cell: warn, return None."""
    try:
        place = folder()
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        seconds, rest = divmod(time.time_ns(), 10**9)  # one reading: from two, a name could sort before the previous run's
        path = run.save(place / f"{time.strftime(_TIME, time.gmtime(seconds))}-{rest:09d}Z.nc")  # UTC: no hour comes twice
        for old in _files()[MOST:]:
            with contextlib.suppress(OSError):  # it may not be deleted, and this run is kept all the same
                old.unlink(missing_ok=True)
        return path
    except (LensError, OSError, RuntimeError) as error:
        said = reason_of(error, whole=not isinstance(error, RuntimeError))  # by which HDF5 reports a full disk, at length
        warn(f"this run was not kept on disk: {said}")
    return None


def clear() -> int:
    """Remove all kept runs and return how many there were."""
    files = _files()
    for file in files:
        file.unlink(missing_ok=True)
    return len(files)


def _files() -> list[Path]:
    """Return the files of the kept runs, newest first."""
    kept = [(when, file) for file in folder().glob("*.nc") if (when := _when(file)) is not None]
    return [file for _, file in sorted(kept, reverse=True)]


def _when(file: Path) -> tuple[float, str] | None:
    """Return the time that a kept run's name says, in seconds and nanoseconds; None if it is not such a name.

    In UTC, which a Z at its end says; before there was one, names had the local time.
    """
    if (named := _NAME.fullmatch(file.name)) is None:
        return None
    try:
        moment = datetime.strptime(named[1], _TIME)
        return moment.replace(tzinfo=UTC if named[3] else None).timestamp(), named[2]
    except (OverflowError, ValueError):  # a 13th month
        return None


@dataclass(frozen=True)
class KeptRuns:
    """The kept runs, newest first: (file, bytes). ``lens.open_run(file)`` reads one.

    Attributes:
        prompts: where it can be read, the prompt that a file's run is of.
    """

    files: list[tuple[Path, int]]
    prompts: Mapping[Path, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return "\n".join([self._title(), *("  ".join(filter(None, row)) for row in self._rows())])

    def _repr_html_(self) -> str:
        header = ("prompt", "size", "file") if self.files else ()
        return as_html(self._title(), header, [row[::-1] for row in self._rows()])

    def _title(self) -> str:
        if not self.files:
            return f"no runs are kept in {folder()}"
        return f"{counted(len(self.files), 'run')}; lens.open_run(FILE) reads one:"

    def _rows(self) -> list[tuple[str, str, str]]:
        prompts = {path: quoted(prompt) for path, prompt in self.prompts.items()}
        return [(str(path), size(count), prompts.get(path, "")) for path, count in self.files]


def listing() -> KeptRuns:
    """List the kept runs."""
    sizes, prompts = [], {}
    for path in _files():
        with contextlib.suppress(FileNotFoundError):  # another kernel has just deleted it for a newer run
            sizes.append((path, path.stat().st_size))
            with contextlib.suppress(LensError):  # a damaged file is listed too: it takes room
                prompts[path] = prompt_of(path)
    return KeptRuns(sizes, prompts)
