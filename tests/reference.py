"""The lens's expected results, computed the slow and obvious way: one process, plain hooks, whole forwards, no cache.

Everything here follows from the definitions of the public interface and shares no code with the package.

Sequence: `ids` is prompt and output in one list, `prompt_length` (P) says where the output begins. Position p is the
state at index P − 1 + p, and its target is the token at index P + p. A hook that a test registered earlier (to steer,
for example) runs before the ones here, so they see its changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

SITES = ("resid_pre", "attn_out", "mlp_out", "post_ln", "resid_post")
Array = np.ndarray


@dataclass(frozen=True)
class Family:
    """Where a family keeps its parts: dotted paths, those of a block relative to it.

    `attn_out` and `mlp_out` name the last module before each residual addition.
    """

    layers: str = "model.layers"
    norm: str = "model.norm"
    head: str = "lm_head"
    attn_out: str = "self_attn"
    mlp_out: str = "mlp"
    mlp: str = "mlp"


_post_norms = Family(attn_out="post_attention_layernorm", mlp_out="post_feedforward_layernorm")
_language = "model.language_model"
FAMILIES: dict[str, Family] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "olmo", "mixtral", "qwen3_moe"), Family()),
    **dict.fromkeys(("gemma2", "gemma3_text", "olmo2"), _post_norms),
    "gemma3": replace(_post_norms, layers=f"{_language}.layers", norm=f"{_language}.norm"),
    "phi": Family(norm="model.final_layernorm", attn_out="self_attn.dense", mlp_out="mlp.fc2"),
    "phi3": Family(attn_out="self_attn.o_proj", mlp_out="mlp.down_proj"),
    "gpt_neox": Family("gpt_neox.layers", "gpt_neox.final_layer_norm", attn_out="attention.dense", mlp_out="mlp.dense_4h_to_h"),
    "opt": Family(
        "model.decoder.layers", "model.decoder.final_layer_norm", attn_out="self_attn.out_proj", mlp_out="fc2", mlp="fc1"
    ),
    "gpt2": Family("transformer.h", "transformer.ln_f", attn_out="attn.c_proj", mlp_out="mlp.c_proj"),
}


def family_of(model: PreTrainedModel) -> Family:
    return FAMILIES[model.config.model_type]


def _part(root: nn.Module, path: str) -> Any:
    return attrgetter(path)(root)


# --- logits and generation -------------------------------------------------------------------------------------------


@torch.no_grad()
def head_logits(model: PreTrainedModel, normalised: torch.Tensor) -> torch.Tensor:
    """The head on normalised states [..., d], in float32, soft-capped where the model does so."""
    head = _part(model, family_of(model).head)
    logits = normalised.float() @ head.weight.float().T
    if getattr(head, "bias", None) is not None:
        logits = logits + head.bias.float()
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


@torch.no_grad()
def state_logits(model: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
    """The model's own final norm and head on hidden states [..., d]: the lens itself."""
    return head_logits(model, _part(model, family_of(model).norm)(states))


@torch.no_grad()
def output_logits(model: PreTrainedModel, ids: Sequence[int]) -> torch.Tensor:
    """The model's next-token logits [index, vocabulary] in float32, by one uncached forward."""
    inputs = torch.tensor([list(ids)], device=next(model.parameters()).device)
    return head_logits(model, model.base_model(input_ids=inputs, use_cache=False).last_hidden_state[0])


def generate_ids(model: PreTrainedModel, prompt_ids: Sequence[int], n: int, stop_ids: Sequence[int] = ()) -> list[int]:
    """Greedy continuation of at most n tokens; a stop token ends it and is its last. Ties go to the lower id."""
    output: list[int] = []
    while len(output) < n and not (output and output[-1] in stop_ids):
        output.append(int(np.argmax(_numpy(output_logits(model, [*prompt_ids, *output])[-1]))))
    return output


