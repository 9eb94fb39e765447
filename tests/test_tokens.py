"""Prompts as typed, tokens as shown."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import models
import pytest

import lens_magic as lens
from lens_magic.lens.chosen import look
from lens_magic.model.chat import encode_chat
from lens_magic.model.tokens import TextStream, decode, encode, encode_rest, token_texts

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


TEMPLATES = {
    "plain": "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|end|>{% endfor %}[bot]",
    "trimmed": "{% for m in messages %}[{{ m.role }}]\n\n{{ m.content | trim }}<|end|>{% endfor %}[bot]\n",
    "words": "USER: {{ messages[0].content }} ASSISTANT:",
    "instruction": "<|end|>[INST] {{ messages[0].content | trim }} [/INST]",
}


@pytest.fixture(scope="module")
def prepending() -> Any:
    """A tokenizer that marks spaces with ▁, one before every text included, as Llama 2's does."""
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, trainers
    from tokenizers import models as kinds
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(kinds.BPE())
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # no token reaches from one word into the next
    made.decoder = decoders.Replace("▁", " ")
    # Had it learnt to merge the end token's characters, that text would be that token.
    texts = [text.replace("|", "| ") for text in (*TEXTS, *TEMPLATES.values(), models.TEXT)]
    made.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=400, special_tokens=["<|end|>"], show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>")


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def with_template(tokenizer: Any, template: str | None) -> Any:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    return changed


@pytest.mark.parametrize("text", ["hello", "  two lines\nand spaces \n", "日本語", "\x00"])
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", ["tokenizer", "prepending"])
def test_a_chat_is_what_the_template_makes_of_it(kind: str, template: str, text: str, request: pytest.FixtureRequest) -> None:
    chatting = with_template(request.getfixturevalue(kind), TEMPLATES[template])
    whole = chatting.apply_chat_template(user(text), add_generation_prompt=True, return_dict=False)
    assert encode_chat(chatting, user(text)) == whole


CHAT = [("system", "Be brief. "), ("user", " Who?"), ("assistant", "The\ncat"), ("user", "日本語"), ("assistant", " It is ")]


def messages_of(*said: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in said]


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("template", ["plain", "trimmed"])
@pytest.mark.parametrize("kind", ["tokenizer", "prepending"])
def test_a_chat_of_several_messages(kind: str, template: str, count: int, request: pytest.FixtureRequest) -> None:
    """The answer begins after the user's last message, and goes on after the assistant's."""
    chatting, messages = with_template(request.getfixturevalue(kind), TEMPLATES[template]), messages_of(*CHAT[:count])
    how = {"continue_final_message": True} if count % 2 else {"add_generation_prompt": True}
    whole = chatting.apply_chat_template(copy.deepcopy(messages), return_dict=False, **how)
    assert encode_chat(chatting, messages) == whole
    assert messages == messages_of(*CHAT[:count])


@pytest.mark.parametrize(
    ("template", "shown"),
    [
        ("plain", "[system]be <|end|><|end|>[user] hi<|end|>[assistant] I <|end|> am "),
        ("trimmed", "[system]\n\nbe <|end|><|end|>[user]\n\nhi<|end|>[assistant]\n\nI <|end|> am"),
    ],
)
def test_special_text_in_any_message_is_text(tokenizer: Any, template: str, shown: str) -> None:
    messages = messages_of(("system", "be <|end|>"), ("user", " hi"), ("assistant", " I <|end|> am "))
    ids = encode_chat(with_template(tokenizer, TEMPLATES[template]), messages)
    assert decode(tokenizer, ids) == shown
    assert ids.count(tokenizer.eos_token_id) == 2  # the template's own


@pytest.mark.parametrize("text", ["hello", "<|end|>"])
@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[1].content }}[bot]",
        "{{ messages[1].content }}{{ messages[0].content }}",
        "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}",
    ],
)
def test_a_template_that_does_not_keep_to_the_messages_is_refused(tokenizer: Any, template: str, text: str) -> None:
    words = "this model's chat template does not keep to the messages, each once and in order; a plain text would do"
    with pytest.raises(lens.LensError, match=f"^{words}$"):
        encode_chat(with_template(tokenizer, template), messages_of(("system", text), ("user", "b")))


@pytest.mark.parametrize(
    ("template", "shown"),
    [
        ("plain", "[user] hi <|end|> <|end|>[bot]"),
        ("trimmed", "[user]\n\nhi <|end|><|end|>[bot]"),
        ("words", "USER:  hi <|end|>  ASSISTANT:"),
    ],
)
def test_special_text_in_a_chat_is_text(tokenizer: Any, template: str, shown: str) -> None:
    ids = encode_chat(with_template(tokenizer, TEMPLATES[template]), user(" hi <|end|> "))
    assert decode(tokenizer, ids) == shown
    assert ids.count(tokenizer.eos_token_id) == TEMPLATES[template].count("<|end|>")  # the template's own


