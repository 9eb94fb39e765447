"""Checks of where results are to be written, before there are any."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import LensError
from .lens.files import require_own, require_zarr


def check_output(option: str, path: Path) -> None:
    """Check that a result can be written to a path.

    Args:
        option: the option the path was given with, such as ``--save``.

    Raises:
        LensError: the zarr package is missing, the path is a folder (for Zarr: and no saved run), or its parent does not
            exist or is not writable.
    """
    if path.suffix == ".zarr":
        require_zarr()  # a Zarr result is a folder itself
        require_own(path)
    elif path.is_dir():
        raise LensError(f"{option} {str(path)!r} is a folder; the name of a file in it would do")
    if not path.parent.is_dir():
        raise LensError(f"{option} {str(path)!r}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise LensError(f"{option} {str(path)!r}: nothing can be written to {path.parent}")
