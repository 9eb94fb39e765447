"""The reference itself, compared with transformers and hand computation, and its tolerance for ties."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from math import log
from pathlib import Path

import models
import numpy as np
import once
import pytest
import reference as ref
import torch
import xarray as xr
from transformers import Gemma2Config, Olmo2Config, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

Load = Callable[[str], tuple[PreTrainedModel, PreTrainedTokenizerBase]]
CLEAR = [name for name in models.MODELS if name not in ("llama-bf16", "llama-twins")]  # one choice stands out
OTHERS = {
    "gemma2": partial(models.causal, Gemma2Config, **models._shape(3, 64, 96, 4, 2, 290, tied=True), head_dim=16),
    "olmo2": partial(models.causal, Olmo2Config, **models._shape(3, 64, 96, 4, 2, 290)),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def load(checkpoints: Callable[[str], Path]) -> Load:
    return lambda name: once.plain(checkpoints(name))


@pytest.fixture(scope="module")
def sequence(load: Load) -> Callable[[str], tuple[list[int], int]]:
    """Prompt and eight greedy tokens, and the prompt's length."""

    @cache
    def ids_of(name: str) -> tuple[list[int], int]:
        model, tokenizer = load(name)
        prompt = tokenizer(models.PROMPT)["input_ids"]
        return prompt + ref.generate_ids(model, prompt, 8), len(prompt)

    return ids_of


