"""Options of the magics and of the command line, defined once; errors are one clear line."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NoReturn

from .errors import LensError
from .model.anatomy import DEFAULT_SITES, SITES
from .options import choice
from .words import quoted

if TYPE_CHECKING:
    from .prompts import Prompt

_NEGATIVE = re.compile(r"-[\d.]")
_KINDS: dict[Any, str] = {int: "an integer", float: "a number"}


class Help(Exception):
    """Raised when the user asks for help, which is no error; its text is the help."""


def no_command(word: str, of: str, known: Iterable[str], nor: str = "") -> LensError:
    """Return the error for a word that is no command: what there is, and the one that may be meant.

    Args:
        nor: what else the word might have been.
    """
    known = tuple(known)
    meant = "".join(f"; did you mean {one}?" for one in get_close_matches(word, known, 1))
    return LensError(f"{quoted(word)} is not a command of {of}{nor}; {', '.join(known)} are{meant}")


@contextmanager
def help_printed() -> Iterator[None]:
    """Print the help that the user asks for in the ``with`` block, and end the block there."""
    try:
        yield
    except Help as text:
        print(text)  # noqa: T201 - what was asked for


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises :class:`LensError` and accepts values that begin with a minus sign (``--layers -1,-2``).

    Args:
        prompt: a prompt is among what it reads: a word with blanks is no option, and errors say where one with a - goes.
    """

    def __init__(self, *arguments: Any, prompt: bool = False, **settings: Any) -> None:
        settings.setdefault("allow_abbrev", False)
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        settings["add_help"] = False
        super().__init__(*arguments, **settings)
        self.add_argument("-h", "--help", action=_RaiseHelp, nargs=0, help="show this")
        self._prompt = prompt
        self._given: list[str] = []

    def error(self, message: str) -> NoReturn:
        """Raise a :class:`LensError` that says what was wrong and what the command takes."""
        for word in self._odd():
            if message.endswith(f"ignored explicit argument {word[2:]!r}"):  # of -h in -hello
                message = f"unrecognized arguments: {word}"
        hint = self._hint(message) if self._prompt else ""
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown == message:
            # IPython refuses `%%lens --help`, which has no line below it.
            raise LensError(f"{message}{hint} ({self.prog.replace('%%', '%')} --help says more)")
        if not unknown.startswith("-"):
            raise LensError(
                f"{unknown!r} belongs to no option of {self.prog}; a list takes no spaces (0,4), and a value with spaces quotes"
            )
        taken = [max(action.option_strings, key=len) for action in self._actions if action.option_strings]
        raise LensError(f"unknown option {unknown}; {self.prog} takes {', '.join(taken)}{hint}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse a word that is no command, or none of an option's values, as everything else here does."""
        if action.choices is None:
            return
        if action.option_strings:
            choice(max(action.option_strings, key=len), value, tuple(action.choices))
        elif value not in action.choices:
            raise no_command(value, self.prog, action.choices)

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        """Refuse a word that is no number as the functions do that take one."""
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError:
            if action.type not in _KINDS:
                raise
            return self.error(f"{max(action.option_strings, key=len)} {quoted(arg_string)} is not {_KINDS[action.type]}")

    def _hint(self, message: str) -> str:
        """Say where a prompt goes that was taken for an option, or for the value of one, if that can be what is wrong."""
        missing = "required: PROMPT" in message
        if any(missing or word in message or quoted(word[2:]) in message for word in self._odd()):
            return "; a prompt that begins with - goes last, after --"
        if missing and "--track" in self._given:
            return "; --track takes the word after it, so the prompt goes before it"
        return ""

    def _odd(self) -> list[str]:
        """Return the words given that begin as an option does and are none, nor one joined to its value by ``=``."""
        known = self._option_string_actions
        return [word for word in self._given if word.startswith("-") and word.partition("=")[0] not in known]

    def read(self, arguments: str | Sequence[str], intermixed: bool = False) -> argparse.Namespace:
        """Parse a line or a list of words.

        Args:
            intermixed: allow options between positional arguments, which are all lists.

        Raises:
            LensError: the line is not understood. Help: the user asked for help.
        """
        if isinstance(arguments, str):
            try:
                arguments = shlex.split(arguments)
            except ValueError as error:
                raise LensError(f"the line {arguments!r} cannot be read: {str(error).lower()}") from None
        if not intermixed:
            return self.parse_args(self._joined(arguments))
        # What follows -- is set aside: argparse reads words between options twice, the second time without the --.
        end = arguments.index("--") if "--" in arguments else len(arguments)
        aside = {f"\0{number}": word for number, word in enumerate(arguments[end + 1 :])}
        parsed = self.parse_intermixed_args(self._joined([*arguments[:end], *aside]))
        for action in self._get_positional_actions():
            setattr(parsed, action.dest, [aside.get(word, word) for word in getattr(parsed, action.dest)])
        return parsed

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse after joining; argparse calls a subcommand's parser here, which joins its own options."""
        self._given = self._joined(args or [])
        return super().parse_known_args(self._given, namespace)

    def _parse_optional(self, arg_string: str) -> Any:
        """Take a word with a blank for a positional argument, as argparse does unless it begins as an option does."""
        if self._prompt and re.search(r"\s", arg_string) and arg_string.partition("=")[0] not in self._option_string_actions:
            return None
        return super()._parse_optional(arg_string)

    def _joined(self, words: Sequence[str]) -> list[str]:
        """Join an option with a value that argparse would mistake for an option."""
        options = self._option_string_actions
        joined: list[str] = []
        for word in words:
            last = joined[-1] if joined else ""
            if _NEGATIVE.match(word) and last in options and options[last].nargs != 0:
                joined[-1] = f"{last}={word}"
            else:
                joined.append(word)
        return joined


class Command(Parser):
    """The parser of a subcommand, which reports unknown options itself, with those it takes."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse all words; an unknown one is an error."""
        parsed, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return parsed, rest


def add_command(
    commands: Any, prog: str, what: str, action: Callable[[argparse.Namespace], Any] | None = None, **settings: Any
) -> Parser:
    """Add a subcommand, named by the last word of ``prog``, and return its parser.

    Args:
        commands: what ``add_subparsers`` returned.
        what: says what it does, in the list of commands and, as a sentence, in its own help.
        action: what the parsed options are given to.
        settings: of its parser.
    """
    description = f"{what[0].upper()}{what[1:]}."
    added: Parser = commands.add_parser(prog.split()[-1], prog=prog, help=what, description=description, **settings)
    added.set_defaults(action=action)
    return added


class _RaiseHelp(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *rest: Any) -> NoReturn:
        raise Help(parser.format_help().rstrip())


def _add_length_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-n", "--max-new-tokens", type=int, default=32, metavar="N", help="generate at most N tokens (32)")


def _add_sampling_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-t", "--temperature", type=float, default=0.0, metavar="T", help="sampling temperature; 0 is greedy (0)")
    add("--top-p", type=float, default=1.0, metavar="P", help="sample from the most probable tokens that make up P (1)")
    add("--seed", type=int, default=0, help="seed of the sampling (0)")
    add("--ignore-eos", action="store_true", help="continue past end tokens")
    add("--chat", action="store_true", help="put the prompt into the model's chat template")
    add("--system", metavar="TEXT", help="the same, after this system message")


def prompt_of(parsed: argparse.Namespace, text: str) -> Prompt:
    """Return the prompt that a command's options make of a text: with ``--system`` a chat."""
    if parsed.system is None or not text:
        return text
    return [{"role": "system", "content": parsed.system}, {"role": "user", "content": text}]


def add_generation_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of every command that generates."""
    _add_length_option(parser)
    _add_sampling_options(parser)


def add_capture_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of what is kept of a run, which ``lens-magic plan`` has too."""
    add = parser.add_argument
    add("-k", "--top-k", type=int, default=5, metavar="K", help="candidates kept per cell (5)")
    add("-l", "--layers", metavar="SPEC", help="layers to keep: 0-4, 5-, -1, 0,8,-1 or ::4 (all)")
    add(
        "-c",
        "--capture",
        metavar="SITES",
        help=f"sites to keep: {', '.join(SITES)} ({','.join(DEFAULT_SITES)})",
    )
    add("--offload", action="store_true", help="keep the captured states in the host's memory")


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``%%lens`` and ``lens-magic run``."""
    add = parser.add_argument
    _add_length_option(parser)
    add_capture_options(parser)
    add(
        "--steer",
        metavar="NAME[:ALPHA]",
        action="append",
        default=[],
        help="a vector or vector file, times α (1); in a notebook also a variable with terms; repeatable",
    )
    _add_sampling_options(parser)
    add("--prompt-tokens", action="store_true", help="show the prompt's positions too")
    add(
        "--lens",
        metavar="NAME",
        help="the path of a TunedLens or Basis; in a notebook also a variable that holds one (the logit lens)",
    )
    add(
        "--norm", metavar="NORM", default="own", help="own, frozen (what a component adds to the output's logits) or none (own)"
    )
    add(
        "--track",
        metavar="TOKENS",
        nargs="?",
        const=True,
        action="append",
        default=[],
        help='tokens to follow in all cells: " Paris, Rome" or id:42, repeatable; no value: those ranked first in any layer',
    )
    add("--stream-lens", action="store_true", help="project while generating: rows appear in the table as they come")
    add("--capture-dtype", metavar="DTYPE", help="keep the captured states in float32, bfloat16 or float16 (the model's own)")


def _names(add: Callable[[argparse.ArgumentParser], None]) -> tuple[str, ...]:
    """Return the names of the options that ``add`` adds, as arguments of the functions that they are given to.

    Vectors have to be found first, and a system message is part of the prompt (:func:`prompt_of`).
    """
    parser = argparse.ArgumentParser(add_help=False)
    add(parser)
    return tuple(action.dest for action in parser._actions if action.dest not in ("steer", "system"))


GENERATION_OPTIONS = _names(add_generation_options)
"""Names of the options of every command that generates."""

RUN_OPTIONS = _names(add_run_options)
"""Names of the options of ``%%lens`` as arguments of :func:`lens_magic.runs.run`."""


def run_options(parsed: argparse.Namespace) -> dict[str, Any]:
    """Return the parsed options as arguments of :func:`lens_magic.runs.run`."""
    return {**{name: getattr(parsed, name) for name in RUN_OPTIONS}, "track": _track(parsed.track)}


def _track(given: list[Any]) -> Any:
    """Merge the values of all ``--track`` options into one."""
    if True not in given:
        return ",".join(given) if given else ()
    if len(given) > 1:
        raise LensError("--track alone follows those ranked first, with tokens those; one of both would do")
    return True


def add_load_options(parser: argparse.ArgumentParser, ranks: str) -> None:
    """Add the options of ``%lens load``, which ``lens-magic run`` has too; ``ranks`` is the default number, in words."""
    add = parser.add_argument
    add("--dtype", metavar="DTYPE", help="auto (the checkpoint's own), float32, bfloat16 or float16")
    add("--revision", metavar="R", help="branch, tag or commit of a model on the hub")
    add("--ranks", metavar="R", help=f"number of ranks to split the model over ({ranks})")
    add("--trust-remote-code", action="store_true", help="run code that comes with the tokenizer (models: transformers' own)")


def load_options(parsed: argparse.Namespace) -> dict[str, Any]:
    """Return the parsed options as arguments of ``Session.load``."""
    return {name: getattr(parsed, name) for name in ("dtype", "revision", "ranks", "trust_remote_code")}
