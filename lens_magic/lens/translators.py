"""The tuned lens: one affine map per layer, from the residual stream to what the remaining layers will make of it.

Belrose et al. 2023, "Eliciting Latent Predictions from Transformers with the Tuned Lens" (arXiv 2303.08112). The maps have
the form of the tuned-lens project, h ← h + h Wᵀ + b before the final norm and the head, and its numbering: translator i is
for the *input* of block i, which is the output of block i − 1. The last block's output has none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..errors import LensError
from ..model.fingerprint import differ
from ..paths import path_of
from ..words import printable
from ..writing import written_whole
from .digest import digest_of

PARAMS, CONFIG = "params.safetensors", "config.json"
"""File names of the tuned-lens project, except for the ending: its ``params.pt`` is a pickle."""


def translator_of(site: str, layer: int, layers: int) -> int | None:
    """Return the index of a state's translator; None if it has none (the last output, and sites outside the stream)."""
    index = {"resid_pre": layer, "resid_post": layer + 1}.get(site)
    return index if index is not None and index < layers else None


@dataclass(frozen=True, eq=False)
class TunedLens:
    """Translators of the residual stream of one model.

    Attributes:
        weights: the matrix ``[d, d]``, float32, of each translator; number i is for the input of block i.
        biases: ``[d]`` each, or all zero.
        model: name of the model they are for.
        fingerprint: fingerprint of its weights; empty if the file has none.
        divergences: KL(output ‖ lens) in nats on held-out text, by translator, ``{"logit_lens": […], "tuned_lens": […]}``;
            empty if nothing was held out.
        provenance: how they were made.

    Raises:
        LensError: not square matrices of one width with as many biases, or numbers that are not finite.
    """

    weights: Sequence[torch.Tensor]
    biases: Sequence[torch.Tensor]
    model: str = ""
    fingerprint: str = ""
    divergences: Mapping[str, Sequence[float]] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, checked in zip(("weights", "biases"), _checked(self.weights, self.biases), strict=True):
            object.__setattr__(self, name, checked)

    @property
    def layers(self) -> int:
        """Number of translators, one for the input of every block."""
        return len(self.weights)

    @property
    def width(self) -> int:
        """Width of the residual stream."""
        return int(self.weights[0].shape[0])

    @property
    def digest(self) -> str:
        """SHA-256 of the translators."""
        return digest_of(self, [*self.weights, *self.biases])

    def check_fits(self, name: str, width: int, layers: int, fingerprint: str) -> None:
        """Check that this lens is for a model.

        Raises:
            LensError: it has another width or depth, or is for other weights.
        """
        if (self.width, self.layers) != (width, layers):
            raise LensError(
                f"this tuned lens is for {self.model or 'a model'} of width {self.width} with {self.layers} layers; "
                f"{name} has width {width} and {layers} layers"
            )
        if differ(self.fingerprint, fingerprint):
            raise LensError(
                f"this tuned lens was trained on other weights ({self.model}) than those of {name}; "
                "lens.train_tuned_lens(texts) trains one for these"
            )

    def save(self, path: str | Path) -> Path:
        """Write a folder in the tuned-lens project's layout, or one file for a path that ends in ``.safetensors``.

        Both carry model, fingerprint, width, layers and how the lens was made. :func:`load_tuned_lens` reads either.

        Raises:
            LensError: there is no folder to write in, or it holds a model.
        """
        from safetensors.torch import save

        target = path_of(path)
        if not target.parent.is_dir():
            raise LensError(f"{str(target)!r}: there is no folder {target.parent}")
        single = target.suffix == ".safetensors"
        if not single:
            _make_folder(target)
        tensors = {}
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            tensors[f"{index}.weight"] = weight.contiguous()
            # Copies: all translators may share one bias, and safetensors refuses to save a tensor twice.
            tensors[f"{index}.bias"] = bias.clone(memory_format=torch.contiguous_format)
        with written_whole(target if single else target / PARAMS) as partial:
            partial.write_bytes(save(tensors, metadata={"config": json.dumps(self._config())}))
        if not single:
            with written_whole(target / CONFIG) as partial:
                partial.write_text(json.dumps(self._config(), indent=1), encoding="utf-8")
        return target

    def _config(self) -> dict[str, Any]:
        return {
            "base_model_name_or_path": self.model,
            "d_model": self.width,
            "num_hidden_layers": self.layers,
            "bias": True,
            "lens_type": "linear_tuned_lens",
            "lens_magic": {
                "fingerprint": self.fingerprint,
                "divergences": {name: list(values) for name, values in self.divergences.items()},
                "provenance": dict(self.provenance),
            },
        }

    def __repr__(self) -> str:
        head = f"<TunedLens for {self.model or 'a model'}: {self.layers} translators of width {self.width}"
        steps, asked = (self.provenance.get(name) for name in ("steps", "steps_asked"))
        if asked is not None and steps != asked:
            head += f", trained for {steps} of {asked} steps"
        if not self.divergences:
            return head + ">"
        before, after = (sum(self.divergences[name]) / self.layers for name in ("logit_lens", "tuned_lens"))
        return f"{head}; held-out KL {after:.3f} nats, logit lens {before:.3f} (means over layers)>"


