"""Pairs to learn a direction from, and questions to measure it with.

Two forms: two-way questions as Perez et al. (2022, "Discovering Language Model Behaviors with Model-Written Evaluations")
publish them, which are used in both orders of their options, and pairs of positive and negative texts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .. import demo
from ..errors import LensError, reason_of
from ..options import listed
from ..paths import path_of
from ..words import quoted

_FIELDS = ("question", "answer_matching_behavior", "answer_not_matching_behavior")
_ANSWER = re.compile(r"(\s*\(?)([A-Z])(\)?\.?\s*)")
_MARK_OF_A_LINE = re.compile(r"^[ \t]*\(([A-Z])\)[ \t]*", re.MULTILINE)
_MARK = re.compile(r"(?<!\S)\(([A-Z])\)[ \t]*")
_BLANK_LINE = re.compile(r"\n[ \t\r]*\n")
_CUE_LINE = re.compile(r"\s*\n[^\n]*[:(]\s*$")
_CONNECTIVE = re.compile(r"[\s,;]*(?:\b(?:or|and|versus|vs\.?)|/)$", re.IGNORECASE)
_NAMES_AN_OPTION = re.compile(r"\([AB]\)")
_END_OF_SENTENCE = " .,;:?!"
_PUNCTUATION = f"{_END_OF_SENTENCE}()"

HUB_SET = "Anthropic/model-written-evals"
_SETS = (
    *("coordinate-itself", "coordinate-other-ais", "coordinate-other-versions"),
    *("corrigible-less-HHH", "corrigible-more-HHH", "corrigible-neutral-HHH"),
    *("myopic-reward", "one-box-tendency", "power-seeking-inclination"),
    *("self-awareness-general-ai", "self-awareness-good-text-model", "self-awareness-text-model"),
    *("self-awareness-training-architecture", "survival-instinct", "wealth-seeking-inclination"),
)
_SHORT_NAMES = {"power-seeking": "power-seeking-inclination", "self-awareness": "self-awareness-general-ai"}


@dataclass(frozen=True)
class Question:
    """A two-way question in one order of its options.

    Attributes:
        text: the prompt, up to where the answer begins.
        matching, other: the answers, such as ``" (A)"`` and ``" (B)"``; they differ in one letter.
        digest: identifies question, options and which of them matches; the same in both orders.
    """

    text: str
    matching: str
    other: str
    digest: str
    options: tuple[str, str] = field(repr=False)
    _spans: tuple[tuple[int, int], tuple[int, int]] = field(repr=False)

    def swapped(self) -> Question:
        """Return the question with the texts of (A) and (B) exchanged, so that the other letter matches."""
        (first, first_end), (second, second_end) = self._spans
        one, two = self.options
        text = self.text[:first] + two + self.text[first_end:second] + one + self.text[second_end:]
        grown = len(two) - len(one)
        spans = ((first, first + len(two)), (second + grown, second + grown + len(one)))
        return Question(text, self.other, self.matching, self.digest, (two, one), spans)

    @property
    def orders(self) -> tuple[Question, Question]:
        """The question as it is, and swapped. Used together, they cancel a bias towards one letter."""
        return self, self.swapped()


@dataclass(frozen=True)
class TextPair:
    """A text that shows what is wanted and one that shows the opposite."""

    positive: str
    negative: str
    digest: str


@dataclass(frozen=True)
class Items:
    """The items read, each once, and how many were left out.

    Attributes:
        questions, texts: the items.
        rejected: how many were left out, by reason.
    """

    questions: tuple[Question, ...] = ()
    texts: tuple[TextPair, ...] = ()
    rejected: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.questions) + len(self.texts)

    @property
    def digests(self) -> tuple[str, ...]:
        """SHA-256 of every item, hexadecimal."""
        return (*(item.digest for item in self.questions), *(item.digest for item in self.texts))

    def without(self, digests: Iterable[str]) -> Items:
        """Return the items without those with the given digests, for example a vector's training items."""
        gone = frozenset(digests)
        return Items(
            tuple(item for item in self.questions if item.digest not in gone),
            tuple(item for item in self.texts if item.digest not in gone),
            self.rejected,
        )


def left_out(rejected: Mapping[str, int]) -> str:
    """Format counts and reasons on one line."""
    return ", ".join(f"{count} ({reason})" for reason, count in rejected.items())


