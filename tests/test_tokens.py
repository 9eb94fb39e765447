"""Prompts as typed, tokens as shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import pytest

import lens_magic as lens
from lens_magic.model.tokens import TextStream, decode, encode, token_texts

Checkpoints = Callable[[str], Path]
TEXTS = [
    "plain words",
    "  spaces  ",
    "naïve café",
    "日本語のテキスト",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 emoji",
    "\x00\x1b[0m\t\r\n",
    "שלום",
    "{braces} $dollars \\",
]


def test_what_is_no_character_is_refused(tokenizer: Any) -> None:
    """A command line in another encoding brings such."""
    with pytest.raises(lens.LensError, match=r"the text holds '\\udcfc' at character 1: .* not UTF-8"):
        encode(tokenizer, "f\udcfcr")


@pytest.fixture(scope="module")
def tokenizer(checkpoints: Checkpoints) -> Any:
    return models.load_plain(checkpoints("llama-gqa"))[1]


@pytest.mark.parametrize("text", TEXTS)
def test_text_round_trips(tokenizer: Any, text: str) -> None:
    assert decode(tokenizer, encode(tokenizer, text)) == text


def test_special_text_in_a_prompt_is_text(tokenizer: Any) -> None:
    ids = encode(tokenizer, "a<|end|>b")
    assert tokenizer.eos_token_id not in ids
    assert decode(tokenizer, ids) == "a<|end|>b"


def test_chat(tokenizer: Any) -> None:
    with pytest.raises(lens.LensError, match="no chat template"):
        encode(tokenizer, "hello", chat=True)
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|end|>{% endfor %}[bot]"
    try:
        ids = encode(tokenizer, "hi <|end|>", chat=True)
        assert decode(tokenizer, ids) == "[user]hi <|end|><|end|>[bot]"
        assert ids.count(tokenizer.eos_token_id) == 1  # the template's own; the user's is text
    finally:
        tokenizer.chat_template = None


def test_every_token_has_a_text(tokenizer: Any) -> None:
    beyond = len(tokenizer) + 3
    texts = token_texts(tokenizer, [*range(len(tokenizer)), beyond])
    assert texts[beyond] == f"<{beyond}>"
    assert texts[tokenizer.eos_token_id] == "<|end|>"
    assert not any("�" in text for text in texts.values())
    half = tokenizer.convert_tokens_to_ids("Ã")  # the byte C3, alone
    assert texts[half] == "\\xc3"


@pytest.mark.parametrize("text", TEXTS)
def test_streamed_pieces_make_the_text(tokenizer: Any, text: str) -> None:
    stream = TextStream(tokenizer)
    pieces = [stream.add(index) for index in encode(tokenizer, text)]
    assert "".join(pieces) == text
    assert not any("�" in piece for piece in pieces)
