"""Prompts and forced continuations as tokens, checked before they are sent to the ranks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from . import options
from .errors import LensError
from .words import counted

if TYPE_CHECKING:
    from .session import Model


def several(prompt: Any) -> list[str]:
    """Return one text, or several, as a list.

    Raises:
        LensError: it is neither.
    """
    given = [prompt] if isinstance(prompt, str) else options.listed(prompt, ordered=False)
    if given is None:
        raise LensError(f"the prompt should be a text, or a list of several, not {type(prompt).__name__}")
    return given


def prompt_ids(model: Model, prompt: str, chat: bool = False) -> list[int]:
    """Return the prompt's token ids.

    Raises:
        LensError: the prompt is empty, or not text.
    """
    from .model.tokens import encode

    if not isinstance(prompt, str):
        raise LensError(f"the prompt should be text, not {type(prompt).__name__}")
    ids = encode(model.tokenizer, prompt, chat) if prompt else []
    if not ids:
        raise LensError("the prompt is empty; the text to continue would do (in a cell, below the line)")
    check_ids(model, ids)
    return ids


def check_ids(model: Model, ids: Iterable[int]) -> None:
    """Check that the model has a row for every token: a tokenizer may have been extended, and the model not.

    Raises:
        LensError: it does not.
    """
    largest = max(ids, default=0)
    if largest >= model.vocabulary:
        token = model.tokenizer.convert_ids_to_tokens(largest)
        raise LensError(
            f"the tokenizer has a token {token!r} with id {largest}, beyond the model's vocabulary of {model.vocabulary}: "
            "they do not belong together; a text without it would do"
        )


def all_prompt_ids(model: Model, prompts: Sequence[str], chat: bool) -> tuple[tuple[int, ...], ...]:
    """Return each prompt's token ids.

    Raises:
        LensError: there is no prompt, or one is empty or not text.
    """
    if not prompts:
        raise LensError("there is no prompt; give one text or several")
    return tuple(tuple(prompt_ids(model, prompt, chat)) for prompt in prompts)


def all_forced_ids(model: Model, force: Any, prompts: int) -> tuple[tuple[int, ...], ...]:
    """Return for each prompt the token ids to read instead of generating.

    Raises:
        LensError: there are not as many as prompts, or one is neither text nor ids of the vocabulary.
    """
    given = options.listed(force)
    if given is None:
        raise LensError(f"force is one continuation for {prompts} prompts; a list of one for each would do")
    forced = tuple(_forced_ids(model, one) for one in given)
    if len(forced) != prompts:
        raise LensError(f"force has {len(forced)} continuations for {prompts} prompts; one for each would do")
    return forced


def _forced_ids(model: Model, force: str | int | Iterable[int]) -> tuple[int, ...]:
    """Return one continuation's token ids. It does not begin a sequence, so no special tokens are added to a text."""
    if isinstance(force, str):
        from .model.tokens import encode_rest

        ids = encode_rest(model.tokenizer, force)
        check_ids(model, ids)
    else:
        several = options.listed(force)
        ids = options.integers("the token ids to force", [force] if several is None else several)
    if not ids or not all(0 <= index < model.vocabulary for index in ids):
        raise LensError(f"force should be text, or token ids from 0 to {model.vocabulary - 1}")
    return tuple(ids)


def check_new(new: int, prompt_tokens: bool | None = None) -> None:
    """Refuse too few new tokens.

    Args:
        prompt_tokens: whether a run shows the prompt's positions too, so that 0 new tokens are enough; None if not a run.

    Raises:
        LensError: there are too few; says how many would do.
    """
    minimum = 0 if prompt_tokens else 1
    if new < minimum:
        hint = "; with --prompt-tokens 0 gives the lens of the prompt itself" if new == 0 and prompt_tokens is not None else ""
        raise LensError(f"max-new-tokens {new} is too few; {minimum} or more would do{hint}")


def check_length(prompt: int, new: int, context: int, prompt_tokens: bool | None = None) -> None:
    """Refuse more tokens than fit into the context (:func:`check_room`), or too few (:func:`check_new`)."""
    check_room(prompt, new, context)
    check_new(new, prompt_tokens)


def check_room(prompt: int, new: int, context: int) -> None:
    """Refuse more tokens than fit into the context.

    Raises:
        LensError: there are too many; says how many would do.
    """
    if prompt > context:
        raise LensError(f"the prompt has {prompt} tokens, more than the model's context of {context}")
    # The last generated token is never read by the model.
    if prompt + new - 1 > context:
        raise LensError(
            f"{counted(prompt, 'prompt token')} and {new} new ones exceed the model's context of {context}; "
            f"at most {context - prompt + 1} new ones fit"
        )
