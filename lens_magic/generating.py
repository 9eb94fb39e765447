"""What all ways to generate are asked for alike, checked before anything is sent to the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from . import options

if TYPE_CHECKING:
    from .model.choose import Sampling
    from .session import Model


@dataclass(frozen=True)
class Generating:
    """How far and in which way to generate: what a run, a plain generation and a comparison are asked for alike."""

    max_new_tokens: int
    sampling: Sampling
    ignore_eos: bool
    chat: bool

    @classmethod
    def checked(
        cls, max_new_tokens: int, temperature: float, top_p: float, seed: int, ignore_eos: bool, chat: bool
    ) -> Generating:
        """Return the options as Python's numbers and booleans; the context's limit is checked with the prompt.

        Raises:
            LensError: one of them is of another type or out of range.
        """
        from .model.choose import Sampling

        return cls(
            options.integer("max-new-tokens", max_new_tokens),
            Sampling(*options.check_sampling(temperature, top_p, seed)),
            options.flag("ignore_eos", ignore_eos),
            options.flag("chat", chat),
        )

    def stop_ids(self, model: Model) -> tuple[int, ...]:
        """Return the tokens that end a text."""
        return () if self.ignore_eos else model.stop_ids

    def recorded(self) -> dict[str, Any]:
        """Return the options by name, as results keep them."""
        named = {"max_new_tokens": self.max_new_tokens, **asdict(self.sampling)}
        return {**named, "ignore_eos": self.ignore_eos, "chat": self.chat}


def nothing_said(model: Model, output_ids: Sequence[int], chat: bool) -> str:
    """Return a line on an answer that is an end token alone, and on what may bring a text; empty for any other answer.

    Args:
        chat: whether the prompt was put into the model's chat template.
    """
    if len(output_ids) != 1 or output_ids[0] not in model.stop_ids:
        return ""
    token = model.tokenizer.convert_ids_to_tokens(output_ids[0])
    without = not chat and getattr(model.tokenizer, "chat_template", None)
    hint = "it has a chat template, into which --chat puts the prompt" if without else "--ignore-eos goes on"
    return f"the model ended its answer at once, with {token!r}; {hint}"
