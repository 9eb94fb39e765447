"""Conversion between text and tokens: prompts as the user typed them, and tokens as readable text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import takewhile
from typing import Any

from ..errors import LensError, reason_of

_REPLACEMENT = "�"


def load_tokenizer(folder: str, trust_remote_code: bool = False) -> Any:
    """Load the checkpoint's tokenizer.

    Raises:
        LensError: it cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:  # what tokenizers raises has no class of its own
        raise LensError(f"the tokenizer in {folder} cannot be read: {reason_of(error, whole=True)}") from error


def encode(tokenizer: Any, text: str) -> list[int]:
    """Encode a text that begins a sequence. What looks like a special token stays text; only the tokenizer adds such tokens.

    Raises:
        LensError: the text is not valid Unicode.
    """
    require_characters(text)
    # verbose=False: we refuse a text longer than the context ourselves, in fewer words than the tokenizer's warning.
    return [int(index) for index in tokenizer(text, split_special_tokens=True, verbose=False)["input_ids"]]


def encode_piece(tokenizer: Any, text: str, as_text: bool = False) -> list[int]:
    """Encode a piece of a sequence, adding no special tokens."""
    found = tokenizer(text, add_special_tokens=False, split_special_tokens=as_text, verbose=False)["input_ids"]
    return [int(index) for index in found]


def encode_rest(tokenizer: Any, text: str) -> list[int]:
    """Encode text that does not begin a sequence: nothing is added, and what looks like a special token stays text.

    Raises:
        LensError: the text is not valid Unicode.
    """
    require_characters(text)
    return encode_later(tokenizer, text, as_text=True)


_BEFORE = "\n"  # no token reaches from it into a word


def encode_later(tokenizer: Any, text: str, as_text: bool = False) -> list[int]:
    """Encode a piece that other text precedes: without the space that SentencePiece puts before a text."""
    before = encode_piece(tokenizer, _BEFORE, as_text)
    whole = encode_piece(tokenizer, _BEFORE + text, as_text)
    return whole[len(before) :] if whole[: len(before)] == before else encode_piece(tokenizer, text, as_text)


def require_characters(text: str) -> None:
    """Refuse what is no text: half of a surrogate pair, or a byte that was not UTF-8.

    Raises:
        LensError: the text holds such.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        stray = f"{text[error.start]!r} at character {error.start}"
        raise LensError(f"the text holds {stray}: half of a character, or a byte that is not UTF-8") from None


def decode(tokenizer: Any, ids: Iterable[int], stop_ids: Iterable[int] = ()) -> str:
    """Decode generated tokens, leaving out end tokens and ids the tokenizer does not have."""
    ends = set(stop_ids)
    size = len(tokenizer)
    kept = [index for index in ids if index not in ends and index < size]
    return str(tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def token_texts(tokenizer: Any, ids: Iterable[int]) -> dict[int, str]:
    """Return readable text for single tokens; incomplete characters as bytes (``\\xe2``), ids without text as ``<id>``."""
    size = len(tokenizer)
    return {index: _text(tokenizer, index) if index < size else f"<{index}>" for index in sorted(set(ids))}


def _text(tokenizer: Any, index: int) -> str:
    piece = tokenizer.convert_ids_to_tokens(index)
    if piece is None:
        return f"<{index}>"
    text = str(tokenizer.decode([index], clean_up_tokenization_spaces=False))
    if "▁" in piece and "▁" not in text:  # SentencePiece's mark for a space, which decoding a single token would drop
        return str(piece).replace("▁", " ")
    if _REPLACEMENT not in text:
        return text
    if byte := re.fullmatch(r"<0x([0-9A-F]{2})>", piece):  # SentencePiece's notation for a byte
        return f"\\x{byte[1].lower()}"
    table = _bytes_of_characters()
    if not all(character in table for character in piece):
        return str(piece)
    return bytes(table[character] for character in piece).decode("utf-8", errors="backslashreplace")


@cache
def _bytes_of_characters() -> dict[str, int]:
    """Map byte-level BPE's printable characters to their bytes: printable Latin-1 as itself, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def common_prefix(*sequences: Sequence[int]) -> int:
    """Return the length of the sequences' common prefix."""
    return sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*sequences, strict=False)))


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """Return the index of two sequences' first difference, the end of the shorter being one; None if they are equal."""
    at = common_prefix(one, other)
    return at if at < max(len(one), len(other)) else None


class TextStream:
    """Decodes a growing list of tokens, returning text as soon as its characters are complete."""

    def __init__(self, tokenizer: Any, stop_ids: Iterable[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop_ids = set(stop_ids)
        self._ids: list[int] = []
        self._settled = 0  # tokens whose text has been returned; from _context on they are context for the next
        self._context = 0

    def add(self, index: int) -> str:
        """Add a token and return the text that it completes; empty while a character is unfinished."""
        if index in self._stop_ids:
            return ""
        self._ids.append(index)
        before = decode(self._tokenizer, self._ids[self._context : self._settled])
        now = decode(self._tokenizer, self._ids[self._context :])
        if now.endswith(_REPLACEMENT):
            return ""
        self._context, self._settled = self._settled, len(self._ids)
        return now[len(before) :]
