"""Finding a checkpoint and checking it before any of it is loaded."""

from __future__ import annotations

import contextlib
import json
import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from .. import options
from ..errors import LensError, reason_of
from ..importing import AHEAD, import_whole
from . import fingerprint
from .anatomy import anatomy_of, context_of, most_ranks
from .folders import model_folder

DTYPES = ("auto", "float32", "bfloat16", "float16")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
_WHOLE = ("BOOL", "I", "U")  # beginnings of the dtypes that are not floating point


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that can be loaded on the given number of ranks.

    Attributes:
        name: what the user asked for.
        folder: where its files are.
        dtype: "float32", "bfloat16" or "float16"; the checkpoint's own unless another was asked for.
        stored: the dtypes of the weights in its files (see :func:`dtypes_of`).
        fingerprint: identifies the weights (:func:`.fingerprint.of_files`).
        context: longest sequence the model takes.
    """

    name: str
    folder: Path
    model_type: str
    dtype: str
    stored: tuple[str, ...]
    fingerprint: str
    context: int
    weight_bytes: int
    revision: str | None = None
    trust_remote_code: bool = False


def find(
    name: str, ranks: int, dtype: str | None = None, revision: str | None = None, trust_remote_code: bool = False
) -> Checkpoint:
    """Resolve a model name and check everything that can be checked without loading.

    Args:
        name, revision, trust_remote_code: as for :func:`.folders.model_folder`.
        ranks: how many ranks the model is to be split over.
        dtype: one of :data:`DTYPES`; None is "auto".

    Raises:
        LensError: no such model, no configuration, no tokenizer, no (or incomplete, or quantised) safetensors weights, an
            adapter beside them, an unsupported family, or a number of ranks it cannot be split into.
    """
    dtype = options.choice("dtype", "auto" if dtype is None else options.dtype_name(dtype), DTYPES)
    return _checked(name, model_folder(name, revision, trust_remote_code), ranks, dtype, revision, trust_remote_code)


def find_again(known: Checkpoint, ranks: int) -> Checkpoint:
    """Check a checkpoint that was loaded, where it was found: its name may mean another one by now.

    Raises:
        LensError: it is not there any more, it has changed, or :func:`find` would refuse it.
    """
    if not known.folder.is_dir():
        raise LensError(f"{known.name} cannot be loaded again: there is no folder {known.folder} any more")
    found = _checked(known.name, known.folder, ranks, known.dtype, known.revision, known.trust_remote_code)
    if found.fingerprint != known.fingerprint:
        raise LensError(
            f"{known.name} cannot be loaded again: its files have changed; `%lens load {known.folder}` loads what is there now"
        )
    return found


def _checked(name: str, folder: Path, ranks: int, dtype: str, revision: str | None, trust_remote_code: bool) -> Checkpoint:
    require_no_adapter(name, folder)
    stated, whole_config = stated_in(folder), read_config(folder)
    anatomy = anatomy_of(whole_config.model_type, whole_config)
    config = whole_config.get_text_config()  # multimodal models keep the language model's settings one level down
    _require_tokenizer(folder)
    require_plain_weights(name, stated)
    files = weight_files(folder)
    headers = {file: read_header(file) for file in files}
    _require_floating_point(name, headers.values())
    stored = dtypes_of(headers.values())
    require_splittable(name, whole_config, ranks)
    if anatomy.experts is not None and ranks > 1:
        _require_separate_experts(name, headers.values())
    return Checkpoint(
        name=name,
        folder=folder,
        model_type=whole_config.model_type,
        dtype=own_dtype(name, stated, stored) if dtype == "auto" else dtype,
        stored=stored,
        fingerprint=fingerprint.of_files(folder, files),
        context=context_of(config),
        weight_bytes=sum(_tensor_bytes(header) for header in headers.values()),
        revision=revision,
        trust_remote_code=trust_remote_code,
    )


def unbuildable(name: str, error: Exception) -> LensError:
    """Return what to raise for an error that transformers raised while building a model; those have no common base."""
    return LensError(f"transformers cannot build {name}: {type(error).__name__}: {reason_of(error, whole=True)}")


def stated_in(folder: Path) -> Mapping[str, Any]:
    """Return the configuration as the file states it.

    Raises:
        LensError: there is none, or it is no JSON object.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise LensError(f"{folder} has no config.json, so it is not a model folder")
    stated = _settings(file)
    if not isinstance(of_text := stated.get("text_config"), dict | None):
        raise LensError(f"{file} is damaged: its text_config holds no settings, but a {type(of_text).__name__}")
    return stated


