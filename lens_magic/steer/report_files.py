"""Steerability reports as xarray Datasets, and as NetCDF files: one at the root of a file, or several in groups."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import LensError
from ..netcdf import require_netcdf, write_netcdf
from ..options import UNITS, choice
from ..reading import read_as
from ..words import printable

if TYPE_CHECKING:
    import xarray as xr

    from .report import SteerabilityReport

FORMAT = 1
MATCHING = ("A", "B")
_SHOWN = ("vector", "site", "counts", "provenance")
_IN_ATTRIBUTES = ("labels", "unit", *_SHOWN)
_OWN = ("lens_magic_report", "report")


def to_dataset(report: SteerabilityReport) -> xr.Dataset:
    """Return the propensities with their coordinates."""
    import xarray as xr

    draws = report.propensities.shape[0] - 1
    coordinates = {
        "direction": np.array(["vector", *(f"random {draw + 1}" for draw in range(draws))], dtype=np.str_),
        "layer": np.array(report.layers, dtype=np.int64),
        "prompt": np.arange(len(report.questions)),
        "matching": np.array(MATCHING, dtype=np.str_),
        "alpha": np.array(report.alphas, dtype=np.float64),
    }
    variables = {
        "propensity": (("direction", "layer", "prompt", "matching", "alpha"), report.propensities, {"units": "nats"}),
        "unsteered": (("prompt", "matching"), report.unsteered, {"units": "nats"}),
    }
    return xr.Dataset(variables, coordinates, attrs={"vector": report.vector, "site": report.site})


def save(reports: Mapping[str, SteerabilityReport], path: Path, **also: Any) -> Path:
    """Write reports; the file appears whole or not at all.

    Args:
        reports: by group; "" is the root.
        also: other values to keep, as JSON.
    """
    require_netcdf(path)
    kept = {name: json.dumps(value) for name, value in also.items()}
    return write_netcdf(path, {group: _stored(report).assign_attrs(kept) for group, report in reports.items()})


def _stored(report: SteerabilityReport) -> xr.Dataset:
    record = {name: getattr(report, name) for name in _IN_ATTRIBUTES}
    record["norms"] = {str(layer): norm for layer, norm in report.norms.items()}
    record["questions"] = list(report.questions)
    dataset = to_dataset(report)
    dataset.attrs = {"lens_magic_report": FORMAT, "report": json.dumps(record)}
    return dataset


def read(path: Path) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Read what :func:`save` wrote: the fields of each report by group, and the other values."""
    import xarray as xr

    require_netcdf(path)
    if not path.is_file():
        raise LensError(f"there is no file {path}")
    with read_as("a saved report", path, hdf5=True):
        datasets = {name.strip("/"): dataset for name, dataset in xr.open_groups(path, engine="h5netcdf").items()}
        stored = {name: dataset.load() for name, dataset in datasets.items() if dataset.attrs}
        for dataset in datasets.values():
            dataset.close()
        if not stored or any(dataset.attrs.get("lens_magic_report") != FORMAT for dataset in stored.values()):
            raise LensError(f"{path} is not a steerability report, or one of another version of its format")
        also = {name: value for name, value in next(iter(stored.values())).attrs.items() if name not in _OWN}
        reports = {name: _fields(dataset) for name, dataset in stored.items()}
        kept = {name: json.loads(value) for name, value in also.items()}
    return reports, kept


def _fields(dataset: xr.Dataset) -> dict[str, Any]:
    record = json.loads(dataset.attrs["report"])
    return {
        **{name: printable(record[name]) for name in _SHOWN},
        "labels": record["labels"],
        "unit": choice("unit", record.get("unit", UNITS[0]), UNITS),  # which older files do not have
        "norms": {int(layer): norm for layer, norm in record["norms"].items()},
        "questions": tuple(record["questions"]),
        "alphas": tuple(dataset["alpha"].values.tolist()),
        "layers": tuple(dataset["layer"].values.tolist()),
        "propensities": dataset["propensity"].values,
        "unsteered": dataset["unsteered"].values,
    }
