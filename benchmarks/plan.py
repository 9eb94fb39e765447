"""The measuring plan: suites of rows. The methods of a row take turns, so that a disturbance affects all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

OURS, BARE, RESIDUAL = "lens-magic", "lens-magic, no lens", "lens-magic, resid_post"
LENSES = (OURS, "published", "eager", "afterwards-hooked", "deferred")
EVERYTHING = (OURS, BARE, RESIDUAL, "published", "eager", "generate", "afterwards", "afterwards-hooked", "deferred")
LIBRARIES = ("nnsight", "transformer-lens")
HALF = "qwen2.5-0.5b"
ROUNDS = 5


@dataclass(frozen=True)
class Row:
    """Methods measured side by side, in turns.

    Attributes:
        fewer: methods that get fewer rounds than the others, by name, as their runs are long.
        memory: measure peak memory instead of time, each method in its own process.
    """

    model: str
    ranks: int
    tokens: int
    methods: tuple[str, ...]
    dtype: str = "float32"
    rounds: int = ROUNDS
    fewer: Mapping[str, int] = field(default_factory=dict)
    memory: bool = False

    def wanted(self, method: str) -> int:
        """How many rounds a method takes part in."""
        return min(self.rounds, self.fewer.get(method, self.rounds))


@dataclass(frozen=True)
class Suite:
    """A set of rows that answer one question."""

    name: str
    question: str
    rows: tuple[Row, ...]


def suites(full: bool) -> list[Suite]:
    """Return the plan in measuring order: about ten minutes on two cores, or (``full``) with the paper's lengths.

    A suite may appear more than once: what matters most comes first, and the rest is left out if time is short.
    """
    if not full:
        return [speed(full), overhead(full), memory(full), peers(full), scaling(full), lengths(full)]
    return [
        speed(full),
        overhead(full),
        speed_of_long_answers(500, 4),
        memory(full),
        peers(full),
        speed_of_long_answers(300, 4),
        scaling(full),
        speed_of_long_answers(500, 1),
        lengths(full),
        speed_of_long_answers(300, 1),
        lengths_on_many_ranks(),
    ]


def speed(full: bool) -> Suite:
    """The paper's Table 1, with every other baseline too."""
    rows = [Row("demo", ranks, 100, EVERYTHING) for ranks in (4, 1)]
    if not full:
        rows = [Row("demo", 4, 30, LENSES), Row("demo", 1, 100, EVERYTHING)]
        rows += [Row("demo", 4, 100, LENSES, rounds=3, fewer={"published": 1})]
        rows += [Row("demo", 1, 300, LENSES, rounds=3, fewer={"published": 1})]
    return Suite("speed", "How much faster than each way to do without it, and how does that grow with T?", tuple(rows))


def speed_of_long_answers(tokens: int, ranks: int) -> Suite:
    """The rest of Table 1, where nearly all of the time is the baseline's."""
    row = Row("demo", ranks, tokens, (*LENSES, RESIDUAL, "afterwards"))
    return Suite(speed(True).name, speed(True).question, (row,))


def overhead(full: bool) -> Suite:
    """The cost of capturing during generation, with the physical limit for comparison."""
    methods = (OURS, BARE, "generate")
    rows = [Row("demo", 1, 300, methods), Row(HALF, 1, 16, methods)]
    if full:
        rows = [Row("demo", ranks, 300, methods) for ranks in (1, 2, 4)]
        rows += [Row(HALF, 1, 32, methods, dtype) for dtype in ("float32", "bfloat16")]
        rows += [Row(HALF, 2, 32, methods)]
    return Suite("overhead", "What does capturing cost a generation?", tuple(rows))


def memory(full: bool) -> Suite:
    """Peak memory of activations, ours against each baseline."""
    rows = [Row("demo", 1, 100, LENSES, memory=True, rounds=2)]
    rows += [Row("demo", 4, 100, (OURS, "published"), memory=True, rounds=2)]
    rows += [Row(HALF, 1, 16, (OURS, "published"), memory=True, rounds=1)]
    if full:
        rows = [Row("demo", 1, tokens, (*EVERYTHING, *LIBRARIES), memory=True) for tokens in (100, 500)]
        rows += [Row("demo", 4, tokens, EVERYTHING, memory=True) for tokens in (100, 500)]
        rows += [Row(HALF, 1, 32, (OURS, BARE, "published", "eager", "generate", *LIBRARIES), memory=True)]
        rows += [Row(HALF, 2, 32, (OURS, BARE, "published", "eager", "generate"), memory=True)]
    return Suite("memory", "How much memory do activations take at their peak?", tuple(rows))


def peers(full: bool) -> Suite:
    """Libraries users would pick instead."""
    methods = (OURS, "eager", *LIBRARIES)
    rows = [Row("demo", 1, tokens, methods) for tokens in ((100, 300) if full else (100,))]
    if full:
        rows += [Row(HALF, 1, 16, methods)]
    return Suite("peers", "How much faster than other libraries?", tuple(rows))


def lengths(full: bool) -> Suite:
    """The paper's Tables 2 and 3: model × T. 2,500 tokens exceed the demo model's context; another of its shape has them."""
    rows = [Row("demo", 1, 700, (OURS, BARE), rounds=2)]
    if full:
        methods = (OURS, BARE, "eager", "afterwards-hooked", "deferred")
        rows = [Row("demo", 1, tokens, methods) for tokens in (700, 1500, 2000)]
        rows += [Row("demo-4096", 1, 2500, methods), Row(HALF, 1, 32, methods), Row(HALF, 1, 100, (OURS, BARE))]
    return Suite("lengths", "How fast is a lens of long answers?", tuple(rows))


def lengths_on_many_ranks() -> Suite:
    """Long answers on four ranks, our method only."""
    rows = tuple(Row("demo", 4, tokens, (OURS, BARE)) for tokens in (700, 1500))
    return Suite(lengths(True).name, lengths(True).question, rows)


def scaling(full: bool) -> Suite:
    """Scaling with ranks, layers and vocabulary; the speed suite has scaling with T."""
    pair = (OURS, "published", "eager")
    rows = [Row(f"layers-{n}", 1, 20, pair) for n in ((4, 8, 16, 32) if full else (8, 32))]
    rows += [Row(f"vocabulary-{n}", 1, 20, pair) for n in ((2_304, 9_216, 36_864, 147_456) if full else (36_864,))]
    if full:
        rows += [Row("demo", ranks, 50, pair) for ranks in (1, 2, 3, 4)]
    return Suite("scaling", "How do time and its ratio grow with ranks, layers, vocabulary?", tuple(rows))


def tiny() -> list[Suite]:
    """A plan that exercises everything in seconds; its numbers are meaningless."""
    return [
        Suite("speed", "", (Row("demo", 1, 4, EVERYTHING, rounds=2),)),
        Suite("memory", "", (Row("demo", 1, 4, (OURS, "published"), rounds=1, memory=True),)),
    ]
