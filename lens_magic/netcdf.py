"""Datasets as one NetCDF file, which appears whole or not at all."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .errors import LensError
from .writing import written_whole

if TYPE_CHECKING:
    import xarray as xr


NETCDF_ENDINGS = (".nc", ".netcdf", ".h5")


def require_netcdf(path: Path) -> Path:
    """Return a path to write NetCDF to or read it from.

    Raises:
        LensError: it has none of NetCDF's endings.
    """
    if path.suffix not in NETCDF_ENDINGS:
        raise LensError(f"{path.name!r} should end in .nc (NetCDF)")
    return path


def write_netcdf(path: Path, datasets: Mapping[str, xr.Dataset], encoding: Mapping[str, Any] | None = None) -> Path:
    """Write Datasets to a file, built in memory first: HDF5 ends the whole process if the disk is full when it closes a file.

    Args:
        datasets: by group; "" is the root.
        encoding: of the first Dataset's variables.

    Raises:
        LensError: the file cannot be written there.
    """
    with written_whole(path) as partial:
        made = io.BytesIO()
        for number, (group, dataset) in enumerate(datasets.items()):
            coded = dict(encoding or {}) if number == 0 else {}
            mode: Literal["w", "a"] = "a" if number else "w"
            dataset.to_netcdf(made, mode=mode, group=group or None, engine="h5netcdf", encoding=coded)
        with made.getbuffer() as whole:  # an error's traceback would keep it, and made could not be freed
            partial.write_bytes(whole)
    return path
