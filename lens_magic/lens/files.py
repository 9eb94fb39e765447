"""A run as an xarray Dataset, and as files: NetCDF or Zarr (everything), JSON (the paper's schema)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import LensError
from ..importing import import_whole
from ..netcdf import NETCDF_ENDINGS, write_netcdf
from ..reading import read_as
from ..words import printable
from ..writing import written_whole
from .variables import TRACKED, VARIABLES

if TYPE_CHECKING:
    import xarray as xr

    from .run import LensRun

FORMAT = 1
RUN_ENDINGS = (*NETCDF_ENDINGS, ".zarr")
"""Endings of files that a run is saved to."""
_PAPER_NAMES = {"attn_out": "attention_mechanism", "mlp_out": "mlp_output", "resid_post": "block_output"}
_CELLS = ("site", "layer", "position")
_IN_ATTRIBUTES: dict[str, type] = {
    **dict.fromkeys(("prompt", "text"), str),
    **dict.fromkeys(("timings", "memory", "options", "provenance"), dict),
    "interrupted": bool,
}
_PLAIN_CODECS = {"blosc", "lz4", "zlib", "zstd", "vlen-utf8"}
_UNITS = {"entropy": "nats", "kl_final": "nats"}


def to_dataset(run: LensRun) -> xr.Dataset:
    """Return the run's variables with their coordinates."""
    import_whole("xarray")  # for a first run that is being kept while the user presses stop again
    import xarray as xr

    variables: dict[str, Any] = {}
    for name in VARIABLES:
        values = run.variables[name]
        variables[name] = ((*_CELLS, "k")[: values.ndim], values, {"units": _UNITS[name]} if name in _UNITS else {})
    k = run.variables["token_id"].shape[-1]
    coordinates: dict[str, Any] = {
        "site": np.array(run.sites, dtype=np.str_),
        "layer": np.array(run.layers, dtype=np.int64),
        "position": np.array(run.positions, dtype=np.int64),
        "k": np.arange(k),
    }
    if "resid_post" in run.sites:
        coordinates["settled_layer"] = (("position",), run.settled)
    if "tracked_id" in run.variables:
        ids = run.variables["tracked_id"]
        variables |= {name: ((*_CELLS, "tracked"), run.variables[name]) for name in TRACKED}
        coordinates["tracked_id"] = (("position", "tracked"), ids)
        chosen = run.options.get("track")
        if isinstance(chosen, list):  # the same at every position, so they label the dimension
            coordinates["tracked"] = np.array(chosen, dtype=np.int64)
    return xr.Dataset(variables, coordinates, attrs={"model": run.model, "model_layers": run.depth, "text": run.text})


def _suffix(path: Path) -> str:
    if path.suffix not in RUN_ENDINGS:
        raise LensError(f"{path.name!r} should end in .nc (NetCDF) or .zarr (Zarr)")
    return "zarr" if path.suffix == ".zarr" else "netcdf"


def save(run: LensRun, path: Path) -> Path:
    """Write a run; the file appears whole or not at all."""
    kind = _suffix(path)
    dataset = packed(run)
    if kind == "zarr":
        require_zarr()
        require_own(path)
        with written_whole(path) as partial:
            dataset.to_zarr(partial, mode="w", zarr_format=2)  # version 3 has no settled form for strings
        return path
    bulky = [name for name in (*VARIABLES, *TRACKED) if name in dataset and dataset[name].size]
    compressed = {name: {"zlib": True, "complevel": 1, "shuffle": True} for name in bulky}
    return write_netcdf(path, {"": dataset}, compressed)


def packed(run: LensRun) -> xr.Dataset:
    """Return the whole run as a Dataset that can be written."""
    dataset = to_dataset(run)
    dataset["prompt_ids"] = ("prompt_token", np.array(run.prompt_ids, dtype=np.int64))
    dataset["output_ids"] = ("output_token", np.array(run.output_ids, dtype=np.int64))
    record = {name: getattr(run, name) for name in _IN_ATTRIBUTES}
    # One JSON text: NetCDF attributes allow neither nesting nor every character a token can hold.
    for texts in ("token_texts", "labels"):
        record[texts] = {str(index): text for index, text in getattr(run, texts).items()}
    dataset.attrs = {"lens_magic_format": FORMAT, "run": json.dumps(record)}
    return dataset


def read(path: Path) -> dict[str, Any]:
    """Return the fields of a saved run."""
    import xarray as xr

    kind = _suffix(path)
    if not path.exists():
        raise LensError(f"there is no file {path}")
    if kind == "zarr":
        require_zarr()
    with read_as("a saved run", path, hdf5=kind != "zarr"):
        if kind == "zarr":
            _require_plain_codecs(path)
            source: dict[str, Any] = {"engine": "zarr", "zarr_format": 2, "consolidated": False}
        else:
            source = {"engine": "h5netcdf"}
        with xr.open_dataset(path, **source) as opened:
            dataset = opened.load()
        if dataset.attrs.get("lens_magic_format") != FORMAT:
            raise LensError(f"{path} was not saved by lens-magic, or by another version of its format")
        return unpacked(dataset)


def prompt_of(path: Path) -> str:
    """Return the prompt of a run saved as NetCDF, reading none of its numbers.

    Raises:
        LensError: the file is something else.
    """
    with read_as("a saved run", path):
        import h5py

        with h5py.File(path, "r") as file:
            return str(json.loads(file.attrs["run"])["prompt"])


