"""Reading pairs and questions: what is accepted, what is rejected, and which token is the label."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import lens_magic as lens
from lens_magic import demo
from lens_magic.steer import data, labels

DEMO = demo.path().parent / "data"


def item(question: str, matching: Any = " (A)", other: Any = " (B)") -> dict[str, Any]:
    return {"question": question, "answer_matching_behavior": matching, "answer_not_matching_behavior": other}


NO_END = "no telling where option (B) ends; a line of its own for what follows it would do"
PLAIN = item("Would you share?\n\nChoices:\n (A) I keep all of it.\n (B) I share it with you.\n\nAnswer:")


# --- items -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "swapped"),
    [
        (PLAIN["question"], "Would you share?\n\nChoices:\n (A) I share it with you.\n (B) I keep all of it.\n\nAnswer:"),
        ("Why?\n (A) No\n (B) Yes, of course", "Why?\n (A) Yes, of course\n (B) No"),
        ("Why?\n(A) No \n(B) Yes \nAnswer:", "Why?\n(A) Yes \n(B) No \nAnswer:"),
        ("Choose (A) or (B).\n (A) one\n (B) the two\n\nAnswer:", "Choose (A) or (B).\n (A) the two\n (B) one\n\nAnswer:"),
        ("Is it (A) hot or (B) quite cold?\n\nAnswer:", "Is it (A) quite cold or (B) hot?\n\nAnswer:"),
        ("Is it? (A) Yes, or (B) No", "Is it? (A) No, or (B) Yes"),
        ("Is it? (A) Yes. (B) No\n\nAnswer:", "Is it? (A) No. (B) Yes\n\nAnswer:"),
        ("Is it? (A) Yes / (B) No!\nAnswer:", "Is it? (A) No / (B) Yes!\nAnswer:"),
        ("Will you\n (A) share it, or\n (B) keep it?\n\nAnswer:", "Will you\n (A) keep it, or\n (B) share it?\n\nAnswer:"),
        ("Why?\n (A) The door\n (B) A vendor\n\nAnswer:", "Why?\n (A) A vendor\n (B) The door\n\nAnswer:"),
        ("Why?\n (A) two\n lines\n (B) one\n\nMy answer is", "Why?\n (A) one\n (B) two\n lines\n\nMy answer is"),
        ("Why?\n (A) No\n (B) Yes\nanswer (A or B):", "Why?\n (A) Yes\n (B) No\nanswer (A or B):"),
        ("Why?\n (A) No\n (B) Yes\nThe answer is (", "Why?\n (A) Yes\n (B) No\nThe answer is ("),
        ("Why?\r\n (A) No\r\n (B) Yes\r\n\r\nSay it.\r\n", "Why?\r\n (A) Yes\r\n (B) No\r\n\r\nSay it.\r\n"),
    ],
)
def test_a_question_is_used_in_both_orders(question: str, swapped: str) -> None:
    (found,) = data.read([item(question)]).questions
    first, second = found.orders
    assert (first.text, first.matching, first.other) == (question, " (A)", " (B)")
    assert (second.text, second.matching, second.other) == (swapped, " (B)", " (A)")
    assert second.swapped() == first
    assert first.digest == second.digest == data.read([item(swapped, " (B)", " (A)")]).questions[0].digest


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (item(PLAIN["question"], " (C)", " (D)"), "answers other than (A) and (B)"),
        (item(PLAIN["question"], " (A)", " (F)"), "answers other than (A) and (B)"),
        (item(PLAIN["question"], " (A)", None), "one-sided"),
        (item(PLAIN["question"], "", " (B)"), "one-sided"),
        ({"question": PLAIN["question"], "answer_matching_behavior": " (A)"}, "one-sided"),
        (item(PLAIN["question"], " (A)", " (A)"), "both sides are the same"),
        (item(PLAIN["question"], " (A)", "(B)"), "answers of different form"),
        (item(PLAIN["question"], " Yes", " No"), "answers are not (A) and (B)"),
        (item(PLAIN["question"], " (A)", [" (B)", " (C)"]), "more than two ways to answer"),
        (item("Would you?"), "no options (A) and (B) found in the question"),
        (item("Would you?\n (A) yes\n (B) no\n (C) perhaps"), "more than two options"),
        (item("Would you?\n (A) yes\n (B) yes"), "both options are the same"),
        (item("Would you?\n (A)\n (B) yes"), "an option without text"),
        (item("Would you?\n (A) yes.\n\nReally.\n (B) no.\n\nNever."), "options of several paragraphs"),
        (item("Would you?\r\n (A) yes.\r\n\r\nReally.\r\n (B) no."), "options of several paragraphs"),
        # Exchanged, what follows option (B) would stand in (A): "(A) no Answer: (B) yes".
        (item("Would you? (A) yes (B) no Answer:"), NO_END),
        (item("Would you? (A) yes (B) no. The answer is (", "A)", "B)"), NO_END),
        (item("Would you?\n (A) yes\n (B) no\nThe answer is"), NO_END),
        (item("Would you?\n (A) yes.\n (B) no.\n\nNever.\n\nAnswer:"), "several paragraphs after option (B)"),
        (item("Would you?\r\n (A) yes.\r\n (B) no.\r\n\r\nNever.\r\n\r\nAnswer:"), "several paragraphs after option (B)"),
        (item("Would you?\n (A) both\n (B) not (A)\n\nAnswer:"), "an option that names one by its letter"),
        (item("Would you? (A) or (B) no"), "an option without text"),
        (item("Would you say yes (A) or no (B)?"), "an option without text"),
        (item("Would \ud83d you?\n (A) yes\n (B) no\n\nAnswer:"), "not valid Unicode"),
        ({"positive": "warm", "negative": "cold \udc80"}, "not valid Unicode"),
        ({"positive": "warm"}, "one-sided"),
        ({"positive": "warm", "negative": "warm"}, "both sides are the same"),
        ({"text": "warm"}, "neither a question nor a pair of texts"),
        ("warm", "not a dict"),
    ],
)
def test_what_cannot_be_used_is_counted(record: Any, reason: str) -> None:
    read = data.read([PLAIN, record, record])
    assert len(read) == 1
    assert read.rejected == {reason: 2}
    with pytest.raises(lens.LensError, match="none can be used"):
        data.read([record])


def test_an_item_counts_once() -> None:
    read = data.read([PLAIN, PLAIN, item(PLAIN["question"].replace("\n", "\r\n"))])
    assert (len(read), read.rejected) == (1, {"repeats another": 2})


def test_train_and_test_can_be_kept_apart() -> None:
    train = data.read(DEMO / "persona-train.jsonl")
    held_out = data.read(DEMO / "persona-heldout.jsonl")
    assert (len(train), len(held_out), train.rejected, held_out.rejected) == (80, 48, {}, {})
    assert len(held_out.without(train.digests)) == 48
    assert len(data.read([*train.questions, *held_out.questions]).without(train.digests)) == 48


def test_texts_train_and_do_not_measure() -> None:
    pairs = data.read(DEMO / "mood-pairs.jsonl")
    assert len(pairs.texts) == 80
    with pytest.raises(lens.LensError, match="can train a vector but not measure it"):
        data.read(pairs, "questions")
    mixed = data.read([PLAIN, {"positive": "warm", "negative": "cold"}])
    assert (len(mixed), len(data.read(mixed, "questions"))) == (2, 1)


# --- files -----------------------------------------------------------------------------------------------------------


def test_the_demos_sets_are_known_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(demo.data_sets()) == ["demo/mood-pairs", "demo/persona-heldout", "demo/persona-pairs", "demo/persona-train"]
    for name, file in demo.data_sets().items():
        assert data.read(name).digests == data.read(file).digests
    monkeypatch.chdir(tmp_path)
    Path("demo").mkdir()
    Path("demo/mood-pairs").write_text('{"positive": "a", "negative": "b"}')  # a file of that name is what was meant
    assert len(data.read("demo/mood-pairs")) == 1


def test_files(tmp_path: Path) -> None:
    lines = tmp_path / "items.jsonl"
    lines.write_text(json.dumps(PLAIN) + "\n\n" + json.dumps({"positive": "warm", "negative": "cold"}) + "\n")
    assert len(data.read(str(lines))) == 2
    whole = tmp_path / "list.jsonl"
    whole.write_text(json.dumps([PLAIN]))
    assert data.read(whole) == data.read([PLAIN])
    for written in (json.dumps(PLAIN), json.dumps([PLAIN])):
        lines.write_text(written, encoding="utf-8-sig")  # as some editors and spreadsheets write UTF-8
        assert data.read(lines) == data.read([PLAIN])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: [], "there are no items"),
        (lambda folder: str(folder / "nothing.jsonl"), "is no file, and no set of Perez"),
        (lambda folder: PLAIN, "a list of dicts or a JSON Lines file, not dict"),
        (lambda folder: 3, "not int"),
        (lambda folder: __import__("pandas").DataFrame([PLAIN]), r"frame.to_dict\('records'\) would do"),
        (lambda folder: _file(folder, '{"question": 1}\n{oops'), "line 2 is not JSON"),
        (lambda folder: _file(folder, ""), "there are no items"),
        (lambda folder: _file(folder, "[1, 2"), "neither JSON Lines nor a JSON list"),
        (lambda folder: _file(folder, "[" * 100_000), "neither JSON Lines nor a JSON list"),
        (lambda folder: _file(folder, '{"a":' * 100_000), "line 1 is not JSON"),
    ],
)
def test_bad_sources_are_one_clear_line(tmp_path: Path, make: Any, words: str) -> None:
    with pytest.raises(lens.LensError, match=words) as caught:
        data.read(make(tmp_path))
    assert "\n" not in str(caught.value)


def _file(folder: Path, text: str) -> Path:
    path = folder / "items.jsonl"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("corrigible-neutral-HHH", "lm_generated_evals/corrigible-neutral-HHH"),
        ("power-seeking", "lm_generated_evals/power-seeking-inclination"),
        ("human/self-awareness", "human_generated_evals/self-awareness-general-ai"),
    ],
)
def test_a_published_set_comes_from_the_hub(name: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    published = [item("Are you?\n\nChoices:\n (A) No\n (B) Yes", "(A)", "(B)"), item("Which?\n (A) x\n (B) y", "(C)", "(D)")]
    asked = []

    def download(repository: str, path: str, repo_type: str) -> str:
        asked.append((repository, path, repo_type))
        return str(_file(tmp_path, "\n".join(json.dumps(record) for record in published)))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    read = data.read(name)
    assert asked == [("Anthropic/model-written-evals", f"advanced-ai-risk/{file}.jsonl", "dataset")]
    assert read.rejected == {"answers other than (A) and (B)": 1}
    (question,) = read.questions
    assert (question.text, question.matching) == ("Are you?\n\nChoices:\n (A) No\n (B) Yes\n\nAnswer:", " (A)")


def test_without_a_network_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(lens.LensError, match="could not be fetched from the hub") as caught:
        data.read("corrigible-neutral-HHH")
    assert "\n" not in str(caught.value)


def test_all_that_the_hub_says_is_in_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its errors begin with a number, and give the reason below."""

    def denied(*_: object, **__: object) -> str:
        raise RuntimeError("403 Forbidden: None.\nCannot access content.\n\nMake sure your token has the correct permissions.")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", denied)
    words = r"hub \(.*\): 403 Forbidden: None. Cannot access content. Make sure your token has the correct permissions.; a JSON"
    with pytest.raises(lens.LensError, match=words):
        data.read("corrigible-neutral-HHH")


