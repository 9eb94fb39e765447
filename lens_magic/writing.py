"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from .errors import LensError


@contextlib.contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A path to write to in a ``with`` block; what is there when it ends well takes the place of ``path``.

    Raises:
        LensError: there is no such folder, or it cannot be written to.
    """
    target = Path(path).expanduser()
    if not target.parent.is_dir():
        raise LensError(f"{str(path)!r}: there is no folder {target.parent}")
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(target)
    except (OSError, RuntimeError) as error:  # RuntimeError: how HDF5 tells of a full disk
        reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
        raise LensError(f"{target} cannot be written: {reason}") from error
    finally:
        partial.unlink(missing_ok=True)
