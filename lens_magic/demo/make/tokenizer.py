"""The tokenizer: byte-level BPE in which the words of the small world are single tokens.

Words the world uses are put in the vocabulary whole and found there before any merge is tried (`ignore_merges`, as in
Llama 3); everything else goes by merges learnt from the same words, down to single bytes. Digits stand alone, and so
does a label in " (A)", because brackets and letters are never of one piece.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lens_magic.demo.make import corpus, facts

END, CHAT_START, CHAT_END = SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 2304
SPLIT = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _pre_tokenizer() -> Any:
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def count_words(documents: int = 60_000) -> Counter[str]:
    """How often each pre-token (in byte-level letters) occurs in a sample; words that answer count as frequent."""
    split = _pre_tokenizer()
    counts: Counter[str] = Counter()
    for text in corpus.sample(3, documents):
        for special in SPECIAL:
            text = text.replace(special, "")
        counts.update(word for word, _ in split.pre_tokenize_str(text))
    for fact in facts.all_facts():
        for words in (fact.answer, dict(fact.fields)["s"]):
            counts.update({word: 1000 for word, _ in split.pre_tokenize_str(" " + words)})
    return counts


def _merges(words: Counter[str], size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of an ordinary BPE of `size` learnt on words seen before they are split into bytes."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Split("\n", behavior="removed")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, special_tokens=list(SPECIAL), show_progress=False)
    lines = ("\n".join([word] * min(count, 50)) for word, count in sorted(words.items()))
    trained.train_from_iterator(lines, trainer)
    model = json.loads(trained.to_str())["model"]
    return model["vocab"], [(a, b) for a, b in model["merges"]]


def build(size: int = VOCABULARY, merged: int = 256) -> PreTrainedTokenizerFast:
    """The tokenizer with `size` entries, about `merged` of them pieces for words outside the world."""
    words = count_words()
    vocabulary, merges = _merges(words, len(SPECIAL) + 256 + merged)
    for word, _ in words.most_common():
        if len(vocabulary) == size:
            break
        vocabulary.setdefault(word, len(vocabulary))
    if len(vocabulary) < size:  # room left: more merges
        return build(size, merged + size - len(vocabulary))
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    backend.pre_tokenizer = _pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=END, pad_token=END, model_max_length=2048, clean_up_tokenization_spaces=False
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [CHAT_START, CHAT_END]})
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def save(folder: Path) -> PreTrainedTokenizerFast:
    """Build the tokenizer and write it into `folder`."""
    tokenizer = build()
    tokenizer.save_pretrained(folder)
    return tokenizer


def load(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer written into `folder`."""
    return PreTrainedTokenizerFast.from_pretrained(folder)
