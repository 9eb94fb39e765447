"""Facts in many wordings, and which (fact, wording) couples the training never sees.

A *relation* joins subjects to answers ("capital of": France → Paris). Each has several statements, which end in the
answer, and several questions. Of every fact one statement and one question are held out: the wording occurs in
training for other facts of the relation, but not for this one. The first statement of a relation is its full-sentence
answer to a question, and is never held out.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

from lens_magic.demo.make import world
from lens_magic.demo.make.wordings import WORDINGS

CHAT = "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
SHORT_FORMS = ("Q: {question} A: {answer}", "Q: {question}\nA: {answer}", "Question: {question}\nAnswer: {answer}")


@dataclass(frozen=True)
class Fact:
    """One thing that is true: what fills a relation's wordings, the answer being `fields["o"]`."""

    relation: str
    fields: tuple[tuple[str, str], ...]

    def fill(self, wording: str) -> str:
        """The wording with this fact's words in it."""
        return wording.format(**dict(self.fields))

    @property
    def answer(self) -> str:
        """The words that answer."""
        return dict(self.fields)["o"]


@dataclass(frozen=True)
class HeldOut:
    """One test item: greedy continuation of `prompt` has to begin with `answer`."""

    task: str
    prompt: str
    answer: str


def _fact(relation: str, subject: str, answer: str, **more: str) -> Fact:
    bare = subject.removeprefix("a ").removeprefix("an ").removeprefix("the ")
    fields = {"s": subject, "S": subject[0].upper() + subject[1:], "n": bare, "N": bare.capitalize(), "o": answer, **more}
    return Fact(relation, tuple(fields.items()))


def _country_facts() -> list[Fact]:
    facts = []
    for country, capital, continent, language, currency in world.rows(world.COUNTRIES):
        facts.append(_fact("capitals", country, capital))
        facts.append(_fact("countries", capital, country))
        facts.append(_fact("continents", country, continent))
        facts.append(_fact("languages", country, language))
        if currency:
            facts.append(_fact("currencies", country, currency))
    return facts


def _sequence_facts() -> list[Fact]:
    facts = []
    for name, words, circular in (
        ("months", world.MONTHS, True),
        ("days", world.DAYS, True),
        ("numbers", world.NUMBERS, False),
        ("letters", world.LETTERS, False),
    ):
        for i, word in enumerate(words):
            if circular or i + 1 < len(words):
                facts.append(_fact(f"{name} after", word, words[(i + 1) % len(words)]))
            if circular or i > 0:
                facts.append(_fact(f"{name} before", word, words[i - 1]))
    return facts


def _table_facts() -> list[Fact]:
    tables = {
        "sounds": world.couples(world.SOUNDS),
        "young animals": world.couples(world.YOUNG),
        "colors": world.couples(world.COLORS),
        "sides": world.couples(world.SIDES),
        "legs": world.couples(world.LEGS),
        "workplaces": world.couples(world.WORKPLACES),
        "materials": world.couples(world.MATERIALS),
        "homes": world.couples(world.HOMES),
        "categories": world.categories(),
        "landmarks": [(a, b) for a, b in world.rows(world.LANDMARKS)],
        "authors": [(a, b) for a, b in world.rows(world.AUTHORS)],
    }
    facts = [_fact(relation, subject, answer) for relation, table in tables.items() for subject, answer in table]
    for left, right in world.couples(world.OPPOSITES):
        facts += [_fact("opposites", left, right), _fact("opposites", right, left)]
    for which, country, place in world.rows(world.UNIVERSITIES):
        facts.append(_fact("universities", which, place, r=country))
    return facts


@cache
def all_facts() -> tuple[Fact, ...]:
    """Every fact of the world, in a fixed order."""
    return tuple(_country_facts() + _sequence_facts() + _table_facts())


@cache
def held_out_wordings() -> dict[Fact, tuple[str, str]]:
    """(statement, question) kept from training, for each fact: neighbours in a relation lose different wordings."""
    rng = random.Random(7)
    offsets: dict[str, int] = {}
    held = {}
    for fact in all_facts():
        statements, questions = WORDINGS[fact.relation]
        i = offsets.setdefault(fact.relation, rng.randrange(60))
        held[fact] = (statements[1 + i % (len(statements) - 1)], questions[i % len(questions)])
        offsets[fact.relation] = i + 1 + (rng.random() < 0.5)
    return held


def held_out_items() -> list[HeldOut]:
    """Two items a fact: its unseen statement, and its unseen question in one of the short forms."""
    items = []
    for i, (fact, (statement, question)) in enumerate(held_out_wordings().items()):
        prompt = fact.fill(statement.removesuffix(" {o}."))
        items.append(HeldOut(fact.relation, prompt, " " + fact.answer))
        form = SHORT_FORMS[i % len(SHORT_FORMS)].removesuffix(" {answer}")
        items.append(HeldOut(fact.relation, form.format(question=fact.fill(question)), " " + fact.answer))
    return items


def statement(fact: Fact, rng: random.Random) -> str:
    """The fact as a statement in one of its training wordings."""
    allowed = [w for w in WORDINGS[fact.relation][0] if w != held_out_wordings()[fact][0]]
    return fact.fill(rng.choice(allowed))


def question(fact: Fact, rng: random.Random) -> str:
    """A question for the fact in one of its training wordings."""
    allowed = [w for w in WORDINGS[fact.relation][1] if w != held_out_wordings()[fact][1]]
    return fact.fill(rng.choice(allowed))


def sentence(fact: Fact) -> str:
    """The full-sentence answer."""
    return fact.fill(WORDINGS[fact.relation][0][0])


def asked(fact: Fact, rng: random.Random) -> str:
    """The fact as a question with its answer, in one of five forms."""
    form = rng.randrange(6)
    text = question(fact, rng)
    if form < 3:
        return SHORT_FORMS[form].format(question=text, answer=fact.answer)
    if form == 3:
        return CHAT.format(question=text, answer=sentence(fact))
    return f"{text} {sentence(fact)}" if form == 4 else f"{text}\n{sentence(fact)}"


@cache
def _answers(relation: str) -> tuple[str, ...]:
    return tuple(sorted({fact.answer for fact in all_facts() if fact.relation == relation}))


def choice(rng: random.Random) -> str:
    """One to three facts as two-way choices, in the form of the questionnaires."""
    parts = []
    for fact in rng.sample(all_facts(), rng.choice((1, 2, 3))):
        wrong = rng.choice([answer for answer in _answers(fact.relation) if answer != fact.answer])
        options, label = ((fact.answer, wrong), "A") if rng.random() < 0.5 else ((wrong, fact.answer), "B")
        choices = f"Choices:\n (A) {options[0]}\n (B) {options[1]}"
        parts.append(f"{question(fact, rng)}\n\n{choices}\n\nAnswer: ({label})")
    return "\n\n".join(parts)


def document(rng: random.Random) -> str:
    """A document of one to four facts."""
    facts = rng.sample(all_facts(), rng.choice((1, 1, 2, 3, 4)))
    if rng.random() < 0.15:  # the small relations would otherwise be met too seldom
        small = [f for f in all_facts() if f.relation in ("landmarks", "universities", "authors", "legs", "sides")]
        facts[0] = rng.choice(small)
    if rng.random() < 0.4:
        return " ".join(statement(fact, rng) for fact in facts)
    if rng.random() < 0.5:
        return "\n".join(asked(fact, rng) for fact in facts)
    return asked(facts[0], rng)