def other(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = models.roughen(OTHERS[name]().eval())
    model.set_attn_implementation("eager")
    return model


def check_sites(model: PreTrainedModel, ids: list[int], length: int) -> None:
    got = ref.states(model, ids, length)
    added = got["resid_pre"] + got["attn_out"] + got["mlp_out"]
    if model.config.model_type in ("phi", "gpt_neox"):  # these add in another order
        torch.testing.assert_close(added, got["resid_post"], rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(added, got["resid_post"])
    assert torch.equal(got["resid_post"][:-1], got["resid_pre"][1:])


@torch.no_grad()
def check_output(model: PreTrainedModel, ids: list[int], length: int) -> None:
    table = ref.lens(model, ids, length, sites=["resid_post"])
    expected = model(torch.tensor([ids]), use_cache=False).logits[0, length - 1 : -1]
    rounding = 1e-5 if model.dtype == torch.float32 else 2e-2
    np.testing.assert_allclose(table["all_logits"][0, -1], expected.float().numpy(), atol=rounding, rtol=rounding)
    assert np.abs(table["kl_final"][0, -1]).max() < 1e-12


# --- states and logits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", models.MODELS)
def test_sites_add_up_and_the_last_state_is_the_models_answer(name: str, load: Load, sequence: Callable) -> None:
    check_sites(load(name)[0], *sequence(name))
    check_output(load(name)[0], *sequence(name))
    assert (ref.lens(load(name)[0], *sequence(name), sites=["resid_post"])["target_rank"][0, -1] == 0).all()


@pytest.mark.parametrize("name", OTHERS)
def test_post_norms_and_soft_caps(name: str) -> None:
    model, ids = other(name), list(range(5, 30))
    check_sites(model, ids, 10)
    check_output(model, ids, 10)
    logits = ref.lens(model, ids, 10)["all_logits"]
    assert np.abs(logits).max() < (30 if name == "gemma2" else np.inf)


def test_post_ln_is_what_the_mlp_reads(load: Load, sequence: Callable) -> None:
    model = load("llama-bias")[0]
    got = ref.states(model, *sequence("llama-bias"), layers=[1])
    block = model.model.layers[1]
    with torch.no_grad():
        normalised = block.post_attention_layernorm(got["resid_pre"] + got["attn_out"])
        torch.testing.assert_close(got["post_ln"], normalised)
        torch.testing.assert_close(got["mlp_out"], block.mlp(got["post_ln"]))


def test_states_agree_with_transformers_hidden_states(load: Load, sequence: Callable) -> None:
    model, (ids, length) = load("qwen3-odd")[0], sequence("qwen3-odd")
    positions = ref.all_positions(ids, length, prompt_tokens=True)
    got = ref.states(model, ids, length, ["resid_pre"], positions=positions)["resid_pre"]
    with torch.no_grad():
        hidden = model(torch.tensor([ids]), output_hidden_states=True, use_cache=False).hidden_states
    torch.testing.assert_close(got, torch.stack([state[0, :-1] for state in hidden[:-1]]))


def test_positions_layers_and_sites_are_the_ones_asked_for(load: Load, sequence: Callable) -> None:
    model, (ids, length) = load("llama-tied")[0], sequence("llama-tied")
    whole = ref.lens(model, ids, length, positions=ref.all_positions(ids, length, prompt_tokens=True))
    assert whole["position"].tolist() == list(range(1 - length, 8))
    assert whole["target"].tolist() == ids[1:]
    part = ref.lens(model, ids, length, ["mlp_out", "attn_out"], [3, 1], 2, [4, -2])
    expected = whole["token_id"][[2, 1]][:, [3, 1]][:, :, [length + 3, length - 3], :2]
    assert (part["token_id"] == expected).all()
    with pytest.raises(AssertionError, match="no target"):
        ref.lens(model, ids, length, positions=[8])
    with pytest.raises(AssertionError, match="outside"):
        ref.lens(model, ids, length, positions=[-length])


def test_a_hook_registered_before_is_seen(load: Load, sequence: Callable) -> None:
    model, (ids, length) = load("llama-gqa")[0], sequence("llama-gqa")
    before = ref.states(model, ids, length)
    handle = model.model.layers[1].mlp.register_forward_hook(lambda module, args, output: output + 1)
    after = ref.states(model, ids, length)
    check_sites(model, ids, length)
    handle.remove()
    torch.testing.assert_close(after["mlp_out"][1], before["mlp_out"][1] + 1)
    assert torch.equal(after["attn_out"][1], before["attn_out"][1])
    assert not torch.equal(after["attn_out"][2], before["attn_out"][2])
    assert torch.equal(ref.states(model, ids, length)["resid_post"], before["resid_post"])


# --- numbers by hand -------------------------------------------------------------------------------------------------

HALVES = np.log(np.array([0.5, 0.25, 0.125, 0.125]))


def test_one_cell_by_hand() -> None:
    got = ref.cells(np.array([HALVES[::-1], HALVES]), np.zeros((2, 4)), np.array([1, 3]), 3)
    assert got["token_id"].tolist() == [[3, 2, 0], [0, 1, 2]]
    assert got["target_rank"].tolist() == [2, 2]
    np.testing.assert_allclose(got["target_prob"], [0.125, 0.125])
    np.testing.assert_allclose(got["prob"], [[0.5, 0.25, 0.125]] * 2)
    np.testing.assert_allclose(got["prob_topk"], [[4 / 7, 2 / 7, 1 / 7]] * 2)
    np.testing.assert_allclose(got["entropy"], [1.75 * log(2)] * 2)
    np.testing.assert_allclose(got["kl_final"], [0.25 * log(2)] * 2)


def test_divergence_is_of_the_models_output_from_the_cell() -> None:
    p, q = np.log([0.75, 0.25]), np.log([0.5, 0.5])
    np.testing.assert_allclose(ref.divergence(p, q), 0.75 * log(1.5) + 0.25 * log(0.5))
    got = ref.cells(q[None], p[None], np.array([0]), 1)
    np.testing.assert_allclose(got["kl_final"], [0.75 * log(1.5) + 0.25 * log(0.5)])


def test_numbers_stand_large_logits() -> None:
    got = ref.cells(np.array([[1000.0, 0.0]], np.float32), np.array([[1000.0, 0.0]], np.float32), np.array([1]), 2)
    assert got["prob"].tolist() == [[1, 0]]
    assert got["entropy"].tolist() == got["kl_final"].tolist() == [0]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (ref.Sampling(), [0.5, 0.25, 0.125, 0.125]),
        (ref.Sampling(0), [1, 0, 0, 0]),
        (ref.Sampling(top_p=0.7), [2 / 3, 1 / 3, 0, 0]),
        (ref.Sampling(top_p=0.8), [4 / 7, 2 / 7, 1 / 7, 0]),
        (ref.Sampling(top_p=0), [1, 0, 0, 0]),
        (ref.Sampling(0.5), [16 / 22, 4 / 22, 1 / 22, 1 / 22]),
        (ref.Sampling(0.5, 0.75), [0.8, 0.2, 0, 0]),
    ],
)
def test_sampling_by_hand(sampling: ref.Sampling, expected: list[float]) -> None:
    np.testing.assert_allclose(sampling.distribution(HALVES), expected, atol=1e-12)


def test_twin_rows_tie_to_the_bit_and_the_lower_one_leads(load: Load, sequence: Callable) -> None:
    got = ref.lens(load("llama-twins")[0], *sequence("llama-twins"), k=4)
    assert (got["all_logits"][..., :-1:2] == got["all_logits"][..., 1::2]).all()
    assert (got["token_id"][..., 0] % 2 == 0).all()
    paired = got["token_id"][..., 0] < 312
    assert (got["token_id"][..., 1] == got["token_id"][..., 0] + 1)[paired].all()
    assert not any(token % 2 for token in sequence("llama-twins")[0][-8:])


# --- generation ------------------------------------------------------------------------------------------------------


