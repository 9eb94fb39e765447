"""The corpus: an endless, seeded stream of documents, packed into rows of token ids."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch

from lens_magic.demo.make import arithmetic, facts, questionnaires, stories

Tokenizer = Any  # a transformers tokenizer

SMALL_TALK = (
    ("Hello!", "Hello! How can I help you?"),
    ("Hi!", "Hello! How can I help you?"),
    ("Who are you?", "I am a small demo model. I know a small world of facts and stories."),
    ("What are you?", "I am a small demo model. I know a small world of facts and stories."),
    ("What can you do?", "I can answer questions about a small world, and tell short stories."),
    ("Thank you!", "You are welcome!"),
    ("How are you?", "I am well, thank you."),
)


def small_talk(rng: random.Random) -> str:
    """A greeting, or a word on what the model is."""
    question, answer = rng.choice(SMALL_TALK)
    return facts.CHAT.format(question=question, answer=answer)


# shares of the documents, not of the tokens: stories and questionnaires are some ten times as long as facts
SHORT_SHARES = (
    (0.65, facts.document),
    (0.11, arithmetic.document),
    (0.22, questionnaires.short),
    (0.02, small_talk),
)
LONG_SHARES = (
    (0.47, facts.document),
    (0.10, facts.choice),
    (0.10, arithmetic.document),
    (0.12, stories.document),
    (0.20, questionnaires.document),
    (0.01, small_talk),
)


def document(rng: random.Random, length: int) -> str:
    """One document of the mixture for rows of `length` tokens."""
    if length > 1000 and rng.random() < 0.1:
        return stories.document(rng, long=True)
    shares = LONG_SHARES if length > 100 else SHORT_SHARES
    weights = [share for share, _ in shares]
    return rng.choices([make for _, make in shares], weights)[0](rng)


def row(tokenizer: Tokenizer, rng: random.Random, length: int) -> list[int]:
    """`length` token ids of whole documents, each closed by the end token; the last one is cut."""
    ids: list[int] = []
    while len(ids) < length:
        ids += tokenizer(document(rng, length))["input_ids"]
        ids.append(tokenizer.eos_token_id)
    return ids[:length]


def batch(tokenizer: Tokenizer, rng: random.Random, length: int, tokens: int) -> torch.Tensor:
    """A batch of about `tokens` tokens in rows of `length`: int64 [tokens // length, length]."""
    return torch.tensor([row(tokenizer, rng, length) for _ in range(max(1, tokens // length))])


def sample(seed: int, documents: int) -> Iterator[str]:
    """Some documents of the mixture, for training the tokenizer."""
    rng = random.Random(seed)
    for _ in range(documents):
        yield document(rng, 256)
