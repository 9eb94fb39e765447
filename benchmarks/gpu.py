"""On one GPU: how close decoding comes to memory bandwidth, and what capturing costs there.

    python -m benchmarks gpu

Random bfloat16 weights in the shapes of four models, made on the card itself; T = 1,500, every layer, three sites. Bandwidth is
the bytes a token has to read (weights, keys and values) over the card's own measured copy rate. The file is written after every
round, and a run that was cut short continues from it.
"""

from __future__ import annotations

import functools
import gc
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lens_magic as lens

from . import gpu_checks, gpu_tables, machine, methods, sharded, store
from .checkpoints import DEMO, PROMPT, config
from .run import PATIENCE_S
from .tables import bytes_a_token

ROUNDS = {"qwen3-4b": 5, "llama-3.1-8b": 5, "qwen3-14b": 3, "qwen3-32b": 2}
"""Shapes, smallest first, and the number of rounds of each if time is limited; :data:`MANY` if it is not."""
MANY = 5
THEIRS = {"qwen3-4b": 2}
"""Shapes at which transformers' ``generate`` is measured too, and in how many rounds, as it is slow."""

TOKENS, WARM_TOKENS, COPIED_MB = 1500, 32, 4096
SITES = ("attn_out", "mlp_out", "resid_post")
WAYS = ("capturing", "not_capturing")
TELL = functools.partial(print, flush=True)  # lines written to a pipe must not be lost if the run is ended


def measure(
    out: Path,
    budget_s: float = PATIENCE_S,
    full: bool = False,
    fresh: bool = False,
    rounds: Mapping[str, int] = ROUNDS,
    tokens: int = TOKENS,
    tell: Callable[[str], None] = TELL,
) -> Path | None:
    """Check what is timed, then measure every shape that fits, into ``out/gpu.json``. Without a GPU nothing is run.

    Args:
        budget_s: a round is not begun if, judging by earlier ones, it would end later than this many seconds from now.
        full: measure :data:`MANY` rounds of every shape.
        fresh: discard what the file has. Results of other sources or another machine are always discarded.
    """
    import torch

    if not torch.cuda.is_available():
        tell("gpu: there is no CUDA device here; nothing was run")
        return None
    deadline = time.monotonic() + budget_s
    path = out / "gpu.json"
    whole = _known(path, tokens, fresh)
    if "checks" not in whole:
        whole["checks"] = gpu_checks.check()
        tell(gpu_tables.checked(whole["checks"]))
        store.write(path, whole)
    try:
        for shape, few in rounds.items():
            model = next((one for one in whole["models"] if one["model"] == shape), None)
            if model is None:
                model = {"model": shape, "rounds": []}
                whole["models"].append(model)
            model.pop("left_out", None)
            model["wanted"] = max(MANY if full else few, len(model["rounds"]))
            turn = _Turn(whole, model, deadline, lambda: store.write(path, whole), tell)
            turn.run()
            store.write(path, whole)
    finally:
        _let_go()
    tell(gpu_tables.table(whole))
    return path


def _known(path: Path, tokens: int, fresh: bool) -> dict[str, Any]:
    """Return earlier results of this machine, these sources and this number of tokens, or empty ones."""
    same = {"machine": machine.describe_with_gpu(), "sources": store.sources(), "tokens": tokens}
    if path.exists() and not fresh:
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if all(_but_for_memory(known["about"].get(name)) == _but_for_memory(value) for name, value in same.items()):
            return known
    about = {
        **same,
        **store.of_this_tree(),
        "copy_bytes_per_s": machine.copy_rate("cuda", megabytes=COPIED_MB),
        "kernels_not_used": gpu_checks.kernels_not_used(),
        **machine.now(),
    }
    return {"about": about, "models": []}


def _but_for_memory(told: Any) -> Any:
    """Drop a machine's memory size, which differs by some pages between hosts that are otherwise alike."""
    return {name: value for name, value in told.items() if name != "memory_bytes"} if isinstance(told, dict) else told


