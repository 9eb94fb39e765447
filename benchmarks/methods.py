"""The baselines, each a function that every rank runs: it takes a prompt and returns tokens and a lens of them.

All are greedy, run past end tokens, and keep the ``k`` most probable tokens with their probability over the whole vocabulary.
A lens is two arrays ``[position, layer · sites, k]``: token ids and probabilities; position p predicts generated token p.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .sharded import Plain, plain

SITES = ("attn_out", "mlp_out", "resid_post")


@dataclass
class Answer:
    """The result of a method.

    Attributes:
        output_ids: the generated tokens.
        lens: ids ``[position, layer, site, k]`` of the most probable tokens (sites as
            :data:`SITES`, or the last only), or None.
        probabilities: their probabilities, same shape.
    """

    output_ids: list[int]
    lens: torch.Tensor | None = None
    probabilities: torch.Tensor | None = None


def published(rank: Any, prompt_ids: Sequence[int], tokens: int, k: int) -> Answer:
    """LogitLens4LLMs (Wang 2025) as published: two uncached forwards of the whole sequence per token.

    In both, every block projects four tensors to the whole vocabulary for the whole sequence: the attention output, the
    residual stream after it, the MLP output, and the block's output. They are kept until the next forward replaces them. The
    lens is read from the first forward (the last position of each tensor), and the second chooses the token.

    It costs less than the original in three ways: the MLP output is captured instead of being computed again, no key-value
    cache is filled and discarded, and nothing is formatted as text.
    """
    subject = plain()
    ids = _tensor(prompt_ids)  # [1, length]
    answers: list[tuple[torch.Tensor, torch.Tensor]] = []
    with torch.inference_mode(), _projecting(subject) as projected:
        for _ in range(tokens):
            subject.model(ids, use_cache=False)
            last = torch.stack([logits[0, -1] for layer in projected for logits in layer])  # [layer · 4, vocabulary]
            answers.append(_top(last, k))
            logits = subject.model(ids, use_cache=False).logits  # [1, length, vocabulary]
            ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], 1)
    answer = _answer(ids[0, len(prompt_ids) :].tolist(), answers, len(subject.blocks))
    assert answer.lens is not None
    assert answer.probabilities is not None
    ours = [0, 2, 3]  # we have no site for the residual stream after attention
    return Answer(answer.output_ids, answer.lens[:, :, ours], answer.probabilities[:, :, ours])


@contextlib.contextmanager
def _projecting(subject: Plain) -> Iterator[list[list[Any]]]:
    """Make every block project its four tensors as it runs; yield those of the newest forward, one list per layer."""
    projected: list[list[Any]] = [[None] * 4 for _ in subject.blocks]

    def project(place: int, parts: dict[str, torch.Tensor], before: torch.Tensor, after: torch.Tensor) -> None:
        kept = projected[place]
        kept[0] = subject.project(parts["attn_out"])
        kept[1] = subject.project(parts["attn_out"] + before)
        kept[2] = subject.project(parts["mlp_out"])
        kept[3] = subject.project(after)

    with contextlib.ExitStack() as stack:
        for place, block in enumerate(subject.blocks):
            parts: dict[str, torch.Tensor] = {}

            def done(module: Any, inputs: Any, output: Any, place: int = place, parts: Any = parts) -> None:
                project(place, parts, inputs[0], _states(output))

            for handle in (*_keeping(block, parts), block.register_forward_hook(done)):
                stack.callback(handle.remove)
        yield projected


def eager(rank: Any, prompt_ids: Sequence[int], tokens: int, k: int) -> Answer:
    """Cached generation with hooks; each step's states are projected immediately, all layers and sites in one matmul."""
    from transformers import DynamicCache

    from lens_magic.model.cache import cache_argument

    subject = plain()
    answers: list[tuple[torch.Tensor, torch.Tensor]] = []
    with torch.inference_mode(), capturing(subject) as captured:
        ids, output_ids = _tensor(prompt_ids), []
        cache = {cache_argument(subject.model): DynamicCache(config=subject.model.config)}
        for _ in range(tokens):
            output = subject.model(ids, **cache, use_cache=True, logits_to_keep=1)
            answers.append(_top(subject.project(torch.stack([states[0, -1] for states in captured])), k))
            captured.clear()
            ids = output.logits[:, -1].argmax(-1, keepdim=True)
            output_ids.append(int(ids))
    return _answer(output_ids, answers, len(subject.blocks))


def generate(rank: Any, prompt_ids: Sequence[int], tokens: int, k: int = 0) -> Answer:
    """Plain ``generate`` of transformers, without a lens."""
    from transformers import GenerationConfig

    options = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0, use_cache=True)
    ids = _tensor(prompt_ids)
    model = plain().model
    model.generation_config.eos_token_id = None  # without it in the configuration passed, the model's own would apply
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=options)
    return Answer(out[0, len(prompt_ids) :].tolist())


