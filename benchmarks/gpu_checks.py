"""Check that what is timed on a GPU is correct, in bfloat16 and float32.

Compares the demo model with plain transformers, replayed steps with steps run one by one, and our kernels with torch's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import numpy as np

import lens_magic as lens

from . import methods, sharded
from .ablation import held_out_prompts
from .checkpoints import DEMO

DTYPES = ("bfloat16", "float32")
PROMPTS, TOKENS, K = 4, 64, 5
VOCABULARY, WIDTH, INNER, COLUMNS = 151_936, 5120, 17_408, 1500
"""Sizes at which kernels are checked: those of the shapes that are timed."""


def check(prompts: int = PROMPTS, tokens: int = TOKENS, vocabulary: int = VOCABULARY) -> dict[str, Any]:
    """Run all checks on the first GPU and return their results; for a check that cannot run, the reason."""
    found: dict[str, Any] = {"prompts": prompts, "tokens": tokens, "models": [], "kernels": []}
    for dtype in DTYPES:
        for words, look in (("transformers", _beside_transformers), ("steps run one by one", _beside_eager_steps)):
            place = {"dtype": dtype, "against": words}
            try:
                _attach_demo(dtype)
                found["models"].append({**place, **_put_together([look(each, tokens) for each in held_out_prompts(prompts)])})
            except Exception as error:
                found["models"].append({**place, "left_out": in_a_line(error)})
    for dtype in DTYPES:
        for name, compare in _kernels(vocabulary).items():
            try:
                told = compare(dtype)
            except Exception as error:
                told = {"left_out": in_a_line(error)}
            if told is not None:
                found["kernels"].append({"kernel": name, "dtype": dtype, **told})
    return found


def in_a_line(error: Exception) -> str:
    """Return the first line of an error's message, cut to fit a table."""
    words = " ".join(f"{type(error).__name__}: {error}".splitlines()[0].replace("|", "/").split())
    return words if len(words) <= 200 else f"{words[:200]} …"


def kernels_not_used() -> dict[str, str]:
    """Return our kernels that are replaced by torch's operations here, and why."""
    import torch

    from lens_magic.gpu import attention, onepass, steps

    device = torch.device("cuda", 0)
    reasons = {
        "the projection's": onepass.trouble(device, torch.float32),
        "decode steps'": steps.trouble(device, torch.bfloat16),
        "attention's": attention.trouble(device, torch.bfloat16),
    }
    return {whose: reason for whose, reason in reasons.items() if reason is not None}


@contextlib.contextmanager
def recordings() -> Iterator[list[bool]]:
    """Note for each decode step to be recorded whether recording succeeded."""
    from lens_magic.model.graph import OnGPU

    found: list[bool] = []
    record = OnGPU.record

    def noted(recorder: OnGPU, step: Callable[[], Any]) -> Any:
        replay, result = record(recorder, step)
        found.append(replay is not None)
        return replay, result

    with mock.patch.object(OnGPU, "record", noted):
        yield found


# -- the demo model ----------------------------------------------------------------------------------------------------