@dataclass(frozen=True)
class Sampling:
    """The distribution that a token is drawn from, given a temperature and a nucleus.

    Logits are divided by the temperature first, then comes the softmax. Of the tokens in order of falling probability
    (equal ones by rising id) the shortest run is kept whose mass reaches `top_p`, never less than one token, and its
    probabilities are divided by their sum. Temperature 0 is the greedy choice; `top_p` 1 keeps everything.
    """

    temperature: float = 1.0
    top_p: float = 1.0

    def distribution(self, logits: Array | torch.Tensor) -> Array:
        """Probabilities over the vocabulary in float64, zero outside the nucleus."""
        scores = _numpy(logits).astype(np.float64)
        if self.temperature == 0:
            return np.eye(len(scores))[np.argmax(scores)]
        probs = np.exp(log_softmax(scores / self.temperature))
        kept = self.nucleus(probs)
        filtered = np.zeros_like(probs)
        filtered[kept] = probs[kept] / probs[kept].sum()
        return filtered

    def nucleus(self, probs: Array) -> Array:
        """The ids that are kept, most probable first."""
        order = descending(probs)
        if self.top_p >= 1:
            return order
        reached = np.cumsum(probs[order]) >= self.top_p
        return order[: max(1, int(np.argmax(reached)) + 1)]


# --- states ----------------------------------------------------------------------------------------------------------


def _first(value: Any) -> torch.Tensor:
    return value[0] if isinstance(value, tuple) else value


def _on_input(module: nn.Module, keep: Callable[[torch.Tensor], None]) -> torch.utils.hooks.RemovableHandle:
    def hook(_: nn.Module, args: tuple, kwargs: dict) -> None:
        keep(args[0] if args else kwargs["hidden_states"])

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def _on_output(module: nn.Module, keep: Callable[[torch.Tensor], None]) -> torch.utils.hooks.RemovableHandle:
    def hook(_: nn.Module, __: tuple, output: Any) -> None:
        keep(_first(output))

    return module.register_forward_hook(hook)


def _tap(
    family: Family, block: nn.Module, site: str, keep: Callable[[torch.Tensor], None]
) -> torch.utils.hooks.RemovableHandle:
    if site in ("resid_pre", "post_ln"):
        return _on_input(block if site == "resid_pre" else _part(block, family.mlp), keep)
    return _on_output(block if site == "resid_post" else _part(block, getattr(family, site)), keep)


@contextmanager
def _tapped(model: PreTrainedModel, sites: Sequence[str], layers: Sequence[int]) -> Iterator[dict[tuple[str, int], Any]]:
    family, found = family_of(model), {}
    blocks = _part(model, family.layers)
    with ExitStack() as stack:
        for site in sites:
            for layer in layers:

                def keep(state: torch.Tensor, cell: tuple[str, int] = (site, layer)) -> None:
                    # One sequence: some families' MLPs see [index, d], without a dimension for it.
                    found[cell] = state.detach().clone().reshape(-1, state.shape[-1])

                stack.callback(_tap(family, blocks[layer], site, keep).remove)
        yield found


