"""Options of the magics and the command line: what they mean, and the errors for invalid ones."""

from __future__ import annotations

from enum import Enum
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch

from lens_magic.arguments import Help, Parser, add_load_options, add_run_options, run_options
from lens_magic.errors import LensError
from lens_magic.options import (
    check_ranks,
    check_sampling,
    default_ranks,
    flag,
    generator_seed,
    listed,
    number,
    parse_layers,
    parse_sites,
)
from lens_magic.words import quoted


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (None, (0, 1, 2, 3, 4, 5, 6, 7, 8)),
        ("0-4", (0, 1, 2, 3, 4)),
        ("5-", (5, 6, 7, 8)),
        ("-1", (8,)),
        ("0,8,-1", (0, 8)),
        ("-1,-2", (7, 8)),
        ("::4", (0, 4, 8)),
        ("1:4", (1, 2, 3)),
        ("3", (3,)),
        (3, (3,)),
        ([2, -1], (2, 8)),
        (range(2), (0, 1)),
    ],
)
def test_layers(spec: object, expected: tuple[int, ...]) -> None:
    assert parse_layers(spec, 9) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("9", "layer 9 is out of range; the model has 9: 0 to 8"),
        ("-10", "out of range"),
        ("0-9", "layer 9 is out of range"),
        ("4-2", "reversed; 2-4 would do"),
        ("a", "not understood"),
        ("", "not understood"),
        ("::0", "step of 0"),
        ("7:2", "none of the model's 9"),
        ([], "no layers"),
        ([9], "out of range"),
    ],
)
def test_wrong_layers(spec: object, words: str) -> None:
    with pytest.raises(LensError, match=words):
        parse_layers(spec, 9)  # type: ignore[arg-type]


def test_layers_may_be_numpys() -> None:
    assert parse_layers(np.int64(2), 8) == (2,)
    assert parse_layers(np.array([1, -1]), 8) == (1, 7)
    assert parse_layers(np.array(2), 8) == parse_layers(torch.tensor(2), 8) == (2,)
    for wrong in (["a"], [1.5], 2.0, "-:2", b"05", {3: 1}, True, [True, False], np.array([True, False]), 10**5000, "9" * 5000):
        with pytest.raises(LensError, match=r"are not integers|are not understood"):
            parse_layers(wrong, 8)


def test_seeds() -> None:
    for seed in (0, 2**64 - 1, -(2**63)):
        check_sampling(0.0, 1.0, seed)
    with pytest.raises(LensError, match="seed 99999999999999999999 has more than 64 bits"):
        check_sampling(0.0, 1.0, 99999999999999999999)


def test_a_word_of_an_enumeration_becomes_the_known_one() -> None:
    """The other ranks do not have the enumeration."""
    sites = Enum("Sites", {"POST": "post_ln"}, type=str)
    assert [type(site) for site in parse_sites([sites.POST])] == [str]  # type: ignore[attr-defined]


