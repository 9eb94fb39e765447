"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from .errors import LensError
from .paths import path_of


@contextlib.contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to in a ``with`` block; if the block succeeds, what is there replaces ``path``.

    Raises:
        LensError: the path is invalid, its folder does not exist, or writing fails.
    """
    try:
        target = path_of(path)
        if target.is_symlink():  # replace the link's target, not the link
            target = target.resolve()
        partial = target.with_name(f".{secrets.token_hex(8)}.partial")
    except (OSError, RuntimeError, ValueError) as error:  # name too long, or no name
        raise LensError(f"{str(path)!r} is no path of a file: {reason_of(error)}") from None
    if not target.parent.is_dir():
        raise LensError(f"{str(path)!r}: there is no folder {target.parent}")
    try:
        yield partial
        with contextlib.suppress(FileNotFoundError):  # keep the permissions of the old file
            shutil.copymode(target, partial)
        partial.replace(target)
    except (OSError, RuntimeError) as error:  # RuntimeError: how HDF5 reports a full disk
        raise LensError(f"{target} cannot be written: {reason_of(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def reason_of(error: Exception) -> str:
    """Return in one line why something could not be written."""
    return str(getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