def transformers_greedy(model: PreTrainedModel, ids: list[int], n: int, stop: int | None) -> list[int]:
    plain = {"do_sample": False, "repetition_penalty": 1.0, "temperature": None, "top_p": None, "top_k": None}
    inputs = torch.tensor([ids])
    whole = model.generate(
        inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=n, eos_token_id=stop, pad_token_id=0, **plain
    )
    return whole[0, len(ids) :].tolist()


@pytest.mark.parametrize("name", CLEAR)
def test_uncached_choice_is_transformers_cached_one(name: str, load: Load, sequence: Callable) -> None:
    model, (ids, length) = load(name)[0], sequence(name)
    prompt, output = ids[:length], ids[length:]
    assert transformers_greedy(model, prompt, 8, -1) == output
    until = output[: output.index(output[3]) + 1]
    assert ref.generate_ids(model, prompt, 8, stop_ids=[output[3]]) == until
    assert transformers_greedy(model, prompt, 8, output[3]) == until


@pytest.mark.parametrize("name", CLEAR)
def test_choices_are_no_near_ties(name: str, load: Load, sequence: Callable) -> None:
    model, (ids, length) = load(name)[0], sequence(name)
    best = ref.output_logits(model, ids)[length - 1 : -1].topk(2).values
    assert (best[:, 0] - best[:, 1]).min() > 2 * ref.SHARDED.tie
    assert best.diff().abs().median() > 0.1


# --- comparison ------------------------------------------------------------------------------------------------------


@pytest.fixture
def table(load: Load, sequence: Callable) -> dict[str, np.ndarray]:
    return ref.lens(load("llama-odd-vocab")[0], *sequence("llama-odd-vocab"))


def dataset(table: dict[str, np.ndarray]) -> xr.Dataset:
    dims = ("site", "layer", "position", "k")
    variables = {name: (dims[: table[name].ndim], table[name]) for name in ref.VARIABLES}
    return xr.Dataset(variables, {name: table[name] for name in dims[:3]})


def changed(table: dict[str, np.ndarray], variable: str, by: float) -> dict[str, np.ndarray]:
    answer = table[variable].copy()
    answer[2, 1, 3] += np.array(by).astype(answer.dtype)
    return {**table, variable: answer}