def test_sites() -> None:
    assert parse_sites(None) == ("attn_out", "mlp_out", "resid_post")
    assert parse_sites("post_ln, resid_pre,post_ln") == ("post_ln", "resid_pre")
    for wrong in ("block", 5):
        with pytest.raises(LensError, match=f"site {wrong!r} is not one of resid_pre, attn_out"):
            parse_sites(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", ["ab", b"ab", bytearray(b"ab"), {1: 2}, {1, 2}, 5, None, np.array(3), torch.tensor(3)])
def test_what_is_no_list_is_not_gone_through(given: object) -> None:
    assert listed(given) is None


def test_lists_are_gone_through() -> None:
    frame = pd.DataFrame({"a": [1, 2]})
    assert listed(frame) is None, "its columns"
    for given in ([1, 2], (1, 2), range(1, 3), np.array([1, 2]), torch.tensor([1, 2]), iter([1, 2]), frame["a"]):
        assert listed(given) == [1, 2]
    assert listed({2}, ordered=False) == [2]


def test_what_was_given_is_told_on_one_line() -> None:
    for given in (torch.ones(30, 30), 10**400, 10**5000, pd.DataFrame({"a": [1]}), "ab" * 100):
        assert quoted(given).isprintable()
        assert len(quoted(given)) <= 63  # the quotes of a text, and the mark that it goes on
    assert quoted("a\nb") == r"'a\nb'"
    assert quoted(torch.ones(2, 2)) == "tensor([[1., 1.], [1., 1.]])"


def test_numbers_become_pythons_own() -> None:
    for given in (2, 2.0, np.float32(2), np.int8(2), torch.tensor(2), Fraction(2)):
        assert repr(number("rate", given)) == "2.0"
    for wrong in ("2", b"2", None, [2], np.ones(2), torch.ones(2), 2j, 10**400, 10**5000):
        with pytest.raises(LensError, match="is not a number"):
            number("rate", wrong)


@pytest.mark.parametrize(
    ("temperature", "top_p"), [(-1, 1), (float("nan"), 1), (float("inf"), 1), (1e-310, 1), (1, 0), (1, 1.5)]
)
def test_wrong_sampling(temperature: float, top_p: float) -> None:
    with pytest.raises(LensError):
        check_sampling(temperature, top_p)


def test_number_of_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LENS_RANKS", raising=False)
    monkeypatch.delenv("LENS_DEFAULT_RANKS", raising=False)
    assert default_ranks() == 4
    monkeypatch.setenv("LENS_DEFAULT_RANKS", "3")
    assert default_ranks() == 3
    monkeypatch.setenv("LENS_RANKS", "2")
    assert default_ranks() == 2
    monkeypatch.setenv("LENS_RANKS", "")
    assert default_ranks() == 3
    monkeypatch.setenv("LENS_RANKS", "two")
    with pytest.raises(LensError, match="LENS_RANKS 'two'"):
        default_ranks()
    assert check_ranks(np.int64(3)) == 3
    for wrong in (2.7, [2], None, 0, "0", "-1", "1.5"):
        with pytest.raises(LensError, match="is not a number of ranks"):
            check_ranks(wrong)  # type: ignore[arg-type]


@pytest.fixture
def parser() -> Parser:
    made = Parser(prog="%%lens")
    add_run_options(made)
    add_load_options(made, ranks="those there are")
    return made


@pytest.mark.parametrize("line", ["-l -1,-2", "--layers -1,-2", "--layers=-1,-2", "-l-1,-2"])
def test_values_may_begin_with_a_minus_sign(parser: Parser, line: str) -> None:
    assert parser.read(line).layers == "-1,-2"


def test_a_flag_takes_no_value(parser: Parser) -> None:
    parsed = parser.read("--ignore-eos -n 3")
    assert parsed.ignore_eos
    assert parsed.max_new_tokens == 3


@pytest.mark.parametrize("given", [True, False, 1, 0, np.bool_(True)])
def test_flags(given: object) -> None:
    assert flag("chat", given) is bool(given)


@pytest.mark.parametrize("given", [0.7, 1.0, 2, "no", None, np.ones(2)])
def test_what_is_no_flag_may_be_meant_for_another_argument(given: object) -> None:
    with pytest.raises(LensError, match="is neither True nor False"):  # generate(prompt, 32, 0.7)
        flag("ignore_eos", given)


@pytest.mark.parametrize(
    ("line", "track"),
    [("", ()), ("--track", True), ("--track ' a, b'", " a, b"), ("--track ' a, b' --track id:4", " a, b,id:4")],
)
def test_tokens_to_follow_may_be_named_one_by_one(parser: Parser, line: str, track: object) -> None:
    for _ in range(2):  # nothing is left of the line before
        assert run_options(parser.read(line))["track"] == track
    with pytest.raises(LensError, match="one of both would do"):
        run_options(parser.read("--track --track a"))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--nonsense", "unknown option --nonsense; %%lens takes .*--max-new-tokens"),
        ("-l 0, 4", "'4' belongs to no option of %%lens; a list takes no spaces"),
        ("--max 3", "unknown option --max 3"),  # no guessing at abbreviations
        ("-n three", "^--max-new-tokens 'three' is not an integer \\(%lens --help says more"),
        ("-t warm", "^--temperature 'warm' is not a number "),
        ("-n", "expected one argument"),
        ("-l 'unfinished", "cannot be read: no closing quotation"),
    ],
)
def test_wrong_lines(parser: Parser, line: str, words: str) -> None:
    with pytest.raises(LensError, match=words) as caught:
        parser.read(line)
    assert "\n" not in str(caught.value)


def test_help(parser: Parser) -> None:
    with pytest.raises(Help, match="--top-k K"):
        parser.read("--help")


def test_every_bit_of_a_seed_counts() -> None:
    """torch's generator on a CPU takes the lower 32 alone."""
    usual = [0, 1, 2**32 - 1, -1]
    assert [generator_seed(seed) for seed in usual] == usual
    seeds = [0, 5, 5 + 2**32, 5 + 2**33, 2**50]
    drawn = {int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(generator_seed(seed)))) for seed in seeds}
    assert len(drawn) == len(seeds)
