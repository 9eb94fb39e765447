"""Files that are not what they should be, in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from .errors import LensError


@contextlib.contextmanager
def read_as(what: str, path: Path, hdf5: bool = False) -> Iterator[None]:
    """In a ``with`` block, whatever a damaged or foreign file leads to.

    Args:
        what: what it should be, such as "a saved report".
        hdf5: see that it can be opened at all; h5netcdf leaves a traceback of its own behind where it cannot.

    Raises:
        LensError: it is not; says why.
    """
    try:
        if hdf5:
            import h5py

            h5py.File(path, "r").close()
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = str(error).partition("\n")[0] if not isinstance(error, KeyError) else f"it has no {error}"
        raise LensError(f"{path} is not {what}: {reason}") from error
