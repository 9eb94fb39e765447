"""Model families: a change at a site has the same effect as in plain transformers; what ranks keep; what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import models
import numpy as np
import once
import probes
import pytest
import reference as ref
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Phi3Config, Phi3ForCausalLM, PreTrainedModel

import lens_magic as lens
from lens_magic.model.adjust import kept_shapes
from lens_magic.model.anatomy import FAMILIES, part
from lens_magic.model.checkpoint import find
from lens_magic.model.experts import inner_bounds
from lens_magic.session import current

Checkpoints = Callable[[str], Path]
SEQUENCES = [[20, 41, 7, 133, 98, 250, 3, 77, 160], [91, 14, 222, 30]]  # side by side, the shorter padded on the left


@pytest.fixture(scope="session")
def plain(checkpoints: Checkpoints) -> Callable[[str], PreTrainedModel]:
    return lambda name: once.plain(checkpoints(name))[0]


@pytest.fixture(scope="session", params=(1, 2), ids=lambda count: f"{count}-ranks")
def ranks(request: pytest.FixtureRequest) -> int:
    """As in conftest.py, of which all families on more would take too long."""
    return int(request.param)


def test_every_family_is_tested(plain: Callable[[str], PreTrainedModel]) -> None:
    assert {plain(name).config.model_type for name in models.FAMILIES} == set(FAMILIES)


@pytest.mark.parametrize("name", models.FAMILIES)
def test_a_visit_changes_the_logits_as_a_plain_hook_does(
    name: str, ranks: int, checkpoints: Checkpoints, plain: Callable[[str], PreTrainedModel]
) -> None:
    model = plain(name)
    once.load(checkpoints(name), ranks)
    untouched = last_logits(model)
    for layer, site in [(0, site) for site in ref.SITES] + [(1, "resid_post")]:
        vector = torch.randn(current().require_model().width, generator=torch.Generator().manual_seed(layer))
        with ref.added(model, site, layer, vector):
            expected = last_logits(model)
        assert np.abs(expected - untouched).max() > 0.1, "the change has to change something"
        for got in current().group.call(probes.logits_with, SEQUENCES, site, layer, vector.tolist()):
            assert np.abs(got - expected).max() < 1e-4, site


def last_logits(model: PreTrainedModel) -> np.ndarray:
    """What follows each sequence, one by one: ``[sequence, vocabulary]``."""
    return np.stack([ref.output_logits(model, ids)[-1].numpy() for ids in SEQUENCES])


# --- what each rank keeps --------------------------------------------------------------------------------------------


def shapes(name: str, ranks: int, checkpoints: Checkpoints) -> list[Mapping[str, tuple[int, ...]]]:
    once.load(checkpoints(name), ranks)
    held: list[Mapping[str, tuple[int, ...]]] = current().group.call(probes.parameters)
    return held


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe"])
def test_experts_are_split_over_the_ranks(
    name: str, ranks: int, checkpoints: Checkpoints, plain: Callable[[str], PreTrainedModel]
) -> None:
    """All experts together: no more than their size and what evens out rows to whole 8s."""
    whole = {key: value.shape for key, value in plain(name).named_parameters() if ".experts." in key}
    experts = sum(shape.numel() for shape in whole.values())
    held = [{key: shape for key, shape in rank.items() if ".experts." in key} for rank in shapes(name, ranks, checkpoints)]
    counts = [sum(torch.Size(shape).numel() for shape in rank.values()) for rank in held]
    assert experts <= sum(counts) < 1.1 * experts
    assert max(counts) < 0.65 * experts or ranks == 1


@pytest.mark.parametrize("inner", [768, 14336, 76, 40, 9])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 8])
def test_slices_of_experts_cover_them(inner: int, count: int) -> None:
    bounds = inner_bounds(inner, count)
    assert (bounds[0], bounds[-1], len(bounds)) == (0, inner, count + 1)
    assert all(begin < end for begin, end in pairwise(bounds))
    if inner % 64 == 0 and inner >= 64 * count:
        assert all(bound % 64 == 0 for bound in bounds)


@pytest.mark.ranks(2)
@pytest.mark.parametrize("name", ["gpt2", "phi3", "olmo2", "qwen3-moe"])
def test_what_stays_whole_is_told(name: str, checkpoints: Checkpoints, plain: Callable[[str], PreTrainedModel]) -> None:
    held = shapes(name, 2, checkpoints)
    model = current().require_model()
    whole = {key: tuple(value.shape) for key, value in plain(name).named_parameters()}
    kept = {key: shape for key, shape in held[0].items() if whole.get(key) == shape}
    assert model.whole_bytes == sum(4 * torch.Size(shape).numel() for shape in kept.values())
    assert model.whole == FAMILIES[plain(name).config.model_type].whole
    blocks = {key for key, shape in kept.items() if ".layers." in key or ".h." in key}
    matrices = {key for key in blocks if len(whole[key]) > 1}
    assert all("gate.weight" in key for key in matrices), matrices  # routers alone
    assert bool(matrices) == ("routers" in model.whole)


@pytest.mark.parametrize("name", ["gpt2", "olmo2", "mixtral", "qwen3-moe"])
@pytest.mark.parametrize("ranks", [1, 3], scope="session")
def test_what_a_rank_will_keep_is_known_beforehand(
    name: str, ranks: int, checkpoints: Checkpoints, plain: Callable[[str], PreTrainedModel]
) -> None:
    model = plain(name)
    anatomy = FAMILIES[model.config.model_type]
    for rank, held in enumerate(shapes(name, ranks, checkpoints)):
        for layer, block in enumerate(part(model, anatomy.blocks)):
            prefix = f"{anatomy.blocks}.{layer}."
            got = {
                key.removeprefix(prefix).replace("share.", ""): shape for key, shape in held.items() if key.startswith(prefix)
            }
            told = kept_shapes(anatomy, block, rank, ranks)
            assert {key: got[key] for key in told} == told
            assert bool(told) == (ranks > 1 and (name != "qwen3-moe" or layer != 1))


# --- what is refused -------------------------------------------------------------------------------------------------


def changed(folder: Path, **settings: Any) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    return folder


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("opt", {"do_layer_norm_before": False}, "opt-350m.*those that normalise before a sublayer work"),
        ("opt", {"word_embed_proj_dim": 32}, "another width.*those of one width work"),
        ("gpt2", {"add_cross_attention": True}, "cross-attention.*those without it work"),
        ("gemma3-text", {"use_bidirectional_attention": True}, "both directions.*causal ones work"),
        ("llama-gqa", {"is_causal": False}, "both directions.*causal ones work"),
        ("gpt2", {"is_causal": False}, "both directions.*causal ones work"),
        ("gpt2", {"n_layer": "many"}, "not a configuration of a 'gpt2' model"),
        ("opt", {"model_type": "galactica"}, "'galactica' are not supported; supported are: llama"),
    ],
)
def test_a_model_its_row_is_not_true_of_is_refused(
    name: str, settings: dict[str, Any], words: str, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    folder = changed(models.build(name, tmp_path), **settings)
    once.load(checkpoints("llama-gqa"))
    for ranks in (1, 3):
        with pytest.raises(lens.LensError, match=words) as caught:
            find(str(folder), ranks)
        assert "\n" not in str(caught.value)
    with pytest.raises(lens.LensError, match=words):
        lens.load(str(folder))
    assert lens.status().model == str(checkpoints("llama-gqa"))


def test_experts_kept_in_one_tensor_are_read_on_one_rank(tmp_path: Path) -> None:
    folder = models.build("mixtral", tmp_path)
    models.create("mixtral").save_pretrained(folder, save_original_format=False)
    assert find(str(folder), 1).folder == folder
    with pytest.raises(lens.LensError, match=r"in one tensor, which can be read on 1 rank only; saved by .* it can be split"):
        find(str(folder), 2)


@pytest.mark.ranks(2)
def test_no_rank_ever_holds_all_experts(checkpoints: Checkpoints) -> None:
    """Not while loading either, and what was changed in transformers for it is put back."""
    lens.load(str(checkpoints("llama-gqa")), ranks=2)
    for seen in current().group.call(probes.experts_while_loading, find(str(checkpoints("mixtral")), 2)):
        assert seen == {(4, 2 * 40, 64), (4, 64, 40)}
    model, _ = models.load_plain(checkpoints("mixtral"))
    assert model.model.layers[0].mlp.experts.down_proj.shape == (4, 64, 76)


def test_settings_left_out_are_the_familys_own(checkpoints: Checkpoints, tmp_path: Path) -> None:
    folder = models.build("gpt2", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config.pop("n_positions")
    (folder / "config.json").write_text(json.dumps(config))
    found = find(str(folder), 2)
    assert found.context == 1024


@pytest.mark.parametrize("name", ["gpt2", "phi3", "qwen3-moe", "gemma3-sees"])
def test_more_ranks_than_heads_are_refused(name: str, checkpoints: Checkpoints) -> None:
    with pytest.raises(lens.LensError, match=r"attention heads; 1 to [4-6] ranks work"):
        find(str(checkpoints(name)), 7)


@pytest.mark.parametrize("name", ["gemma3-sees", "opt", "gpt2"])
def test_a_model_in_memory_of_any_family(name: str, checkpoints: Checkpoints) -> None:
    model, tokenizer = models.load_plain(checkpoints(name))
    lens.attach(model, tokenizer)
    run = lens.run(models.PROMPT, 5, ignore_eos=True)
    assert run.output_ids == ref.generate_ids(model, run.prompt_ids, 5)


@pytest.mark.parametrize("part", ["model.layers.1", "model"])
def test_a_model_that_is_not_on_one_device_is_refused(part: str, checkpoints: Checkpoints) -> None:
    """As accelerate's device_map="auto" leaves it; head and captured states would be on one of its devices."""
    model, tokenizer = models.load_plain(checkpoints("llama-gqa"))
    lens.attach(model, tokenizer)
    before = current().model
    other, _ = models.load_plain(checkpoints("llama-gqa"))
    other.get_submodule(part).to("meta")
    with pytest.raises(lens.LensError, match=r"weights are on (cpu and )?meta; attach takes one that is on a single device"):
        lens.attach(other, tokenizer)
    assert current().model is before
    assert lens.generate("To be", 2, ignore_eos=True).output_ids


