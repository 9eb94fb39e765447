"""A measuring process: it reads what to load and run from standard input and answers each request with a line of JSON.

It is a separate process so that it can be ended if it takes too long, and so that memory is measured from a clean start.
What libraries print goes to standard error.
"""

from __future__ import annotations

import time
from typing import Any

import torch

import lens_magic as lens

from . import memory, methods, sharded
from .peers.serving import serve

K = 5
PUBLISHED_TAIL = 2


class Bench:
    """A model on a number of ranks, and every method that runs on it.

    Args:
        only: load only what this method needs (for memory); None loads everything, to measure methods side by side.
    """

    def __init__(self, model: str, dtype: str, ranks: int, prompt: str, only: str | None = None) -> None:
        self.prompt, self.ranks = prompt, ranks
        self.weights: list[int] = []
        if only is None or only in OURS:
            lens.load(model, dtype=dtype, ranks=ranks)
        if only is None or only in methods.BASELINES:
            self.weights = self._group().call(sharded.load, model, dtype)
        else:
            self._group().call(sharded.drop)
        from transformers import AutoTokenizer

        self.prompt_ids = AutoTokenizer.from_pretrained(model)(prompt)["input_ids"]

    def _group(self) -> Any:
        from lens_magic.session import current

        session = current()
        session.default_ranks = self.ranks
        return session.group

    def measure(self, method: str, tokens: int, answers: bool = False) -> dict[str, Any]:
        """Run a method once.

        Args:
            answers: return the tokens and the lens too, to compare methods.

        Returns:
            ``wall_s``, and if the method reports them separately ``prefill_s``, ``decode_s``, ``project_s``.
        """
        begun = time.perf_counter()
        if method in OURS:
            found = OURS[method](self.prompt, tokens)
            told = {"wall_s": time.perf_counter() - begun, **found.timings}
            if hasattr(found, "memory"):
                told["captures"] = list(found.memory["captures_by_rank"])
            if answers:
                told.update(_of_ours(found))
            return told
        answer = self._group().call(methods.run, method, self.prompt_ids, tokens, K)[0]
        told = {"wall_s": time.perf_counter() - begun}
        if answers:
            told["output_ids"] = answer.output_ids
            if answer.lens is not None:
                told.update(lens=answer.lens.tolist(), probabilities=answer.probabilities.tolist())
        return told

    def memory(self, method: str, tokens: int) -> dict[str, Any]:
        """Run a method once; return ``resident`` before and ``peak`` during it, in bytes by rank.

        The published method keeps nothing between tokens, so its peak is that of its last tokens: only these are run, after
        a prompt extended by the tokens before them.
        """
        group, prompt_ids = self._group(), self.prompt_ids
        if method == "published" and tokens > PUBLISHED_TAIL:
            before = tokens - PUBLISHED_TAIL
            self.prompt_ids = prompt_ids + group.call(methods.run, "generate", prompt_ids, before, K)[0].output_ids
            tokens = PUBLISHED_TAIL
        resident = group.call(memory.begin)
        told = self.measure(method, tokens)
        self.prompt_ids = prompt_ids
        return {**told, "resident": resident, "peak": group.call(memory.peak)}


OURS = {
    "lens-magic": lambda prompt, tokens: lens.run(prompt, tokens, top_k=K, ignore_eos=True),
    "lens-magic, resid_post": lambda prompt, tokens: lens.run(prompt, tokens, top_k=K, capture="resid_post", ignore_eos=True),
    "lens-magic, no lens": lambda prompt, tokens: lens.generate(prompt, tokens, ignore_eos=True),
}
"""Our methods, through the public interface only."""


def _of_ours(found: Any) -> dict[str, Any]:
    told: dict[str, Any] = {"output_ids": list(found.output_ids)}
    if hasattr(found, "variables"):
        told["lens"] = found.variables["token_id"].transpose(2, 1, 0, 3).tolist()  # [position, layer, site, k]
        told["probabilities"] = found.variables["prob"].transpose(2, 1, 0, 3).tolist()
    return told


def main() -> None:
    """Serve a :class:`Bench`: ``{"load": {…}}`` creates one, ``{"do": "measure" or "memory", …}`` runs it."""
    benches: list[Bench] = []

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        if "load" in request:
            benches[:] = [Bench(**request["load"])]
            return {"threads": torch.get_num_threads(), "weights": benches[0].weights}
        told: dict[str, Any] = getattr(benches[0], request.pop("do"))(**request)
        return told

    serve(answer)
    from lens_magic.session import current

    current().close()


if __name__ == "__main__":
    main()