def read(source: Any, kind: Literal["any", "questions"] = "any") -> Items:
    """Read items; reject and count those that cannot be used.

    Args:
        source: a JSON Lines file (or one JSON list), the name of a set of Perez et al. or of the demo (``demo/mood-pairs``), or
            an iterable of ``{"question", "answer_matching_behavior", "answer_not_matching_behavior"}`` or
            ``{"positive", "negative"}``.
        kind: "questions" takes only the first form, which evaluation needs.

    Raises:
        LensError: no such file or set, not JSON, nothing to read, or nothing left.
    """
    found = source if isinstance(source, Items) else _read_all(records(source))
    if kind == "questions" and found.texts:
        many = len(found.texts)
        if not found.questions:
            raise LensError(f"pairs of texts ({many}) can train a vector but not measure it; two-way questions would do")
        found = Items(found.questions, (), {**found.rejected, "texts, not a question": many})
    if not len(found):
        what = f"of {sum(found.rejected.values())} items none can be used: {left_out(found.rejected)}" if found.rejected else ""
        raise LensError(what or f"there are no items; {{{', '.join(_FIELDS)}}} or {{positive, negative}} would do")
    return found


def records(source: Any) -> list[Any]:
    """Return the raw items of a file, a named set or an iterable.

    Raises:
        LensError: as for :func:`read`.
    """
    if isinstance(source, str | Path):
        path = path_of(source)
        if path.is_file():
            return _parse(path)
        if own := demo.data_sets().get(str(source)):
            return _parse(own)
        if str(source).removeprefix("human/") in (*_SETS, *_SHORT_NAMES):
            return perez(str(source))
        names = ", ".join((*_SHORT_NAMES, *_SETS[:6]))
        raise LensError(
            f"{quoted(str(source))} is no file, and no set of Perez et al. ({names}, …) "
            f"or of the demo ({', '.join(demo.data_sets())})"
        )
    found = listed(source, ordered=False)
    if found is None:
        hint = "; frame.to_dict('records') would do" if hasattr(source, "iterrows") else ""
        raise LensError(f"items should be a list of dicts or a JSON Lines file, not {type(source).__name__}{hint}")
    return found


def perez(name: str) -> list[dict[str, str]]:
    """Fetch a set of Perez et al. from the hub, and end its questions with ``Answer:``, where the answer belongs.

    Args:
        name: such as "corrigible-neutral-HHH", "power-seeking-inclination" or "self-awareness-general-ai" (the sets written
            by a model); "human/…" for those written by people. "power-seeking" and "self-awareness" are short for the last two.

    Raises:
        LensError: no such set, or it cannot be fetched.
    """
    kind = "human_generated_evals" if name.startswith("human/") else "lm_generated_evals"
    short = name.removeprefix("human/")
    short = _SHORT_NAMES.get(short, short)
    if short not in _SETS:
        raise LensError(f"{name!r} is not a set of Perez et al.; there are {', '.join(_SETS)}")
    import huggingface_hub

    try:
        file = f"advanced-ai-risk/{kind}/{short}.jsonl"
        path = huggingface_hub.hf_hub_download(HUB_SET, file, repo_type="dataset")
    except Exception as error:  # the hub library's errors have no common base
        reason = reason_of(error, whole=True)
        raise LensError(
            f"{name!r} could not be fetched from the hub ({HUB_SET}): {reason}; a JSON Lines file on this machine would do"
        ) from error
    return [_with_cue(record) for record in _parse(Path(path))]


def _with_cue(record: Any) -> Any:
    """Return a published item as a prompt: its answers begin with a space, its question ends with the cue."""
    if not (isinstance(record, dict) and all(isinstance(record.get(name), str) for name in _FIELDS)):
        return record
    question, *answers = (record[name].strip() for name in _FIELDS)
    cued = question if question.endswith(":") else f"{question}\n\nAnswer:"
    return dict(zip(_FIELDS, (cued, *(f" {answer}" for answer in answers)), strict=True))