def afterwards(rank: Any, prompt_ids: Sequence[int], tokens: int, k: int) -> Answer:
    """Generate, then run one forward over all of it with ``output_hidden_states``, then one projection per layer.

    Hidden states are the blocks' outputs: one site, whereas :func:`eager` and ours have three.
    """
    subject, made = plain(), generate(rank, prompt_ids, tokens)
    with torch.inference_mode():
        states = forward_again(subject, prompt_ids, made.output_ids, output_hidden_states=True).hidden_states[1:]
        found = []
        for place, layer in enumerate(states):
            positions = layer[0, len(prompt_ids) - 1 :]  # [tokens, d]
            last = place == len(states) - 1  # transformers gives the last layer's states after the final norm
            logits = subject.model.lm_head(positions[None])[0] if last else subject.project(positions)
            found.append(_top(logits, k))
    return _by_position(made.output_ids, found, 1)


def afterwards_hooked(rank: Any, prompt_ids: Sequence[int], tokens: int, k: int) -> Answer:
    """As :func:`afterwards`, with hooks on three sites instead of ``output_hidden_states``."""
    subject, made = plain(), generate(rank, prompt_ids, tokens)
    with torch.inference_mode(), capturing(subject) as captured:
        forward_again(subject, prompt_ids, made.output_ids)
        found = [_top(subject.project(states[0, len(prompt_ids) - 1 :]), k) for states in captured]
    return _by_position(made.output_ids, found, len(SITES))


def deferred(rank: Any, prompt_ids: Sequence[int], tokens: int, k: int) -> Answer:
    """The paper's own method, as in its LogitLense: ``generate`` with hooks, then one projection per layer and site.

    Every rank keeps the newest position's slice of every state of every forward; afterwards each (layer, site) goes through
    norm and head for all positions at once. The softmax is over the k largest logits only.
    """
    subject = plain()
    with torch.inference_mode(), capturing(subject, newest=True) as captured:
        made = generate(rank, prompt_ids, tokens)
        rows = len(SITES) * len(subject.blocks)
        found = []
        for place in range(rows):
            states = torch.cat(captured[place::rows], 1)  # [1, tokens, d]
            best = subject.project(states)[0].topk(k)
            found.append((best.indices, best.values.float().softmax(-1)))
    return _by_position(made.output_ids, found, len(SITES))


BASELINES: dict[str, Callable[..., Answer]] = {
    "published": published,
    "eager": eager,
    "generate": generate,
    "afterwards": afterwards,
    "afterwards-hooked": afterwards_hooked,
    "deferred": deferred,
}


def run(rank: Any, method: str, prompt_ids: Sequence[int], tokens: int, k: int) -> Answer | None:
    """Run a baseline on this rank; rank 0 returns the answer."""
    answer = BASELINES[method](rank, prompt_ids, tokens, k)
    return answer if rank.rank == 0 else None


def _tensor(ids: Sequence[int]) -> torch.Tensor:
    return torch.tensor([list(ids)], device=plain().model.device)


def _states(output: Any) -> torch.Tensor:
    states: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return states


def _keeping(block: Any, parts: dict[str, torch.Tensor]) -> Iterator[Any]:
    """Yield hooks that put a block's attention and MLP outputs into ``parts``."""
    for name, module in (("attn_out", block.self_attn), ("mlp_out", block.mlp)):

        def keep(module: Any, inputs: Any, output: Any, name: str = name) -> None:
            parts[name] = _states(output)

        yield module.register_forward_hook(keep)


@contextlib.contextmanager
def capturing(subject: Plain, newest: bool = False) -> Iterator[list[torch.Tensor]]:
    """Collect every forward's states, or those of its newest position, in order: layer by layer, sites as :data:`SITES`."""
    captured: list[torch.Tensor] = []

    def capture(module: Any, inputs: Any, output: Any) -> None:
        states = _states(output)
        captured.append(states[:, -1:] if newest else states)

    with contextlib.ExitStack() as stack:
        for block in subject.blocks:
            for module in (block.self_attn, block.mlp, block):
                stack.callback(module.register_forward_hook(capture).remove)
        yield captured


def forward_again(subject: Plain, prompt_ids: Sequence[int], output_ids: Sequence[int], **options: Any) -> Any:
    """Run one uncached forward over the prompt and all generated tokens but the last, whose prediction is not kept."""
    return subject.model(_tensor([*prompt_ids, *output_ids[:-1]]), use_cache=False, logits_to_keep=1, **options)


def _top(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and whole-vocabulary probabilities of the k most probable tokens of each row, ``[rows, k]``."""
    best = logits.float().softmax(-1).topk(k)
    return best.indices, best.values


def _answer(output_ids: list[int], answers: list[tuple[torch.Tensor, torch.Tensor]], layers: int) -> Answer:
    """Combine one answer per position, with rows layer by layer."""
    ids, probabilities = (torch.stack(parts) for parts in zip(*answers, strict=True))  # [position, layer · site, k]
    shape = (len(answers), layers, -1, ids.shape[-1])
    return Answer(output_ids, ids.reshape(shape), probabilities.reshape(shape))


def _by_position(output_ids: list[int], found: list[tuple[torch.Tensor, torch.Tensor]], sites: int) -> Answer:
    """Combine one answer per layer and site, with rows position by position."""
    ids, probabilities = (torch.stack(parts, 1) for parts in zip(*found, strict=True))  # [position, layer · site, k]
    shape = (ids.shape[0], len(found) // sites, sites, ids.shape[-1])
    return Answer(output_ids, ids.reshape(shape), probabilities.reshape(shape))
