"""Measure speed and memory beside other ways to look inside a model; make tables and plots of what was measured."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from lens_magic.arguments import Help, Parser
from lens_magic.errors import LensError

from . import plan, report
from .process import ROOT
from .run import PATIENCE_S, Runner

NAMES = list(dict.fromkeys(suite.name for suite in plan.suites(full=True)))
APART = ("ablation", "steerability", "gpu")
"""Suites that are measured only if named."""


SUITES = (
    f"of {', '.join(NAMES)}, which are all measured where none is named (peers installs two libraries below --out, each in an "
    "environment of its own, which needs a network); ablation (with --full, too, where none is named); steerability; gpu "
    "(needs a CUDA device); report: measure nothing, make tables and plots of what there is"
)


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="lens-magic bench", description=__doc__)
    add = parser.add_argument
    add("suites", nargs="*", metavar="SUITE", help=SUITES)
    add("--full", action="store_true", help="the paper's lengths, five rounds of everything: hours")
    add("--budget", type=float, metavar="SECONDS", help="of all but ablation and steerability (720; with --full, none)")
    add("--fresh", action="store_true", help="measure again what is there already")
    add("--out", type=Path, default=ROOT / "out" / "bench", metavar="FOLDER", help="of results (out/bench)")
    add("--publish", action="store_true", help="put the named suites' results into benchmarks/results, and docs' tables anew")
    add("--force", action="store_true", help="publish fewer samples than are published")
    parsed = parser.read(sys.argv[1:] if arguments is None else arguments)
    parsed.out = parsed.out.resolve()  # measuring processes have another working directory
    known = [*NAMES, *APART, "report"]
    if unknown := sorted(set(parsed.suites) - set(known)):
        parser.error(f"there is no suite {unknown[0]!r}; there are {', '.join(known)}")
    if parsed.publish and not parsed.suites:
        parser.error("--publish takes the suites to publish; report --publish makes the pages anew of what is published")
    begun = time.monotonic()
    if "report" not in parsed.suites:
        _measure(parsed)
    named = [name for name in parsed.suites if name != "report"] if parsed.publish else None
    for path in report.write(parsed.out, named, parsed.force):
        print(path)
    print(f"{time.monotonic() - begun:.0f} s")
    return 0


def _measure(parsed: argparse.Namespace) -> None:
    words = parsed.suites or [*NAMES, *(["ablation"] if parsed.full else [])]
    runner = Runner(parsed.out, parsed.budget or (PATIENCE_S if parsed.full else 720.0), parsed.fresh)
    try:
        for suite in plan.suites(parsed.full):
            if suite.name in words:
                runner.run(suite)
    finally:
        runner.close()
    if "ablation" in words:
        from . import ablation

        ablation.measure(parsed.out, full=parsed.full)
    if "steerability" in words:
        from . import steerability

        steerability.measure(parsed.out)
    if "gpu" in words:
        from . import gpu

        gpu.measure(parsed.out, runner.left_s, parsed.full, parsed.fresh)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Help as text:
        print(text)
    except LensError as error:
        print(f"lens-magic: {error}", file=sys.stderr)
        sys.exit(2)
