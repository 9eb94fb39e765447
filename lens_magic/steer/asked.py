"""A prompt and the beginning of its answer as tokens: one text, or the messages of a chat."""

from __future__ import annotations

from typing import Any

from ..model.chat import encode_chat
from ..model.tokens import common_prefix


def tokens(tokenizer: Any, prompt: str, answer: str = "", chat: bool = False) -> tuple[tuple[int, ...], int]:
    """Return the tokens up to the answer's end, and where a prompt without answer begins, after special tokens or a template.

    Args:
        answer: if it is empty, a chat goes on to where the assistant's message begins.
        chat: the prompt is a user's message in the model's chat template, the answer the assistant's.

    Raises:
        LensError: there is no chat template, or one that does not take these messages.
    """
    return _in_chat(tokenizer, prompt, answer) if chat else _in_text(tokenizer, prompt + answer)


def _in_text(tokenizer: Any, text: str) -> tuple[tuple[int, ...], int]:
    encoded = tokenizer(text, split_special_tokens=True, return_special_tokens_mask=True)
    own = [place for place, special in enumerate(encoded["special_tokens_mask"]) if not special]
    end = own[-1] + 1 if own else 0  # without those that a tokenizer puts behind a text
    return tuple(int(index) for index in encoded["input_ids"][:end]), own[0] if own else 0


def _in_chat(tokenizer: Any, prompt: str, answer: str) -> tuple[tuple[int, ...], int]:
    def encoded(*texts: str) -> list[int]:
        said = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), texts, strict=False)]
        return encode_chat(tokenizer, said, "leave --chat out")

    if answer:  # which is read, not the prompt
        return tuple(encoded(prompt, answer)), 0
    return tuple(ids := encoded(prompt)), common_prefix(ids, encoded(""))
