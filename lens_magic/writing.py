"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from .errors import LensError


@contextlib.contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A path to write to in a ``with`` block; what is there when it ends well takes the place of ``path``.

    Raises:
        LensError: there is no such folder, or it cannot be written to.
    """
    try:
        target = Path(path).expanduser()
        if target.is_symlink():  # what it points to is written, and stays what it points to
            target = target.resolve()
        partial = target.with_name(f".{secrets.token_hex(8)}.partial")
    except (OSError, RuntimeError, ValueError) as error:  # a name too long; no such user; no name
        raise LensError(f"{str(path)!r} is no path of a file: {reason_of(error)}") from None
    if not target.parent.is_dir():
        raise LensError(f"{str(path)!r}: there is no folder {target.parent}")
    try:
        yield partial
        with contextlib.suppress(FileNotFoundError):  # what only its owner could read stays so
            shutil.copymode(target, partial)
        partial.replace(target)
    except (OSError, RuntimeError) as error:  # RuntimeError: how HDF5 tells of a full disk
        raise LensError(f"{target} cannot be written: {reason_of(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def reason_of(error: Exception) -> str:
    """Why something could not be written, in one line."""
    return str(getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