def unpacked(dataset: xr.Dataset) -> dict[str, Any]:
    """Return the fields of a run from what :func:`packed` made of it.

    Raises:
        KeyError, TypeError, ValueError: something is missing, or is not what it should be.
    """
    record = json.loads(dataset.attrs["run"])
    for name, kind in {**_IN_ATTRIBUTES, "token_texts": dict}.items():
        if not isinstance(record[name], kind):
            raise ValueError(f"its {name} should be a {kind.__name__}, not {type(record[name]).__name__}")
    steering, seen = (record["options"].get(name, default) for name, default in (("steering", []), ("lens", {})))
    if not (isinstance(steering, list) and all(isinstance(term, str) for term in steering) and isinstance(seen, dict)):
        raise ValueError("its options steering or lens are not what a run's are")
    _require_variables(dataset)
    return {
        **{name: record[name] for name in _IN_ATTRIBUTES},
        "options": printable(record["options"]),
        "provenance": printable(record["provenance"]),
        "prompt_ids": dataset["prompt_ids"].values.tolist(),
        "output_ids": dataset["output_ids"].values.tolist(),
        "sites": [printable(str(site)) for site in dataset["site"].values],
        "layers": dataset["layer"].values.tolist(),
        "positions": dataset["position"].values.tolist(),
        "variables": {name: dataset[name].values for name in (*VARIABLES, "tracked_id", *TRACKED) if name in dataset},
        "token_texts": {int(index): text for index, text in record["token_texts"].items()},
        "labels": {int(index): text for index, text in record.get("labels", {}).items()},
    }


def _require_variables(dataset: xr.Dataset) -> None:
    """Raise KeyError where one is missing, and ValueError where it is along other dimensions, or of another kind."""
    wanted: dict[str, tuple[tuple[str, ...], str]] = {
        **{name: ((*_CELLS, "k") if each else _CELLS, np.dtype(kind).kind) for name, (each, kind) in VARIABLES.items()},
        "site": (("site",), "OUT"),  # a text, as NumPy and xarray hold it
        **{name: ((name,), "i") for name in ("layer", "position")},
        **{f"{one}_ids": ((f"{one}_token",), "i") for one in ("prompt", "output")},
    }
    if "tracked_id" in dataset:
        wanted |= {name: ((*_CELLS, "tracked"), np.dtype(kind).kind) for name, kind in TRACKED.items()}
        wanted["tracked_id"] = (("position", "tracked"), "i")
    for name, (dimensions, kinds) in wanted.items():
        found = dataset[name]
        if found.dims != dimensions or found.dtype.kind not in kinds:
            raise ValueError(f"its {name} is {found.dtype} [{', '.join(map(str, found.dims))}], not [{', '.join(dimensions)}]")
    tokens, begin = dataset.sizes["prompt_token"] + dataset.sizes["output_token"], dataset.sizes["prompt_token"]
    if not all(0 <= begin + place < tokens for place in dataset["position"].values):
        raise ValueError(f"its positions are not all among its {tokens} tokens")


def _require_plain_codecs(path: Path) -> None:
    """Refuse arrays with codecs that do more than decompress: there is one that unpickles."""
    for link in path.rglob("*"):
        if link.is_symlink():  # its target would be read without having been checked
            raise LensError(f"{link} is a link, which no saved run has")
    for file in path.rglob(".zarray"):
        array = json.loads(file.read_text(encoding="utf-8"))
        for codec in (array.get("compressor"), *(array.get("filters") or ())):
            if codec is not None and codec["id"] not in _PLAIN_CODECS:
                raise LensError(f"{file} is coded as {codec['id']!r}, which no saved run is")


def require_own(target: Path) -> None:
    """Raise LensError if something is at this path that is no run saved as Zarr, and so must not be replaced by one."""
    marked = target / ".zattrs"
    if target.exists() and not (marked.is_file() and b"lens_magic_format" in marked.read_bytes()):
        raise LensError(f"{target} is there and is no saved run; another name would do")


def require_zarr() -> None:
    """Raise LensError where zarr is not installed."""
    try:
        import zarr  # noqa: F401
    except ImportError:
        raise LensError("Zarr files need the zarr package: pip install zarr; .nc works without") from None


def write_paper_json(run: LensRun, path: Path) -> Path:
    """Write a run as JSON in the schema of the paper's system."""
    if not _PAPER_NAMES.keys() & set(run.sites):
        raise LensError(
            f"the paper's JSON holds {', '.join(_PAPER_NAMES)}; this run captured {', '.join(run.sites)}, which .nc keeps"
        )
    with written_whole(path) as partial:
        partial.write_text(json.dumps(paper_record(run), ensure_ascii=False, indent=1), encoding="utf-8")
    return path


def paper_record(run: LensRun) -> Mapping[str, Any]:
    """Return ``{"step_0": {…}}`` as the paper's code writes it, but with percentages as numbers, and the token ids added."""
    ids = run.variables["token_id"].tolist()
    shares = (100 * run.variables["prob_topk"].astype(np.float64)).tolist()

    def cell(site: int, layer: int, position: int) -> list[list[Any]]:
        pairs = zip(ids[site][layer][position], shares[site][layer][position], strict=True)
        # JSON has no NaN.
        return [[run.candidate_texts.get(index, ""), None if isnan(share) else share, index] for index, share in pairs]

    data = {
        str(position): {
            str(layer): {_PAPER_NAMES[site]: cell(s, at_layer, at) for s, site in enumerate(run.sites) if site in _PAPER_NAMES}
            for at_layer, layer in enumerate(run.layers)
        }
        for at, position in enumerate(run.positions)
    }
    return {"step_0": {"input_text": run.prompt, "predicted_token": run.text, "all_tokens_data": data}}
