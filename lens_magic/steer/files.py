"""Steering vectors as files: safetensors with their provenance, and the files of two other programs.

Nothing is unpickled. What a file says is checked before it is used.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..errors import LensError, warn
from ..model.anatomy import SITES
from ..paths import path_of
from ..words import printable
from ..writing import written_whole
from .directions import as_direction
from .layer_types import LAYER_TYPES
from .vector import Origin, Quality, SteeringVector, Training

FORMAT = 1
_OWN = "lens_magic"
_GGUF = "controlvector"  # general.architecture of repeng's and llama.cpp's files
_PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".joblib")
_NUMBERED = re.compile(r"(?:.*\D)?(\d{1,5})$", re.DOTALL)
_FROM_THE_END = re.compile(r"(?:.*\W)?-\d+$", re.DOTALL)  # -1, not layer-1


def save(vector: SteeringVector, path: str | Path) -> Path:
    """See :meth:`SteeringVector.save`. The file appears whole or not at all."""
    target = path_of(path)
    writers = {".safetensors": _write_safetensors, ".gguf": _write_gguf}
    if target.suffix not in writers:
        raise LensError(f"{target.name!r} should end in .safetensors (everything) or .gguf (a control vector of llama.cpp)")
    with written_whole(path) as partial:
        writers[target.suffix](vector, partial)
    return target


def load(source: Any) -> SteeringVector:
    """Read a vector from a file, or make one from another program's object in memory.

    Args:
        source: ``.safetensors`` (ours, or tensors by layer), ``.gguf`` (repeng, llama.cpp), ``.npz`` (arrays by layer), or an
            object with ``layer_activations`` (steering-vectors) or ``directions`` (repeng).

    Raises:
        LensError: no such file, a pickle, damaged, or no directions in it.
    """
    if isinstance(source, SteeringVector):
        return source
    if not isinstance(source, str | Path):
        return _from_object(source)
    path = path_of(source)
    readers: dict[str, Callable[[Path], SteeringVector]] = {
        ".safetensors": _read_safetensors,
        ".gguf": _read_gguf,
        ".npz": _read_npz,
    }
    if path.suffix in _PICKLES:
        raise LensError(
            f"{path.name!r} is a pickle, which can run code when opened; pass the object itself, or save its tensors by layer "
            "with safetensors.torch.save_file({str(layer): tensor, …}, FILE)"
        )
    if path.suffix not in readers:
        raise LensError(f"{path.name!r} should end in {', '.join(readers)}")
    if not path.is_file():
        raise LensError(f"there is no file {path}")
    try:
        return readers[path.suffix](path)
    except LensError as error:
        raise LensError(f"{path} is no steering vector: {error}") from error


# -- our own ------------------------------------------------------------------------------------------------------------


def _record(vector: SteeringVector) -> dict[str, Any]:
    """Return everything but the directions, as values JSON can hold."""
    return {
        "format": FORMAT,
        "name": vector.name,
        "site": vector.site,
        "position": vector.position,
        "method": vector.method,
        "norms": {str(layer): norm for layer, norm in vector.norms.items()},
        "origin": asdict(vector.origin),
        "training": asdict(vector.training),
        "quality": {str(layer): asdict(quality) for layer, quality in vector.quality.items()},
        "versions": dict(vector.versions),
        "created": vector.created,
    }


def _restored(directions: Mapping[int, torch.Tensor], text: str) -> SteeringVector:
    """Make the vector of a record, checking every part of it.

    Raises:
        LensError: another version of the format, or a record that is not one.
    """
    try:
        record = json.loads(text)
        if record["format"] != FORMAT:
            raise LensError(f"it has format {record['format']!r}; this version reads {FORMAT}")
        senseless = ValueError("its site or its norms make no sense")
        if record["site"] not in SITES:
            raise senseless
        unit = SteeringVector.of(directions, record["site"])
        norms = {layer: float(record["norms"][str(layer)]) for layer in unit.layers}
        told = record["training"]
        if not all(math.isfinite(norm) and norm > 0 for norm in norms.values()):
            raise senseless
        return SteeringVector(
            unit.directions,
            norms,
            site=unit.site,
            name=_words(record["name"]),
            position=_text(record["position"]),
            method=_text(record["method"]),
            origin=_origin(record["origin"]),
            training=Training(
                questions=int(told["questions"]),
                texts=int(told["texts"]),
                digests=tuple(str(digest) for digest in told["digests"]),
                rejected={_words(reason): int(count) for reason, count in told["rejected"].items()},
                labels=tuple(_words(label) for label in told["labels"]),
                chat=bool(told.get("chat", False)),  # which older files do not have
            ),
            quality={int(layer): _quality(told) for layer, told in record["quality"].items()},
            versions={_words(name): _words(version) for name, version in record["versions"].items()},
            created=_words(record["created"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise LensError(f"its record is damaged ({type(error).__name__}: {error})") from error


def _text(value: Any) -> str | None:
    return None if value is None else str(printable(str(value)))


def _words(value: Any) -> str:
    return _text(value) or ""


def _origin(told: Mapping[str, Any]) -> Origin:
    layers, layer_type = told["layers"], told.get("layer_type")  # which older files do not have
    if layer_type not in (None, *LAYER_TYPES):
        raise ValueError("its layer type makes no sense")
    return Origin(
        model=_text(told["model"]),
        fingerprint=_text(told["fingerprint"]),
        family=_text(told["family"]),
        layers=None if layers is None else int(layers),
        dtype=_text(told["dtype"]),
        layer_type=layer_type,
    )


def _quality(told: Mapping[str, Any]) -> Quality:
    return Quality(**{name: None if told[name] is None else float(told[name]) for name in ("halves", "auc", "pairs")})


def _write_safetensors(vector: SteeringVector, path: Path) -> None:
    from safetensors.torch import save as encoded

    tensors = {f"direction.{layer}": direction for layer, direction in vector.directions.items()}
    path.write_bytes(encoded(tensors, metadata={_OWN: json.dumps(_record(vector))}))


def _read_safetensors(path: Path) -> SteeringVector:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise LensError(f"it is damaged or not safetensors ({error})") from error
    if _OWN in metadata:
        return _restored(_by_layer(tensors), metadata[_OWN])
    return _foreign(tensors, metadata.get("layer_type", "decoder_block"), path.stem)


# -- repeng, llama.cpp --------------------------------------------------------------------------------------------------
#
# `direction.N` is added to the output of block N, counted from 0: repeng reads hidden_states[N + 1] for it, and llama.cpp
# adds it after its layer `il` = N. llama.cpp has no place for N = 0 and refuses such a file.

# The families of llama.cpp's names, where those are not transformers', which repeng writes; None where there are several.
_FAMILIES = {
    "llama": None,  # Mistral and Mixtral, too
    "gemma3": None,  # with and without its vision tower
    "qwen3moe": "qwen3_moe",
    "phi2": "phi",
    "gptneox": "gpt_neox",
}


def _gguf() -> Any:
    try:
        import gguf
    except ImportError:
        raise LensError("gguf files need the gguf package: pip install gguf; .safetensors works without") from None
    return gguf


def _write_gguf(vector: SteeringVector, path: Path) -> None:
    writer = _gguf().GGUFWriter(str(path), _GGUF)
    if vector.site != "resid_post":
        warn(f"{vector.name!r} was read at {vector.site}; other programs add control vectors to a block's output, resid_post")
    if 0 in vector.layers:
        warn("llama.cpp refuses control vectors with a direction at layer 0; repeng reads them")
    writer.add_string(f"{_GGUF}.model_hint", vector.origin.family or "unknown")
    writer.add_uint32(f"{_GGUF}.layer_count", len(vector.layers))
    writer.add_string(f"{_OWN}.vector", json.dumps(_record(vector)))
    for layer, direction in vector.directions.items():
        writer.add_tensor(f"direction.{layer}", direction.numpy())
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _read_gguf(path: Path) -> SteeringVector:
    package = _gguf()
    try:
        reader = package.GGUFReader(str(path))
        fields = {name: str(field.contents()) for name, field in reader.fields.items() if name in _gguf_fields()}
        found = [(tensor.name, tensor.data.copy()) for tensor in reader.tensors if tensor.name.startswith("direction.")]
    except Exception as error:  # it looks wherever a damaged file's numbers point
        raise LensError(f"it is damaged or not gguf ({type(error).__name__}: {str(error).partition(chr(10))[0]})") from error
    if fields.get("general.architecture") != _GGUF:
        raise LensError(f"it holds a {_words(fields.get('general.architecture', 'model'))}, not a {_GGUF}")
    for name, values in found:
        if values.dtype not in ("float32", "float16", "float64"):
            raise LensError(f"{name} is quantised; float32 or float16 would do")
    directions = _by_layer({name: torch.from_numpy(values.astype("float32")) for name, values in found})
    if f"{_OWN}.vector" in fields:
        return _restored(directions, fields[f"{_OWN}.vector"])
    hint = fields.get(f"{_GGUF}.model_hint")
    family = None if hint in (None, "", "unknown") else _FAMILIES.get(hint, _text(hint))
    return SteeringVector.of(directions, site="resid_post", name=path.stem, origin=Origin(family=family))


def _gguf_fields() -> tuple[str, ...]:
    return ("general.architecture", f"{_GGUF}.model_hint", f"{_OWN}.vector")


# -- steering-vectors, and whatever has one tensor per layer ------------------------------------------------------------


def _read_npz(path: Path) -> SteeringVector:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as opened:
            tensors = {name: torch.from_numpy(np.asarray(opened[name], dtype=np.float32)) for name in opened.files}
    except Exception as error:  # a zip file can be broken in many ways
        raise LensError(f"it is damaged or holds no plain arrays ({type(error).__name__})") from error
    return _foreign(tensors, "decoder_block", path.stem)


def _from_object(source: Any) -> SteeringVector:
    activations = getattr(source, "layer_activations", None)
    if isinstance(activations, Mapping):
        kind = str(getattr(source, "layer_type", "decoder_block"))
        return _foreign(activations, kind, "vector")
    directions = getattr(source, "directions", None)
    if isinstance(directions, Mapping):
        hint = getattr(source, "model_type", None)
        origin = Origin(family=None if hint is None else str(hint))
        return SteeringVector.of(_by_layer(directions), site="resid_post", origin=origin)
    raise LensError(
        f"a {type(source).__name__} is no steering vector; a file, or an object with layer_activations or directions, would do"
    )


def _foreign(tensors: Mapping[Any, Any], kind: str, name: str) -> SteeringVector:
    if kind not in LAYER_TYPES:
        raise LensError(f"activations of {kind!r} are none of the sites here; {', '.join(LAYER_TYPES)} would do")
    return SteeringVector.of(_by_layer(tensors), site=LAYER_TYPES[kind], name=name, origin=Origin(layer_type=kind))


def _by_layer(tensors: Mapping[Any, Any]) -> dict[int, torch.Tensor]:
    """Return tensors by the layer number their names end in, each checked to be one direction.

    Raises:
        LensError: a name without a number, or one that counts from the end; a layer twice; something that is not one row of
            numbers.
    """
    found: dict[int, torch.Tensor] = {}
    for name, values in tensors.items():
        match = _NUMBERED.fullmatch(str(name))
        if match is None:
            raise LensError(f"the name {str(name)[:60]!r} has no layer's number at its end")
        if _FROM_THE_END.fullmatch(str(name)):
            raise LensError(f"the name {str(name)[:60]!r} counts from the last layer; layers numbered from 0 would do")
        layer = int(match[1])
        row = as_direction(str(name), values)
        if layer in found:
            raise LensError(f"it has layer {layer} twice")
        found[layer] = row
    return found
