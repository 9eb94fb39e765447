"""``SteeringTerm``: one change to the hidden states: which direction, how strong, where in the sequence, and when."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, get_args

import torch

from .. import options
from ..errors import LensError
from ..words import quoted
from .directions import Directions
from .spans import Schedule, Span, check_positions, check_steps, describe_positions, in_short, tabulate, within


class MadeFor(NamedTuple):
    """The kind of model a direction was learnt on; it means nothing on another. None means unknown."""

    family: str | None
    layers: int | None
    width: int

    def fits(self, model: MadeFor) -> bool:
        """Whether a model agrees in everything that is known."""
        return all(known is None or known == its for known, its in zip(self, model, strict=True))

    def __str__(self) -> str:
        depth = f"{self.layers} layers" if self.layers is not None else "an unknown number of layers"
        return f"{self.family or 'model'} of {depth}, width {self.width}"


Operator = Literal["add", "ablate", "set"]
OPERATORS: tuple[str, ...] = get_args(Operator)

WEAK = 0.1  # of the difference a direction was learnt from: an α that hardly moves anything

if TYPE_CHECKING:
    from .vector import SteeringVector

    Summand: TypeAlias = "SteeringTerm | SteeringVector | Sequence[Summand]"


class Strength(NamedTuple):
    """What of a term can be changed during generation: α, and the limit on the change, as a multiple of ‖h‖."""

    alpha: float
    clip: float | None = None


@dataclass(frozen=True, repr=False)
class SteeringTerm:
    """One steering term, as :meth:`SteeringVector.steer` makes it; a value, as the vector is.

    With v̂ the direction at a layer, for h at the chosen positions:

    - ``add``: h ← h + α v̂;
    - ``ablate``: h ← h − (h·v̂) v̂;
    - ``set``: h ← h + (α − h·v̂) v̂.

    Attributes:
        name: its name in messages.
        directions: ``{layer: v̂}``, float32 ``[d]`` of unit length.
        site: where in the block.
        alpha: α, absolute: in the units of the hidden states. One for all sequences of a batch, or one for each.
        scale: factors on α for some layers; 1 for the others.
        positions: "all", "prompt" (p < 0), "generated" (p ≥ 0), "last" (p = 0), a half-open span (a, b) of p, or a set of p.
        steps: a half-open span of generated tokens; the prompt's positions count as step 0.
        decay: number of generated tokens in which α halves.
        schedule: factors on α at generated tokens 0, 1, …; the last is repeated. :meth:`over` tabulates a name or function.
        clip: the change is at most ``clip`` times as long as h, at each position.
        keep_norm: h keeps its length where it is changed.
        sequences: which sequences of a batch it applies to; None for all.
        made_for: any other kind of model is refused; if None, one of another width or with too few layers.
        layer_type: what another program read the direction at; families where ``site`` is another place are refused.
        norms: ``{layer: length of what its direction was learnt from}``, as far as that is known at this site.
    """

    name: str
    directions: Mapping[int, torch.Tensor]
    site: str
    alpha: float | tuple[float, ...] = 1.0
    scale: Mapping[int, float] = field(default_factory=dict, hash=False)
    positions: Any = "all"
    steps: Span | None = None
    decay: float | None = None
    schedule: Schedule | None = None
    clip: float | None = None
    keep_norm: bool = False
    operator: str = "add"
    sequences: tuple[int, ...] | None = None
    made_for: MadeFor | None = None
    layer_type: str | None = None
    norms: Mapping[int, float] = field(default_factory=dict, compare=False)

    __array_ufunc__ = None  # so that a NumPy number on the left defers to __rmul__

    def __post_init__(self) -> None:
        object.__setattr__(self, "directions", Directions(self.directions))
        alphas = self.alpha if isinstance(self.alpha, tuple) else (self.alpha,)
        numbers = {"alpha": alphas, "scale": tuple(self.scale.values()), "schedule": self._factors}
        for what, values in numbers.items():
            for value in values:
                if not math.isfinite(value):
                    raise LensError(f"{what} {value} of {self.name!r} is not a finite number")
        options.choice("operator", self.operator, OPERATORS)
        strengths = (self.scale, isinstance(self.alpha, tuple), self.decay is not None, self.schedule is not None)
        if self.operator == "ablate" and any(strengths):
            raise LensError(
                "ablate removes the whole projection: several alpha, scale, decay and schedule are for add and set; "
                "layers, positions and steps would do"
            )
        limits: dict[str, Any] = {"decay": self.decay, "clip": self.clip}
        for what, given in limits.items():
            if given is not None:
                object.__setattr__(self, what, _positive(f"{what} {quoted(given)} of {self.name!r}", given))
        check_positions(self.positions)
        if self.steps is not None:
            check_steps(self.steps)
        object.__setattr__(self, "keep_norm", options.flag(f"keep_norm of {self.name!r}", self.keep_norm))
        if self.sequences is not None:
            object.__setattr__(self, "sequences", self._checked_sequences())

    def _checked_sequences(self) -> tuple[int, ...]:
        chosen = tuple(options.integers("sequences", self.sequences))
        if not chosen or min(chosen) < 0 or len(set(chosen)) < len(chosen):
            raise LensError(f"sequences {quoted(chosen)} of {self.name!r} are no numbers from 0 on, each once; 0, 2 would do")
        return chosen

    @property
    def _factors(self) -> tuple[float, ...]:
        """The schedule's factors; none before :meth:`over` has tabulated a name or function."""
        return self.schedule if isinstance(self.schedule, tuple) else ()

    def over(self, steps: int) -> SteeringTerm:
        """Return the term for a run of ``steps`` generated tokens, with the schedule's factor for each.

        Raises:
            LensError: the schedule gives something that is not a finite number.
        """
        if self.schedule is None or isinstance(self.schedule, tuple):
            return self
        return replace(self, schedule=tabulate(self.schedule, steps))

    def over_each(self, steps: Sequence[int]) -> list[SteeringTerm]:
        """Return the term for a batch of such sequences; several, the last for the longest, where the schedule differs.

        Args:
            steps: number of generated tokens of each sequence.

        Raises:
            LensError: as for :meth:`over`.
        """
        if self.schedule != "linear" or len(set(steps)) == 1:  # no other schedule depends on the end
            return [self.over(max(steps))]
        alike: dict[int, list[int]] = {}
        for number, count in enumerate(steps):
            if self.sequences is None or number in self.sequences:
                alike.setdefault(count, []).append(number)
        return [replace(self.over(count), sequences=tuple(alike[count])) for count in sorted(alike)] or [self.over(max(steps))]

    def has_effect(self, positions: Iterable[int]) -> bool:
        """Whether it acts at any of these positions."""
        return any(self.covers(position) for position in positions)

    def check_sequences(self, batch: int) -> Sequence[int]:
        """Return the sequences of a batch that it applies to.

        Raises:
            LensError: it names one that is not in the batch.
        """
        for number in self.sequences or ():
            if number >= batch:
                there = f"{batch} prompts, 0 to {batch - 1}" if batch > 1 else "one prompt, 0"
                raise LensError(f"{self.name!r} is for sequence {number} of a batch; here it is of {there}")
        return self.sequences or range(batch)

    def check_effect(self, positions: range, most: float) -> None:
        """Refuse a term that would change nothing in a run, or more than the model can compute with.

        Args:
            positions: the positions of the sequences it applies to.
            most: the largest α.

        Raises:
            LensError: no position is steered, or α is too large.
        """
        if not self.has_effect(positions):
            last = positions.stop - 1
            tokens = f"and generated tokens 0 to {last}" if last >= 0 else "and no generated token"
            raise LensError(
                f"{self.name!r} would steer nothing: its positions and steps meet none of this run's, which are "
                f"p = {positions.start} to {last}, {tokens}"
            )
        alphas = self.alpha if isinstance(self.alpha, tuple) else (self.alpha,)
        scales = [self.scale.get(layer, 1.0) for layer in self.directions]
        largest = math.prod(max(map(abs, values), default=1.0) for values in (alphas, scales, self._factors))
        if largest > most:
            raise LensError(
                f"α of {self.name!r} ({largest:g} with scale and schedule) is more than the model can compute with ({most:.3g})"
            )

    @property
    def digest(self) -> str:
        """SHA-256 of its directions, which the record of a run has: vectors may have one name."""
        return Directions(self.directions).digest

    @property
    def share(self) -> float | None:
        """The largest |α| in units of what the directions were learnt from; None for an ablation, and if that is unknown."""
        if self.operator == "ablate" or not self.norms:
            return None
        strongest = max(map(abs, self.alpha if isinstance(self.alpha, tuple) else (self.alpha,)))
        return max(strongest * abs(self.scale.get(layer, 1.0)) / norm for layer, norm in self.norms.items())

    def covers(self, position: int) -> bool:
        """Whether it acts at position p."""
        step = max(position, 0)
        if self.steps is not None and not within(step, self.steps):
            return False
        if isinstance(self.positions, frozenset):
            return position in self.positions
        if isinstance(self.positions, tuple):
            return within(position, self.positions)
        return {"all": True, "prompt": position < 0, "generated": position >= 0, "last": position == 0}[self.positions]

    def factor(self, position: int) -> float:
        """Return the factor on α at position p, from decay and schedule."""
        step = max(position, 0)
        factor = 1.0 if self.decay is None else 0.5 ** (step / self.decay)
        if self._factors:
            factor *= self._factors[min(step, len(self._factors) - 1)]
        return factor

    def alphas(self, batch: int) -> list[float]:
        """Return α for each sequence of a batch.

        Raises:
            LensError: α is a tuple, but not of one value for each sequence.
        """
        if not isinstance(self.alpha, tuple):
            return [float(self.alpha)] * batch
        if len(self.alpha) != batch:
            raise LensError(f"{self.name!r} has {len(self.alpha)} values of alpha for {batch} sequences")
        return [float(value) for value in self.alpha]

    def of_sequence(self, number: int, batch: int) -> SteeringTerm | None:
        """Return the term for one sequence of a batch, taken by itself; None if that is not steered."""
        if self.sequences is not None and number not in self.sequences:
            return None
        return replace(self, alpha=self.alphas(batch)[number], sequences=None)

    def for_sequences(self, *sequences: int) -> SteeringTerm:
        """Return the term for some sequences of a batch only, by their numbers from 0 on.

        Raises:
            LensError: there is none, one twice, or something that is no such number.
        """
        return replace(self, sequences=sequences)

    def __mul__(self, factor: float | Sequence[float]) -> SteeringTerm:
        """Return the term with α multiplied by ``factor``, or by one for each sequence of a batch.

        Raises:
            LensError: these are not finite numbers, or not as many as the term has α; or it is an ablation.
        """
        if options.listed(factor) is None and not hasattr(factor, "__float__"):  # NumPy's numbers have it, strings do not
            return NotImplemented
        if self.operator == "ablate":
            raise LensError(
                f"{self.name!r} takes the whole projection away: it has no strength that {quoted(factor)} would change"
            )
        own, factors = self.alpha, alphas_of("factor", factor, self.name)
        if isinstance(own, tuple) and isinstance(factors, tuple) and len(own) != len(factors):
            raise LensError(f"{self.name!r} has {len(own)} values of alpha, not {len(factors)}; as many factors would do")
        if not isinstance(factors, tuple):
            return replace(self, alpha=tuple(a * factors for a in own) if isinstance(own, tuple) else own * factors)
        each = own if isinstance(own, tuple) else (own,) * len(factors)
        return replace(self, alpha=tuple(a * f for a, f in zip(each, factors, strict=True)))

    __rmul__ = __mul__

    def __neg__(self) -> SteeringTerm:
        return self * -1

    def __add__(self, other: Summand) -> Terms:
        return Terms((self,)) + other

    def __radd__(self, other: Summand | Literal[0]) -> Terms:
        return other + Terms((self,))

    def __sub__(self, other: Summand) -> Terms:
        return Terms((self,)) - other

    def __str__(self) -> str:
        layers = ",".join(str(layer) for layer in sorted(self.directions))
        strength = "" if self.operator == "ablate" else f" α={self.alpha}"
        return "; ".join([f"{self.name} {self.operator}{strength} at {self.site} of layer {layers}", *self._choices()])

    def __repr__(self) -> str:
        return f"<{in_short(str(self))}>"

    def _choices(self) -> Iterator[str]:
        """Describe what differs from the defaults, with all digits: runs keep it as their record."""
        if self.sequences is not None:
            yield f"sequences {','.join(map(str, self.sequences))}"
        if self.positions != "all":
            yield f"positions {describe_positions(self.positions)}"
        if self.steps is not None:
            yield f"steps {describe_positions(self.steps)}"
        if self.scale:
            yield f"scale {', '.join(f'{layer}: {_digits(factor)}' for layer, factor in sorted(self.scale.items()))}"
        if self.decay is not None:
            yield f"decay {_digits(self.decay)}"
        if self._factors:
            yield f"schedule {' '.join(map(_digits, self._factors))}"
        elif self.schedule is not None:
            yield f"schedule {self.schedule if isinstance(self.schedule, str) else getattr(self.schedule, '__name__', '?')}"
        if self.clip is not None:
            yield f"clip {_digits(self.clip)}"
        if self.keep_norm:
            yield "keep_norm"


