"""``%lens`` and ``%%lens``: thin adapters from a cell to the session, and from its results to what is displayed."""

from __future__ import annotations

import argparse
import keyword
import time
from typing import Any

from IPython.core.magic import Magics, line_cell_magic, magics_class

from . import runs, vectors
from . import session as sessions
from .arguments import (
    Command,
    Parser,
    add_command,
    add_load_options,
    add_run_options,
    help_printed,
    load_options,
    prompt_of,
    run_options,
)
from .errors import LensError, even_if_stopped
from .generating import nothing_said
from .lens import kept
from .outputs import ENDINGS, check_output, write
from .paths import path_of
from .ranks.status import Status
from .rooms import device_of
from .showing import Answer, LiveAnswer
from .view.progress import Bars
from .words import as_name, counted, size


@magics_class
class LensMagics(Magics):
    """The magics of one shell."""

    @line_cell_magic
    def lens(self, line: str, cell: str | None = None) -> Any:
        """``%lens load|status|restart|runs``, and ``%%lens [options]`` with the prompt below. ``--help`` says more."""
        with help_printed():
            return _command(line) if cell is None else self._run(line, cell)

    def _run(self, line: str, cell: str) -> Any:
        parsed = _cell_parser().read(line)
        parsed.out = check_variable(parsed.out)
        if parsed.save is not None:
            check_output("--save", path_of(parsed.save))
        session = sessions.current()
        model = session.require_model()
        if parsed.lens is not None and parsed.lens.isidentifier():  # a variable takes precedence over a file of that name
            parsed.lens = self.shell.user_ns.get(as_name(parsed.lens), parsed.lens)
        prompt, given = prompt_of(parsed, cell.removesuffix("\n")), run_options(parsed)
        given["steer"] = vectors.terms_of(session, parsed.steer, self.shell.user_ns)
        live = parsed.stream_lens and not parsed.static
        with Held(self.shell, parsed.out) as held:
            with LiveAnswer(session, prompt, given) if live else Answer(model) as answer:
                run, stopped = even_if_stopped(lambda: runs.run(session, prompt, **given, on_event=answer))
                held.take(run, f"stopped after {counted(len(run.output_ids), 'token')}", stopped)
                kept.keep(run)
            if words := nothing_said(model, run.output_ids, run.options["chat"]):
                print(words)  # noqa: T201 - where the answer would be
            if not (stopped or live or parsed.static or parsed.out is not None or parsed.save is not None):
                return run
            held.store()
            answer.show(run, parsed.static)
            try:
                if parsed.save is not None:  # last: a full disk costs only the file, not the run or that it was stopped
                    write(run, path_of(parsed.save))
            except LensError as error:
                if not stopped:
                    raise
                held.words += f", and not saved ({error})"
        return None


_ITS_OWN = ("In", "Out", "_", "__", "___", "_dh", "_ih", "_oh", "exit", "get_ipython", "quit")
"""Names that IPython keeps among the user's variables and needs there, or sets itself until the user has."""


def check_variable(out: str | None) -> str | None:
    """Check the variable name given as ``--out``, if any, and return it as Python would store it.

    Raises:
        LensError: it is not a variable name, or is one of IPython's own.
    """
    if out is None:
        return None
    name = as_name(out)
    if not name.isidentifier() or keyword.iskeyword(name):
        raise LensError(f"--out {out!r} is not a variable name")
    if name in _ITS_OWN:
        raise LensError(f"--out {out!r} is IPython's own; another name would do")
    return name


class Held:
    """Holds a result, from when there is one: an interrupt while it is kept, shown or saved costs that alone.

    Args:
        out: the ``--out`` variable, if any; else the result becomes the cell's value (`_` and `Out[n]`).

    Raises:
        KeyboardInterrupt: in one line, at the end of the ``with`` block, if the user stopped the result or what came after.
    """

    def __init__(self, shell: Any, out: str | None) -> None:
        self._shell = shell
        self._out = out
        self._result: Any = None
        self._stopped = self._stored = False
        self.words = ""

    def __enter__(self) -> Held:
        return self

    def take(self, result: Any, words: str, stopped: bool) -> None:
        """Hold a result.

        Args:
            words: say that it was stopped, and where.
        """
        self._result, self.words, self._stopped = result, words, stopped
        if stopped or self._out is not None:
            self.store()

    def store(self) -> None:
        """Put the result where the user finds it; for one that the magic does not return, which IPython would store."""
        if self._out is not None:
            self._shell.user_ns[self._out] = self._result
        elif not self._stored:
            self._shell.displayhook.update_user_ns(self._result)
        self._stored = True

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        if self._result is None or not (interrupted or (self._stopped and kind is None)):
            return
        self.store()
        raise one_line_interrupt(f"{self.words}; the result so far is in `{self._out or self._place()}`") from None

    def _place(self) -> str:
        """Return where IPython has put the result: not in `_` once the user has set that."""
        return "_" if self._shell.user_ns.get("_") is self._result else f"Out[{self._shell.displayhook.prompt_count}]"


