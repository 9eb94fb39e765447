"""A prompt's continuation unsteered and steered, and the log-probabilities of both texts under both models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import LensError
from ..model.tokens import first_difference
from ..paths import path_of
from ..reading import read_as
from ..words import printable
from ..writing import written_whole

FORMAT = "lens-magic steered text 1"


@dataclass(frozen=True)
class Side:
    """One of the two texts.

    Attributes:
        text, output_ids: as in a run; an end token is among the ids but not in the text.
        log_probs_unsteered, log_probs_steered: log p of each of its tokens in nats, under each model.
    """

    text: str
    output_ids: list[int]
    log_probs_unsteered: tuple[float, ...] = ()
    log_probs_steered: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.log_probs_unsteered) != len(self.log_probs_steered):
            raise ValueError("its tokens have probabilities under one model only")

    @property
    def log_prob_change(self) -> tuple[float, ...]:
        """log p under the steered model minus log p under the unsteered one, of each token, in nats."""
        return tuple(s - u for u, s in zip(self.log_probs_unsteered, self.log_probs_steered, strict=True))


@dataclass(frozen=True)
class SteeredText:
    """A prompt's continuation without and with steering.

    Attributes:
        prompt: text of the prompt.
        unsteered, steered: the two continuations.
        token_texts: readable text of their tokens.
        steering: the terms, in words.
        timings, options, provenance: as in a run.
        alphas, clips: if they could be moved during generation: for each token, those of every term when it was chosen.
        interrupted: whether the user stopped it.
        end_ids: those of their tokens that are end tokens, which are in no text.
    """

    prompt: str
    unsteered: Side
    steered: Side
    token_texts: Mapping[int, str]
    steering: tuple[str, ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    alphas: tuple[tuple[float, ...], ...] = ()
    clips: tuple[tuple[float | None, ...], ...] = ()
    interrupted: bool = False
    end_ids: tuple[int, ...] = ()

    @property
    def first_difference(self) -> int | None:
        """Index of the first token in which the two differ (0 is the first generated); None if they are the same."""
        return first_difference(self.unsteered.output_ids, self.steered.output_ids)

    @property
    def log_prob_change(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """:attr:`Side.log_prob_change` of the unsteered text and of the steered one."""
        return self.unsteered.log_prob_change, self.steered.log_prob_change

    def save(self, path: str | Path) -> Path:
        """Write everything as JSON; :meth:`load` reads it.

        Raises:
            LensError: it cannot be written there.
        """
        record = {"format": FORMAT, **asdict(self), "token_texts": {str(i): text for i, text in self.token_texts.items()}}
        with written_whole(path) as partial:
            partial.write_text(json.dumps(record, ensure_ascii=True, indent=1), encoding="utf-8")
        return path_of(path)

    @classmethod
    def load(cls, path: str | Path) -> SteeredText:
        """Read what :meth:`save` wrote.

        Raises:
            LensError: there is no such file, or it holds something else.
        """
        source = path_of(path)
        if not source.is_file():
            raise LensError(f"there is no file {source}")
        with read_as("a steered text that lens-magic saved", source):
            record = json.loads(source.read_text(encoding="utf-8"))
            if not isinstance(record, dict) or record.pop("format", None) != FORMAT:
                raise LensError(f"{path} is no steered text that lens-magic saved")
            for name in ("unsteered", "steered"):
                side = record[name]
                text, ids = side.pop("text"), list(side.pop("output_ids"))
                record[name] = Side(text, ids, **{key: tuple(value) for key, value in side.items()})
            record["token_texts"] = {int(index): text for index, text in record["token_texts"].items()}
            record |= {name: printable(record[name]) for name in ("steering", "options", "provenance")}
            record |= {name: tuple(record.get(name, ())) for name in ("steering", "end_ids")}
            for name in ("alphas", "clips"):
                record[name] = tuple(tuple(step) for step in record.get(name, ()))
            return cls(**record)

    def __repr__(self) -> str:
        from ..view.steered import as_text

        return as_text(self)

    def _repr_html_(self) -> str:
        from ..view.steered import as_html

        return as_html(self)
