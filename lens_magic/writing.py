"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from .errors import LensError, reason_of
from .paths import path_of


@contextlib.contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to in a ``with`` block; if the block succeeds, what is there replaces ``path``.

    The block may write a file or a folder; a folder replaces a folder with all that is in it.

    Raises:
        LensError: the path is invalid, its folder does not exist, or writing fails.
    """
    try:
        target = path_of(path)
        if target.is_symlink():  # replace the link's target, not the link
            target = target.resolve()
        partial, old = (target.with_name(f".{secrets.token_hex(8)}.{what}") for what in ("partial", "old"))
    except (OSError, RuntimeError, ValueError) as error:  # name too long, or no name
        raise LensError(f"{str(path)!r} is no path of a file: {reason_of(error)}") from None
    if not target.parent.is_dir():
        raise LensError(f"{str(path)!r}: there is no folder {target.parent}")
    try:
        yield partial
        with contextlib.suppress(FileNotFoundError):  # keep the permissions of what was there
            if target.is_dir() == partial.is_dir():
                shutil.copymode(target, partial)
        if partial.is_dir():
            _replace_folder(target, partial, old)
        else:
            partial.replace(target)
    except (OSError, RuntimeError, ValueError) as error:  # how HDF5 and Zarr report what fails
        raise LensError(f"{target} cannot be written: {reason_of(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            if old.exists() and not target.exists():
                old.replace(target)
        for left in (partial, old):
            _remove(left)


def _replace_folder(target: Path, new: Path, old: Path) -> None:
    """Move what is at the target to ``old``, as no folder can replace one that is not empty, and a new folder to the target."""
    while True:
        with contextlib.suppress(FileNotFoundError):
            target.replace(old)
        try:
            new.replace(target)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        _remove(old)  # somebody else has just written the target too


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
