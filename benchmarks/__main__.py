"""`python -m benchmarks`: measure, and make tables and plots of it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from lens_magic.arguments import Help, Parser
from lens_magic.errors import LensError

from . import plan, report
from .process import ROOT
from .run import PATIENCE_S, Runner

NAMES = list(dict.fromkeys(suite.name for suite in plan.suites(full=True)))


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="lens-magic bench", description=__doc__)
    add = parser.add_argument
    add("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(NAMES)}; or ablation, gpu, report (all that are planned)")
    add("--full", action="store_true", help="the paper's lengths, five rounds of everything: hours")
    add("--budget", type=float, metavar="SECONDS", help="stop after so long (720; with --full, never)")
    add("--fresh", action="store_true", help="measure again what is there already")
    add("--out", type=Path, default=ROOT / "out" / "bench", metavar="FOLDER", help="of results (out/bench)")
    add("--publish", action="store_true", help="put results, tables and plots into benchmarks/results and docs")
    parsed = parser.read(sys.argv[1:] if arguments is None else arguments)
    parsed.out = parsed.out.resolve()  # processes that measure stand elsewhere
    words = parsed.suites or NAMES
    if unknown := set(words) - {*NAMES, "ablation", "gpu", "report"}:
        parser.error(f"there is no suite {sorted(unknown)[0]!r}; there are {', '.join(NAMES)}, ablation, gpu, report")
    begun = time.monotonic()
    budget = parsed.budget or (PATIENCE_S if parsed.full else 720.0)
    runner = Runner(parsed.out, budget, parsed.fresh)
    try:
        for suite in plan.suites(parsed.full):
            if suite.name in words:
                runner.run(suite)
    finally:
        runner.close()
    if "ablation" in words or (parsed.full and not parsed.suites):
        from . import ablation

        ablation.measure(parsed.out, full=parsed.full)
    if "gpu" in words:
        from . import gpu

        gpu.measure(parsed.out, runner.left_s, parsed.full, parsed.fresh)
    for path in report.write(parsed.out, publish=parsed.publish):
        print(path)
    print(f"{time.monotonic() - begun:.0f} s")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Help as text:
        print(text)
    except LensError as error:
        print(f"lens-magic: {error}", file=sys.stderr)
        sys.exit(2)
