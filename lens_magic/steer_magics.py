"""``%steer``: thin adapters from a line to the session's vectors."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from IPython.core.magic import Magics, line_cell_magic, magics_class, no_var_expand
from IPython.display import display

from . import comparing, vectors
from . import session as sessions
from .arguments import GENERATION_OPTIONS, Help, Parser, add_generation_options, help_printed, no_command, prompt_of
from .demo import data_sets
from .errors import LensError, even_if_stopped
from .generating import nothing_said
from .magics import Held, check_variable, one_line_interrupt
from .options import ABLATED_SITES, ALPHAS, UNITS
from .paths import path_of
from .tables import as_html
from .view.progress import Bars
from .view.steered import Streaming
from .words import as_name, counted

if TYPE_CHECKING:
    from .steer.ablation import SiteAblation
    from .steer.report import SteerabilityReport
    from .steer.vector import SteeringVector

_PROMPT = "\0prompt"  # stands for the prompt where variables are expanded, and where the line is read
_SOURCES = "a variable, a JSON Lines file, or a set: the demo's (demo/mood-pairs, …) or one of Perez et al."
_CHAT = "put questions and texts into the model's chat template"
_ALPHAS = f"{ALPHAS[0]:g}:{ALPHAS[-1]:g}:{ALPHAS[1] - ALPHAS[0]:g}"


@magics_class
class SteerMagics(Magics):
    """The ``%steer`` magic of one shell."""

    @no_var_expand  # the prompt on the line stays as typed; everything else is expanded below
    @line_cell_magic
    def steer(self, line: str, cell: str | None = None) -> Any:
        """``%steer train|list|save|load|drop|eval|sites|panel``; ``%%steer NAME[:ALPHA] … [options]`` with the prompt below.

        ``%steer NAME[:ALPHA] … "prompt"`` is the latter on one line. ``%steer COMMAND --help`` says more.
        """
        with help_printed():
            expand = partial(self.shell.var_expand, depth=2)  # past IPython's own frame, to the variables of the calling code
            if cell is not None:
                parsed = _compare_parser(prompt=False).read(_words(expand(line)), intermixed=True)
                return self._compare(parsed, cell.removesuffix("\n"))
            words = _words(line)
            if words[:1] in (["-h"], ["--help"]):
                commands = "\n".join(f"  {name:7} {does}" for name, does in vectors.COMMANDS.items())
                comparison = _compare_parser(prompt=True).format_help().rstrip()
                raise Help(f"%steer takes a command, each with --help:\n{commands}\n\nor vectors and a prompt:\n\n{comparison}")
            if not words:
                raise LensError(f"%steer takes a command: {', '.join(COMMANDS)}; each has --help")
            if words[0] in COMMANDS:
                return COMMANDS[words[0]](_words(expand(line))[1:], self.shell)
            try:
                at = _place_of_prompt(words)
            except LensError:  # a mistyped command has options that are none of a comparison's
                if words[0][:1] in "-${" or _names_a_vector(words[0], self.shell.user_ns):
                    raise
                raise no_command(words[0], "%steer", COMMANDS, ", nor a vector") from None
            prompt, *rest = words[at], *map(expand, words[:at] + words[at + 1 :])
            expanded = [*rest[:at], _PROMPT, *rest[at:]]
            first = expanded[0] if at else prompt
            if not (first.startswith("-") or _names_a_vector(first, self.shell.user_ns)):  # options may come first
                raise no_command(words[0], "%steer", COMMANDS, ", nor a vector")
            parsed = _compare_parser(prompt=True).read(expanded, intermixed=True)
            parsed.vectors = [word for word in parsed.vectors if word != _PROMPT]
            if not parsed.vectors or self._is_a_vector_without_quotes(prompt, line, words):
                raise LensError('the prompt is missing; %steer NAME:1.5 "prompt" would do')
            return self._compare(parsed, prompt)

    def _is_a_vector_without_quotes(self, word: str, line: str, words: list[str]) -> bool:
        """Whether the word for the prompt is a known NAME[:ALPHA], and in quotes nowhere on the line."""
        bare = re.findall(rf"(?<!\S){re.escape(word)}(?!\S)", line)
        return len(bare) == words.count(word) and as_name(word.partition(":")[0]) in _known_vectors(self.shell.user_ns)

    def _compare(self, parsed: argparse.Namespace, prompt: str) -> Any:
        parsed.out = check_variable(parsed.out)
        session = sessions.current()
        model = session.require_model()
        names = ("layers", "site", "positions", "steps", "decay", "schedule", "clip", "operator")
        choices = {name: given for name in names if (given := getattr(parsed, name)) is not None}
        terms = vectors.terms_of(session, parsed.vectors, self.shell.user_ns, **choices)
        options = {name: getattr(parsed, name) for name in GENERATION_OPTIONS}
        with Held(self.shell, parsed.out) as held:
            with Streaming(model) as streaming:
                compared, stopped = even_if_stopped(
                    lambda: comparing.compare(session, prompt_of(parsed, prompt), terms, **options, on_event=streaming)
                )
                held.take(compared, f"stopped after {counted(len(compared.steered.output_ids), 'token')}", stopped)
            outputs = compared.unsteered.output_ids, compared.steered.output_ids
            for words in dict.fromkeys(nothing_said(model, output, compared.options["chat"]) for output in outputs):
                if words:
                    print(words)  # noqa: T201 - where the text would be
            if not stopped and parsed.out is None:
                return compared
            display(compared)
        return None


class _Word(str):
    """A word of the line, told from others that read the same by identity."""


def _place_of_prompt(words: list[str]) -> int:
    """Return which of the words of a ``%steer`` line is the prompt: the last that is no option nor the value of one."""
    parser = _compare_parser(prompt=True)
    for action in parser._actions:
        action.type = None  # variables in the values are not expanded yet
    marked = list(map(_Word, words))
    prompt = parser.read(marked, intermixed=True).vectors[-1]
    return next(place for place, word in enumerate(marked) if word is prompt)


def _names_a_vector(word: str, variables: dict[str, Any]) -> bool:
    return (
        ":" in word or as_name(word) in _known_vectors(variables) or word.endswith(vectors.VECTOR_FILES)
    )  # with α it can only mean a vector


def _known_vectors(variables: dict[str, Any]) -> set[str]:
    held = vectors.variables_with_vectors(variables), vectors.variables_with_terms(variables)
    return {*sessions.current().vectors}.union(*held)


def _compare_parser(prompt: bool) -> Parser:
    """Return the parser of ``%%steer``, or of ``%steer`` with the prompt on the line."""
    parser = Parser(prog="%%steer", description="The same prompt, unsteered and steered, side by side.", prompt=prompt)
    add = parser.add_argument
    add("vectors", nargs="+", metavar="NAME[:ALPHA]", help="vectors, vector files or variables with terms, times α (1)")
    add("-l", "--layers", metavar="SPEC", help="layers of the vector to use (all)")
    add("--site", help="site to steer, if not the one the vector was read at")
    add("--positions", metavar="P", help="all, prompt, generated, last, or A:B (all)")
    add("--steps", metavar="A:B", help="generated tokens to steer, half-open (all)")
    add("--decay", type=float, metavar="H", help="halve α every H tokens")
    add("--schedule", metavar="S", help="schedule of α: constant, linear (to 0 at the run's end) or on/off (constant)")
    add("--clip", type=float, metavar="C", help="change a state by at most C times its length")
    add("--operator", help="add, ablate or set (add)")
    add_generation_options(parser)
    add("-o", "--out", metavar="NAME", help="put the result into this variable too")
    return parser


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError as error:
        raise LensError(f"the line {line!r} cannot be read: {str(error).lower()}") from None


def value_of(word: str, variables: Mapping[str, Any]) -> Any:
    """Resolve ``VAR_OR_FILE``: return the variable's value if there is such a variable, else the word itself."""
    if not word.isidentifier() or path_of(word).is_file():
        return variables.get(as_name(word), word)
    if as_name(word) not in variables:
        raise LensError(f"there is no variable {word!r}, and no such file; {', '.join(data_sets())} are there")
    return variables[as_name(word)]