def _attach_demo(dtype: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(DEMO, dtype=getattr(torch, dtype)).eval().requires_grad_(False).to("cuda")
    lens.attach(model, AutoTokenizer.from_pretrained(DEMO))
    sharded.MODELS["plain"] = sharded.Plain(model)


def _beside_transformers(prompt: str, tokens: int) -> dict[str, Any]:
    """Compare on the tokens that plain ``generate`` chooses: its states through norm and head, and the tokens we choose."""
    import torch

    with recordings() as recorded:
        made = lens.generate(prompt, tokens, ignore_eos=True)
    subject = sharded.plain()
    prompt_ids = _prompt_ids(prompt)
    theirs = methods.generate(None, prompt_ids, tokens).output_ids
    run = lens.run(prompt, top_k=K, force=theirs)
    with torch.inference_mode(), methods.capturing(subject) as captured:
        methods.forward_again(subject, prompt_ids, theirs)
        normalised = [subject.model.model.norm(states[0, len(prompt_ids) - 1 :]) for states in captured]
    head = subject.model.lm_head.weight.float().T
    # In float32, as ours are: logits rounded to 16 bits would tie.
    logits = torch.stack([states.float() @ head for states in normalised]).cpu().numpy()  # [layer · site, position, vocabulary]
    ids, ours = (_cells(run.variables[name]) for name in ("token_id", "logit"))  # [layer · site, position, k]
    alike = _tokens_alike(made.output_ids, theirs)
    at, output = alike["alike"], logits[-1]  # the last layer's residual stream is the model's own output
    margin = 0.0 if at == len(theirs) else abs(float(output[at, theirs[at]] - output[at, made.output_ids[at]]))
    return {
        **alike,
        "margin": margin,
        "first": (logits.argmax(-1) == ids[..., 0]).mean(),
        "logit": np.abs(np.take_along_axis(logits, ids, -1) - ours).max(),
        "replayed": bool(recorded) and all(recorded),
    }


def _beside_eager_steps(prompt: str, tokens: int) -> dict[str, Any]:
    """Compare a normal run with one without recordings, up to the first token that differs."""
    from lens_magic.model import generate
    from lens_magic.model.graph import Eager

    with recordings() as recorded:
        replayed = lens.run(prompt, tokens, top_k=K, ignore_eos=True)
    with mock.patch.object(generate, "runner_for", return_value=Eager()):
        eager = lens.run(prompt, tokens, top_k=K, ignore_eos=True)
    alike = _tokens_alike(replayed.output_ids, eager.output_ids)
    until = min(alike["alike"] + 1, tokens)
    mine, others = (
        {name: _cells(run.variables[name])[:, :until] for name in ("token_id", "logit")} for run in (replayed, eager)
    )
    same = mine["token_id"] == others["token_id"]
    return {
        **alike,
        "first": same[..., 0].mean(),
        "logit": np.abs(mine["logit"] - others["logit"])[same].max(initial=0),
        "replayed": bool(recorded) and all(recorded),
    }


def _prompt_ids(prompt: str) -> list[int]:
    from lens_magic.session import current

    ids: list[int] = current().require_model().tokenizer(prompt)["input_ids"]
    return ids


def _cells(values: Any) -> Any:
    """Reshape ``[site, layer, position, k]`` to ``[layer · site, position, k]``, the order of the baselines."""
    return values.swapaxes(0, 1).reshape(-1, *values.shape[2:])


def _tokens_alike(ours: Sequence[int], others: Sequence[int]) -> dict[str, Any]:
    """Number of tokens before the first that differs, and of how many."""
    pairs = list(zip(ours, others, strict=True))
    return {"alike": next((at for at, (one, other) in enumerate(pairs) if one != other), len(pairs)), "of": len(pairs)}


def _put_together(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Combine all prompts. The margin is how far apart the reference's logits of two differing tokens are, at most."""
    return {
        "first": float(np.mean([each["first"] for each in found])),
        "logit": float(max(each["logit"] for each in found)),
        "alike": sum(each["alike"] for each in found),
        "of": sum(each["of"] for each in found),
        "margin": max(each.get("margin", 0.0) for each in found),
        "replayed": all(each["replayed"] for each in found),
    }


# -- kernels -----------------------------------------------------------------------------------------------------------


def _kernels(vocabulary: int) -> dict[str, Callable[[str], dict[str, Any] | None]]:
    """By name, functions that compare a kernel with torch's operations; they return None for an unsupported type."""
    return {
        "norm": _norm,
        "rotation": _rotation,
        "gate": _gate,
        "attention": _attention,
        "projection's sums": lambda dtype: _sums(vocabulary) if dtype == "float32" else None,
    }


def _drawn(dtype: str) -> tuple[Any, Any, Callable[..., Any]]:
    import torch

    from lens_magic.gpu.trial import drawn

    device, kind = torch.device("cuda", 0), getattr(torch, dtype)
    return device, kind, drawn(device, kind)


def _apart(dtype: str, pairs: Sequence[tuple[Any, Any, Any]]) -> dict[str, Any]:
    """Of (ours, torch's, exact): the largest error of each, divided by the largest exact value."""

    def error(given: Any, exact: Any) -> float:
        return float((given.double() - exact).abs().max() / exact.abs().max())

    return {
        "ours": max(error(ours, exact) for ours, _, exact in pairs),
        "torch": max(error(theirs, exact) for _, theirs, exact in pairs),
    }


def _norm(dtype: str) -> dict[str, Any]:
    import torch.nn.functional as F

    from lens_magic.gpu import steps

    device, kind, some = _drawn(dtype)
    if reason := steps.trouble(device, kind):
        return {"left_out": reason}
    states, weight = some(3, 1, WIDTH) * 3, some(WIDTH)
    exact = weight.double() * F.rms_norm(states.double(), (WIDTH,), None, 1e-6)
    theirs = weight * F.rms_norm(states, (WIDTH,), None, 1e-6)
    return _apart(dtype, [(steps.rms_norm(states, weight, 1e-6), theirs, exact)])


def _rotation(dtype: str) -> dict[str, Any]:
    from lens_magic.gpu import steps

    device, kind, some = _drawn(dtype)
    if reason := steps.trouble(device, kind):
        return {"left_out": reason}
    given, angles = (some(1, 32, 1, 128), some(1, 8, 1, 128)), some(1, 1, 128)
    ours = steps.rotate(*given, angles.cos(), angles.sin())

    def turned(states: Any, cosines: Any, sines: Any) -> Any:
        import torch

        first, second = states.chunk(2, -1)
        return states * cosines[:, None] + torch.cat([-second, first], -1) * sines[:, None]

    angles_of = angles.cos(), angles.sin()  # rounded alike for all
    exact = [turned(states.double(), *(each.double() for each in angles_of)) for states in given]
    return _apart(dtype, list(zip(ours, [turned(states, *angles_of) for states in given], exact, strict=True)))


def _gate(dtype: str) -> dict[str, Any]:
    import torch.nn.functional as F

    from lens_magic.gpu import steps

    device, kind, some = _drawn(dtype)
    if reason := steps.trouble(device, kind):
        return {"left_out": reason}
    gates, values = some(1, 1, INNER), some(1, 1, INNER)
    exact = F.silu(gates.double()) * values.double()
    return _apart(dtype, [(steps.gated(gates, values), F.silu(gates) * values, exact)])


def _attention(dtype: str) -> dict[str, Any]:
    import torch
    import torch.nn.functional as F

    from lens_magic.gpu import attention

    device, kind, some = _drawn(dtype)
    if reason := attention.trouble(device, kind):
        return {"left_out": reason}
    width = min(128, attention.WIDEST[kind])
    queries, keys, values = some(1, 32, 1, width), some(1, 8, COLUMNS, width), some(1, 8, COLUMNS, width)
    mask = torch.ones((1, 1, 1, COLUMNS), dtype=torch.bool, device=device)
    mask[..., -5:] = False
    scale, last = width**-0.5, torch.tensor([COLUMNS - 6], device=device)

    def theirs(*given: Any) -> Any:
        keys, values = (each.repeat_interleave(4, 1) for each in given[1:])
        return F.scaled_dot_product_attention(given[0], keys, values, attn_mask=mask, scale=scale)

    exact = theirs(*(each.double() for each in (queries, keys, values)))
    return _apart(dtype, [(attention.attend(queries, keys, values, mask, scale, last), theirs(queries, keys, values), exact)])


def _sums(vocabulary: int) -> dict[str, Any]:
    import torch

    from lens_magic.gpu import onepass

    device, kind, some = _drawn("float32")
    if reason := onepass.trouble(device, kind):
        return {"left_out": reason}
    logits = some(3, 2, vocabulary) * 9
    target, weights = logits[..., 7].contiguous(), some(2, vocabulary).abs()

    def theirs(logits: Any, weights: Any) -> tuple[Any, ...]:
        below = logits - logits.amax(-1, keepdim=True)
        return below.exp().sum(-1), (below.exp() * below).sum(-1), (weights * below).sum(-1)

    exact = theirs(logits.double(), weights.double())
    by_torch = theirs(logits, weights)
    found, maxima = onepass.sums(logits, target, weights)
    best, ids = onepass.top(logits.flatten(0, 1), maxima, K)
    expected = logits.flatten(0, 1).topk(K)
    counted = (logits > target[..., None]).sum(-1)
    alike = bool(torch.equal(best, expected.values) and torch.equal(logits.flatten(0, 1).gather(1, ids), best))
    told = _apart("float32", list(zip(found[:3], by_torch, exact, strict=True)))
    return {**told, "exactly": alike and bool(torch.equal(found[3].long(), counted))}
