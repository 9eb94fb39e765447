"""The lens against brute force: every shape of model on 1, 2, 3 and 4 ranks."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import models
import numpy as np
import once
import pytest
import reference as ref
import torch
from transformers import LlamaConfig

import lens_magic as lens
from lens_magic.model.head import HeadShard
from lens_magic.model.load import MODEL
from lens_magic.ranks.rank import Rank
from lens_magic.session import current

TOKENS = 12
Checkpoints = Callable[[str], Path]


def tolerance(name: str, ranks: int) -> ref.Tolerance:
    if "bf16" in name:
        return ref.BFLOAT16
    return ref.FLOAT32 if ranks == 1 else ref.SHARDED


@pytest.mark.parametrize("name", models.MODELS)
def test_equals_plain_transformers(name: str, ranks: int, checkpoints: Checkpoints) -> None:
    folder = checkpoints(name)
    once.load(folder, ranks)
    run = lens.run(models.PROMPT, TOKENS, capture=ref.SITES, prompt_tokens=True, ignore_eos=True)

    if "bf16" not in name:  # in bfloat16 the ranks' partial sums round apart, and a near tie may fall otherwise
        assert run.output_ids == greedy(folder, tuple(run.prompt_ids))
    table, states = reference(folder, tuple(run.prompt_ids), tuple(run.output_ids))
    assert run.positions == table["position"].tolist()
    ref.compare(run.to_xarray(), table, tolerance(name, ranks))
    check_states(run, states, 0.05 if "bf16" in name else 1e-5)


# What plain transformers say is the same on any number of ranks, and takes longer than what it is compared with.


@functools.cache
def greedy(folder: Path, prompt: tuple[int, ...]) -> list[int]:
    return ref.generate_ids(once.plain(folder)[0], prompt, TOKENS)


@functools.cache
def reference(
    folder: Path, prompt: tuple[int, ...], output: tuple[int, ...]
) -> tuple[dict[str, np.ndarray], dict[str, torch.Tensor]]:
    """The table and the states at every position."""
    (model, _), ids = once.plain(folder), [*prompt, *output]
    positions = ref.all_positions(ids, len(prompt), prompt_tokens=True)
    table = ref.lens(model, ids, len(prompt), sites=ref.SITES, k=5, positions=positions)
    return table, ref.states(model, ids, len(prompt), positions=positions)


def check_states(run: lens.LensRun, expected: Mapping[str, torch.Tensor], tolerance: float) -> None:
    """The states themselves, and that what a block adds to the residual stream is what two of them say."""
    got = {site: run.activations(site).float() for site in ref.SITES}
    for site, states in got.items():
        assert states.shape == expected[site].shape
        assert float((states - expected[site]).norm() / expected[site].norm()) < tolerance, site
    added = got["resid_pre"] + got["attn_out"] + got["mlp_out"]
    assert float((added - got["resid_post"]).norm() / got["resid_post"].norm()) < tolerance


def test_each_rank_keeps_its_share(ranks: int, checkpoints: Checkpoints) -> None:
    once.load(checkpoints("llama-gqa"), ranks)
    run = lens.run(models.PROMPT, TOKENS, ignore_eos=True)
    cell = TOKENS * 128 * 4  # positions × width × bytes of a float32
    shares = run.memory["captures_by_rank"]
    assert sum(shares) == len(run.sites) * len(run.layers) * cell
    assert len(shares) == ranks
    assert max(shares) - min(shares) <= cell
    assert run.memory["captures"] == max(shares)


def test_the_last_layer_is_what_the_model_said(ranks: int, checkpoints: Checkpoints) -> None:
    once.load(checkpoints("qwen3-gqa"), ranks)
    run = lens.run(models.PROMPT, TOKENS, layers=[1, -1], capture=["resid_post"], ignore_eos=True)
    last = run.to_xarray().isel(layer=-1, site=0)
    assert last["target_rank"].values.tolist() == [0] * TOKENS
    assert float(last["kl_final"].max()) < 1e-5
    assert last["token_id"].isel(k=0).values.tolist() == run.output_ids


def test_k_may_be_the_whole_vocabulary(ranks: int, checkpoints: Checkpoints) -> None:
    once.load(checkpoints("llama-odd-vocab"), ranks)
    run = lens.run(models.PROMPT, 2, top_k=331, layers="-1", ignore_eos=True)
    data = run.to_xarray()
    assert data.sizes["k"] == 331
    assert sorted(data["token_id"].values[0, 0, 0].tolist()) == list(range(331))
    assert abs(float(data["prob"].sum("k").min()) - 1) < 1e-5


def test_forced_tokens_give_the_same_as_generated_ones(ranks: int, checkpoints: Checkpoints) -> None:
    once.load(checkpoints("llama-bias"), ranks)
    free = lens.run(models.PROMPT, TOKENS, ignore_eos=True)
    forced = lens.run(models.PROMPT, force=free.output_ids)
    assert forced.output_ids == free.output_ids
    assert forced.positions == free.positions
    for name in ("prob", "entropy", "kl_final"):
        assert abs(forced.variables[name] - free.variables[name]).max() < 1e-3


def test_the_lens_of_a_text(ranks: int, checkpoints: Checkpoints) -> None:
    folder = checkpoints("llama-tied")
    model, _ = once.plain(folder)
    once.load(folder, ranks)
    run = lens.run(models.PROMPT, 0, prompt_tokens=True)
    prompt = len(run.prompt_ids)
    assert run.output_ids == []
    assert run.text == ""
    assert run.positions == list(range(-(prompt - 1), 0))
    expected = ref.lens(model, run.prompt_ids, prompt, sites=run.sites, k=5, positions=run.positions)
    ref.compare(run.to_xarray(), expected, tolerance("llama-tied", ranks))


def test_a_tied_head_is_a_view_of_the_embedding(ranks: int, checkpoints: Checkpoints) -> None:
    once.load(checkpoints("llama-tied"), ranks)
    loaded = current().group.rank.store[MODEL]
    embedding = loaded.model.model.embed_tokens.weight
    assert loaded.head.weight.untyped_storage().data_ptr() == embedding.untyped_storage().data_ptr()
    assert loaded.head.rows == loaded.bounds[1] - loaded.bounds[0]


@pytest.mark.ranks(2)
def test_float16_on_several_ranks(checkpoints: Checkpoints) -> None:
    """What many checkpoints are kept in, and DeepSpeed does not take on most CPUs."""
    folder = checkpoints("llama-bf16")
    lens.load(str(folder), ranks=2, dtype="float16")
    run = lens.run(models.PROMPT, 4, ignore_eos=True)
    model = models.load_plain(folder)[0].half()
    expected = ref.lens(model, run.prompt_ids + run.output_ids, len(run.prompt_ids), sites=run.sites)
    ref.compare(run.to_xarray(), expected, ref.BFLOAT16)
    assert (run.variables["target_rank"][-1, -1] == 0).all()


def test_states_beyond_float16_are_told_with_what_holds_them(tmp_path: Path) -> None:
    """As Gemma's are: bfloat16 takes as little memory, and has float32's range."""
    model, tokenizer = models.load_plain(models.build("llama-gqa", tmp_path))
    with torch.no_grad():
        model.lm_head.weight *= 1e6
    model.half().save_pretrained(tmp_path / "half")
    tokenizer.save_pretrained(tmp_path / "half")
    lens.load(str(tmp_path / "half"), ranks=1)
    with pytest.raises(lens.LensError, match=r"not finite; another dtype \(--dtype bfloat16 or float32\) may help$"):
        lens.generate(models.PROMPT, 2)


def test_a_head_of_its_own_is_used_whatever_the_configuration_says(ranks: int, tmp_path: Path) -> None:
    """transformers does not tie weights that a checkpoint has, and has different."""
    folder = models.build("llama-odd-vocab", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    model, _ = models.load_plain(folder)
    lens.load(str(folder), ranks=ranks)
    run = lens.run(models.PROMPT, 4, layers="-1", ignore_eos=True)
    ids, prompt = run.prompt_ids + run.output_ids, len(run.prompt_ids)
    expected = ref.lens(model, ids, prompt, sites=run.sites, layers=run.layers, positions=run.positions)
    ref.compare(run.to_xarray(), expected, tolerance("llama-odd-vocab", ranks))


def test_ties_go_to_the_lower_index(checkpoints: Checkpoints) -> None:
    """Every row of this head stands twice, so every candidate is tied with another."""
    folder = checkpoints("llama-twins")
    model, _ = once.plain(folder)
    once.load(folder)
    run = lens.run(models.PROMPT, TOKENS, ignore_eos=True)
    ids = run.prompt_ids + run.output_ids
    expected = ref.lens(model, ids, len(run.prompt_ids), sites=run.sites, k=5, positions=run.positions)
    ref.compare(run.to_xarray(), expected, ref.FLOAT32, strict_ties=True)


def test_blocks_of_any_size_give_the_same(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    from lens_magic.lens import decode

    once.load(checkpoints("llama-gqa"))
    whole = lens.run(models.PROMPT, TOKENS, ignore_eos=True)
    for cells in (1, 2, 7, 40):
        monkeypatch.setitem(decode._BLOCK_BYTES, "cpu", cells * 4 * 320)
        cut = lens.run(models.PROMPT, TOKENS, ignore_eos=True)
        assert (cut.variables["token_id"] == whole.variables["token_id"]).all()
        for name in ("prob", "entropy", "kl_final"):
            assert abs(cut.variables[name] - whole.variables[name]).max() < 1e-4


def test_no_block_of_logits_is_larger_than_its_room(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    """The projection's memory does not grow with the number of tokens."""
    from lens_magic.lens import decode

    once.load(checkpoints("llama-gqa"))
    room, seen = 8 * 4 * 320, []
    monkeypatch.setitem(decode._BLOCK_BYTES, "cpu", room)
    logits = HeadShard.logits

    def watched(self: HeadShard, states: object) -> object:
        made = logits(self, states)
        seen.append(made.nbytes)
        return made

    monkeypatch.setattr(HeadShard, "logits", watched)
    lens.run(models.PROMPT, 200, ignore_eos=True)
    assert max(seen) <= room