def _parser(command: str) -> Parser:
    return Parser(prog=f"%steer {command}", description=vectors.COMMANDS[command])


def _train(words: list[str], shell: Any) -> SteeringVector:
    parser = _parser("train")
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--pairs", required=True, metavar="VAR_OR_FILE", help=_SOURCES)
    parser.add_argument("-l", "--layers", default="5", metavar="SPEC", help="layers: 0-4, 5-, -1, 0,8,-1 or ::4 (5)")
    parser.add_argument("--site", default="post_ln", help="resid_pre, attn_out, post_ln, mlp_out or resid_post (post_ln)")
    parser.add_argument("--position", default="label", help="label, last or mean: which tokens are read (label)")
    parser.add_argument("--method", default="mean_diff", help="mean_diff, pca or logistic (mean_diff)")
    parser.add_argument("--chat", action="store_true", help=_CHAT)
    _add_out(parser)
    parsed = parser.read(words)
    name, out = vectors.check_name(parsed.name), check_variable(parsed.out)
    session = sessions.current()
    with Bars(reading=f"reading for {name}", learning=f"learning {name}") as bars:
        try:
            vector = vectors.train(
                session,
                value_of(parsed.pairs, shell.user_ns),
                layers=parsed.layers,
                site=parsed.site,
                position=parsed.position,
                method=parsed.method,
                name=name,
                on_event=bars,
                chat=parsed.chat,
            )
        except KeyboardInterrupt:
            raise one_line_interrupt(f"stopped training {name}; nothing was kept") from None
    return _keep(vector, out, shell.user_ns)


