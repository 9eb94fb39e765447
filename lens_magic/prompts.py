"""Prompts and forced continuations as tokens, checked before they are sent to the ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from . import options
from .errors import LensError
from .words import counted, quoted

if TYPE_CHECKING:
    from .model.chat import Message
    from .session import Model


Prompt: TypeAlias = "str | Sequence[int] | Sequence[Message]"
"""One prompt: a text, token ids, or the messages of a chat."""

_KINDS = "a text, token ids or messages ({'role': 'user', 'content': …}), or a list of several"


class Read(NamedTuple):
    """A prompt as the model reads it.

    Attributes:
        text: as it was given, or what its tokens say.
        ids: its tokens.
        chat: whether it is in the model's chat template.
    """

    text: str
    ids: tuple[int, ...]
    chat: bool


def read_all(model: Model, prompt: Any, chat: bool) -> tuple[list[Read], bool]:
    """Read one prompt or several.

    Args:
        chat: put a text into the model's chat template, as the user's message.

    Returns:
        The prompts, and whether it was one by itself.

    Raises:
        LensError: it is none, or one of them is empty, or has tokens that the model does not.
    """
    given = [prompt] if isinstance(prompt, str) else options.listed(prompt, ordered=False)
    if given is None:
        raise LensError(f"the prompt should be {_KINDS}, not {type(prompt).__name__}")
    if not given:
        raise LensError("there is no prompt; give one text or several")
    if not isinstance(prompt, str | Set) and (_are_messages(given) or _are_ids(given)):
        return [read(model, given, chat)], True
    for number, one in enumerate(given if len(given) > 1 else (), start=1):
        if isinstance(one, str) and not one:
            raise LensError(f"prompt {number} of {len(given)} is empty; a text to continue would do")
    return [read(model, one, chat) for one in given], isinstance(prompt, str)


def _are_messages(items: Sequence[Any]) -> bool:
    return all(isinstance(item, Mapping) for item in items)


def _are_ids(items: Sequence[Any]) -> bool:
    """Whether all are integers; a row of a tensor has ``__index__`` too."""
    return all(hasattr(item, "__index__") and not isinstance(item, bool) and getattr(item, "ndim", 0) == 0 for item in items)


def read(model: Model, prompt: Any, chat: bool = False) -> Read:
    """Read one prompt.

    Raises:
        LensError: as for :func:`read_all`.
    """
    from .model.chat import encode_chat
    from .model.tokens import decode, encode

    if isinstance(prompt, str):
        message = {"role": "user", "content": prompt}
        ids = []
        if prompt:
            ids = encode_chat(model.tokenizer, [message], "leave --chat out") if chat else encode(model.tokenizer, prompt)
        if not ids:
            raise LensError("the prompt is empty; the text to continue would do (in a cell, below the line)")
        check_ids(model, ids)
        return Read(prompt, tuple(ids), chat)
    items = options.listed(prompt) or []
    if not items or not (_are_messages(items) or _are_ids(items)):
        raise LensError(f"the prompt should be {_KINDS}, not {quoted(prompt)}")
    if _are_messages(items):
        ids = encode_chat(model.tokenizer, [_checked(message) for message in items])
        check_ids(model, ids)
        return Read(decode(model.tokenizer, ids), tuple(ids), True)
    if chat:
        raise LensError("token ids are read as they are, in no chat template; leave --chat out, or give text or messages")
    ids = options.integers("the prompt's token ids", items)
    if not all(0 <= index < model.vocabulary for index in ids):
        raise LensError(f"the prompt's token ids should be from 0 to {model.vocabulary - 1}")
    return Read(decode(model.tokenizer, ids), tuple(ids), False)


def _checked(message: Mapping[str, Any]) -> Mapping[str, str]:
    if not all(isinstance(message.get(key), str) for key in ("role", "content")):
        raise LensError(f"a message is {{'role': 'user', 'content': 'a text'}}, not {quoted(dict(message))}")
    return message


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
        hint = "; with --prompt-tokens, 0 gives the lens of the prompt itself" if new == 0 and prompt_tokens is not None else ""
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