def test_a_model_in_memory(checkpoints: Checkpoints) -> None:
    model, tokenizer = models.load_plain(checkpoints("qwen3-gqa"))
    before = {name: id(value) for name, value in model.named_parameters()}
    lens.attach(model, tokenizer)
    run = lens.run(models.PROMPT, TOKENS, ignore_eos=True)
    assert run.output_ids == ref.generate_ids(model, run.prompt_ids, TOKENS)
    assert {name: id(value) for name, value in model.named_parameters()} == before
    assert len(lens.status().ranks) == 1


@pytest.mark.ranks(2)
def test_a_bias_of_minus_infinity_bans_tokens_and_spoils_no_figure(tmp_path: Path) -> None:
    """Among them all those of one rank."""
    model = models.create("phi")
    banned = torch.arange(model.config.vocab_size) % 2 + torch.arange(model.config.vocab_size) // 140 > 0
    with torch.no_grad():
        model.lm_head.bias[banned] = -torch.inf
        model.save_pretrained(tmp_path)
        model.lm_head.bias[banned] = -1e5
    models.tokenizer_of(model.config.vocab_size).save_pretrained(tmp_path)
    lens.load(tmp_path, ranks=2)
    run = lens.run(models.PROMPT, TOKENS, ignore_eos=True)
    assert not banned[run.output_ids].any()
    expected = ref.lens(model, run.prompt_ids + run.output_ids, len(run.prompt_ids), run.sites)
    ref.compare(run.to_xarray(), expected, ref.SHARDED)


