"""Results kept on disk: every run of a ``%%lens`` cell, so that a lost kernel does not lose them."""

from __future__ import annotations

import contextlib
import os
import re
import time
import warnings
from dataclasses import dataclass
from html import escape
from pathlib import Path

from ..errors import LensError
from .run import LensRun

MOST = 100
"""How many runs are kept; the oldest go first."""

_NAME = re.compile(r"\d{8}-\d{6}-\d{9}\.nc")  # any other file in that folder is somebody's own


def folder() -> Path:
    """``LENS_RUNS_DIR``, else ``lens-magic/runs`` where the user's data goes (``XDG_DATA_HOME``, ``~/.local/share``)."""
    if stated := os.environ.get("LENS_RUNS_DIR"):
        return Path(stated).expanduser()
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(data).expanduser() / "lens-magic" / "runs"


def keep(run: LensRun) -> Path | None:
    """Save a run among the kept; a full or read-only disk is no reason to fail a cell: that is a warning, and None."""
    try:
        place = folder()
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        seconds, rest = divmod(time.time_ns(), 10**9)  # read once: a name is never earlier than that of the run before
        path = run.save(place / f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(seconds))}-{rest:09d}.nc")
        for old in _files()[MOST:]:
            old.unlink(missing_ok=True)
        return path
    except (LensError, OSError, RuntimeError) as error:  # RuntimeError: a user without a home
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        warnings.warn(f"this run was not kept on disk: {reason}", stacklevel=2)
    return None


def clear() -> int:
    """Remove all kept runs; returns how many there were."""
    files = _files()
    for file in files:
        file.unlink(missing_ok=True)
    return len(files)


def _files() -> list[Path]:
    """Newest first."""
    return sorted((file for file in folder().glob("*.nc") if _NAME.fullmatch(file.name)), reverse=True)


@dataclass(frozen=True)
class Kept:
    """The kept runs, newest first: (file, megabytes). ``lens.open_run(file)`` reads one."""

    files: list[tuple[Path, float]]

    def __repr__(self) -> str:
        if not self.files:
            return f"no runs are kept in {folder()}"
        lines = [f"{path}  {size:.1f} MB" for path, size in self.files]
        return "\n".join([f"{len(self.files)} runs; lens.open_run(FILE) reads one:", *lines])

    def _repr_html_(self) -> str:
        return f"<pre>{escape(repr(self))}</pre>"


def listing() -> Kept:
    """What is kept."""
    sizes = []
    for path in _files():
        with contextlib.suppress(FileNotFoundError):  # another kernel's newest has just taken its place
            sizes.append((path, path.stat().st_size / 1e6))
    return Kept(sizes)
