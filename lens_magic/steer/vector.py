"""``SteeringVector``: directions in the hidden states, where they come from, and how good they are; immutable."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import torch

from .. import options
from ..errors import LensError
from ..model.anatomy import SITES
from ..tables import as_html
from ..words import counted, quoted
from .data import left_out
from .directions import Directions, as_direction
from .spans import Schedule, parse_positions, parse_schedule, parse_steps
from .term import MadeFor, SteeringTerm, Terms, alphas_of

if TYPE_CHECKING:
    from pathlib import Path

    from .term import Summand

_DEPTHS = (10_000, 20_000)
"""Numbers of layers that a model of unknown depth is taken to have: what differs between them counts from its end."""


@dataclass(frozen=True)
class Origin:
    """The model a direction comes from; None means unknown (files of other programs do not say).

    Attributes:
        layer_type: of a vector of steering-vectors, the name of the module at whose output it was read.
    """

    model: str | None = None
    fingerprint: str | None = None
    family: str | None = None
    layers: int | None = None
    dtype: str | None = None
    layer_type: str | None = None


@dataclass(frozen=True)
class Training:
    """What a direction was learnt from.

    Attributes:
        questions, texts: how many of each; every question was read in both orders.
        digests: SHA-256 of every item.
        rejected: how many were left out, by reason.
        labels: the label tokens in readable form.
        chat: whether questions and texts were a user's messages in the model's chat template, and answers the assistant's.
    """

    questions: int = 0
    texts: int = 0
    digests: tuple[str, ...] = ()
    rejected: Mapping[str, int] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    chat: bool = False


@dataclass(frozen=True)
class Quality:
    """How well a direction is determined, measured on the training items only.

    Attributes:
        halves: cosine between the directions that two halves of the items give; near 1 if both find the same.
        auc: probability that a held-out positive state lies further along the direction than a held-out negative one, by
            cross-validation over items; 0.5 is chance.
        pairs: share of held-out pairs whose positive side lies further along it than its own negative side.

    All are None for fewer than two items.
    """

    halves: float | None = None
    auc: float | None = None
    pairs: float | None = None


@dataclass(frozen=True, repr=False)
class SteeringVector:
    """Directions at one site of one or more layers; a value: equal to another one with the same contents.

    ``vector * 1.5`` is one steering term, ``v + w * 2`` are two; :meth:`steer` has all options.

    Attributes:
        directions: ``{layer: tensor[d]}``, each of unit length.
        norms: ``{layer: length before normalising}``, in the units of the hidden states: of the mean difference for
            mean_diff, of its part along the direction for pca and logistic. α = m · norm is m raw differences.
        site: where in the block they were read, and are added.
        position: "label", "last" or "mean": which tokens' states were read. method: how directions were made of them.
        origin, training, quality, versions, created: provenance.
    """

    directions: Mapping[int, torch.Tensor]
    norms: Mapping[int, float] = field(hash=False)
    site: str
    name: str = "vector"
    position: str | None = None
    method: str | None = None
    origin: Origin = Origin()
    training: Training = field(default=Training(), hash=False)
    quality: Mapping[int, Quality] = field(default_factory=dict, hash=False)
    versions: Mapping[str, str] = field(default_factory=dict, hash=False)
    created: str = ""

    __array_ufunc__ = None  # so that a NumPy number on the left defers to __rmul__

    def __post_init__(self) -> None:
        object.__setattr__(self, "directions", Directions(self.directions))
        for name in ("norms", "quality", "versions"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def __reduce__(self) -> Any:
        # Read-only mappings can be neither copied nor pickled.
        held = {one.name: getattr(self, one.name) for one in fields(self)}
        return _rebuilt, ({name: dict(value) if isinstance(value, Mapping) else value for name, value in held.items()},)

    @classmethod
    def of(cls, raw: Mapping[int, Any], site: str, **attributes: Any) -> SteeringVector:
        """Make a vector from directions of any length.

        Args:
            raw: ``{layer: d numbers}``, a tensor, an array or a list for each layer.
            site: where in the block they belong.

        Raises:
            LensError: there are none, they differ in width, or one is not a row of finite numbers or has no length; a layer
                is no number from 0 on, or there is no such site.
        """
        if not isinstance(raw, Mapping):
            raise LensError(f"directions come by layer, {{5: direction}}, not as {type(raw).__name__}")
        if not raw:
            raise LensError("there is no direction in it")
        options.choice("site", site, SITES)
        flat: dict[int, torch.Tensor] = {}
        for key, values in raw.items():
            layer = options.integer("layer", key)
            if layer < 0 or layer in flat:
                why = "is there twice" if layer in flat else "counts from the end; layers numbered from 0 would do"
                raise LensError(f"layer {layer} {why}")
            flat[layer] = as_direction(f"layer {layer}", values)
        norms = {layer: float(direction.norm()) for layer, direction in flat.items()}
        if len({direction.numel() for direction in flat.values()}) > 1:
            raise LensError("its directions differ in width")
        for layer, norm in norms.items():
            if not math.isfinite(norm) or norm == 0:
                raise LensError(f"its direction at layer {layer} " + ("has no length" if norm == 0 else "is not finite"))
        # What is of unit length already, as far as float32 can say, stays to the last bit: a file's directions are.
        lengths = {layer: 1.0 if abs(norm - 1) < 2**-23 else norm for layer, norm in norms.items()}
        return cls({layer: direction / lengths[layer] for layer, direction in flat.items()}, norms, site, **attributes)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers it has a direction for."""
        return tuple(self.directions)

    @property
    def width(self) -> int:
        """d, the model's hidden size."""
        return next(iter(self.directions.values())).numel()

    @property
    def made_for(self) -> MadeFor:
        """The kind of model it can steer, as far as its file says."""
        return MadeFor(self.origin.family, self.origin.layers, self.width)

    def named(self, name: str) -> SteeringVector:
        """Return the vector under another name."""
        return replace(self, name=name)

    def steers_as(self, other: SteeringVector) -> bool:
        """Whether the other has the same directions at the same site, whatever its name."""
        return self.site == other.site and self.directions == other.directions

    # -- steering ------------------------------------------------------------------------------------------------------

    def steer(
        self,
        alpha: float | Sequence[float] = 1.0,
        layers: str | int | Iterable[int] | None = None,
        site: str | None = None,
        positions: Any = "all",
        steps: Any = None,
        decay: float | None = None,
        clip: float | None = None,
        operator: str = "add",
        *,
        scale: Mapping[int, float] | None = None,
        schedule: Schedule | None = None,
        keep_norm: bool = False,
    ) -> SteeringTerm:
        """Return a steering term.

        Args:
            alpha: α, absolute, in the units of the hidden states; a sequence gives each sequence of a batch its own.
            layers: layers of the vector to steer together; by default all of them. Those that count from the model's last
                (-1, "5-", "::4") need a vector that says how many its model has, as trained ones do.
            site: where to steer; by default the site the vector was read at.
            positions: "all", "prompt" (p < 0), "generated" (p ≥ 0), "last" (p = 0), "A:B" half-open in p, or a set of p.
            steps: "A:B" or (A, B), half-open, counting generated tokens.
            decay: halve α every ``decay`` generated tokens.
            clip: limit the length of the change to ``clip`` times ‖h‖ at each position.
            operator: "add", "ablate" (remove the projection) or "set" (the projection becomes α).
            scale: ``{layer: factor}`` on α.
            schedule: factors on α by generated token: numbers, a function of the token's number, "constant", "linear" (to 0
                at the end of the requested number of tokens) or "on/off" (every other token).
            keep_norm: rescale h to its original length.

        Raises:
            LensError: α is not finite, the vector has no direction at a layer or cannot tell which is meant, or a choice is not
                understood.
        """
        alphas = alphas_of("alpha", alpha, self.name)
        chosen = self.layers if layers is None else self._chosen(layers)
        at = options.parse_sites([site])[0] if site is not None else self.site
        return SteeringTerm(
            name=self.name,
            directions={layer: self.directions[layer] for layer in chosen},
            site=at,
            alpha=alphas,
            scale=self._scale({} if scale is None else scale, chosen),
            positions=parse_positions(positions),
            steps=parse_steps(steps),
            decay=decay,
            schedule=parse_schedule(schedule),
            clip=clip,
            keep_norm=keep_norm,
            operator=operator,
            made_for=self.made_for,
            layer_type=self.origin.layer_type if at == self.site else None,
            norms={layer: norm for layer in chosen if (norm := self.norms.get(layer))} if at == self.site else {},
        )

    def __mul__(self, alpha: float | Sequence[float]) -> SteeringTerm:
        return self.steer(alpha)

    def __rmul__(self, alpha: float | Sequence[float]) -> SteeringTerm:
        return self.steer(alpha)

    def __neg__(self) -> SteeringTerm:
        return self.steer(-1.0)

    def __add__(self, other: Summand) -> Terms:
        return self.steer() + other

    def __radd__(self, other: Summand | Literal[0]) -> Terms:
        return other + self.steer()

    def __sub__(self, other: Summand) -> Terms:
        return self.steer() - other

    def _chosen(self, layers: str | int | Iterable[int]) -> tuple[int, ...]:
        own = ",".join(map(str, self.layers))
        several = options.listed(layers, ordered=False)
        given = layers if several is None else several
        depths = [self.origin.layers] * 2 if self.origin.layers else _DEPTHS
        chosen, deeper = (options.parse_layers(given, depth) for depth in depths)
        if chosen != deeper:
            raise LensError(
                f"layers {quoted(layers)} of {self.name!r} depend on how many its model has, which it does not say; "
                f"numbers among {own} would do"
            )
        for layer in chosen:
            if layer not in self.directions:
                raise LensError(f"{self.name!r} has no direction at layer {layer}; it has {own}")
        return chosen

    def _scale(self, scale: Mapping[int, float], steered: Sequence[int]) -> dict[int, float]:
        """Return factors by layer, after checking that each layer is steered."""
        would_do = f"of {self.name!r} are not factors by layer; {{{steered[0]}: 0.5}} would do"
        try:
            pairs = list(scale.items() if isinstance(scale, Mapping) else scale)
            given = [(key, options.number("factor", factor)) for key, factor in pairs]
        except (TypeError, ValueError, LensError):
            raise LensError(f"scale {quoted(scale)} {would_do}") from None
        factors: dict[int, float] = {}
        for key, factor in given:
            layer, *more = self._chosen(key)
            if more or layer in factors:
                why = f"{quoted(key)} is several layers" if more else f"layer {layer} is there twice"
                raise LensError(f"scale {quoted(scale)} {would_do}: {why}")
            if layer not in steered:
                raise LensError(f"scale names layer {layer}, which is not among those steered: {','.join(map(str, steered))}")
            factors[layer] = factor
        return factors

    def check_fits(self, family: str, layers: int, width: int) -> None:
        """Refuse a model of another family, width or number of layers.

        Raises:
            LensError: it is not the kind of model this vector was made for (the error names that kind).
        """
        origin = self.origin
        if not self.made_for.fits(MadeFor(family, layers, width)) or max(self.layers) >= layers:
            depth = f"{origin.layers} layers" if origin.layers else f"at least {max(self.layers) + 1} layers"
            of = f" ({origin.model})" if origin.model else ""
            raise LensError(
                f"{self.name!r} was made for a {origin.family or 'model'} of {depth}, width {self.width}{of}; "
                f"the model loaded is a {family} of {layers} layers, width {width}"
            )

    # -- files ---------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write the vector: ``.safetensors`` with everything, ``.gguf`` as a control vector of llama.cpp and repeng.

        Raises:
            LensError: another suffix, no such folder, or the gguf package is missing.
        """
        from .files import save

        return save(self, path)

    # -- showing -------------------------------------------------------------------------------------------------------

    def summary(self) -> str:
        """Describe on one line where the vector comes from."""
        told = self.training
        used = [f"{counted(told.questions, 'question')} in both orders"] if told.questions else []
        used += [f"{counted(told.texts, 'pair')} of texts"] if told.texts else []
        chat = " in the chat template" if told.chat else ""
        learnt = f", {self.method} at {self.position} of {' and '.join(used)}{chat}" if self.method else ""
        model = f", {self.origin.model or self.origin.family}" if self.origin.model or self.origin.family else ""
        labels = f"; labels {', '.join(told.labels)}" if told.labels else ""
        rejected = f"; left out {left_out(told.rejected)}" if told.rejected else ""
        return f"{self.name}: {self.site}, width {self.width}{learnt}{model}{labels}{rejected}"

    def _rows(self) -> list[list[str]]:
        rows = [["layer", "norm", "halves", "AUC", "pairs"]]
        for layer in self.layers:
            quality = self.quality.get(layer, Quality())
            rows.append([str(layer), f"{self.norms[layer]:.4g}", *map(_number, (quality.halves, quality.auc, quality.pairs))])
        return rows

    def __repr__(self) -> str:
        return "\n".join([self.summary(), *("".join(f"{cell:>11}" for cell in row) for row in self._rows())])

    def _repr_html_(self) -> str:
        header, *rows = self._rows()
        tips = (
            "block, 0 is the first",
            "length of the raw difference, in units of the hidden states",
            "cosine between the directions of two halves of the items",
            "held-out separation of all positive from all negative states along the direction; 0.5 is chance",
            "share of held-out pairs that the direction puts in the right order; 0.5 is chance",
        )
        return as_html(self.summary(), header, rows, tips)


def _rebuilt(held: dict[str, Any]) -> SteeringVector:
    return SteeringVector(**held)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
