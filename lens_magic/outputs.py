"""Runs as files, in the format of their ending; what cannot be written there is refused before there is a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import LensError
from .netcdf import NETCDF_ENDINGS

if TYPE_CHECKING:
    from .lens.run import LensRun

ENDINGS = (".json", ".html", *NETCDF_ENDINGS, ".zarr")


def write(run: LensRun, path: Path) -> None:
    """Write a run: the paper's JSON, a page, or everything (NetCDF or Zarr).

    Raises:
        LensError: the file cannot be written.
    """
    {".json": run.to_json, ".html": run.to_html}.get(path.suffix, run.save)(path)


def check_output(option: str, path: Path) -> None:
    """Check that a run can be written to a path.

    Args:
        option: the option the path was given with, such as ``--save``.

    Raises:
        LensError: the ending is none of a run's, the zarr package is missing, the path is a folder (for Zarr: and no saved
            run), or its parent does not exist or is not writable.
    """
    if path.suffix not in ENDINGS:
        raise LensError(f"{option} {str(path)!r} should end in one of {', '.join(ENDINGS)}")
    if path.suffix == ".zarr":
        from .lens.files import require_own, require_zarr

        require_zarr()  # a Zarr result is a folder itself
        require_own(path)
    elif path.is_dir():
        raise LensError(f"{option} {str(path)!r} is a folder; the name of a file in it would do")
    if not path.parent.is_dir():
        raise LensError(f"{option} {str(path)!r}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise LensError(f"{option} {str(path)!r}: nothing can be written to {path.parent}")
