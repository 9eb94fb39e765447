"""Finding the token that is the label of a two-way answer, for a given tokenizer.

``"Answer:"`` and ``" (A)"`` can become ``Answer|:| (|A|)``, ``Answer|:| |(A|)`` or ``Answer|: (A)``. The label is looked for
in the tokens themselves; counting characters, or tokens of the separate pieces, misses it with some tokenizers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import LensError
from ..model.tokens import common_prefix, token_texts
from .asked import tokens


@dataclass(frozen=True)
class LabelPrompt:
    """A question, extended by the part of its answer before the label.

    Attributes:
        prefix_ids: the tokens before the label, the same for both answers; the label is what the model predicts next.
        label_id, other_id: the label token of the answer, and of the other answer.
        label, other: their texts in readable form.
    """

    prefix_ids: tuple[int, ...]
    label_id: int
    other_id: int
    label: str
    other: str


def resolve(tokenizer: Any, question: str, answer: str, other: str, chat: bool = False) -> LabelPrompt:
    """Find the label tokens of two answers that differ in one letter.

    Args:
        question: the prompt up to the answer.
        answer, other: such as ``" (A)"`` and ``" (B)"``.
        chat: the question is a user's message, the answer begins the assistant's.

    Raises:
        LensError: the answers are tokenised alike, the label takes more than one token, or there is no such chat.
    """
    ours, theirs = (tokens(tokenizer, question, each, chat)[0] for each in (answer, other))
    at = common_prefix(ours, theirs)
    texts = {answer.strip(): ours, other.strip(): theirs}
    if ours == theirs:
        raise LensError(f"this tokenizer does not tell the answers {answer!r} and {other!r} apart")
    if at == min(len(ours), len(theirs)) or ours[at + 1 :] != theirs[at + 1 :]:
        _refuse(tokenizer, {text: ids[at:] for text, ids in texts.items()})
    names, letter = token_texts(tokenizer, (ours[at], theirs[at])), _letter(answer, other)
    for text, ids in ((answer, ours), (other, theirs)):
        covering: list[int] | None
        if chat:  # whose text is known by its tokens alone
            covering = [at] if text[letter] in names[ids[at]] else [at - 1, at]
        else:
            covering = _tokens_of_character(tokenizer, question + text, len(question) + letter)
        if covering is not None and covering != [at]:
            _refuse(tokenizer, {text.strip(): [ids[index] for index in covering]})
    return LabelPrompt(tuple(ours[:at]), ours[at], theirs[at], names[ours[at]], names[theirs[at]])


def _letter(answer: str, other: str) -> int:
    """Return the index of the letter in which the answers differ."""
    return next((at for at, (a, b) in enumerate(zip(answer, other, strict=False)) if a != b), 0)


def _tokens_of_character(tokenizer: Any, text: str, place: int) -> list[int] | None:
    """Return the indices of the tokens that hold a character; None if the tokenizer does not keep track."""
    if not getattr(tokenizer, "is_fast", False):
        return None
    offsets = tokenizer(text, split_special_tokens=True, return_offsets_mapping=True)["offset_mapping"]
    return [index for index, (begin, end) in enumerate(offsets) if begin <= place < end]


def _refuse(tokenizer: Any, pieces: Mapping[str, Sequence[int]]) -> None:
    shown = "; ".join(
        f"{text!r} → {'|'.join(repr(token_texts(tokenizer, [index])[index]) for index in ids)}" for text, ids in pieces.items()
    )
    raise LensError(f"the label is not one token of this tokenizer ({shown}); answers whose letter is one token would do")