@dataclass(frozen=True)
class VectorList:
    """The vectors that ``%steer list`` shows: the session's and those in variables."""

    vectors: tuple[SteeringVector, ...]

    _NONE = "no vectors; %steer train NAME --pairs … makes one, %steer load NAME FILE reads one"

    def __repr__(self) -> str:
        return "\n".join(f"{told}; layers {layers}" for told, layers in self._rows()) or self._NONE

    def _repr_html_(self) -> str:
        if not self.vectors:
            return as_html(self._NONE, (), ())
        return as_html(counted(len(self.vectors), "vector"), ("vector", "layers"), self._rows())

    def _rows(self) -> list[tuple[str, str]]:
        return [(vector.summary(), ",".join(map(str, vector.layers))) for vector in self.vectors]


def _list(words: list[str], shell: Any) -> VectorList:
    _parser("list").read(words)
    named = {**vectors.variables_with_vectors(shell.user_ns), **sessions.current().vectors}
    return VectorList(tuple(named[name] for name in sorted(named)))


def _name_and_file(command: str, more: str = "") -> Parser:
    parser = _parser(command)
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("file", metavar="FILE", help=f".safetensors, .gguf (llama.cpp, repeng){more}")
    return parser


def _add_out(parser: Parser, what: str = "vector") -> None:
    parser.add_argument("-o", "--out", metavar="NAME", help=f"put the {what} into this variable too")


def _keep(vector: SteeringVector, out: str | None, variables: dict[str, Any]) -> SteeringVector:
    sessions.current().vectors[vector.name] = vector
    if out is not None:
        variables[out] = vector
    return vector


def _save(words: list[str], shell: Any) -> None:
    parsed = _name_and_file("save").read(words)
    path = vectors.find(sessions.current(), parsed.name, shell.user_ns).save(parsed.file)
    print(f"{parsed.name} is in {path}")  # noqa: T201 - the command's output


def _load(words: list[str], shell: Any) -> SteeringVector:
    parser = _name_and_file("load", ", or .npz")
    _add_out(parser)
    parsed = parser.read(words)
    name, out = vectors.check_name(parsed.name), check_variable(parsed.out)
    from .model.fingerprint import differ
    from .steer.files import load

    vector = load(parsed.file).named(name)
    session = sessions.current()
    if session.model is not None:
        vector.check_fits(session.model.family, session.model.layers, session.model.width)
        if differ(vector.origin.fingerprint, session.model.fingerprint):
            print(f"{name} was made with other weights ({vector.origin.model}) than those loaded")  # noqa: T201
    return _keep(vector, out, shell.user_ns)


def _drop(words: list[str], shell: Any) -> None:
    parser = _parser("drop")
    parser.add_argument("name", metavar="NAME")
    name = as_name(parser.read(words).name)
    session = sessions.current()
    if name not in session.vectors:
        known = ", ".join(session.vectors) or "none"
        raise LensError(f"%steer keeps no vector {name!r}; it keeps {known}")
    del session.vectors[name]


def _measuring_parser(command: str) -> Parser:
    parser = _parser(command)
    add = parser.add_argument
    add("--data", required=True, metavar="VAR_OR_FILE", help=_SOURCES)
    add("-l", "--layers", metavar="SPEC", help="layers, one at a time: 0-4, 5-, -1, 0,8,-1 or ::4 (all there are)")
    add("--alphas", default=_ALPHAS, metavar="A:B:STEP", help=f"a range, or a list such as -1,0,1 ({_ALPHAS})")
    add("--unit", default=UNITS[0], metavar="U", help=f"of α: absolute, or norm, the length of what was learnt ({UNITS[0]})")
    _add_out(parser, "report")
    return parser