def _settings(file: Path) -> dict[str, Any]:
    """Return the settings in a JSON file."""
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise LensError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(settings, dict):
        raise LensError(f"{file} holds no settings, but a {type(settings).__name__}")
    return settings


def read_config(folder: Path) -> Any:
    """Return the configuration with the family's defaults for what the file omits, under the names all families share.

    Raises:
        LensError: there is none, it is invalid, or the family is not supported.
    """
    import_whole(*AHEAD)  # the first load gets here before anything has imported them
    from transformers import CONFIG_MAPPING

    stated = stated_in(folder)
    model_type = str(stated.get("model_type"))
    anatomy_of(model_type)  # first, because transformers may not know the family either
    try:
        config = CONFIG_MAPPING[model_type].from_dict(dict(stated))
    except Exception as error:  # errors about invalid settings have no common base
        file, reason = folder / "config.json", reason_of(error, whole=True)
        raise LensError(f"{file} is not a configuration of a {model_type!r} model: {reason}") from error
    anatomy_of(model_type, config)
    return config


def stated_dtype(stated: Mapping[str, Any]) -> str | None:
    """Return the dtype that a configuration states, for the whole model or for its language model; None if it states none."""
    for config in (stated, stated.get("text_config") or {}):
        if own := config.get("dtype") or config.get("torch_dtype"):
            return str(own).removeprefix("torch.")
    return None


def own_dtype(name: str, stated: Mapping[str, Any], stored: Sequence[str]) -> str:
    """Return the dtype that the configuration states; else that of most of the weights; float32 if there are none.

    Args:
        stored: the dtypes of the weights (:func:`dtypes_of`).

    Raises:
        LensError: it is none of :data:`DTYPES`.
    """
    own = stated_dtype(stated) or next(iter(stored), "float32")
    if own not in DTYPES[1:]:
        raise LensError(f"{name} says its weights are {own}; --dtype {', '.join(DTYPES[1:])} would do")
    return own


def require_no_adapter(name: str, folder: Path) -> None:
    """Refuse an adapter, which transformers applies if PEFT is installed, to whole modules only, and else leaves out.

    Raises:
        LensError: there is one.
    """
    if (folder / "adapter_config.json").is_file():
        raise LensError(f"{name} has a PEFT adapter that is not merged; merge_and_unload() and saving the result would do")


def require_plain_weights(name: str, stated: Mapping[str, Any]) -> None:
    """Refuse quantised weights: their modules cannot be split, and need packages that may be missing.

    Raises:
        LensError: the configuration says that they are quantised.
    """
    for config in (stated, stated.get("text_config") or {}):
        if (quantised := config.get("quantization_config")) is not None:
            method = quantised.get("quant_method", "it does not say how")
            raise LensError(f"{name} is quantised ({method}); one of float32, bfloat16 or float16 weights would do")


def _require_tokenizer(folder: Path) -> None:
    found = [file for file in _TOKENIZER_FILES if (folder / file).is_file()]
    if not found:
        raise LensError(f"{folder} has no tokenizer (looked for {', '.join(_TOKENIZER_FILES)})")
    if all(file.endswith(".model") for file in found):  # SentencePiece's own format
        try:
            for package in ("sentencepiece", "google.protobuf"):
                import_module(package)
        except ImportError:
            raise LensError(
                f"{folder} has no tokenizer.json, and its {found[0]} takes two packages to read; "
                "`pip install sentencepiece protobuf` would do"
            ) from None