# --- labels ----------------------------------------------------------------------------------------------------------


def tokenizer_with(words: list[str], split: str = "", normalizer: Any = None) -> Any:
    """A tokenizer whose vocabulary is the words and all single bytes, matched greedily by merges from the left."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary: dict[str, int] = {}
    merges: list[tuple[str, str]] = []
    for piece in alphabet:
        vocabulary[piece] = len(vocabulary)
    for word in words:
        done = word[0]
        for character in word[1:]:
            if done + character not in vocabulary:
                merges.append((done, character))
                vocabulary[done + character] = len(vocabulary)
            done += character
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=bool(split))
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize(
    ("words", "before", "label", "other"),
    [
        (["Ġ("], ":| (", "A", "B"),  # the space merges with the parenthesis
        ([], ":| |(", "A", "B"),  # it does not
        (["Ġ(A", "Ġ(B"], ":", " (A", " (B"),  # the label merges with everything before it
        (["(A", "(B"], ":| ", "(A", "(B"),
        (["A)", "B)"], ":| |(", "A)", "B)"),  # and with what follows
        ([":Ġ("], ": (", "A", "B"),  # the answer begins inside the question's last token
    ],
)
def test_the_label_is_found_whatever_merges(words: list[str], before: str, label: str, other: str) -> None:
    tokenizer = tokenizer_with(words)
    prompt = labels.resolve(tokenizer, "Answer:", " (A)", " (B)")
    texts = [tokenizer.decode([index]) for index in prompt.prefix_ids]
    assert "|".join(texts).endswith(before)
    assert (prompt.label, prompt.other) == (label, other)
    whole = tokenizer("Answer: (A)")["input_ids"]
    assert whole[: len(prompt.prefix_ids) + 1] == [*prompt.prefix_ids, prompt.label_id]
    swapped = labels.resolve(tokenizer, "Answer:", " (B)", " (A)")
    assert (swapped.prefix_ids, swapped.label_id) == (prompt.prefix_ids, prompt.other_id)


CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}|{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"


@pytest.mark.parametrize(
    ("words", "template", "before", "label"),
    [
        (["Ġ("], CHAT, ">| (", "A"),
        (["Ġ(A", "Ġ(B"], CHAT, ">", " (A"),
        (["(A", "(B"], CHAT.replace("m.content", "m.content | trim"), ">", "(A"),
        ([">("], CHAT.replace("m.content", "m.content | trim"), ">(", "A"),
    ],
)
def test_the_label_is_found_in_a_chat(words: list[str], template: str, before: str, label: str) -> None:
    tokenizer = tokenizer_with(words)
    tokenizer.chat_template = template
    prompt = labels.resolve(tokenizer, "Which?", " (A)", " (B)", chat=True)
    texts = [tokenizer.decode([index]) for index in prompt.prefix_ids]
    assert "".join(texts).startswith("<user>Which?|<assistant>")
    assert "|".join(texts).endswith(before)
    assert (prompt.label, prompt.other) == (label, label.replace("A", "B"))


def test_a_label_of_two_tokens_in_a_chat_is_refused() -> None:
    halves = normalizers.Sequence([normalizers.Replace("A", "xa"), normalizers.Replace("B", "xb")])
    tokenizer = tokenizer_with([], normalizer=halves)
    tokenizer.chat_template = CHAT
    with pytest.raises(lens.LensError, match="label is not one token of this tokenizer"):
        labels.resolve(tokenizer, "Why?", " (A)", " (B)", chat=True)


def test_a_space_apart_from_the_label_is_part_of_the_prompt() -> None:
    joined = labels.resolve(tokenizer_with(["ĠA", "ĠB"]), "Answer:", " A", " B")
    assert (joined.label, joined.other) == (" A", " B")
    apart = labels.resolve(tokenizer_with([]), "Answer:", " A", " B")
    assert (apart.label, apart.other) == ("A", "B")
    assert len(apart.prefix_ids) == len(joined.prefix_ids) + 1


@pytest.mark.parametrize(
    "normalizer",
    [
        normalizers.Sequence([normalizers.Replace("A", "xa"), normalizers.Replace("B", "xb")]),  # same first token
        normalizers.Sequence([normalizers.Replace("A", "pq"), normalizers.Replace("B", "rs")]),  # two tokens that differ
        normalizers.Replace("A", "pq"),  # one token against two
    ],
)
def test_a_label_of_two_tokens_is_refused(normalizer: Any) -> None:
    with pytest.raises(lens.LensError, match="label is not one token of this tokenizer") as caught:
        labels.resolve(tokenizer_with([], normalizer=normalizer), "Why?", " (A)", " (B)")
    assert "\n" not in str(caught.value)


def test_labels_that_are_tokenised_alike_are_refused() -> None:
    alike = tokenizer_with([], normalizer=normalizers.Replace("B", "A"))
    with pytest.raises(lens.LensError, match="does not tell the answers"):
        labels.resolve(alike, "Why?", " (A)", " (B)")
