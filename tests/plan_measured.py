"""What a model and a run with it take, measured in processes of their own.

``plan_measured.py RANKS SMALL LARGE SIGNS OPTIONS``: LARGE is the checkpoint that is measured, in place of SMALL. The run reads
about twice as many tokens as SIGNS, with OPTIONS, as JSON. Prints what it has found, as JSON. In processes that other tests
have used, the same run grew by up to 1.6 times as much.
"""

from __future__ import annotations

import json
import sys

import models
import plan_probes
from test_memory import proportional

import lens_magic as lens
from benchmarks import memory as peaks
from lens_magic.session import current


def main(ranks: str, small: str, large: str, signs: str, options: str) -> None:
    asked = {"prompt_tokens": True, **json.loads(options)}
    for folder in (large, small):  # what a process keeps of the first model, whatever it is, does not count
        lens.load(folder, dtype="bfloat16", ranks=int(ranks))
        call = current().group.call
        call(plan_probes.use_onednn, False)
        for text in ("Z#" * 60, models.PROMPT):
            lens.run(text, 4, prompt_tokens=True)
    pids = [rank["pid"] for rank in lens.status().ranks]
    call(plan_probes.give_back)
    before = proportional(pids)
    lens.load(large, ranks=int(ranks))
    first = lens.run(models.PROMPT, 4)
    call(plan_probes.give_back)
    loaded = proportional(pids) - before

    call(plan_probes.return_freed_memory)
    for text in ("Z#" * 60, models.PROMPT):  # the first has the libraries' code loaded, the second little kept
        lens.run(text, 4, **asked)
    resident = call(peaks.begin)
    run = lens.run("Z#" * int(signs), 4, **asked)
    grown = [most - before for most, before in zip(call(peaks.peak), resident, strict=True)]
    print(json.dumps({"loaded": loaded, "grown": grown, "first": len(first.prompt_ids), "prompt": len(run.prompt_ids)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