def test_what_is_no_model_is_one_clear_line(checkpoints: Checkpoints) -> None:
    model, tokenizer = models.load_plain(folder := checkpoints("llama-gqa"))
    lens.load(folder, ranks=1)  # a path is a folder too
    assert lens.generate(models.PROMPT, 1).output_ids
    for given, words in (
        ((5, 5), "the model is int"),
        ((model, 5), "the tokenizer is int"),
        ((tokenizer, model), "the model is "),
    ):
        with pytest.raises(lens.LensError, match=f"attach takes a model and its tokenizer, both of transformers; {words}"):
            lens.attach(*given)
    with pytest.raises(lens.LensError, match=r"a model is loaded by a folder, .* not int; attach takes one in memory"):
        lens.load(5)  # type: ignore[arg-type]


def test_a_head_of_64_bits_on_a_gpu_is_multiplied_as_on_a_cpu() -> None:
    """The product that takes 16-bit numbers as they are takes no others."""

    class OnGPU(torch.Tensor):
        is_cuda = True

    states, weight = torch.randn(3, 8, dtype=torch.float64), torch.randn(20, 8, dtype=torch.float64)
    here, there = (HeadShard(one, None, 0).logits(states) for one in (weight, weight.as_subclass(OnGPU)))
    assert torch.equal(there.as_subclass(torch.Tensor), here)