def _checked(weights: Any, biases: Any) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """Return matrices ``[d, d]`` and biases ``[d]``, float32 on the CPU.

    Raises:
        LensError: they have other shapes, or hold numbers that are not finite.
    """
    try:
        pairs = [(_float32(weight), _float32(bias)) for weight, bias in zip(weights, biases, strict=True)]
    except (TypeError, ValueError):
        pairs = []
    if not pairs:
        raise LensError("a tuned lens takes one matrix and one bias for the input of every block")
    width = pairs[0][0].shape[-1] if pairs[0][0].ndim else 0
    for index, (weight, bias) in enumerate(pairs):
        if not width or weight.shape != (width, width) or bias.shape != (width,):
            form = f"{width} × {width} matrix with {width} biases" if width else "square matrix with as many biases"
            raise LensError(f"translator {index} is missing, or is no {form}")
        if not (weight.isfinite().all() and bias.isfinite().all()):
            raise LensError(f"translator {index} holds numbers that are not finite")
    return tuple(weight for weight, _ in pairs), tuple(bias for _, bias in pairs)


def _float32(values: Any) -> torch.Tensor:
    """Return a tensor on the CPU, empty if these are not numbers; NumPy arrays are copied, as their changes go unnoticed."""
    try:
        tensor = values if isinstance(values, torch.Tensor) else torch.tensor(values, device="cpu")
        return tensor.detach().to("cpu", torch.float32)
    except (TypeError, ValueError, RuntimeError):
        return torch.empty(0)


def _make_folder(target: Path) -> None:
    """Make a lens's folder if it does not exist.

    Raises:
        LensError: it cannot be made, or holds a config.json that is not a lens's.
    """
    config = target / CONFIG
    try:
        target.mkdir(exist_ok=True)
        if config.exists() and "lens_type" not in dict(json.loads(config.read_text(encoding="utf-8"))):
            raise ValueError("it says no lens_type")
    except OSError as error:
        raise LensError(f"{target} is no folder to write in: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise LensError(f"{config} is there and is no tuned lens's; another folder would do") from error


def load_tuned_lens(path: str | Path) -> TunedLens:
    """Read a tuned lens: a folder with ``params.safetensors`` and ``config.json``, or a safetensors file.

    Args:
        path: what :meth:`TunedLens.save` wrote, or the tuned-lens project's folder with its ``params.pt`` converted.

    Raises:
        LensError: there is none, it is a pickle, or its tensors are not translators.
    """
    from safetensors import SafetensorError, safe_open

    file = _params_file(path_of(path))
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
            written = (opened.metadata() or {}).get("config")
        beside = file.parent / CONFIG
        if written is None and file.name == PARAMS and beside.is_file():
            written = beside.read_text(encoding="utf-8")
        stated = dict(printable(json.loads(written or "{}")))
        ours = dict(stated.get("lens_magic", {}))
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise LensError(f"{file} is damaged or incomplete: {error}") from error
    divergences, provenance = ours.get("divergences", {}), ours.get("provenance", {})
    if not (isinstance(provenance, dict) and _are_divergences(divergences)):
        raise LensError(f"{file} is damaged: its divergences or its provenance are none")
    weights, biases = _translators(file, tensors)
    try:
        lens = TunedLens(
            weights,
            biases,
            model=str(stated.get("base_model_name_or_path") or ""),
            fingerprint=str(ours.get("fingerprint") or ""),
            divergences=divergences,
            provenance=provenance,
        )
    except LensError as error:
        raise LensError(f"{file}: {error}") from error
    for name, found in (("d_model", lens.width), ("num_hidden_layers", lens.layers)):
        if stated.get(name, found) != found:
            raise LensError(f"{file} holds translators whose {name} is {found}, its {CONFIG} says {stated[name]}")
    return lens


def _are_divergences(told: Any) -> bool:
    """Whether this is an empty dict, or one with numbers for both lenses."""
    if not isinstance(told, dict) or told.keys() not in (set(), {"logit_lens", "tuned_lens"}):
        return False
    return all(isinstance(values, list) and all(isinstance(value, int | float) for value in values) for values in told.values())


def _params_file(path: Path) -> Path:
    pickled = path if path.suffix in (".pt", ".pth", ".bin") else path / "params.pt"
    file = path / PARAMS if path.is_dir() else path
    if file.is_file() and file != pickled:
        return file
    if pickled.is_file():
        raise LensError(
            f"{pickled} is a pickle, which can run code when opened; convert it where you trust it: "
            "safetensors.torch.save_file(torch.load('params.pt', weights_only=True), 'params.safetensors')"
        )
    raise LensError(f"there is no tuned lens at {path}: neither a folder with {PARAMS} nor a .safetensors file")


def _translators(file: Path, tensors: Mapping[str, torch.Tensor]) -> tuple[list[Any], list[torch.Tensor]]:
    """Return the matrices (None for a missing one) and biases in order; missing biases are zero."""
    tensors = {name.removeprefix("layer_translators."): tensor for name, tensor in tensors.items()}
    layers = sum(name.endswith(".weight") for name in tensors)
    weights = [tensors.get(f"{index}.weight") for index in range(layers)]
    first = weights[0] if weights else None
    if first is None or first.ndim != 2:
        raise LensError(f"{file} holds no translators; tensors named 0.weight, 0.bias, 1.weight, … would be some")
    no_bias = torch.zeros(first.shape[1], dtype=torch.float32, device="cpu")
    return weights, [tensors.get(f"{index}.bias", no_bias) for index in range(layers)]
