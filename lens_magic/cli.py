"""The command ``lens-magic``."""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from . import __version__
from .arguments import (
    Command,
    Help,
    Parser,
    add_capture_options,
    add_command,
    add_load_options,
    add_run_options,
    load_options,
    prompt_of,
    run_options,
)
from .errors import LensError, even_if_stopped
from .generating import nothing_said
from .options import DEFAULT_RANKS, check_ranks, default_ranks
from .outputs import ENDINGS, check_output
from .paths import path_of

_DEFAULT_RANKS = f"LENS_RANKS, else LENS_DEFAULT_RANKS, else {DEFAULT_RANKS}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status. A user's mistake is one line on stderr and status 2."""
    _ready_streams()
    try:
        status = _main(list(sys.argv[1:] if arguments is None else arguments))
        print(end="", flush=True)  # so that output that cannot be written fails here, not at interpreter exit
    except KeyboardInterrupt:
        print("lens-magic: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        if not _output_fails(error):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # `lens-magic … | head` has read enough
            return 0
        print(f"lens-magic: the output cannot be written: {error.strerror or error}", file=sys.stderr)
        return 2
    return status


def _output_fails(error: OSError) -> bool:
    """Whether an error came from writing to stdout: what could not be written is still in its buffer, and fails again."""
    try:
        sys.stdout.flush()
    except OSError:
        return True
    # Without a buffer (python -u) only this tells: stdout has no file name, and a write fails with a number.
    buffered = isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.write_through
    return not buffered and error.filename is None and error.errno is not None


def _ready_streams() -> None:
    """Replace closed streams (``>&-``) by the null device, and print ? for characters that a stream cannot encode."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # opening takes the lowest free descriptor, which is the closed one
            stream = io.TextIOWrapper(io.FileIO(os.devnull, "w"))
            setattr(sys, name, stream)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _main(arguments: list[str]) -> int:
    try:
        if arguments[:1] == ["bench"]:  # the benchmarks parse their own options
            return _bench(arguments[1:])
        parsed = _parser().read(arguments)
        status: int = parsed.action(parsed)
    except Help as text:
        print(text)
        return 0
    except LensError as error:
        print(f"lens-magic: {error}", file=sys.stderr)
        return 2
    return status


def _parser() -> Parser:
    parser = Parser(prog="lens-magic", description="Look inside language models too large for one GPU, from a notebook.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(
        required=True, metavar="demo|run|plan|equivalence|bench|kernel|doctor", parser_class=Command
    )

    demo = add_command(
        commands, "lens-magic demo", "execute the first tutorial on the Lens kernel, print a table of its first run", _demo
    )
    demo.add_argument("--out", default="out", metavar="FOLDER", help="where demo.ipynb and demo.html go (out)")

    what = "look at every layer while a prompt is continued, without a notebook: print a table, write files"
    run = add_command(commands, "lens-magic run", what, _run, prompt=True)
    run.add_argument("model", metavar="MODEL", help='a folder, a hub id, or "demo"')
    run.add_argument("prompt", metavar="PROMPT", help="the text to continue")
    add_load_options(run, ranks=_DEFAULT_RANKS)
    add_run_options(run)
    run.add_argument("--static", action="store_true", help="as in %%%%lens; the table here is plain text anyway")
    run.add_argument(
        *("-o", "--out", "--save"),
        metavar="FILE",
        action="append",
        default=[],
        help=f"write the run there: {', '.join(ENDINGS)}; repeatable",
    )

    what = "tell how much memory a model and a run need on each rank, and whether they fit; nothing is loaded"
    plan = add_command(commands, "lens-magic plan", what, _plan)
    plan.add_argument("model", metavar="MODEL", help='a folder, a config.json, a hub id (its configuration alone), or "demo"')
    plan.add_argument("--ranks", metavar="R", help=f"number of ranks ({_DEFAULT_RANKS})")
    plan.add_argument("--tokens", type=int, default=32, metavar="T", help="new tokens (32)")
    plan.add_argument("--prompt-tokens", type=int, default=1, metavar="N", help="tokens of the prompt (1)")
    plan.add_argument("--whole-prompt", action="store_true", help="capture the prompt's positions too")
    add_capture_options(plan)
    plan.add_argument("--dtype", metavar="DTYPE", help="auto (the checkpoint's own), float32, bfloat16 or float16")
    plan.add_argument("--batch", type=int, default=1, metavar="B", help="prompts side by side (1)")
    plan.add_argument("--tuned-lens", action="store_true", help="look through a tuned lens")
    plan.add_argument("--free", metavar="BYTES", help="free memory a rank, such as 80GB or 512MiB (what this machine has)")
    plan.add_argument("--free-host", metavar="BYTES", help="with --free: free memory of their host (what this machine has)")
    plan.add_argument("--device", choices=("cpu", "cuda"), help="with --free: device of the ranks (this machine's)")
    plan.add_argument("--json", action="store_true", help="print every figure as JSON, in bytes")

    what = "compare tokens, states and probabilities between numbers of ranks"
    same = add_command(commands, "lens-magic equivalence", what, _equivalence, prompt=True)
    same.add_argument("model", metavar="MODEL", help='a folder, a hub id, or "demo"')
    same.add_argument("prompt", metavar="PROMPT", help="the text to continue")
    same.add_argument(
        "--ranks", default="1,2,4", metavar="R,R,…", help="numbers of ranks; the others are compared with the first (1,2,4)"
    )
    same.add_argument("-n", "--max-new-tokens", type=int, default=32, metavar="N", help="tokens to generate (32)")
    same.add_argument("--dtype", metavar="DTYPE", help="auto (the checkpoint's own), float32, bfloat16 or float16")

    add_command(commands, "lens-magic bench", "compare speed and memory with other methods; needs a checkout")

    kernel = add_command(commands, "lens-magic kernel", "install or list Jupyter kernels that start ranks")
    verbs = kernel.add_subparsers(required=True, metavar="install|list", parser_class=Command)
    install = add_command(verbs, "lens-magic kernel install", "make a kernel of this environment known to Jupyter", _install)
    install.add_argument("--name", default="lens", help="name of the kernel (lens)")
    install.add_argument("--ranks", default="4", metavar="R", help="number of ranks it starts (4)")
    install.add_argument("--hostfile", metavar="F", help="hosts to spread the ranks over, in MPI's hostfile format")
    place = install.add_mutually_exclusive_group()
    place.add_argument("--user", action="store_true", help="for this user (the default)")
    place.add_argument("--prefix", metavar="P", help="below this folder")
    place.add_argument("--sys-prefix", action="store_true", help="in this Python environment")
    add_command(verbs, "lens-magic kernel list", "list the installed kernels", _list)

    add_command(commands, "lens-magic doctor", "tell what is installed, what is missing, and how to mend it", _doctor)
    return parser


def _demo(parsed: argparse.Namespace) -> int:
    from .demo_run import execute

    execute(path_of(parsed.out))
    return 0


def _run(parsed: argparse.Namespace) -> int:
    from . import runs, vectors
    from .headless import open_session, write_all
    from .view.progress import watched
    from .view.terminal import table_text

    session = open_session(parsed.ranks)  # first: of ranks that were launched rank 0 alone returns, and writes
    try:
        outputs = [path_of(path) for path in parsed.out]
        for path in outputs:
            check_output("--out", path)
        with watched(parsed.max_new_tokens, loading=f"loading {parsed.model}") as told:
            session.load(parsed.model, **load_options(parsed), on_event=told)
            steer = vectors.terms_of(session, parsed.steer)
            run, stopped = even_if_stopped(
                lambda: runs.run(session, prompt_of(parsed, parsed.prompt), steer=steer, **run_options(parsed), on_event=told)
            )
        try:
            print(table_text(run))  # before the files: a full disk must not hide the run
            if words := nothing_said(session.require_model(), run.output_ids, run.options["chat"]):
                print(words)
        finally:  # write them even if stdout was closed early (`| head`)
            write_all(run, outputs)
    finally:
        session.close()
    return 130 if stopped else 0


def _plan(parsed: argparse.Namespace) -> int:
    import json

    from . import plan

    ranks = check_ranks(parsed.ranks) if parsed.ranks is not None else default_ranks()
    for name in ("tokens", "prompt_tokens", "batch", "top_k"):
        least = 0 if name == "tokens" and parsed.whole_prompt else 1
        if getattr(parsed, name) < least:
            hint = "; with --whole-prompt, 0 plans the prompt alone" if name == "tokens" and least else ""
            raise LensError(f"--{name.replace('_', '-')} {getattr(parsed, name)} is too few; {least} or more would do{hint}")
    for name, given in (("--device", parsed.device), ("--free-host", parsed.free_host)):
        if given is not None and parsed.free is None:
            raise LensError(f"{name} goes with --free; --free 80GB --device cuda --free-host 500GB would do")
    made = plan.make(
        parsed.model,
        ranks,
        parsed.tokens,
        parsed.prompt_tokens,
        layers=parsed.layers,
        sites=parsed.capture,
        dtype=parsed.dtype,
        batch=parsed.batch,
        top_k=parsed.top_k,
        whole_prompt=parsed.whole_prompt,
        offload=parsed.offload,
        tuned=parsed.tuned_lens,
        rooms=plan.pretend(ranks, parsed.free, parsed.device, parsed.free_host) if parsed.free is not None else None,
    )
    print(json.dumps(made.to_json(), indent=1) if parsed.json else plan.table(made))
    return 0 if made.fits else 1


def _require_no_launcher(command: str) -> None:
    """Refuse to start ranks in a world that a launcher has started: nobody would end that."""
    from .ranks.start import launched_ranks

    if (launched := launched_ranks()) > 1:
        raise LensError(f"lens-magic {command} starts ranks of its own; run it once, not as {launched} with a launcher")


def _equivalence(parsed: argparse.Namespace) -> int:
    from .equivalence import compare
    from .session import Session

    _require_no_launcher("equivalence")
    counts = [check_ranks(word) for word in parsed.ranks.split(",")]
    if len(counts) < 2:
        raise LensError(f"--ranks {parsed.ranks!r} is one number; two or more are compared (1,2,4)")
    session = Session(counts[0])
    try:
        for comparison in compare(session, parsed.model, parsed.prompt, counts, parsed.max_new_tokens, parsed.dtype):
            print(f"{counts[0]} against {comparison}")
    finally:
        session.close()
    return 0


def _bench(arguments: list[str]) -> int:
    root = Path(__file__).parent.parent
    if not (root / "benchmarks" / "__main__.py").is_file():
        raise LensError("the benchmarks do not come with the installed package; run this in a checkout of the repository")
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    # -P: a folder "benchmarks" in the working directory is not ours.
    command = [sys.executable, "-P", "-m", "benchmarks", *arguments]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False).returncode


def _install(parsed: argparse.Namespace) -> int:
    from .kernelspec import found_first, install

    prefix = sys.prefix if parsed.sys_prefix else parsed.prefix
    ranks = check_ranks(parsed.ranks)
    folder = install(parsed.name, ranks, parsed.hostfile, user=prefix is None, prefix=prefix)
    print(folder)
    if first := found_first(parsed.name, folder):
        would_do = f"--name {parsed.name}{ranks}" + (", or --sys-prefix," if first.is_relative_to(sys.prefix) else "")
        print(f"lens-magic: Jupyter does not show it: it finds {first} first; {would_do} would do", file=sys.stderr)
    return 0


def _list(parsed: argparse.Namespace) -> int:
    from .kernelspec import hidden, installed

    found = installed()
    for name, folder in found.items():
        print(f"{name}  {folder}")
    for folder in hidden(found):
        print(f"{folder} is not shown: {folder.name} is the one above")
    if not found:
        print("none installed; `lens-magic kernel install` installs one")
    return 0


def _doctor(parsed: argparse.Namespace) -> int:
    from .doctor import examine

    _require_no_launcher("doctor")
    findings = examine()
    for finding in findings:
        print(finding)
    return 0 if all(finding.good for finding in findings) else 1


if __name__ == "__main__":
    sys.exit(main())