def test_end_tokens_of_a_model_in_memory(checkpoints: Checkpoints) -> None:
    """Whole numbers of NumPy are whole numbers; a model whose end tokens are none leaves the one before as it was."""
    lens.load("demo", ranks=1)
    model, tokenizer = models.load_plain(checkpoints("llama-gqa"))
    held = current().group.rank.store[MODEL]
    model.generation_config.eos_token_id = "</s>"
    with pytest.raises(lens.LensError, match=r"end tokens .* are '</s>'; a whole number or a list of them would do"):
        lens.attach(model, tokenizer)
    assert current().require_model().name == "demo"
    assert current().group.rank.store[MODEL] is held
    model.generation_config.eos_token_id = [np.int64(3), 5]
    lens.attach(model, tokenizer)
    assert current().require_model().stop_ids == (3, 5)
    assert all(type(token) is int for token in current().require_model().stop_ids)


def test_a_model_amid_its_training_predicts_as_in_evaluation_mode(checkpoints: Checkpoints) -> None:
    """Else it would drop out at random, and with gradient checkpointing decode without a cache."""
    model, tokenizer = models.load_plain(checkpoints("gpt2"))
    model.train()
    model.activation_checkpointing_enable()
    model.transformer.h[1].eval()
    before = {name: module.training for name, module in model.named_modules()}
    lens.attach(model, tokenizer)
    run = lens.run(models.PROMPT, TOKENS, ignore_eos=True)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert run.output_ids == ref.generate_ids(model.eval(), run.prompt_ids, TOKENS)


def test_states_are_kept_for_the_newest_run_only(checkpoints: Checkpoints) -> None:
    once.load(checkpoints("llama-gqa"))
    old = lens.run(models.PROMPT, 3)
    assert old.activations("mlp_out", layers=[1, 2], positions=0).shape == (2, 1, 128)
    lens.run(models.PROMPT, 3)
    with pytest.raises(lens.LensError, match="newest"):
        old.activations("mlp_out")
    with pytest.raises(lens.LensError, match="post_ln"):
        old.activations("post_ln")


def test_what_ranks_send_does_not_grow_with_the_vocabulary(ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """States, k candidates and a few sums a cell: what rank 0 gives to all exchanges of a run, with a tracked token."""
    sent: list[int] = []
    for name in ("all_gather", "all_reduce"):
        whole = getattr(Rank, name)

        def counted(self: Rank, tensor: torch.Tensor, *more: str, whole: Callable[..., torch.Tensor] = whole) -> torch.Tensor:
            sent.append(tensor.nbytes)
            return whole(self, tensor, *more)

        monkeypatch.setattr(Rank, name, counted)
    in_all = []
    for vocabulary in (320, 12_800):
        model = models.causal(LlamaConfig, **models._shape(3, 64, 96, 4, 4, vocabulary))
        model.save_pretrained(tmp_path / str(vocabulary))
        models.tokenizer_of(320).save_pretrained(tmp_path / str(vocabulary))
        lens.load(tmp_path / str(vocabulary), ranks=ranks)
        sent.clear()
        run = lens.run(models.PROMPT, 6, top_k=3, capture=ref.SITES, track=" a", ignore_eos=True)
        assert len(run.output_ids) == 6
        in_all.append(sum(sent))
    assert in_all[0] == in_all[1] > 0