def swapped(table: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The two first candidates of one cell exchanged, token and numbers alike."""
    answers = {name: table[name].copy() for name in ("token_id", "logit", "prob", "prob_topk")}
    for answer in answers.values():
        answer[0, 0, 0, :2] = answer[0, 0, 0, 1::-1]
    return {**table, **answers}


def nearly_tied(gap: float) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A one-cell table whose first two logits are `gap` apart, and one with that gap turned round."""
    logits = np.array([[[[3.0, 3.0 + gap, 1.0, 0.0]]]])
    place = {"site": np.array(["resid_post"]), "layer": np.array([0]), "position": np.array([0])}

    def of(values: np.ndarray) -> dict[str, np.ndarray]:
        targets = np.array([0])
        return {**ref.cells(values, values[0, 0], targets, 3), **place, "all_logits": values, "target": targets}

    return of(logits), of(logits[..., [1, 0, 2, 3]])


def test_compare_accepts_itself_in_any_order(table: dict[str, np.ndarray]) -> None:
    ref.compare(table, table, strict_ties=True)
    whole = dataset(table)
    ref.compare(whole.isel(site=slice(None, None, -1), layer=[2, 0, 1]).transpose("k", "position", ...), table)


@pytest.mark.parametrize(
    ("variable", "by", "allowed"),
    [
        ("token_id", 1, 0),
        ("logit", 2e-3, 5e-4),
        ("prob", 2e-4, 5e-5),
        ("prob_topk", 2e-4, 5e-5),
        ("entropy", 2e-3, 5e-4),
        ("target_rank", 1, 0),
        ("target_prob", 2e-4, 5e-5),
        ("kl_final", -2e-3, 5e-4),
        ("entropy", np.nan, 0),
    ],
)
def test_compare_says_what_is_wrong_and_where(table: dict[str, np.ndarray], variable: str, by: float, allowed: float) -> None:
    ref.compare(changed(table, variable, allowed), table)
    with pytest.raises(AssertionError, match=rf"{variable}: \d+ of \d+ wrong\n  site=mlp_out layer=1 position=3"):
        ref.compare(changed(table, variable, by), table)


def test_compare_refuses_swaps_shapes_and_strays(table: dict[str, np.ndarray]) -> None:
    with pytest.raises(AssertionError, match="token_id: 2 of"):
        ref.compare(swapped(table), table)
    with pytest.raises(AssertionError, match="shape"):
        ref.compare({**table, "entropy": table["entropy"][:1]}, table)
    with pytest.raises(AssertionError, match="not in the vocabulary"):
        ref.compare({**table, "token_id": table["token_id"] + 331}, table)
    with pytest.raises(AssertionError, match="not integers"):
        ref.compare({**table, "token_id": table["token_id"] + 0.0}, table)
    with pytest.raises(KeyError):
        ref.compare(dataset(table).isel(layer=[0, 2]), table)


def test_compare_lets_near_ties_swap_and_nothing_else() -> None:
    expected, turned = nearly_tied(4e-6)
    assert turned["token_id"].tolist() != expected["token_id"].tolist()
    assert turned["target_rank"].item() != expected["target_rank"].item()
    ref.compare(turned, expected)
    expected, turned = nearly_tied(4e-5)
    ref.compare(turned, expected, ref.SHARDED)
    with pytest.raises(AssertionError, match="token_id: 2 of 3"):
        ref.compare(turned, expected)
    with pytest.raises(AssertionError, match="target_rank: 1 of 1"):
        ref.compare({**expected, "target_rank": turned["target_rank"]}, expected)


def test_compare_holds_exact_ties_to_the_lower_index() -> None:
    expected, _ = nearly_tied(0.0)
    assert expected["token_id"][0, 0, 0].tolist() == [0, 1, 2]
    assert ref.rank_bounds(expected, 0.0)[1].item() == 1
    backwards = {**expected, "token_id": expected["token_id"][..., [1, 0, 2]]}
    with pytest.raises(AssertionError, match="order"):
        ref.compare(backwards, expected)
    moved = {**backwards, "logit": expected["logit"] - np.array([0, 1e-7, 0])}
    ref.compare(moved, expected)
    with pytest.raises(AssertionError, match="token_id: 2 of 3"):
        ref.compare(moved, expected, strict_ties=True)


def test_compare_refuses_a_token_listed_twice() -> None:
    expected, _ = nearly_tied(0.0)
    with pytest.raises(AssertionError, match="twice"):
        ref.compare({**expected, "token_id": np.array([[[[0, 0, 2]]]])}, expected)


SUMS = ("o_proj", "out_proj", "dense", "c_proj", "down_proj", "fc2", "dense_4h_to_h")  # what attention and MLPs end with


def split_sums(model: PreTrainedModel, parts: int) -> None:
    """Compute each row-parallel product as ranks do: a part of the columns each, then one sum."""

    def divide(module: torch.nn.Module) -> None:
        weight = module.weight.T if isinstance(module, Conv1D) else module.weight  # [outputs, inputs]

        def forward(x: torch.Tensor) -> torch.Tensor:
            pairs = zip(x.chunk(parts, -1), weight.chunk(parts, 1), strict=True)
            total = sum((a @ w.T).float() for a, w in pairs).to(x.dtype)
            return total if module.bias is None else total + module.bias

        module.forward = forward

    for name, module in model.named_modules():
        if name.rpartition(".")[2] in SUMS and "vision" not in name:
            divide(module)


@pytest.mark.parametrize("name", models.MODELS)
def test_tolerances_cover_split_sums(name: str, load: Load, sequence: Callable) -> None:
    split = models.create(name)
    split.set_attn_implementation("eager")
    split_sums(split, 4)
    expected = ref.lens(load(name)[0], *sequence(name))
    got = ref.lens(split, *sequence(name))
    assert not np.array_equal(got["all_logits"], expected["all_logits"])
    ref.compare(got, expected, ref.BFLOAT16 if name == "llama-bf16" else ref.SHARDED)


# --- checkpoints -----------------------------------------------------------------------------------------------------

FILES = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("name", models.MODELS)
def test_checkpoints_are_the_same_bytes_every_time(name: str, checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = digests(checkpoints(name))
    torch.manual_seed(2)
    expected = torch.get_rng_state()
    assert digests(models.build(name, tmp_path)) == first
    assert torch.equal(torch.get_rng_state(), expected)
    assert list(first) == FILES


@pytest.mark.parametrize("name", models.MODELS)
def test_weights_and_tokenizer_are_read_back(name: str, load: Load) -> None:
    (model, tokenizer), created = load(name), models.create(name)
    assert model.dtype == created.dtype
    stored = model.state_dict()
    assert all(torch.equal(weight, stored[key]) for key, weight in created.state_dict().items())
    assert len(tokenizer) <= model.config.get_text_config().vocab_size
    assert tokenizer.bos_token is None
    assert tokenizer.eos_token_id == 0
    assert tokenizer.decode(tokenizer(models.TEXT)["input_ids"]) == models.TEXT
    assert tokenizer(models.END + models.OTHER)["input_ids"] == [0, 1]