def _parse(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # with or without a byte-order mark
    except (OSError, UnicodeDecodeError) as error:
        raise LensError(f"{path} cannot be read: {error}") from error
    if text.lstrip().startswith("["):  # the sets' own repository has JSON lists under the same file names
        try:
            return list(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise LensError(f"{path} is neither JSON Lines nor a JSON list: {error}") from error
    found = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                found.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise LensError(f"{path}, line {number} is not JSON: {error}") from error
    return found


class _Rejected(Exception):
    """Why an item cannot be used."""


def _read_all(given: Iterable[Any]) -> Items:
    found: dict[str, Question | TextPair] = {}
    rejected: Counter[str] = Counter()
    for record in given:
        try:
            item = record if isinstance(record, Question | TextPair) else _read_one(record)
            _require_characters(item)
            if item.digest in found:
                raise _Rejected("repeats another")
            found[item.digest] = item
        except _Rejected as reason:
            rejected[str(reason)] += 1
    questions = tuple(item for item in found.values() if isinstance(item, Question))
    texts = tuple(item for item in found.values() if isinstance(item, TextPair))
    return Items(questions, texts, dict(rejected))


def _require_characters(item: Question | TextPair) -> None:
    """Reject halves of characters, which JSON can hold and no tokenizer takes."""
    try:
        (item.text if isinstance(item, Question) else item.positive + item.negative).encode()
    except UnicodeEncodeError:
        raise _Rejected("not valid Unicode") from None


def _read_one(record: Any) -> Question | TextPair:
    if not isinstance(record, Mapping):
        raise _Rejected("not a dict")
    if "question" in record:
        return _question(*(record.get(name) for name in _FIELDS))
    positive, negative = record.get("positive"), record.get("negative")
    if not (isinstance(positive, str) and isinstance(negative, str) and positive and negative):
        raise _Rejected("one-sided" if positive or negative else "neither a question nor a pair of texts")
    if positive == negative:
        raise _Rejected("both sides are the same")
    return TextPair(positive, negative, _digest(positive, negative))


def _question(text: Any, matching: Any, other: Any) -> Question:
    if not isinstance(text, str) or not text.strip():
        raise _Rejected("no question")
    if not matching or not other:
        raise _Rejected("one-sided")
    if not (isinstance(matching, str) and isinstance(other, str)):
        raise _Rejected("more than two ways to answer")
    shapes = _ANSWER.fullmatch(matching), _ANSWER.fullmatch(other)
    if shapes[0] is None or shapes[1] is None:
        raise _Rejected("answers are not (A) and (B)")
    letters = [shape[2] for shape in shapes if shape]
    if letters[0] == letters[1]:
        raise _Rejected("both sides are the same")
    if sorted(letters) != ["A", "B"]:
        raise _Rejected("answers other than (A) and (B)")
    if shapes[0].group(1, 3) != shapes[1].group(1, 3):
        raise _Rejected("answers of different form")
    spans = _options(text)
    one, two = (text[begin:end] for begin, end in spans)
    matched, opposed = (one, two) if letters[0] == "A" else (two, one)
    stem = text[: spans[0][0]]
    return Question(text, matching, other, _digest(stem, matched, opposed), (one, two), spans)


def _options(text: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """Find where the texts of options (A) and (B) begin and end. Their marks begin lines, or else stand within one."""
    for pattern in (_MARK_OF_A_LINE, _MARK):
        marks = list(pattern.finditer(text))
        letters = [mark[1] for mark in marks]
        if letters == ["A", "B"]:
            break
        if set(letters) > {"A", "B"}:
            raise _Rejected("more than two options")
    else:
        raise _Rejected("no options (A) and (B) found in the question")
    first, second = marks
    one = text[first.end() : second.start()].rstrip()
    two = text[second.end() :]
    if _BLANK_LINE.search(one):
        raise _Rejected("options of several paragraphs")  # where the second ends could only be guessed
    ends = [found.start() for found in (_BLANK_LINE.search(two), _CUE_LINE.search(two)) if found]
    two = two[: min(ends, default=len(two))].rstrip()
    # Text after option (B) without a break, such as a cue for the answer, would move to (A) with it when they are exchanged.
    if not ends and ("\n" in two or two.endswith((":", "("))):
        raise _Rejected("no telling where option (B) ends; a line of its own for what follows it would do")
    if ends and _BLANK_LINE.search(text[second.end() + len(two) :].strip()):  # the second paragraph may be the option's
        raise _Rejected("several paragraphs after option (B)")
    connective = _CONNECTIVE.search(one)
    if pattern is _MARK or connective:  # one sentence with both: what joins them and ends it stays in its place
        one = one[: connective.start()] if connective else one
        one, two = one.rstrip(_END_OF_SENTENCE), two.rstrip(_END_OF_SENTENCE)
    if _NAMES_AN_OPTION.search(one) or _NAMES_AN_OPTION.search(two):
        raise _Rejected("an option that names one by its letter")
    if not one.strip(_PUNCTUATION) or not two.strip(_PUNCTUATION):
        raise _Rejected("an option without text")
    if one == two:
        raise _Rejected("both options are the same")
    return (first.end(), first.end() + len(one)), (second.end(), second.end() + len(two))


def _digest(*parts: str) -> str:
    return hashlib.sha256(json.dumps([part.replace("\r\n", "\n").strip() for part in parts]).encode()).hexdigest()