def _digits(number: float) -> str:
    """Return a number in as few digits as give it back."""
    return repr(float(number)).removesuffix(".0")


def alphas_of(what: str, given: Any, name: str) -> float | tuple[float, ...]:
    """Return α, or factors on it, as a number, or as a tuple with one for each sequence of a batch.

    Args:
        name: the term's or vector's.

    Raises:
        LensError: it is not a finite number, or an empty sequence.
    """
    several = options.listed(given)
    try:
        values = tuple(options.number(what, value) for value in ([given] if several is None else several))
    except LensError:
        raise LensError(f"{what} {quoted(given)} of {name!r} is not a number") from None
    if not values:
        raise LensError(f"{what} of {name!r} is an empty sequence; one for each sequence of a batch would do")
    for value in values:
        if not math.isfinite(value):
            raise LensError(f"{what} {value} of {name!r} is not a finite number")
    return values[0] if several is None else values


def _positive(what: str, given: Any) -> float:
    """Return a positive number (of Python, NumPy or torch) as a float."""
    with contextlib.suppress(LensError):
        if 0 < (number := options.number(what, given)) < math.inf:
            return number
    raise LensError(f"{what} is not a positive number")


class Terms(tuple[SteeringTerm, ...]):
    """A sum of terms, applied in order."""

    __array_ufunc__ = None

    @classmethod
    def of(cls, given: Summand) -> Terms:
        """Return the sum of a term, a vector (which counts with α = 1), or a list or tuple of them and of sums.

        Raises:
            LensError: it is, or holds, something else.
        """
        if isinstance(given, list | tuple):
            return cls(term for one in given for term in cls.of(one))
        from .vector import SteeringVector

        if isinstance(given, SteeringVector):
            given = given.steer(1.0)
        if not isinstance(given, SteeringTerm):
            raise LensError(f"steering takes vectors and terms (vector * 1.5), not {type(given).__name__}")
        return cls((given,))

    def __add__(self, other: Summand) -> Terms:  # type: ignore[override]
        return Terms((*self, *Terms.of(other)))

    def __radd__(self, other: Summand | Literal[0]) -> Terms:
        return self if isinstance(other, int) and other == 0 else Terms.of(other) + self  # sum() begins with 0

    def __mul__(self, factor: float | Sequence[float]) -> Terms:  # type: ignore[override]
        return Terms(term * factor for term in self)

    __rmul__ = __mul__  # type: ignore[assignment]

    def __neg__(self) -> Terms:
        return self * -1

    def __sub__(self, other: Summand) -> Terms:
        return self + -Terms.of(other)
