"""Chats as tokens: messages in the template that comes with a model's tokenizer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import LensError, reason_of
from .tokens import encode_later, encode_piece, require_characters

Message = Mapping[str, str]
"""``{"role": "user", "content": …}``, and whatever else the template reads."""

_MARK = re.compile("\ue000lens([0-9]+)\ue001")
_SPACE = "\x1f"  # white space that templates trim but never write


def encode_chat(tokenizer: Any, messages: Sequence[Message], instead: str = "a plain text would do") -> list[int]:
    """Encode a chat, up to where the answer begins; if the last message is the assistant's, up to its end, to go on with it.

    Text that looks like a special token stays text; only the template adds such tokens.

    Args:
        instead: what to propose if this model cannot have such a chat.

    Raises:
        LensError: a message is not valid Unicode, or the model has no chat template, or one that does not take the messages.
    """
    texts = [message["content"] for message in messages]
    for text in texts:
        require_characters(text)
    if not tokenizer.chat_template:
        raise LensError(f"this model has no chat template; {instead}")
    around = _around(tokenizer, messages, instead)
    if all(encode_piece(tokenizer, text) == encode_piece(tokenizer, text, as_text=True) for text in texts):
        # As a whole, as in training: tokens may reach from the template into the text.
        return encode_piece(tokenizer, _in_template(tokenizer, messages, instead))
    # Part of a text would become a special token, so each is encoded by itself, without the space that the template trims.
    encoded = encode_piece(tokenizer, around[0].removesuffix(_SPACE))
    for text, before, after in zip(texts, around, around[1:], strict=False):
        kept = text if before.endswith(_SPACE) else text.lstrip()
        kept = kept if after.startswith(_SPACE) else kept.rstrip()
        begins = _begins_anew(tokenizer, before.strip(_SPACE))
        encoded += encode_piece(tokenizer, kept, as_text=True) if begins else encode_later(tokenizer, kept, as_text=True)
        encoded += encode_later(tokenizer, after.strip(_SPACE))
    return encoded


def _begins_anew(tokenizer: Any, before: str) -> bool:
    """Whether a text gets the space that some tokenizers put before a text: they begin anew after a special token."""
    return encode_piece(tokenizer, before + "a") == encode_piece(tokenizer, before) + encode_piece(tokenizer, "a")


def _around(tokenizer: Any, messages: Sequence[Message], instead: str) -> list[str]:
    """Return what the template writes before, between and after the messages' texts."""
    marks = [f"{_SPACE}\ue000lens{number}\ue001{_SPACE}" for number in range(len(messages))]
    marked = [{**message, "content": mark} for message, mark in zip(messages, marks, strict=True)]
    before, *rest = _MARK.split(_in_template(tokenizer, marked, instead))  # pieces, with the numbers of the marks between them
    if rest[::2] != [*map(str, range(len(messages)))]:
        does = (
            "leaves the user's message out" if len(messages) == 1 else "does not keep to the messages, each once and in order"
        )
        raise LensError(f"this model's chat template {does}; {instead}")
    return [before, *rest[1::2]]


def _in_template(tokenizer: Any, messages: Sequence[Message], instead: str) -> str:
    """Return the chat template filled with messages, up to where the answer begins or goes on."""
    goes_on = messages[-1]["role"] == "assistant"
    how = {"continue_final_message": True} if goes_on else {"add_generation_prompt": True}
    try:
        # Copies: transformers writes into the message that is gone on with.
        return str(tokenizer.apply_chat_template([dict(message) for message in messages], tokenize=False, **how))
    except Exception as error:  # a template is a program that comes with the model
        raise LensError(f"this model's chat template cannot be used: {reason_of(error)}; {instead}") from error
