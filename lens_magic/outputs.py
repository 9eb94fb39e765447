"""Where results are to go, looked at before there are any."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import LensError
from .lens.files import require_zarr


def check_output(option: str, path: Path) -> None:
    """Whether a result can be written to a path.

    Args:
        option: the user gave it with, as ``--save``.

    Raises:
        LensError: its ending's package is missing, it is a folder, or the folder it should be in is not there or not writable.
    """
    if path.suffix == ".zarr":
        require_zarr()  # such a result is a folder itself
    elif path.is_dir():
        raise LensError(f"{option} {str(path)!r} is a folder; the name of a file in it would do")
    if not path.parent.is_dir():
        raise LensError(f"{option} {str(path)!r}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise LensError(f"{option} {str(path)!r}: nothing can be written to {path.parent}")
