"""What all ways to generate are asked for alike, checked before anything is sent to the ranks."""

from __future__ import annotations

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