def weight_files(folder: Path, some: bool = False) -> list[Path]:
    """Return the files that transformers reads a model's weights from.

    Args:
        some: they need not all be there, and those that are will do.

    Raises:
        LensError: the index is damaged, or, unless some will do, files are missing.
    """
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():  # what transformers reads then; saving a model in one file leaves an index that was there before
        return [whole]
    if index.is_file():
        weight_map = _settings(index).get("weight_map")
        if not (isinstance(weight_map, dict) and all(isinstance(name, str) for name in weight_map.values())):
            raise LensError(f"{index} has no weight_map of tensors' files")
        names = sorted(set(weight_map.values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing and not some:
            raise LensError(f"{folder} lacks {missing[0]} ({len(missing)} of {len(names)} weight files are missing)")
        return [folder / name for name in names if name not in missing]
    if some:
        return []
    if others := sorted(folder.glob("*.safetensors")):
        raise LensError(f"{folder} has {others[0].name}, but neither {whole.name} nor {index.name}, which transformers reads")
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        raise LensError(f"{folder} has pickled weights only, which can run code when opened; safetensors are needed")
    raise LensError(f"{folder} has no *.safetensors weights")


def read_header(file: Path) -> dict[str, Any]:
    """Return a safetensors file's header, checked against the file's length.

    Raises:
        LensError: it is damaged, or the file is truncated.
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > size - 8:
                raise ValueError("its table is cut off")
            header: dict[str, Any] = dict(json.loads(stream.read(length)))
        header.pop("__metadata__", None)
        end = 8 + length + max((_end(name, tensor) for name, tensor in header.items()), default=0)
        if end != size:
            raise ValueError(f"{size:,} bytes long, {end:,} expected")
    except (ValueError, TypeError, RecursionError, struct.error) as error:
        raise LensError(f"{file} is damaged or incomplete: {error}") from error
    return header


def _end(name: str, tensor: Any) -> int:
    """Return where a tensor of a safetensors file ends, counted from the end of the header that says so."""
    match tensor:
        case {"dtype": str(), "data_offsets": [int(begin), int(end)]} if 0 <= begin <= end:
            return int(end)
    raise ValueError(f"its table does not say what type {name[:60]!r} is of and where it is")


def dtypes_of(headers: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the dtypes of the weights in safetensors files from their headers ("float32", …), that of the most bytes first.

    Tensors of old checkpoints that are not weights do not count: masks (integer or boolean), and rotary frequencies of
    another dtype (any dtype with at most 1 % of the bytes).
    """
    names = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
    sizes: Counter[str] = Counter()
    for tensor in (tensor for header in headers for tensor in header.values()):
        if not tensor["dtype"].startswith(_WHOLE):
            begin, end = tensor["data_offsets"]
            sizes[names.get(tensor["dtype"], tensor["dtype"])] += end - begin
    return tuple(dtype for dtype, size in sizes.most_common() if size > sizes.total() / 100)


def _require_floating_point(name: str, headers: Iterable[Mapping[str, Any]]) -> None:
    """Refuse quantised weights of which the configuration says nothing: they would be read as the numbers they are coded in."""
    for tensor, told in (pair for header in headers for pair in header.items()):
        if tensor.endswith("weight") and told["dtype"].startswith(_WHOLE):
            raise LensError(
                f"{name} is quantised ({tensor} is {told['dtype']}); one of float32, bfloat16 or float16 weights would do"
            )


def _tensor_bytes(header: Mapping[str, Any]) -> int:
    return sum(tensor["data_offsets"][1] - tensor["data_offsets"][0] for tensor in header.values())


def stop_ids(folder: Path, tokenizer: Any) -> tuple[int, ...]:
    """Return a checkpoint's end tokens. Nothing else of its ``generation_config`` is used."""
    generation = folder / "generation_config.json"
    stated = _settings(generation) if generation.is_file() else {}
    config = stated_in(folder)
    of_model = config.get("eos_token_id", (config.get("text_config") or {}).get("eos_token_id"))
    return end_tokens(stated.get("eos_token_id"), of_model, tokenizer)


def end_tokens(generation: Any, config: Any, tokenizer: Any) -> tuple[int, ...]:
    """Return the end tokens of the generation configuration, else of the model's configuration, else of the tokenizer.

    Raises:
        LensError: they are not whole numbers.
    """
    for stated in (generation, config, tokenizer.eos_token_id):
        if stated is not None:
            tokens = tuple(stated) if isinstance(stated, (list, tuple)) else (stated,)
            with contextlib.suppress(LensError):
                if bool not in map(type, tokens):
                    return tuple(options.integer("end token", token) for token in tokens)
            raise LensError(f"end tokens (eos_token_id) are {stated!r}; a whole number or a list of them would do")
    return ()


def require_splittable(name: str, config: Any, ranks: int) -> None:
    """Refuse more ranks than a model can be split over (:func:`.anatomy.most_ranks`).

    Raises:
        LensError: there are more; says what limits them.
    """
    most, parts = most_ranks(config)
    if ranks > most:
        raise LensError(f"{name} cannot be split over {ranks} ranks: it has {parts}; 1 to {most} ranks work")


def _require_separate_experts(name: str, headers: Iterable[Mapping[str, Any]]) -> None:
    """Refuse a layer's experts in one tensor: slicing while reading takes them one by one (:mod:`.experts`)."""
    if any(tensor.endswith(".experts.gate_up_proj") for header in headers for tensor in header):
        raise LensError(
            f"{name} keeps each layer's experts in one tensor, which can be read on 1 rank only; saved by transformers in its "
            "original format (the default of save_pretrained), it can be split"
        )