def one_line_interrupt(message: str) -> KeyboardInterrupt:
    """Return a KeyboardInterrupt (so that "run all" stops) that IPython shows as one line."""
    error = KeyboardInterrupt(message)
    error._render_traceback_ = lambda: [f"KeyboardInterrupt: {message}"]  # type: ignore[attr-defined]
    return error


# -- %lens ----------------------------------------------------------------------------------------------------------------


def _command(line: str) -> Any:
    parsed = _line_parser().read(line)
    return parsed.action(parsed)


def _load(parsed: argparse.Namespace) -> None:
    begun = time.perf_counter()
    with Bars(loading=f"loading {parsed.model}") as bars:
        try:
            _, stopped = even_if_stopped(lambda: sessions.current().load(parsed.model, **load_options(parsed), on_event=bars))
        except KeyboardInterrupt:
            raise one_line_interrupt(f"stopped loading {parsed.model}; {_what_is_loaded()}") from None
    _say_loaded(time.perf_counter() - begun, stopped)


def _restart(parsed: argparse.Namespace) -> None:
    begun = time.perf_counter()
    with Bars(loading="restarting the ranks") as bars:
        try:
            model, stopped = even_if_stopped(lambda: sessions.current().restart(on_event=bars))
        except KeyboardInterrupt:
            raise one_line_interrupt(f"stopped; {_what_is_loaded()}") from None
    if model is None:
        print(f"{counted(sessions.current().group.size, 'fresh rank')}; no model was loaded")  # noqa: T201
        return
    _say_loaded(time.perf_counter() - begun, stopped)


def _what_is_loaded() -> str:
    session = sessions.current()
    return f"{session.model.name} is still loaded" if session.model is not None else session.nothing_loaded()


def _say_loaded(seconds: float, stopped: bool) -> None:
    session = sessions.current()
    model = session.require_model()
    try:
        if stopped:
            raise KeyboardInterrupt
        ranks = session.group.call(_device)
    except KeyboardInterrupt:
        raise one_line_interrupt(f"too late to stop: {model.name} is loaded") from None
    devices = ", ".join(sorted(set(ranks)))
    print(  # noqa: T201 - the command's output
        f"{model.name}: {model.layers} layers, width {model.width}, vocabulary {model.vocabulary:,}, {model.dtype}, "
        f"on {counted(len(ranks), 'rank')} ({devices}), {seconds:.1f} s"
    )
    if model.whole_bytes:
        print(f"every rank keeps all of: {model.whole} ({size(model.whole_bytes)})")  # noqa: T201


def _device(rank: Any) -> str:
    return str(device_of(rank))


def _status(parsed: argparse.Namespace) -> Status:
    return sessions.current().status()


def _runs(parsed: argparse.Namespace) -> kept.KeptRuns | None:
    if parsed.clear:
        print(f"removed {counted(kept.clear(), 'kept run')}")  # noqa: T201
        return None
    return kept.listing()


def _line_parser() -> Parser:
    parser = Parser(
        prog="%lens",
        description="Manage ranks and models. With two percent signs it runs a prompt, as below.",
        epilog=_cell_parser().format_help(),  # because `%%lens --help` itself needs a line below it
    )
    commands = parser.add_subparsers(required=True, metavar="load|status|restart|runs", parser_class=Command)

    load = add_command(commands, "%lens load", "load a model on the ranks; the one before stays until it is there", _load)
    load.add_argument("model", metavar="MODEL", help='a folder, a hub id, or "demo"')
    add_load_options(load, ranks="those there are")
    add_command(commands, "%lens status", "show ranks, devices, memory and the model", _status)
    add_command(commands, "%lens restart", "start fresh ranks and load the model again; variables are kept", _restart)
    runs = add_command(commands, "%lens runs", "list the results kept on disk, newest first", _runs)
    runs.add_argument("--clear", action="store_true", help="remove them")
    return parser


def _cell_parser() -> Parser:
    parser = Parser(prog="%%lens", description="Generate from the prompt below the line, and look at every layer.")
    add_run_options(parser)
    parser.add_argument("--static", action="store_true", help="a plain HTML table instead of the widget")
    parser.add_argument("--save", metavar="FILE", help=f"write the run there: {', '.join(ENDINGS)}")
    parser.add_argument("-o", "--out", metavar="NAME", help="put the run into this variable too")
    return parser