@pytest.mark.parametrize(
    ("name", "rope", "stated"),
    [
        # Users of Qwen models switch it on in the configuration, which goes on to name the shorter length.
        ("qwen3-odd", {"rope_type": "yarn", "original_max_position_embeddings": 24}, {}),
        # As Vicunas of 16k and LongChats do.
        ("llama-gqa", {"rope_type": "linear"}, {"max_sequence_length": 48}),
    ],
)
def test_rope_stretches_the_context(name: str, rope: dict[str, Any], stated: dict[str, int], checkpoints: Checkpoints) -> None:
    stretched = {"rope_theta": 1e4, "factor": 2.0, **rope}
    config = AutoConfig.from_pretrained(checkpoints(name), max_position_embeddings=32, rope_parameters=stretched)
    for key, length in stated.items():  # transformers, which does not know it, keeps it from a file only
        setattr(config, key, length)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    lens.attach(model, AutoTokenizer.from_pretrained(checkpoints(name)))
    run = lens.run("To be", 36, ignore_eos=True)
    assert len(run.prompt_ids) + 36 > 32
    assert run.output_ids == ref.generate_ids(model, run.prompt_ids, 36)
    with pytest.raises(lens.LensError, match="context of 48"):
        lens.run("To be", 60)


def test_long_rope_ends_where_its_other_factors_begin(checkpoints: Checkpoints) -> None:
    """Beyond, the whole text would have to be read anew; up to there a cached step is what an uncached forward is."""
    long = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [3.0] * 8}
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 297}
    ends = {"max_position_embeddings": 64, "original_max_position_embeddings": 16}
    config = Phi3Config(**shape, **ends, rope_parameters=long, pad_token_id=0, bos_token_id=None, eos_token_id=None)
    torch.manual_seed(0)
    model = Phi3ForCausalLM(config).eval()
    lens.attach(model, AutoTokenizer.from_pretrained(checkpoints("phi3")))
    run = lens.run("To be", 12, ignore_eos=True)
    room = 16 - len(run.prompt_ids) + 1
    ids = list(run.prompt_ids)
    with torch.inference_mode():
        for token in lens.generate("To be", room, ignore_eos=True).output_ids:
            assert token == int(model(torch.tensor([ids])).logits[0, -1].argmax())
            ids.append(token)
    with pytest.raises(lens.LensError, match=f"context of 16; at most {room} new ones fit"):
        lens.run("To be", room + 1)


@pytest.mark.parametrize("name", models.FAMILIES)
def test_whether_torch_attends_is_known(name: str) -> None:
    """What a forward needs is estimated from it."""
    from lens_magic.model.anatomy import anatomy_of

    model = models.create(name)
    assert anatomy_of(model.config.model_type, model.config).has_sdpa == model._supports_sdpa
