"""What a steerability sweep costs: ours beside one pass per (prompt, α), the same propensities, in turn in one run.

    python -m benchmarks.steerability --ranks 1,2

"apart" runs the same model, sharded the same way, once for every prompt, layer, direction and α; "plain" (one rank) does so
with transformers and a hook alone. Both take the logits of the last position only. Two tasks: a sweep over all layers, and
one layer in the middle.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lens_magic as lens
from lens_magic.session import current

from . import machine, store, tables
from .process import ROOT, with_this_tree

ALPHAS = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)
DATA = Path(__file__).parent.parent / "lens_magic" / "demo" / "data"
ROUNDS = 7
NAMES = {"ours": "**lens-magic**", "apart": "the same model, a pass each", "plain": "transformers with a hook, a pass each"}
"""Names of the methods in the table."""


def ours(rank: Any, sweep: Any) -> tuple[float, Any]:
    from lens_magic.steer.measure import measure

    begun = time.perf_counter()
    measured = measure(rank, sweep)
    return time.perf_counter() - begun, measured.steered.numpy()


def apart(rank: Any, sweep: Any) -> tuple[float, Any]:
    """One uncached forward for each prompt, layer, direction and α, 0 included."""
    import numpy as np

    from lens_magic.model.batch import read_forward
    from lens_magic.model.load import loaded_on
    from lens_magic.steer.intervene import Steering
    from lens_magic.steer.measure import _LabelLogits
    from lens_magic.steer.term import SteeringTerm

    loaded = loaded_on(rank)
    labels = _LabelLogits(rank, loaded, sweep.labels)
    begun = time.perf_counter()
    found = np.zeros((len(sweep.directions), sweep.count, len(sweep.prompts), len(ALPHAS)))
    for place, layer in enumerate(sorted(sweep.directions)):
        for number, direction in enumerate(sweep.directions[layer]):
            for column, alpha in enumerate(ALPHAS):
                term = SteeringTerm("one", {layer: direction}, sweep.site, alpha)
                for prompt, ids in enumerate(sweep.prompts):
                    states = read_forward(loaded, [ids], [Steering(loaded, [term], 1)])
                    found[place, number, prompt, column] = float(labels(states, [prompt]))
    return time.perf_counter() - begun, np.delete(found, ALPHAS.index(0.0), -1)


def plain(rank: Any, sweep: Any) -> tuple[float, Any]:
    """As :func:`apart`, with transformers and a hook, using none of our code."""
    import numpy as np
    import torch

    from lens_magic.model.load import loaded_on

    model = loaded_on(rank).model
    begun = time.perf_counter()
    found = np.zeros((len(sweep.directions), sweep.count, len(sweep.prompts), len(ALPHAS)))
    for place, layer in enumerate(sorted(sweep.directions)):
        for number, direction in enumerate(sweep.directions[layer]):
            for column, alpha in enumerate(ALPHAS):
                change = alpha * direction
                handle = model.model.layers[layer].register_forward_hook(lambda module, given, out, c=change: out + c)
                for prompt, ids in enumerate(sweep.prompts):
                    with torch.inference_mode():
                        logits = model(input_ids=torch.tensor([ids]), use_cache=False, logits_to_keep=1).logits[0, -1]
                    one, other = sweep.labels[prompt]
                    found[place, number, prompt, column] = float(logits[one] - logits[other])
                handle.remove()
    return time.perf_counter() - begun, np.delete(found, ALPHAS.index(0.0), -1)


def sweep_of(questions: int, layers: list[int]) -> Any:
    """Return the demo model's held-out questions in both orders, with two random directions per layer at ``resid_post``."""
    import torch

    from lens_magic.steer import data, labels
    from lens_magic.steer.measure import Sweep

    tokenizer, width = current().require_model().tokenizer, current().require_model().width
    items = data.read(DATA / "persona-heldout.jsonl").questions[:questions]
    orders = [order for item in items for order in item.orders]
    prompts = [labels.resolve(tokenizer, order.text, order.matching, order.other) for order in orders]
    drawn = torch.randn((len(layers), 2, width), generator=torch.Generator().manual_seed(0))
    drawn /= drawn.norm(dim=-1, keepdim=True)
    return Sweep(
        [prompt.prefix_ids for prompt in prompts],
        [(prompt.label_id, prompt.other_id) for prompt in prompts],
        "resid_post",
        dict(zip(layers, drawn, strict=True)),
        tuple(alpha for alpha in ALPHAS if alpha != 0),
    )


def measure(
    out: Path, ranks: Sequence[int] = (1, 2), questions: int = 4, rounds: int = ROUNDS, tell: Callable[[str], None] = print
) -> Path:
    """Run both tasks on every number of ranks and write ``out/steerability.json``."""
    import torch

    results: list[dict[str, Any]] = []
    about = {"machine": machine.describe(), **store.of_this_tree(), "threads": torch.get_num_threads(), "questions": questions}
    whole = {"about": {**about, **machine.now()}, "results": results}
    for count in ranks:
        lens.load("demo", ranks=count)
        depth = current().require_model().layers
        for task, layers in {"one layer": [depth // 2], "all layers": list(range(depth))}.items():
            seconds = _in_turn(count, sweep_of(questions, layers), rounds)
            row = {"ranks": count, "task": task, "seconds": seconds}
            for name in seconds:
                row[f"{name} / ours"] = [other / own for other, own in zip(seconds[name], seconds["ours"], strict=True)]
            results.append(row)
            store.write(out / "steerability.json", whole)
    tell(table(whole))
    return out / "steerability.json"


def _in_turn(ranks: int, sweep: Any, rounds: int) -> dict[str, list[float]]:
    """Return seconds of every method by round; the first round is a warm-up and not counted."""
    import numpy as np

    methods = {"ours": ours, "apart": apart, **({"plain": plain} if ranks == 1 else {})}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for number in range(rounds + 1):
        answers = {}
        for name, method in methods.items():
            took, answers[name] = current().group.call(method, sweep)[0]
            if number:
                seconds[name].append(took)
        for name, answer in answers.items():
            assert np.abs(answer - answers["ours"]).max() < 1e-3, name
    return seconds


def table(whole: Mapping[str, Any]) -> str:
    """Return a Markdown table: one row per number of ranks, task and method."""
    lines = ["| ranks | task | method | N | s | × ours |", "| --- | --- | --- | --- | --- | --- |"]
    for row in whole["results"]:
        for name, seconds in row["seconds"].items():
            against = "" if name == "ours" else tables.spread(row[f"{name} / ours"])
            place = f"| {row['ranks']} | {row['task']} | {NAMES[name]} |"
            lines.append(f"{place} {len(seconds)} | {tables.spread(seconds)} | {against} |")
    return "\n".join(lines)


def main() -> None:
    from benchmarks import steerability as this  # the ranks import this file by that name, not as __main__

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", default="1,2")
    parser.add_argument("--questions", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "bench", help="folder of results (out/bench)")
    given = parser.parse_args()
    os.environ.update(with_this_tree())
    try:
        print(this.measure(given.out, [int(word) for word in given.ranks.split(",")], given.questions, given.rounds))
    finally:
        current().close()


if __name__ == "__main__":
    main()
