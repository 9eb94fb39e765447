"""What a model and runs with it take, measured in a process of their own, in JSON.

``plan_measured.py models RANKS SMALL LARGE RUNS``: LARGE is the checkpoint that is measured, in place of SMALL, and RUNS says
of each run with it how many signs it reads, two tokens each, and its options. ``plan_measured.py attention TOKENIZER CASES``:
a generation from a long prompt by a tiny model of each kind and dtype.

In processes that other tests had used, the same runs grew by up to 1.7 times as much.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import models
import plan_probes
import torch
import transformers
from test_memory import proportional

import lens_magic as lens
from benchmarks import memory as peaks
from lens_magic import needs
from lens_magic.model import footprint
from lens_magic.rooms import Room
from lens_magic.session import current

CPU = Room("cpu", 1 << 40, 1 << 40)
"""A rank with room for everything."""


def measured_models(ranks: str, small: str, large: str, runs: str) -> dict[str, Any]:
    """What stays once LARGE is loaded, and by how much each rank grows in each run."""
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
    return {"loaded": loaded, "first": len(first.prompt_ids), "runs": [growth(**each) for each in json.loads(runs)]}


def growth(signs: int, **options: Any) -> dict[str, Any]:
    call = current().group.call
    for text in ("Z#" * 60, models.PROMPT):  # the first has the libraries' code loaded, the second little kept
        lens.run(text, 4, prompt_tokens=True, **options)
    resident = call(peaks.begin)
    run = lens.run("Z#" * signs, 4, prompt_tokens=True, **options)
    grown = [most - before for most, before in zip(call(peaks.peak), resident, strict=True)]
    return {"grown": grown, "prompt": len(run.prompt_ids)}


def measured_attention(tokenizer: str, cases: str) -> list[dict[str, Any]]:
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 4096, "vocab_size": 300}
    text, found = "Z#" * 1900, []
    for kind, dtype in json.loads(cases):
        model = models.causal(getattr(transformers, f"{kind}Config"), **shape, **heads).eval().to(getattr(torch, dtype))
        lens.attach(model, transformers.AutoTokenizer.from_pretrained(tokenizer))
        current().group.call(plan_probes.return_freed_memory)
        lens.generate("warm", 2)
        before = peaks.begin()
        lens.generate(text, 2, ignore_eos=True)
        measured = peaks.peak() - before
        tokens = len(current().require_model().tokenizer(text)["input_ids"])
        (need,) = needs.run_needs(footprint.Facts.of(model.config, dtype), needs.Ask(2, tokens), [CPU], [0])
        found.append({"tokens": tokens, "planned": need.total, "measured": measured})
    return found


if __name__ == "__main__":
    print(json.dumps({"models": measured_models, "attention": measured_attention}[sys.argv[1]](*sys.argv[2:])))