@pytest.mark.parametrize(
    ("template", "shown"),
    [  # the space before a text, and after each special token, is the tokenizer's; none comes where a piece begins
        ("plain", " [user]<|end|> hi<|end|> [bot]"),
        ("words", " USER: <|end|> hi ASSISTANT:"),
        ("instruction", "<|end|> [INST] <|end|> hi [/INST]"),
        ("begun", "<|end|> <|end|> hi [bot]"),
    ],
)
def test_pieces_of_a_chat_get_no_space_of_their_own(prepending: Any, template: str, shown: str) -> None:
    templates = {**TEMPLATES, "begun": "<|end|>{{ messages[0].content }} [bot]"}
    chatting = with_template(prepending, templates[template])
    ids = encode_chat(chatting, user("<|end|> hi"))
    assert decode(chatting, ids) == shown
    assert ids.count(prepending.eos_token_id) == templates[template].count("<|end|>")  # the template's own


@pytest.mark.parametrize("text", [" light", "light", " the light of a lamp", "ers", "  spaces", "日本語", "<|end|> x", "\nthe"])
@pytest.mark.parametrize("kind", ["tokenizer", "prepending"])
def test_text_that_begins_no_sequence_is_encoded_as_its_rest(kind: str, text: str, request: pytest.FixtureRequest) -> None:
    known = request.getfixturevalue(kind)
    whole, before = encode(known, "gathers," + text), encode(known, "gathers,")
    assert whole[: len(before)] == before, "the text was chosen so that no token reaches into it"
    assert encode_rest(known, text) == whole[len(before) :]


def test_a_followed_text_has_the_space_that_it_is_given(prepending: Any) -> None:
    model = SimpleNamespace(tokenizer=prepending, vocabulary=len(prepending))
    assert look(None, "own", " the", model, []).track == (prepending.convert_tokens_to_ids("▁the"),)
    with pytest.raises(lens.LensError, match=r"'the' is 2 tokens .*; with a space before it, ' the', it is one"):
        look(None, "own", "the", model, [])


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, "no chat template; leave --chat out"),
        ("[user]", "leaves the user's message out; leave --chat out"),
        ("{{ raise_exception('a system message\nis needed') }}", "cannot be used: a system message; leave --chat out$"),
        ("{{ messages[1].content.strip() }}", "cannot be used: .* leave --chat out$"),
    ],
)
@pytest.mark.parametrize("text", ["hello", "<|end|>"])
def test_a_chat_that_no_template_makes_is_refused(tokenizer: Any, template: str | None, words: str, text: str) -> None:
    with pytest.raises(lens.LensError, match=words):
        encode_chat(with_template(tokenizer, template), user(text), "leave --chat out")


def test_every_token_has_a_text(tokenizer: Any) -> None:
    beyond = len(tokenizer) + 3
    texts = token_texts(tokenizer, [*range(len(tokenizer)), beyond])
    assert texts[beyond] == f"<{beyond}>"
    assert texts[tokenizer.eos_token_id] == "<|end|>"
    assert not any("�" in text for text in texts.values())
    half = tokenizer.convert_tokens_to_ids("Ã")  # the byte C3, alone
    assert texts[half] == "\\xc3"


def test_a_byte_that_sentencepiece_spells_out_is_a_byte() -> None:
    pieces = ["<0xE4>", "<0x41>", "▁the"]
    tokenizer = MagicMock(convert_ids_to_tokens=pieces.__getitem__, decode=lambda ids, **_: ["�", "A", "the"][ids[0]])
    tokenizer.__len__.return_value = len(pieces)
    assert token_texts(tokenizer, range(3)) == {0: "\\xe4", 1: "A", 2: " the"}


def test_a_mark_that_a_tokens_text_holds_is_shown(tokenizer: Any) -> None:
    """DeepSeek's special tokens are spelt with what is SentencePiece's mark for a space; their tokenizer is byte-level."""
    extended = copy.deepcopy(tokenizer)
    extended.add_special_tokens({"bos_token": "<begin▁of▁sentence>"})
    assert token_texts(extended, [extended.bos_token_id]) == {extended.bos_token_id: "<begin▁of▁sentence>"}


@pytest.mark.parametrize("text", TEXTS)
def test_streamed_pieces_make_the_text(tokenizer: Any, text: str) -> None:
    stream = TextStream(tokenizer)
    pieces = [stream.add(index) for index in encode(tokenizer, text)]
    assert "".join(pieces) == text
    assert not any("�" in piece for piece in pieces)