def _eval(words: list[str], shell: Any) -> SteerabilityReport:
    parser = _measuring_parser("eval")
    add = parser.add_argument
    add("name", metavar="NAME")
    add("--site", help="site to steer, if not the one the vector was read at")
    add("--positions", default="all", metavar="P", help="positions to steer: all, prompt, last, or A:B (all)")
    add("--reuse-layer", type=int, metavar="LAYER", help="apply this layer's direction at each of --layers")
    add("--random", type=int, default=1, metavar="N", help="number of random directions to compare with (1)")
    add("--chat", action="store_true", default=None, help=f"{_CHAT} (as the vector was learnt)")
    parsed = parser.read(words)
    vector = vectors.find(sessions.current(), parsed.name, shell.user_ns)

    def ask(bars: Bars) -> SteerabilityReport:
        from . import steerability

        return steerability.evaluate(
            sessions.current(),
            vector,
            value_of(parsed.data, shell.user_ns),
            alphas=steerability.parse_alphas(parsed.alphas),
            layers=parsed.layers,
            site=parsed.site,
            reuse_layer=parsed.reuse_layer,
            positions=parsed.positions,
            random_directions=parsed.random,
            on_event=bars,
            chat=parsed.chat,
            unit=parsed.unit,
        )

    report: SteerabilityReport = _measured(
        shell, parsed.out, f"evaluating {vector.name}", ask, lambda part: counted(part.counts["test"], "question")
    )
    return report


def _sites(words: list[str], shell: Any) -> SiteAblation:
    parser = _measuring_parser("sites")
    add = parser.add_argument
    add("--pairs", required=True, metavar="VAR_OR_FILE", help="pairs to learn from, as in %%steer train")
    add("--sites", default=",".join(ABLATED_SITES), help=f"the paper's ({','.join(ABLATED_SITES)})")
    add("--read", default="label,last", metavar="POSITIONS", help="positions to learn at, of label, last and mean (label,last)")
    add("--method", default="mean_diff", help="mean_diff, pca or logistic (mean_diff)")
    add("--chat", action="store_true", help=_CHAT)
    parsed = parser.read(words)

    def ask(bars: Bars) -> SiteAblation:
        from . import steerability

        return steerability.ablate_sites(
            sessions.current(),
            value_of(parsed.pairs, shell.user_ns),
            value_of(parsed.data, shell.user_ns),
            layers=parsed.layers,
            sites=parsed.sites,
            positions=parsed.read,
            method=parsed.method,
            alphas=steerability.parse_alphas(parsed.alphas),
            on_event=bars,
            chat=parsed.chat,
            unit=parsed.unit,
        )

    sites: SiteAblation = _measured(
        shell, parsed.out, "comparing sites", ask, lambda part: f"{len(part.reports)} sites and positions"
    )
    return sites


def _measured(shell: Any, out: str | None, doing: str, ask: Callable[[Bars], Any], amount: Callable[[Any], str]) -> Any:
    """Return a report. If the user stops it, display and keep what was measured, then raise.

    Args:
        amount: says how much a report covers, in words.
    """
    out = check_variable(out)
    with Held(shell, out) as held:
        with Bars(evaluating=doing) as bars:
            try:
                report, stopped = even_if_stopped(lambda: ask(bars))
            except KeyboardInterrupt:
                raise one_line_interrupt(f"stopped {doing}; nothing was measured by then") from None
            held.take(report, f"stopped {doing} after {amount(report)}", stopped)
        if stopped:
            display(report)
    return report


def _panel(words: list[str], shell: Any) -> Any:
    _parser("panel").read(words)
    from .steer_panel import Panel

    session = sessions.current()
    names = {**vectors.variables_with_vectors(shell.user_ns), **session.vectors}
    return Panel(session, {name: vectors.find(session, name, shell.user_ns) for name in names})


COMMANDS: dict[str, Callable[[list[str], Any], Any]] = dict(
    zip(vectors.COMMANDS, (_train, _list, _save, _load, _drop, _eval, _sites, _panel), strict=True)
)
"""Subcommands by name; each is called with the remaining words and the shell."""
