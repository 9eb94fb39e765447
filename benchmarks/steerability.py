"""What a steerability sweep costs: ours beside one pass per (prompt, α), the same propensities, in turn in one run.

    python -m benchmarks.steerability --ranks 1,2

"apart" runs the same model, sharded the same way, once for every prompt, layer, direction and α; "plain" (one rank) does so
with transformers and a hook alone. Both take the logits of the last position only. Two tasks: a sweep over all layers, and
one layer in the middle.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ALPHAS = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)
DATA = Path(__file__).parent.parent / "lens_magic" / "demo" / "data"

os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))


def ours(rank: Any, sweep: Any) -> tuple[float, Any]:
    from lens_magic.steer.measure import measure

    begun = time.perf_counter()
    measured = measure(rank, sweep)
    return time.perf_counter() - begun, measured.steered.numpy()


def apart(rank: Any, sweep: Any) -> tuple[float, Any]:
    """One uncached forward for each prompt, layer, direction and α, 0 included."""
    import numpy as np

    from lens_magic.model.batch import read_forward
    from lens_magic.steer.intervene import Steering
    from lens_magic.steer.measure import _LabelLogits
    from lens_magic.steer.term import SteeringTerm

    loaded = rank.store["model"]
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
    """The same with transformers and a hook, nothing of ours."""
    import numpy as np
    import torch

    model = rank.store["model"].model
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
    """The demo model's held-out questions in both orders, and two random directions a layer at ``resid_post``."""
    import torch

    from lens_magic.session import current
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


def main() -> None:
    import numpy as np
    import steerability as this  # the ranks import this file by name, not as __main__
    import torch

    import lens_magic as lens
    from lens_magic.session import current

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", default="1,2")
    parser.add_argument("--questions", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the figures here, as JSON")
    given = parser.parse_args()
    results = []
    about = {"machine": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    print(f"{about}; {given.questions} questions in both orders, {len(ALPHAS)} α, 2 directions; median (min–max), seconds")
    for count in [int(word) for word in given.ranks.split(",")]:
        lens.load("demo", ranks=count)
        depth = current().require_model().layers
        methods = {"ours": this.ours, "apart": this.apart, **({"plain": this.plain} if count == 1 else {})}
        for task, layers in {"one layer": [depth // 2], "all layers": list(range(depth))}.items():
            sweep = this.sweep_of(given.questions, layers)
            seconds: dict[str, list[float]] = {name: [] for name in methods}
            for number in range(given.rounds + 1):  # the first is not counted
                answers = {}
                for name, method in methods.items():
                    took, answers[name] = current().group.call(method, sweep)[0]
                    if number:
                        seconds[name].append(took)
                for name, answer in answers.items():
                    assert np.abs(answer - answers["ours"]).max() < 1e-3, name
            row = {"ranks": count, "task": task, "seconds": seconds}
            for name in methods:
                ratios = [other / own for other, own in zip(seconds[name], seconds["ours"], strict=True)]
                row[f"{name} / ours"] = ratios
                print(
                    f"{count} ranks  {task:10}  {name:6}{statistics.median(seconds[name]):9.2f} "
                    f"({min(seconds[name]):.2f}–{max(seconds[name]):.2f})"
                    f"{statistics.median(ratios):8.1f} × ours ({min(ratios):.1f}–{max(ratios):.1f})",
                    flush=True,
                )
            results.append(row)
    current().close()
    if given.out is not None:
        given.out.write_text(json.dumps({**about, "results": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