class _Turn:
    """The rounds of one shape.

    Attributes:
        model: its entry in the file: ``rounds``; ``left_out``, why there are fewer than wanted.
    """

    def __init__(
        self,
        whole: dict[str, Any],
        model: dict[str, Any],
        deadline: float,
        save: Callable[[], None],
        tell: Callable[[str], None],
    ) -> None:
        self.whole, self.model, self.deadline, self.save, self.tell = whole, model, deadline, save, tell
        self.tokens: int = whole["about"]["tokens"]

    def run(self) -> None:
        """Measure the missing rounds. An error ends this shape, not the others."""
        if len(self.model["rounds"]) >= self.model["wanted"]:
            return
        try:
            self._rounds()
        except Exception as error:  # out of memory, a LensError, a kernel that cannot be compiled: other shapes may work
            self.model["left_out"] = gpu_checks.in_a_line(error)
        if "left_out" in self.model:
            self.tell(f"gpu: {self.model['model']} left out: {self.model['left_out']}")

    def _rounds(self) -> None:
        model, shape = self.model, self.model["model"]
        model["bytes_a_token"] = needed = bytes_a_token(shape, "bfloat16", self.tokens)
        if needed > 0.9 * self.whole["about"]["machine"]["gpu_bytes"]:
            model["left_out"] = f"{needed / 1e9:.0f} GB of weights do not fit"
            return
        if not self._may(self._seconds_to_load() + self._seconds_of_a_round()):
            return
        begun = time.monotonic()
        attach(shape)
        with gpu_checks.recordings() as recorded:
            for way in WAYS:
                turn(way, WARM_TOKENS)
        model["steps_replayed"] = bool(recorded) and all(recorded)
        model["load_s"] = time.monotonic() - begun
        while len(model["rounds"]) < model["wanted"] and self._may(self._seconds_of_a_round()):
            found = self._round(len(model["rounds"]))
            model["rounds"].append(found)
            self.save()
            rates = ", ".join(f"{way.replace('_', ' ')} {self.tokens / found[way]['wall_s']:.1f}" for way in found["ways"])
            of = f"round {len(model['rounds'])} of {model['wanted']}"
            self.tell(f"gpu: {shape}, {of}, tokens/s: {rates} ({self._left():.0f} s left)")

    def _round(self, number: int) -> dict[str, Any]:
        import torch

        from lens_magic.lens.capture import NEWEST
        from lens_magic.session import current

        current().group.rank.store.drop(NEWEST)  # the last run's states must not count as memory in use before
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        found: dict[str, Any] = {WAYS[0]: turn(WAYS[0], self.tokens)}
        found["peak_beyond_weights"] = torch.cuda.max_memory_allocated() - before
        found[WAYS[1]] = turn(WAYS[1], self.tokens)
        if number < THEIRS.get(self.model["model"], 0) and "transformers_left_out" not in self.model:
            try:
                found["transformers"] = turn("transformers", self.tokens)
            except Exception as error:  # our methods are still measured
                self.model["transformers_left_out"] = gpu_checks.in_a_line(error)
        return {**found, "ways": [way for way in (*WAYS, "transformers") if way in found]}

    # -- time ----------------------------------------------------------------------------------------------------------

    def _left(self) -> float:
        return self.deadline - time.monotonic()

    def _may(self, seconds: float) -> bool:
        """Whether there is time for that; if not, this is noted."""
        left = self._left()
        if left <= 0 or seconds > left:
            takes = f"about {seconds:.0f} s" if seconds else "longer"
            self.model["left_out"] = f"the next round would take {takes}, and {max(0.0, left):.0f} s were left"
            return False
        return True

    def _seconds_of_a_round(self) -> float:
        """Estimate from the shape's own rounds, else from the bytes of the largest shape measured."""
        if rounds := self.model["rounds"]:
            ways = [*WAYS, *(["transformers"] if len(rounds) < THEIRS.get(self.model["model"], 0) else [])]
            return sum(max((each[way]["wall_s"] for each in rounds if way in each), default=0.0) for way in ways)
        other = self._largest_other()
        if other is None:
            return 0.0
        longest = max(sum(each[way]["wall_s"] for way in WAYS) for each in other["rounds"])
        return float(self._times_larger(other) * longest)

    def _seconds_to_load(self) -> float:
        other = self._largest_other()
        return float(self.model.get("load_s") or (0.0 if other is None else self._times_larger(other) * other["load_s"]))

    def _largest_other(self) -> dict[str, Any] | None:
        others = [one for one in self.whole["models"] if one is not self.model and one["rounds"]]
        return max(others, key=lambda one: one["bytes_a_token"], default=None)

    def _times_larger(self, other: dict[str, Any]) -> float:
        return float(self.model["bytes_a_token"] / other["bytes_a_token"])


def attach(shape: str) -> None:
    """Attach a model with random weights on the card, in place of the one attached before."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _let_go()
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config(shape), dtype=torch.bfloat16)
    model.eval().requires_grad_(False)
    lens.attach(model, AutoTokenizer.from_pretrained(DEMO))
    sharded.MODELS["plain"] = sharded.Plain(model)


def _let_go() -> None:
    """Free the last model's weights, and what an error's traceback kept alive."""
    import torch

    from lens_magic.session import current

    sharded.MODELS.clear()
    current().close()
    gc.collect()
    torch.cuda.empty_cache()


def turn(way: str, tokens: int) -> dict[str, float]:
    """Generate in one way; return its seconds in total, and by the parts it reports."""
    from lens_magic.session import current

    begun = time.perf_counter()
    timings: Mapping[str, float] = {}
    if way == "capturing":
        timings = lens.run(PROMPT, tokens, capture=SITES, ignore_eos=True).timings
    elif way == "not_capturing":
        timings = lens.generate(PROMPT, tokens, ignore_eos=True).timings
    else:
        methods.generate(None, current().require_model().tokenizer(PROMPT)["input_ids"], tokens)
    return {"wall_s": time.perf_counter() - begun, **timings}