@contextmanager
def added(model: PreTrainedModel, site: str, layer: int, vector: torch.Tensor) -> Iterator[None]:
    """Within it, `vector` [d] is added to the states at a site, at every index."""
    family = family_of(model)
    block = _part(model, family.layers)[layer]

    def before(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if args:
            return (args[0] + vector, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"] + vector}

    def after(_: nn.Module, __: tuple, output: Any) -> Any:
        return (output[0] + vector, *output[1:]) if isinstance(output, tuple) else output + vector

    if site in ("resid_pre", "post_ln"):
        module = block if site == "resid_pre" else _part(block, family.mlp)
        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        module = block if site == "resid_post" else _part(block, getattr(family, site))
        handle = module.register_forward_hook(after)
    with handle:
        yield


def all_layers(model: PreTrainedModel) -> list[int]:
    return list(range(len(_part(model, family_of(model).layers))))


def all_positions(ids: Sequence[int], prompt_length: int, prompt_tokens: bool = False) -> list[int]:
    """Every position that has a target: those of the output, with `prompt_tokens` the prompt's earlier ones too."""
    return list(range(1 - prompt_length if prompt_tokens else 0, len(ids) - prompt_length))


def _indices(ids: Sequence[int], prompt_length: int, positions: Sequence[int]) -> list[int]:
    indices = [prompt_length - 1 + p for p in positions]
    assert all(0 <= i < len(ids) for i in indices), f"positions outside the sequence: {list(positions)}"
    return indices


@torch.no_grad()
def states(
    model: PreTrainedModel,
    ids: Sequence[int],
    prompt_length: int,
    sites: Sequence[str] = SITES,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
) -> dict[str, torch.Tensor]:
    """The hidden states by site, each [layer, position, d] in the model's dtype, from one uncached forward."""
    layers = all_layers(model) if layers is None else layers
    positions = all_positions(ids, prompt_length) if positions is None else positions
    return _forward(model, ids, _indices(ids, prompt_length, positions), sites, layers)[0]


def _forward(
    model: PreTrainedModel, ids: Sequence[int], indices: list[int], sites: Sequence[str], layers: Sequence[int]
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """States by site and the model's output logits, both at `indices`, of one and the same forward."""
    with _tapped(model, sites, layers) as found:
        logits = output_logits(model, ids)[indices]
    return {site: torch.stack([found[site, layer][indices] for layer in layers]) for site in sites}, logits


# --- the lens --------------------------------------------------------------------------------------------------------


def _numpy(values: Array | torch.Tensor) -> Array:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def log_softmax(logits: Array) -> Array:
    """Over the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def descending(values: Array) -> Array:
    """Indices from the largest value to the smallest, equal ones by rising index."""
    return np.argsort(-values, axis=-1, kind="stable")


def divergence(p: Array, q: Array) -> Array:
    """KL(p ‖ q) in nats of log-probabilities, over the last axis."""
    return (np.exp(p) * (p - q)).sum(-1)


def cells(logits: Array, final: Array, targets: Array, k: int) -> dict[str, Array]:
    """The variables of the interface for float32 logits [..., position, vocabulary].

    `final` is the model's own output [position, vocabulary], `targets` [position] the next tokens.
    """
    logp, top = log_softmax(logits), descending(logits)[..., :k]
    own = np.broadcast_to(targets[:, None], (*logits.shape[:-1], 1))
    logit = np.take_along_axis(logits, top, -1)
    return {
        "token_id": top,
        "logit": logit,
        "prob": np.exp(np.take_along_axis(logp, top, -1)),
        "prob_topk": np.exp(log_softmax(logit)),
        "entropy": -(np.exp(logp) * logp).sum(-1),
        "target_rank": (logits > np.take_along_axis(logits, own, -1)).sum(-1),
        "target_prob": np.exp(np.take_along_axis(logp, own, -1))[..., 0],
        "kl_final": divergence(log_softmax(final), logp),
    }


def lens(
    model: PreTrainedModel,
    ids: Sequence[int],
    prompt_length: int,
    sites: Sequence[str] = SITES,
    layers: Sequence[int] | None = None,
    k: int = 5,
    positions: Sequence[int] | None = None,
) -> dict[str, Array]:
    """The interface's table as arrays [site, layer, position(, k)], with the coordinates `site`, `layer`, `position`.

    Two more entries are what `compare` needs to judge near ties: `all_logits` [site, layer, position, vocabulary] and
    `target` [position].
    """
    layers = all_layers(model) if layers is None else list(layers)
    positions = all_positions(ids, prompt_length) if positions is None else list(positions)
    indices = _indices(ids, prompt_length, positions)
    assert all(i + 1 < len(ids) for i in indices), "the last token of the sequence has no target"
    targets = np.array([ids[i + 1] for i in indices], dtype=np.int64)
    found, final = _forward(model, ids, indices, sites, layers)
    logits = _numpy(torch.stack([state_logits(model, found[site]) for site in sites]))
    coordinates = {"site": np.array(sites), "layer": np.array(layers), "position": np.array(positions)}
    return {**cells(logits, _numpy(final), targets, k), **coordinates, "all_logits": logits, "target": targets}


# --- comparison ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tolerance:
    """How far an answer may be off. `tie` is the relative difference of two probabilities below which they may swap."""

    tie: float = 1e-5
    logit: float = 1e-3
    prob: float = 1e-4
    entropy: float = 1e-3
    kl: float = 1e-3

    def of(self, variable: str) -> float:
        special = {"logit": self.logit, "entropy": self.entropy, "kl_final": self.kl}
        return special.get(variable, self.prob)


FLOAT32 = Tolerance()
# Sums split over ranks round differently, and random weights magnify it: up to 1e-4 in a logit of the test models.
SHARDED = Tolerance(tie=2e-4)
# In bfloat16 the same moves a logit by up to 0.1, so that the next token itself may be another one.
BFLOAT16 = Tolerance(tie=0.2, logit=0.2, prob=0.03, entropy=0.03, kl=0.03)

VARIABLES = ("token_id", "logit", "prob", "prob_topk", "entropy", "target_rank", "target_prob", "kl_final")


@dataclass
class _Findings:
    reference: Mapping[str, Array]
    lines: list[str] = field(default_factory=list)

    def add(self, variable: str, wrong: Array, describe: Callable[[tuple[int, ...]], str], shown: int = 3) -> None:
        places = [tuple(int(i) for i in place) for place in np.argwhere(wrong)]
        if places:
            self.lines.append(f"{variable}: {len(places)} of {wrong.size} wrong")
            self.lines += [f"  {self._where(place)}: {describe(place)}" for place in places[:shown]]

    def _where(self, place: tuple[int, ...]) -> str:
        names = ("site", "layer", "position")
        where = [f"{name}={self.reference[name][i]}" for name, i in zip(names, place, strict=False)]
        return " ".join(where + [f"k={i}" for i in place[3:]])


def _answer(got: Any, reference: Mapping[str, Array], variable: str) -> Array:
    """The variable on the reference's coordinates, in its order; a mapping without coordinates is taken as it is."""
    extra = ("k",) if reference[variable].ndim == 4 else ()
    if hasattr(got, "sel"):
        chosen = got[variable].sel({name: reference[name] for name in ("site", "layer", "position")})
        return np.asarray(chosen.transpose("site", "layer", "position", *extra).values)
    return _numpy(got[variable])


def compare(
    got: Any,
    reference: Mapping[str, Array],
    tolerance: Tolerance = FLOAT32,
    variables: Sequence[str] = VARIABLES,
    strict_ties: bool = False,
) -> None:
    """Assert that `got` (an xarray Dataset, or a mapping of arrays) holds what `reference`, from `lens`, does.

    A token may stand at rank j instead of the reference's where the reference gives both the same probability within
    `tolerance.tie`; its numbers are then compared with the reference's for that token. A target's rank may be off by
    the tokens as near as that to it. Wherever two logits of `got` are equal to the bit, the lower id has to be first.
    `strict_ties` lets no token stand in for one that the reference's logits tie with exactly.
    """
    answers = {variable: _answer(got, reference, variable) for variable in dict.fromkeys(("token_id", *variables))}
    for variable, answer in answers.items():
        expected = reference[variable].shape
        assert answer.shape == expected, f"{variable}: shape {answer.shape}, expected {expected}"
    assert np.issubdtype(answers["token_id"].dtype, np.integer), f"token_id: {answers['token_id'].dtype}, not integers"
    findings = _Findings(reference)
    _compare_tokens(answers, reference, tolerance, strict_ties, findings)
    if not findings.lines:  # numbers of wrong tokens would only repeat the failure
        _compare_numbers(answers, reference, tolerance, findings)
        if "target_rank" in answers:
            _compare_ranks(answers["target_rank"], reference, tolerance, findings)
    if findings.lines:
        raise AssertionError("\n".join(["differs from the reference", *findings.lines]))


def _compare_tokens(
    answers: Mapping[str, Array],
    reference: Mapping[str, Array],
    tolerance: Tolerance,
    strict: bool,
    findings: _Findings,
) -> None:
    tokens, expected, logits = answers["token_id"], reference["token_id"], reference["all_logits"]
    outside = (tokens < 0) | (tokens >= logits.shape[-1])
    findings.add("token_id", outside, lambda at: f"{tokens[at]} is not in the vocabulary")
    if outside.any():
        return
    # A difference of logits within a cell is one of log-probabilities: the relative difference of the probabilities.
    away = np.abs(np.take_along_axis(logits, tokens, -1) - reference["logit"])
    wrong = (tokens != expected) & ((away > tolerance.tie) | (strict & (away == 0)))
    findings.add("token_id", wrong, lambda at: f"{tokens[at]}, expected {expected[at]} (logits {away[at]:.3g} apart)")
    ordered = np.sort(tokens, -1)
    twice = np.concatenate([(ordered[..., 1:] == ordered[..., :-1]), np.zeros_like(ordered[..., :1], bool)], -1)
    findings.add("token_id", twice, lambda at: f"the same token twice in {tokens[at[:-1]].tolist()}")
    if "logit" in answers:
        _compare_order(tokens, answers["logit"], findings)


def _compare_order(tokens: Array, logit: Array, findings: _Findings) -> None:
    step = np.diff(logit, axis=-1)
    wrong = ~(step < 0) & ~((step == 0) & (np.diff(tokens, axis=-1) > 0))
    findings.add("order", wrong, lambda at: f"{tokens[at[:-1]].tolist()} with logits {logit[at[:-1]].tolist()}")


def _expected(variable: str, tokens: Array, reference: Mapping[str, Array]) -> Array:
    """The reference's numbers, for the tokens that `got` lists where they are per token."""
    if reference[variable].ndim < 4:
        return reference[variable]
    chosen = np.take_along_axis(reference["all_logits"], tokens, -1)
    if variable == "logit":
        return chosen
    if variable == "prob_topk":
        return np.exp(log_softmax(chosen))
    return np.exp(np.take_along_axis(log_softmax(reference["all_logits"]), tokens, -1))


def _compare_numbers(
    answers: Mapping[str, Array], reference: Mapping[str, Array], tolerance: Tolerance, findings: _Findings
) -> None:
    for variable in answers.keys() - {"token_id", "target_rank"}:
        answer, expected = answers[variable], _expected(variable, answers["token_id"], reference)
        wrong = ~(np.abs(answer - expected) <= tolerance.of(variable))  # so that NaN is wrong
        findings.add(variable, wrong, lambda at, a=answer, e=expected: f"{a[at]:.6g}, expected {e[at]:.6g}")


def rank_bounds(reference: Mapping[str, Array], tie: float) -> tuple[Array, Array]:
    """The lowest and highest rank a target may have when logits nearer to its own than `tie` fall on either side."""
    logits, targets = reference["all_logits"], reference["target"]
    own = np.take_along_axis(logits, np.broadcast_to(targets[:, None], (*logits.shape[:-1], 1)), -1)
    above, near = (logits > own + tie).sum(-1), (np.abs(logits - own) <= tie).sum(-1)
    return above, above + near - 1


def _compare_ranks(ranks: Array, reference: Mapping[str, Array], tolerance: Tolerance, findings: _Findings) -> None:
    low, high = rank_bounds(reference, tolerance.tie)
    wrong = ~((ranks >= low) & (ranks <= high))
    findings.add("target_rank", wrong, lambda at: f"{ranks[at]}, expected {low[at]} to {high[at]}")
