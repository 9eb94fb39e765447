"""One-line errors for files that are not what they should be."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from .errors import LensError, reason_of


@contextlib.contextmanager
def read_as(what: str, path: Path, hdf5: bool = False) -> Iterator[None]:
    """Turn whatever a damaged or foreign file raises in a ``with`` block into one error.

    Args:
        what: what the file should be, such as "a saved report".
        hdf5: check first that HDF5 can open the file; if it cannot, h5netcdf would leave a traceback of its own behind.

    Raises:
        LensError: the file is something else; says why.
    """
    try:
        if hdf5:
            import h5py

            h5py.File(path, "r").close()
        yield
    except LensError:
        raise
    except Exception as error:  # HDF5, Zarr and each of its codecs have their own, with no common base
        reason = reason_of(error) if not isinstance(error, KeyError) else f"it has no {error}"
        raise LensError(f"{path} is not {what}: {reason}") from error
