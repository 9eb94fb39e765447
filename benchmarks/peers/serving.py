"""Requests in, answers out, a line of JSON each; standard library only, since peers' environments have nothing else of ours."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answer requests from standard input until it ends; what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            told = answer(json.loads(line))
        except Exception as error:
            message = str(error).strip().splitlines() or [""]
            told = {"error": f"{type(error).__name__}: {message[0]}"}
        answers.write(json.dumps(told) + "\n")


def serve_lens(run: Callable[[list[int], int], tuple[Any, Any]], load: Callable[[str, str], None]) -> None:
    """Serve a library's lens: ``run(prompt ids, tokens)`` gives all ids, and a top-k of ``[layer · sites]`` rows a token."""

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        if "load" in request:
            load(**request["load"])
            return {}
        ids, tokens, memory = request["prompt_ids"], request["tokens"], None
        if request.get("do") == "memory":
            from benchmarks import memory  # this tree is on the path then
        resident = memory.begin() if memory else 0
        begun = time.perf_counter()
        out, found = run(ids, tokens)
        told: dict[str, Any] = {"wall_s": time.perf_counter() - begun}
        if memory:
            told |= {"resident": [resident], "peak": [memory.peak()]}
        if request.get("answers"):
            told["output_ids"] = out[0, len(ids) :].tolist()
            told["lens"] = [step.indices.reshape(-1, 3, step.indices.shape[-1]).tolist() for step in found]
            told["probabilities"] = [step.values.reshape(-1, 3, step.values.shape[-1]).tolist() for step in found]
        return told

    serve(answer)
