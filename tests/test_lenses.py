"""Tuned lenses, bases, frozen norms and tracked tokens against brute force with plain transformers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import models
import numpy as np
import once
import pytest
import reference as ref
import torch
from safetensors.torch import save_file

import lens_magic as lens
from lens_magic.lens import tune
from lens_magic.lens.projector import LENS
from lens_magic.lens.tracking import Tracked
from lens_magic.model.load import MODEL
from lens_magic.session import current
from lens_magic.view.data import drawn

TOKENS = 6
Checkpoints = Callable[[str], Path]


@pytest.fixture(scope="session", params=(1, 2, 3), ids=lambda count: f"{count}-ranks")
def ranks(request: pytest.FixtureRequest) -> int:
    """As in conftest.py, less the largest."""
    return int(request.param)


def loaded(folder: Path, ranks: int) -> Any:
    """The checkpoint on the ranks, and its plain model."""
    once.load(folder, ranks)
    return once.plain(folder)[0]


def brute(model: Any, run: lens.LensRun) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """States [layer, position, d] by site, and the last layer's output [position, d], of a plain forward."""
    ids, layers = run.prompt_ids + run.output_ids, list(range(model.config.num_hidden_layers))
    found = ref.states(model, ids, len(run.prompt_ids), run.sites, run.layers, run.positions)
    return found, ref.states(model, ids, len(run.prompt_ids), ["resid_post"], layers[-1:], run.positions)["resid_post"][0]


def whole_logits(run: lens.LensRun) -> np.ndarray:
    """[site, layer, position, vocabulary] of a run whose k is the whole of it."""
    ids, values = run.variables["token_id"], run.variables["logit"]
    out = np.empty_like(values)
    np.put_along_axis(out, ids, values, -1)
    return out


# --- followed tokens ---------------------------------------------------------------------------------------------------


def check_tracked(run: lens.LensRun, logits: np.ndarray) -> None:
    """What is said of followed tokens, against all logits [site, layer, position, vocabulary]."""
    ids = run.variables["tracked_id"]
    there = np.broadcast_to(ids >= 0, run.variables["tracked_logit"].shape)
    at = np.broadcast_to(np.maximum(ids, 0), there.shape)
    own = np.take_along_axis(logits, at, -1)
    prob = np.exp(np.take_along_axis(ref.log_softmax(logits), at, -1))
    assert np.abs(run.variables["tracked_logit"] - own)[there].max() < 1e-3
    assert np.abs(run.variables["tracked_prob"] - prob)[there].max() < 1e-4
    near = (np.abs(logits[..., None, :] - own[..., None]) <= 1e-3).sum(-1) - 1  # these may fall on either side
    above = (logits[..., None, :] > own[..., None]).sum(-1)
    assert (np.abs(run.variables["tracked_rank"] - above) <= near)[there].all()
    assert np.isnan(run.variables["tracked_prob"][~there]).all()
    assert (run.variables["tracked_rank"][~there] == -1).all()


@pytest.mark.parametrize("name", ["llama-odd-vocab", "gemma2"])
def test_chosen_tokens_are_followed_exactly(name: str, ranks: int, checkpoints: Checkpoints) -> None:
    model = loaded(checkpoints(name), ranks)
    vocabulary = model.config.vocab_size
    edges = [0, vocabulary // 3, vocabulary // 2 - 1, vocabulary // 2, vocabulary - 1]  # where shards begin and end
    run = lens.run(models.PROMPT, TOKENS, capture=ref.SITES, prompt_tokens=True, ignore_eos=True, track=[*edges, " point"])
    data = run.to_xarray()
    assert data["tracked"].values.tolist()[:5] == edges
    assert run.token_texts[int(data["tracked"][5])] == " point"
    assert data["tracked_prob"].dims == ("site", "layer", "position", "tracked")
    states, _ = brute(model, run)
    check_tracked(run, np.stack([ref.state_logits(model, states[site]).numpy() for site in run.sites]))


@pytest.mark.parametrize("sites", [("attn_out", "mlp_out", "resid_post"), ("mlp_out", "attn_out")])
def test_tokens_ranked_first_are_followed(
    sites: tuple[str, ...], ranks: int, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the stream where it was captured, else in any cell; the last layer's output is no cell unless it was captured."""
    from lens_magic.lens import chosen, decode

    model = loaded(checkpoints("llama-8heads"), ranks)
    monkeypatch.setattr(chosen, "MOST_FIRST", 3)
    if ranks == 1:
        monkeypatch.setattr(decode, "_MOST_POSITIONS", 4)  # so that positions come in several blocks
    run = lens.run(models.PROMPT, TOKENS, capture=sites, prompt_tokens=True, ignore_eos=True, track=True)
    states, _ = brute(model, run)
    logits = np.stack([ref.state_logits(model, states[site]).numpy() for site in run.sites])
    own = logits[sites.index("resid_post")][None] if "resid_post" in sites else logits[::-1]  # of the last layer the first site
    leaders = own.argmax(-1).reshape(-1, len(run.positions))  # [cell, position]
    several = 0
    for row, ids in enumerate(run.variables["tracked_id"].tolist()):
        counted = Counter(leaders[:, row].tolist())
        order = sorted(counted, key=lambda token: (token != leaders[-1, row], -counted[token], token))
        assert [token for token in ids if token >= 0] == order[:3]
        several += len(order) > 3
    assert several  # else the limit was not tried
    check_tracked(run, logits)


def test_of_tokens_tied_for_the_first_place_the_lower_is_followed_whichever_rank_has_it() -> None:
    """And of numbers that are not finite none is first."""
    key, head = ("resid_post", 0), SimpleNamespace(offset=0)
    logits = torch.tensor([[0.0, 2.0, 1.0], [0.0, torch.inf, 1.0], [-torch.inf, -torch.inf, -torch.inf]])
    for own, other in ((0, 100), (100, 0)):
        apart = torch.tensor([[[0, own]], [[0, other]]])
        both = SimpleNamespace(all_gather=lambda found, apart=apart: found + apart)
        followed = Tracked.ranked_first(both, head, [key], [logits], 3, 2, [key])  # type: ignore[arg-type]
        assert followed.ids.tolist() == [[1, -1], [-1, -1], [-1, -1]]


def test_followed_tokens_survive_saving_and_make_a_table(checkpoints: Checkpoints, tmp_path: Path) -> None:
    once.load(checkpoints("llama-gqa"))
    for track, name in ((" point, the", "chosen"), (True, "first")):
        run = lens.run(models.PROMPT, TOKENS, ignore_eos=True, track=track)
        for ending in (".nc", ".zarr"):
            again = lens.open_run(run.save(tmp_path / f"{name}{ending}"))
            assert again.variables.keys() == run.variables.keys()
            for variable, values in run.variables.items():
                assert np.array_equal(again.variables[variable], values, equal_nan=variable.startswith("tracked_")), variable
                assert again.variables[variable].dtype == values.dtype
            assert again.to_xarray().identical(run.to_xarray())
            assert dict(again.options) == dict(run.options)
        table = run.tracked_to_pandas()
        assert len(table) == int((run.variables["tracked_id"] >= 0).sum()) * len(run.sites) * len(run.layers)
        row = table[(table.site == "mlp_out") & (table.layer == 2) & (table.position == 1)].iloc[0]
        data = run.to_xarray().sel(site="mlp_out", layer=2, position=1)
        at = run.variables["tracked_id"][1].tolist().index(row.token_id)
        assert row.prob == pytest.approx(float(data["tracked_prob"][at]))
        assert row["rank"] == int(data["tracked_rank"][at])
        assert row.token == run.token_texts[row.token_id]
    with pytest.raises(lens.LensError, match="no tokens were tracked"):
        lens.run(models.PROMPT, 2).tracked_to_pandas()


def test_what_cannot_be_followed_is_refused(checkpoints: Checkpoints) -> None:
    once.load(checkpoints("llama-gqa"))
    assert lens.run(models.PROMPT, 1, track="id:7, id:9").variables["tracked_id"].tolist() == [[7, 9]]
    assert lens.run(models.PROMPT, 1, track=np.array([7, 5])).options["track"] == [7, 5]
    for one in (np.array(7), torch.tensor(7)):
        assert lens.run(models.PROMPT, 1, track=one).options["track"] == [7]
    for track, words in (
        (" xylophone", "is 10 tokens .*, ….*only single tokens can be tracked"),
        ("point", r"with a space before it, ' point', it is one"),
        ("", "empty text"),
        ([320], "320 is out of range; ids go from 0 to 319"),
        ([-1], "out of range"),
        ([1.5], "not float"),
        ([True], "not bool"),
        (1.5, "not float"),
        (b"a", "not bytes"),
        ({7: 1}, "not dict"),
        (f"id:{'9' * 5000}", "only single tokens can be tracked"),
        ("id:²", "only single tokens can be tracked"),
        (list(range(65)), "at most 64"),
        (object(), "not object"),
    ):
        with pytest.raises(lens.LensError, match=words) as refused:
            lens.run(models.PROMPT, 1, track=track)
        assert "\n" not in str(refused.value)


# --- settled layers ----------------------------------------------------------------------------------------------------


def test_settled_layers(checkpoints: Checkpoints) -> None:
    model = loaded(checkpoints("llama-gqa"), 1)
    run = lens.run(models.PROMPT, TOKENS, layers="1,2,3", ignore_eos=True, prompt_tokens=True)
    states, _ = brute(model, run)
    best = ref.state_logits(model, states["resid_post"]).argmax(-1)  # [layer, position]
    following = (run.prompt_ids + run.output_ids)[1:]
    for row, token in enumerate(following):
        right = [int(best[at, row]) == token for at in range(3)]
        firsts = [layer for at, layer in enumerate(run.layers) if right[at]]
        stays = [layer for at, layer in enumerate(run.layers) if all(right[at:])]
        assert run.first_layer[row] == (firsts[0] if firsts else -1)
        assert run.settled[row] == (stays[0] if stays else -1)
    assert (run.settled[-TOKENS:] >= 0).all()  # greedy: the last layer's token is the emitted one
    assert (run.settled == -1).any()
    assert run.to_xarray()["settled_layer"].values.tolist() == run.settled.tolist()
    without = lens.run(models.PROMPT, 2, capture="mlp_out")
    assert "settled_layer" not in without.to_xarray().variables
    with pytest.raises(lens.LensError, match="read from resid_post"):
        _ = without.settled


def test_a_settled_layer_is_the_last_change_of_mind() -> None:
    """A token that is first, loses its place and regains it settles when it regains it."""
    ranks = np.array([[0, 3, 0], [2, 0, 0], [0, 1, 0], [0, 0, 5]])  # [layer, position]
    axes: Any = (["resid_post"], [2, 4, 6, 8], [0, 1, 2])
    run = lens.LensRun("", [1], [], "", *axes, {"target_rank": ranks[None]}, {}, provenance={"model_layers": 9})
    assert run.settled.tolist() == [6, 8, -1]
    assert run.first_layer.tolist() == [2, 4, 2]


def test_without_the_models_last_layer_nothing_settles(checkpoints: Checkpoints) -> None:
    model = loaded(checkpoints("llama-gqa"), 1)
    depth = model.config.num_hidden_layers
    run = lens.run(models.PROMPT, TOKENS, layers=f"0-{depth - 2}", ignore_eos=True, prompt_tokens=True)
    assert (run.first_layer >= 0).any()
    assert (run.settled == -1).all()
    assert (run.to_xarray()["settled_layer"] == -1).all()
    assert run.depth == run.to_xarray().attrs["model_layers"] == depth


def test_a_file_without_the_number_of_layers_tells_the_output_by_its_kl(tmp_path: Path, checkpoints: Checkpoints) -> None:
    loaded(checkpoints("llama-gqa"), 1)
    for layers, whole in (("1-", True), ("0-1", False)):
        run = lens.run(models.PROMPT, TOKENS, layers=layers, ignore_eos=True)
        told = {name: value for name, value in run.provenance.items() if name != "model_layers"}
        old = lens.open_run(replace(run, provenance=told).save(tmp_path / f"{whole}.nc"))
        assert old.depth == (run.depth if whole else 0)
        assert old.settled.tolist() == run.settled.tolist()
        assert (old.settled >= 0).any() == whole


# --- a basis -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "norm"), [(7, "own"), (2, "own"), (5, "none"), (400, "frozen"), (2, "frozen")])
def test_a_basis_in_place_of_the_vocabulary(count: int, norm: str, ranks: int, checkpoints: Checkpoints) -> None:
    model = loaded(checkpoints("qwen3-gqa"), ranks)
    matrix = torch.randn(count, 96, generator=torch.Generator().manual_seed(count)) / 10
    basis = lens.Basis(matrix.numpy(), [f"way {row}" for row in range(count)], name="ways")
    sites = [site for site in ref.SITES if site != "post_ln"]
    run = lens.run(models.PROMPT, TOKENS, capture=sites, ignore_eos=True, lens=basis, norm=norm, track=["way 1"])
    states, final = brute(model, run)
    gain, eps = model.model.norm.weight.float(), model.model.norm.variance_epsilon

    def seen(h: torch.Tensor) -> np.ndarray:
        if norm == "frozen":
            return ((gain * h / (final.square().mean(-1, keepdim=True) + eps).sqrt()) @ matrix.T).detach().numpy()
        return ((model.model.norm(h) if norm == "own" else h) @ matrix.T).detach().numpy()

    logits = np.stack([seen(states[site]) for site in sites])
    expected = {
        **ref.cells(logits, seen(final), np.zeros(TOKENS, dtype=int), min(5, count)),
        "site": np.array(sites),
        "layer": np.array(run.layers),
        "position": np.array(run.positions),
        "all_logits": logits,
        "target": np.zeros(TOKENS, dtype=int),
    }
    variables = ("token_id", "logit", "prob", "prob_topk", "entropy", "kl_final")
    ref.compare(run.to_xarray(), expected, ref.Tolerance(tie=2e-4, kl=2e-3), variables)
    assert (run.variables["target_rank"] == -1).all()
    assert np.isnan(run.variables["target_prob"]).all()
    assert (run.settled == -1).all()
    check_tracked(run, logits)
    assert set(run.to_pandas()["token"]) <= set(basis.labels)
    assert run.token_texts.keys() == {*run.prompt_ids, *run.output_ids}
    assert run.options["lens"]["name"] == "ways"


def test_a_lens_on_the_ranks_goes_with_its_model(checkpoints: Checkpoints) -> None:
    loaded(checkpoints("qwen3-gqa"), 1)
    lens.run(models.PROMPT, 2, lens=lens.Basis(np.eye(3, 96), ["a", "b", "c"]))
    kept = current().group.rank.store
    assert LENS in kept
    lens.run(models.PROMPT, 2)
    assert LENS not in kept  # nor is it kept for nothing
    lens.run(models.PROMPT, 2, lens=lens.Basis(np.eye(3, 96), ["a", "b", "c"]))
    loaded(checkpoints("llama-gqa"), 1)
    assert len(kept) == 1
    assert MODEL in kept


@pytest.mark.parametrize("of", [torch.from_numpy, np.asarray])
def test_a_basis_keeps_its_directions_whatever_becomes_of_those_given(of: Callable[[np.ndarray], Any]) -> None:
    given = np.eye(2, 4, dtype=np.float32)
    basis = lens.Basis(of(given))
    given[:] = 7
    assert basis.matrix.tolist() == np.eye(2, 4).tolist()


def test_as_many_candidates_as_directions(checkpoints: Checkpoints) -> None:
    """Which may be more than there are tokens."""
    once.load(checkpoints("llama-gqa"))
    basis = lens.Basis(np.random.default_rng(0).normal(size=(330, 128)))
    assert lens.run(models.PROMPT, 1, top_k=330, lens=basis).variables["token_id"].shape[-1] == 330
    with pytest.raises(lens.LensError, match=r"top-k 331 is out of range; 1 to 330 \(the basis\) would do"):
        lens.run(models.PROMPT, 1, top_k=331, lens=basis)


def ids(run: Any) -> list[int]:
    return [int(index) for index in run.variables["token_id"].ravel()]


def test_a_basis_is_saved_drawn_and_refused(checkpoints: Checkpoints, tmp_path: Path) -> None:
    once.load(checkpoints("llama-gqa"))
    hostile = "<script>alert(1)</script>"
    basis = lens.Basis(torch.eye(128)[:3], ["up", hostile, "strange"], name="quarks")
    path = basis.save(tmp_path / "quarks.safetensors")
    again = lens.load_basis(path)
    assert (again.labels, again.name, again.digest) == (basis.labels, basis.name, basis.digest)
    run = lens.run(models.PROMPT, 3, lens=path, ignore_eos=True)
    assert set(run.labels.values()) <= set(basis.labels)
    opened = lens.open_run(run.save(tmp_path / "run.nc"))
    assert dict(opened.labels) == dict(run.labels)
    page = run.to_html(tmp_path / "run.html").read_text(encoding="utf-8")
    assert "strange" in page
    # Two runs are matched by these numbers; the tokens that occur in them differ.
    other = lens.run("Grind", 2, lens=basis, ignore_eos=True)
    texts = [{index: drawn(one).token_texts[index] for index in set(ids(drawn(one)))} for one in (run, other)]
    assert texts[0] == texts[1]
    assert set(texts[0].values()) == set(basis.labels)
    for named in ([2], "strange"):
        (line,) = run.plot("trajectories", position=0, tokens=named).axes[0].lines
        assert line.get_label() == "strange"
        assert np.isfinite(line.get_ydata()).all()
    with pytest.raises(lens.LensError, match="direction 3 does not occur in this run"):
        run.plot("trajectories", position=0, tokens=[3])
    assert hostile not in page
    from lens_magic.view.terminal import table_text

    assert any(label[:7] in table_text(run) for label in ("up", "strange"))
    for wrong, words in (
        (lambda: lens.Basis(torch.zeros(3)), r"matrix \[directions, width\]; this has shape \[3\]"),
        (lambda: lens.Basis(torch.zeros(0, 3)), "shape"),
        (lambda: lens.Basis([["a"]]), "matrix of numbers"),
        (lambda: lens.Basis(torch.full((1, 2), float("nan"))), "not finite"),
        (lambda: lens.Basis(torch.ones(1, 2) * 1j), "of real numbers, not of complex ones"),
        (lambda: lens.Basis(torch.ones(2, 2), ["a", "\ud83d"]), "'.ud83d' holds half a character"),
        (lambda: lens.Basis(torch.ones(2, 2), {"a": 1, "b": 2}), "2 directions and .* as labels"),
        (lambda: lens.Basis(torch.zeros(3, 4), ["a"]), "3 directions and 1 labels"),
        (lambda: lens.Basis(torch.zeros(3, 4), "abc"), "3 directions and 'abc' as labels; a list of 3 texts would do"),
        (lambda: lens.Basis(torch.zeros(3, 4), 5), "3 directions and '5' as labels"),
        (lambda: lens.run("a lens", lens=lens.Basis(torch.zeros(3, 4))), "width 4; .* has width 128"),
        (lambda: lens.run("a lens", lens=basis, track="down"), "no direction is labelled 'down'"),
        (lambda: lens.run("a lens", lens=basis, track=[3]), "ids go from 0 to 2"),
        (lambda: lens.run("a lens", lens=torch.eye(128)), "takes a TunedLens, a Basis, or a path"),
        (lambda: lens.run("a lens", norm="none"), "norm 'none' is for a Basis"),
        (lambda: lens.run("a lens", norm="cold"), "norm 'cold' is not one of own, frozen, none"),
        (lambda: lens.load_basis(tmp_path / "none.safetensors"), "there is no file"),
        (lambda: lens.run("a lens", lens=tmp_path / "none"), "no such file or folder"),
    ):
        with pytest.raises(lens.LensError, match=words):
            wrong()


# --- the frozen norm ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama-gqa", "gemma2", "qwen2-bias"])
def test_components_add_up_under_the_frozen_norm(name: str, ranks: int, checkpoints: Checkpoints) -> None:
    """Embedding + Σ attn_out + Σ mlp_out = the output's logits, before any soft-cap."""
    model = loaded(checkpoints(name), ranks)
    vocabulary = model.config.vocab_size
    sites = ["resid_pre", "attn_out", "mlp_out", "resid_post"]
    run = lens.run(models.PROMPT, TOKENS, capture=sites, top_k=vocabulary, norm="frozen", ignore_eos=True)
    logits = whole_logits(run).astype(np.float64)
    cap = getattr(model.config, "final_logit_softcapping", None)
    if cap:
        for stream in (0, 3):
            logits[stream] = cap * np.arctanh(logits[stream] / cap)
    _, final = brute(model, run)
    output = model.model.norm(final) @ model.lm_head.weight.T
    summed = logits[0, 0] + logits[1].sum(0) + logits[2].sum(0)
    scale = float(output.detach().abs().max())
    assert np.abs(summed - output.detach().numpy()).max() < 1e-4 * scale
    assert np.abs(logits[0] + logits[1] + logits[2] - logits[3]).max() < 1e-4 * scale
    assert run.variables["kl_final"][3, -1].max() < 1e-5  # the stream after the last layer is the output
    own = lens.run(models.PROMPT, TOKENS, capture=sites, top_k=vocabulary, ignore_eos=True)
    assert np.abs(whole_logits(own)[1] - logits[1]).max() > 1e-2 * scale  # and the two norms do differ


def test_the_last_output_is_the_models_own_in_16_bits_too(checkpoints: Checkpoints) -> None:
    """The module's norm rounds there, and the norm taken apart does not."""
    once.load(checkpoints("llama-bf16"))
    own, frozen = (
        lens.run(models.PROMPT, TOKENS, capture="resid_post", layers="0,-1", top_k=320, norm=norm, ignore_eos=True)
        for norm in ("own", "frozen")
    )
    assert np.abs(whole_logits(frozen)[0, -1] - whole_logits(own)[0, -1]).max() < 1e-5
    assert frozen.variables["kl_final"][0, -1].max() < 1e-6


def test_constants_are_counted_with_the_stream(checkpoints: Checkpoints) -> None:
    """A LayerNorm that centres and adds, and a head that adds: components come without, the stream with what is added."""
    model, tokenizer = models.load_plain(checkpoints("llama-odd-vocab"))
    random = torch.Generator().manual_seed(3)
    norm, head = torch.nn.LayerNorm(64), torch.nn.Linear(64, 331)
    head.weight.data = model.lm_head.weight.data
    for parameter in (norm.weight, norm.bias, head.bias):
        parameter.data = torch.randn(parameter.shape, generator=random)
    model.model.norm, model.lm_head = norm, head
    lens.attach(model.requires_grad_(False), tokenizer)
    sites = ["resid_pre", "attn_out", "mlp_out", "resid_post"]
    run = lens.run(models.PROMPT, TOKENS, capture=sites, top_k=331, norm="frozen", ignore_eos=True)
    logits = whole_logits(run).astype(np.float64)
    states, final = brute(model, run)
    output = head(norm(final)).numpy()
    assert np.abs(logits[0, 0] + logits[1].sum(0) + logits[2].sum(0) - output).max() < 1e-4 * np.abs(output).max()
    assert np.abs(logits[3, -1] - output).max() < 1e-4 * np.abs(output).max()
    added = states["attn_out"] - states["attn_out"].mean(-1, keepdim=True)
    expected = (added / (final.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt() * norm.weight) @ head.weight.T
    assert np.abs(logits[1] - expected.numpy()).max() < 1e-3


def test_norms_are_taken_apart() -> None:
    from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm
    from transformers.models.olmo.modeling_olmo import OlmoLayerNorm

    from lens_magic.lens.norms import take_apart

    torch.manual_seed(0)
    modules = [LlamaRMSNorm(24, eps=1e-3), Gemma2RMSNorm(24, eps=1e-2), OlmoLayerNorm(24), torch.nn.LayerNorm(24, eps=1e-4)]
    states = torch.randn(5, 24) * 3 + 1
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
        for module in modules:
            for parameter in module.parameters():
                torch.nn.init.normal_(parameter)
            module.to(dtype)
            norm = take_apart(module, 24, torch.device("cpu"), dtype)
            expected = module(states.to(dtype)).float()
            assert float((norm(states.to(dtype)) - expected).detach().abs().max()) <= tolerance * float(
                expected.detach().abs().max()
            )
            other = norm.divided(states, norm.scale(states)) + norm.divided(states.flip(0), norm.scale(states))
            assert torch.allclose(norm.divided(states + states.flip(0), norm.scale(states)), other, atol=1e-4)
            module.float()
    # Gain and gain less one are within 16 bits' rounding of each other where one gain is large.
    plain = torch.nn.RMSNorm(24)  # whose eps is that of the states' type
    norm = take_apart(plain, 24, torch.device("cpu"), torch.float32)
    assert torch.allclose(norm(states / 1000), plain(states / 1000), atol=1e-4)
    gemma = Gemma2RMSNorm(24)
    torch.nn.init.normal_(gemma.weight)
    gemma.weight.data[0] = 400
    norm = take_apart(gemma.to(torch.bfloat16), 24, torch.device("cpu"), torch.bfloat16)
    assert torch.equal(norm.gain, 1 + gemma.weight.detach().float())
    with pytest.raises(lens.LensError, match="neither an RMSNorm nor a LayerNorm"):
        take_apart(torch.nn.Tanh(), 24, torch.device("cpu"), torch.float32)


def test_a_norm_taken_apart_computes_in_32_bits_and_is_none_that_only_resembles_one() -> None:
    from lens_magic.lens.norms import take_apart

    module = torch.nn.LayerNorm(24).to(torch.bfloat16)
    states = (100 + 3 * torch.randn(5, 24, generator=torch.Generator().manual_seed(0))).to(torch.bfloat16)
    norm = take_apart(module, 24, torch.device("cpu"), torch.bfloat16)
    expected = torch.nn.functional.layer_norm(states.float(), (24,))
    torch.testing.assert_close(norm(states), expected, rtol=1e-4, atol=1e-4)

    class Larger(torch.nn.RMSNorm):
        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return 1.1 * super().forward(states)

    for dtype in (torch.float32, torch.bfloat16):
        with pytest.raises(lens.LensError, match="neither an RMSNorm nor a LayerNorm"):
            take_apart(Larger(24, eps=1e-6).to(dtype), 24, torch.device("cpu"), dtype)


def test_what_has_no_frozen_norm_is_refused(checkpoints: Checkpoints) -> None:
    once.load(checkpoints("llama-gqa"))
    with pytest.raises(lens.LensError, match="post_ln is no part of the residual stream"):
        lens.run(models.PROMPT, 1, capture="post_ln", norm="frozen")
    with pytest.raises(lens.LensError, match="leave norm 'frozen' or the lens out"):
        lens.run(models.PROMPT, 1, norm="frozen", lens=random_lens(128, 4))


# --- the tuned lens ----------------------------------------------------------------------------------------------------


def random_lens(width: int, layers: int, **more: Any) -> lens.TunedLens:
    random = torch.Generator().manual_seed(width + layers)
    weights = [torch.randn(width, width, generator=random) / width**0.5 / 2 for _ in range(layers)]
    return lens.TunedLens(weights, [torch.randn(width, generator=random) / 4 for _ in range(layers)], **more)


@pytest.mark.parametrize("name", ["llama-odd-vocab", "gemma2"])
def test_translators_are_applied_where_they_belong(name: str, ranks: int, checkpoints: Checkpoints) -> None:
    """Translator i is for the input of block i: `hidden_states[i]` of transformers."""
    model = loaded(checkpoints(name), ranks)
    layers = model.config.num_hidden_layers
    tuned = random_lens(64, layers)
    run = lens.run(models.PROMPT, TOKENS, capture=ref.SITES, prompt_tokens=True, ignore_eos=True, lens=tuned)
    states, final = brute(model, run)

    def translated(h: torch.Tensor, index: int) -> torch.Tensor:
        return h + torch.nn.functional.linear(h, tuned.weights[index], tuned.biases[index])

    before = torch.stack([translated(states["resid_pre"][i], i) for i in range(layers)])
    after = torch.stack([translated(states["resid_post"][i], i + 1) for i in range(layers - 1)] + [states["resid_post"][-1]])
    seen = {**states, "resid_pre": before, "resid_post": after}
    logits = np.stack([ref.state_logits(model, seen[site]).numpy() for site in run.sites])
    targets = np.array((run.prompt_ids + run.output_ids)[1:])
    expected = {
        **ref.cells(logits, ref.state_logits(model, final).numpy(), targets, 5),
        "site": np.array(run.sites),
        "layer": np.array(run.layers),
        "position": np.array(run.positions),
        "all_logits": logits,
        "target": targets,
    }
    ref.compare(run.to_xarray(), expected, ref.SHARDED)
    # The ranks hold it by now; with other sites and layers they keep other states, and another lens comes between.
    opposite = lens.TunedLens([-weight for weight in tuned.weights], tuned.biases)
    probs = []
    for one in (tuned, opposite, tuned):
        again = lens.run(models.PROMPT, TOKENS, capture="resid_post", layers="1,-1", ignore_eos=True, lens=one)
        probs.append(again.variables["prob"])
    whole = run.variables["prob"][-1:, [1, -1], -TOKENS:]
    assert np.allclose(probs[0], whole, atol=1e-4)
    assert not np.allclose(probs[1], whole, atol=1e-2)
    assert np.array_equal(probs[2], probs[0])


def test_translators_are_applied_in_32_bits_to_states_of_16(checkpoints: Checkpoints) -> None:
    model = loaded(checkpoints("llama-bf16"), 1)
    width, layers = model.config.hidden_size, model.config.num_hidden_layers
    tuned = random_lens(width, layers)
    run = lens.run(models.PROMPT, TOKENS, capture="resid_pre", top_k=model.config.vocab_size, ignore_eos=True, lens=tuned)
    states = run.activations("resid_pre").float()
    seen = [h + h @ weight.T + bias for h, weight, bias in zip(states, tuned.weights, tuned.biases, strict=True)]
    with torch.no_grad():
        expected = model.lm_head(model.model.norm(torch.stack(seen).to(torch.bfloat16))).float().numpy()
    assert np.abs(whole_logits(run)[0] - expected).max() < 1e-2 * np.abs(expected).max()


def test_a_tuned_lens_may_be_used_on_other_layers_next(checkpoints: Checkpoints) -> None:
    """Of the translators the ranks keep those of the states of the last run."""
    once.load(checkpoints("llama-gqa"))
    tuned, found = random_lens(128, 4), {}
    for layers in (range(1), range(2, 4), range(1, 2), range(4)):
        run = lens.run(models.PROMPT, TOKENS, layers=layers, capture="resid_pre", ignore_eos=True, lens=tuned)
        found[layers] = run.variables["entropy"]
    for layers, entropy in found.items():
        np.testing.assert_allclose(entropy, found[range(4)][:, list(layers)], rtol=1e-4, atol=1e-5)


@pytest.mark.ranks(2)
def test_prompts_side_by_side_are_seen_as_one_by_one(checkpoints: Checkpoints) -> None:
    once.load(checkpoints("llama-gqa"), 2)
    prompts, tuned = [models.PROMPT, "A lamp"], random_lens(128, 4)
    for how in ({"lens": tuned, "track": True}, {"norm": "frozen", "track": " point"}):
        together = lens.run(prompts, 4, prompt_tokens=True, ignore_eos=True, **how)
        for prompt, run in zip(prompts, together, strict=True):
            alone = lens.run(prompt, 4, prompt_tokens=True, ignore_eos=True, **how)
            assert run.output_ids == alone.output_ids
            assert (run.variables["tracked_id"] == alone.variables["tracked_id"]).all()
            for name in ("prob", "tracked_logit", "kl_final"):
                assert np.allclose(run.variables[name], alone.variables[name], atol=2e-3, equal_nan=True), name


def test_the_tuned_lens_projects_format(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """The layout of that project's folders, with `params.pt` converted."""
    once.load(checkpoints("llama-gqa"))
    theirs = random_lens(128, 4)
    tensors = {f"{i}.weight": theirs.weights[i].half() for i in range(4)} | {
        f"{i}.bias": theirs.biases[i].half() for i in range(4)
    }
    save_file(tensors, tmp_path / "params.safetensors")
    config = {
        "base_model_name_or_path": "some/model",
        "d_model": 128,
        "num_hidden_layers": 4,
        "bias": True,
        "unembed_hash": "x",
    }
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for path in (tmp_path, tmp_path / "params.safetensors"):
        tuned = lens.load_tuned_lens(path)
        assert (tuned.width, tuned.layers, tuned.model, tuned.fingerprint) == (128, 4, "some/model", "")
        assert torch.allclose(tuned.weights[2], theirs.weights[2], atol=1e-3)
        assert torch.allclose(tuned.biases[3], theirs.biases[3], atol=1e-3)
    by_path = lens.run(models.PROMPT, 2, lens=str(tmp_path))
    assert (by_path.variables["prob"] == lens.run(models.PROMPT, 2, lens=tuned).variables["prob"]).all()


@pytest.mark.parametrize("target", ["folder", "file.safetensors"])
def test_saving_a_tuned_lens_loses_nothing(target: str, tmp_path: Path) -> None:
    tuned = random_lens(
        8,
        3,
        model="m",
        fingerprint="f",
        divergences={"logit_lens": [1.0, 2.0], "tuned_lens": [0.5, 0.25]},
        provenance={"steps": 3},
    )
    again = lens.load_tuned_lens(tuned.save(tmp_path / target))
    assert again.digest == tuned.digest
    assert repr(lens.load_tuned_lens(replace(tuned, model="\x1b]0;gone\x07").save(tmp_path / f"evil-{target}"))).isprintable()
    for name in ("model", "fingerprint", "divergences", "provenance"):
        assert getattr(again, name) == getattr(tuned, name)


def test_a_tuned_lens_that_was_stopped_says_after_how_many_steps() -> None:
    shown = {steps: repr(random_lens(8, 3, provenance={"steps": steps, "steps_asked": 9})) for steps in (0, 9)}
    assert shown[0].endswith("3 translators of width 8, trained for 0 of 9 steps>")
    assert shown[9].endswith("3 translators of width 8>")
    assert "trained" not in repr(random_lens(8, 3, provenance={"steps": 3}))  # as files of earlier versions have it


def test_a_tuned_lens_shows_the_means_over_its_layers() -> None:
    divergences = {"logit_lens": [1.0, 2.0, 3.0], "tuned_lens": [0.5, 0.25, 0.75]}
    assert "; held-out KL 0.500 nats, logit lens 2.000 (means over layers)>" in repr(random_lens(8, 3, divergences=divergences))


SQUARES, ROWS = [torch.eye(4)] * 2, [torch.zeros(4)] * 2


def test_a_tuned_lens_may_be_made_of_any_numbers(tmp_path: Path) -> None:
    made = lens.TunedLens(
        [torch.nn.Parameter(torch.eye(4)), np.eye(4)], torch.zeros(2, 4, dtype=torch.bfloat16), provenance={"by": "hand"}
    )
    assert [tensor.dtype for tensor in (*made.weights, *made.biases)] == [torch.float32] * 4
    assert not any(weight.requires_grad for weight in made.weights)
    assert made.digest == lens.TunedLens(SQUARES, ROWS).digest
    shared = lens.TunedLens([torch.eye(4), torch.eye(4)], ROWS[:1] * 2)
    assert lens.load_tuned_lens(shared.save(tmp_path / "shared")).digest == made.digest


@pytest.mark.parametrize(
    ("weights", "biases", "words"),
    [
        ([], [], "takes one matrix and one bias for the input of every block"),
        (SQUARES, ROWS[:1], "takes one matrix and one bias for the input of every block"),
        (5, None, "takes one matrix and one bias for the input of every block"),
        ([torch.zeros(4)] * 2, ROWS, "translator 0 is missing, or is no 4 × 4 matrix with 4 biases"),
        (["a", "b"], ROWS, "translator 0 is missing, or is no square matrix"),
        ([SQUARES[0], torch.eye(3)], ROWS, "translator 1 is missing, or is no 4 × 4 matrix"),
        (SQUARES, [ROWS[0], torch.zeros(1, 4)], "translator 1 is missing, or is no 4 × 4 matrix with 4 biases"),
        (SQUARES, [ROWS[0], torch.full((4,), float("nan"))], "translator 1 holds numbers that are not finite"),
    ],
)
def test_what_is_no_tuned_lens_is_refused(weights: Any, biases: Any, words: str) -> None:
    with pytest.raises(lens.LensError, match=words) as refused:
        lens.TunedLens(weights, biases)
    assert "\n" not in str(refused.value)


def test_a_lens_changed_in_place_is_another() -> None:
    with torch.inference_mode():  # whose tensors do not count their changes
        uncounted = lens.Basis(torch.eye(4))
    tuned, basis = random_lens(4, 2), lens.Basis(torch.eye(4))
    for made, tensor in ((tuned, tuned.biases[1]), (basis, basis.matrix), (uncounted, uncounted.matrix)):
        before = made.digest
        assert made.digest == before
        with torch.inference_mode():
            tensor += 1
        assert made.digest != before


def test_saving_a_lens_destroys_nothing(tmp_path: Path, fill_disk: Callable[[], None]) -> None:
    tuned, basis = random_lens(4, 2), lens.Basis(torch.eye(4))
    models_own = tmp_path / "model" / "config.json"
    models_own.parent.mkdir()
    models_own.write_text('{"model_type": "llama"}')
    (tmp_path / "file").write_text("in the way")
    for name, words in (
        ("model", r"config\.json is there and is no tuned lens's; another folder would do"),
        ("file", "file is no folder to write in: File exists"),
    ):
        with pytest.raises(lens.LensError, match=words):
            tuned.save(tmp_path / name)
    assert [path.read_text() for path in (models_own, tmp_path / "file")] == ['{"model_type": "llama"}', "in the way"]
    tuned.save(tuned.save(tmp_path / "again"))
    fill_disk()
    for save, name in ((tuned.save, "full"), (tuned.save, "full.safetensors"), (basis.save, "basis.safetensors")):
        with pytest.raises(lens.LensError, match=r"cannot be written: No space left on device$"):
            save(tmp_path / name)
    assert not list(tmp_path.rglob("full*/*"))


@pytest.mark.parametrize(
    ("read", "record", "words"),
    [
        (lens.load_basis, {"labels": 5}, "its labels or its name are no texts"),
        (lens.load_basis, {"labels": [1]}, "its labels or its name are no texts"),
        (lens.load_basis, {"name": None}, "its labels or its name are no texts"),
        *(
            (lens.load_tuned_lens, {"lens_magic": said}, "its divergences or its provenance are none")
            for said in (
                {"divergences": [1]},
                {"divergences": None},
                {"divergences": {"logit_lens": [1.0]}},
                {"divergences": {"logit_lens": ["a"], "tuned_lens": ["b"]}},
                {"provenance": 5},
            )
        ),
    ],
)
def test_what_a_file_says_of_itself_is_checked(read: Any, record: dict[str, Any], words: str, tmp_path: Path) -> None:
    tensors = {"matrix": torch.eye(2)} if read is lens.load_basis else {"0.weight": torch.eye(2)}
    metadata = {"basis" if read is lens.load_basis else "config": json.dumps(record)}
    save_file(tensors, tmp_path / "a.safetensors", metadata=metadata)
    with pytest.raises(lens.LensError, match=f"a.safetensors is damaged: {words}"):
        read(tmp_path / "a.safetensors")


def test_wrong_tuned_lenses_are_refused(checkpoints: Checkpoints, tmp_path: Path) -> None:
    once.load(checkpoints("llama-gqa"))
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "params.pt").write_bytes(b"never opened")
    (tmp_path / "empty").mkdir()
    save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    save_file({"0.weight": torch.zeros(4, 4), "1.weight": torch.zeros(4, 3)}, tmp_path / "uneven.safetensors")
    save_file({"0.weight": torch.full((2, 2), float("inf"))}, tmp_path / "infinite.safetensors")
    random_lens(4, 2).save(tmp_path / "claims")
    claims = tmp_path / "claims" / "params.safetensors"
    save_file({"0.weight": torch.zeros(4, 4)}, claims)  # beside a config.json that says otherwise
    whole = random_lens(4, 2).save(tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-10])
    for given, words in (
        (tmp_path / "pickled", "is a pickle, .*convert it"),
        (tmp_path / "pickled" / "params.pt", "is a pickle, .*safetensors.torch.save_file"),
        (tmp_path / "empty", "no tuned lens at"),
        (tmp_path / "a.safetensors", "holds no translators; tensors named 0.weight"),
        (tmp_path / "uneven.safetensors", "translator 1 is missing, or is no 4 × 4"),
        (tmp_path / "infinite.safetensors", "not finite"),
        (claims, "num_hidden_layers is 1, its config.json says 2"),
        (tmp_path / "cut.safetensors", "damaged or incomplete"),
        (random_lens(64, 4), "of width 64 with 4 layers; .* has width 128 and 4 layers"),
        (random_lens(128, 3), "with 3 layers; .* 4 layers"),
        (random_lens(128, 4, model="m", fingerprint="f"), r"trained on other weights \(m\)"),
    ):
        with pytest.raises(lens.LensError, match=words) as refused:
            lens.run(models.PROMPT, 1, lens=given)
        assert "\n" not in str(refused.value)
    assert lens.run(models.PROMPT, 1).output_ids  # nothing was changed


def test_the_magics_take_lenses(checkpoints: Checkpoints, tmp_path: Path) -> None:
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    once.load(checkpoints("llama-gqa"))
    shell = InteractiveShell.instance()
    try:
        shell.run_line_magic("load_ext", "lens_magic")
        shell.user_ns["mine"] = tuned = random_lens(128, 4)
        shell.user_ns["three"] = lens.Basis(torch.eye(128)[:3])
        tuned.save(tmp_path / "saved")

        def cell(options: str) -> Any:
            with capture_output():
                result = shell.run_cell(f"%%lens -n 2 --ignore-eos {options}\n{models.PROMPT}")
            return result.error_in_exec or result.result

        expected = lens.run(models.PROMPT, 2, ignore_eos=True, lens=tuned).variables["prob"]
        for given in ("mine", tmp_path / "saved"):
            assert np.array_equal(cell(f"--lens {given}").variables["prob"], expected)
        assert cell("--lens three -k 2").variables["token_id"].max() <= 2
        assert cell("--norm frozen").options["norm"] == "frozen"
        assert len(cell('--track " point, the"').options["track"]) == 2
        assert "tracked_id" in cell("--track").variables
        assert "no such file or folder" in str(cell("--lens missing"))
        assert "not one of own, frozen, none" in str(cell("--norm hot"))
    finally:
        InteractiveShell.clear_instance()


# --- training ----------------------------------------------------------------------------------------------------------

TEXTS = [line for line in models.TEXT.splitlines() if line][:5]


def plainly_trained(model: Any, pieces: list[list[int]], steps: int, rate: float) -> list[torch.nn.Linear]:
    """Translators, with automatic differentiation of everything at once."""
    layers, width = model.config.num_hidden_layers, model.config.hidden_size
    with torch.no_grad():
        outputs = [model(torch.tensor([ids]), output_hidden_states=True) for ids in pieces]
    states = [torch.cat([out.hidden_states[i][0] for out in outputs]) for i in range(layers)]
    truth = torch.cat([out.logits[0] for out in outputs]).log_softmax(-1)
    maps = [torch.nn.Linear(width, width) for _ in range(layers)]
    for parameter in (p for one in maps for p in one.parameters()):
        torch.nn.init.zeros_(parameter)

    def losses() -> list[torch.Tensor]:
        cap = getattr(model.config, "final_logit_softcapping", None)
        scores = [model.lm_head(model.model.norm(h + one(h))) for h, one in zip(states, maps, strict=True)]
        logs = [(cap * torch.tanh(s / cap) if cap else s).log_softmax(-1) for s in scores]
        return [(truth.exp() * (truth - log)).sum(-1).mean() for log in logs]

    optimiser = torch.optim.Adam([p for one in maps for p in one.parameters()], lr=rate)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = rate * (1 - step / steps)
        optimiser.zero_grad()
        torch.stack(losses()).sum().backward()
        optimiser.step()
    return maps


@pytest.mark.parametrize("name", ["llama-odd-vocab", "gemma2"])
def test_training_is_what_automatic_differentiation_does(name: str, ranks: int, checkpoints: Checkpoints) -> None:
    model = loaded(checkpoints(name), ranks)
    tokenizer = current().require_model().tokenizer
    pieces = [tokenizer(text)["input_ids"] for text in TEXTS]
    model.requires_grad_(False)
    maps = plainly_trained(model, pieces, steps=4, rate=0.01)
    once = sum(map(len, pieces))  # every step sees every token
    tuned = lens.train_tuned_lens(TEXTS, steps=4, tokens_per_step=once, learning_rate=0.01, held_out=0)
    assert tuned.divergences == {}
    for index, one in enumerate(maps):
        for got, expected in ((tuned.weights[index], one.weight), (tuned.biases[index], one.bias)):
            # Adam divides by the gradient's size, so that rounding decides where there is nearly none.
            assert float((got - expected).detach().norm() / expected.detach().norm()) < 0.02


def test_divergences_are_measured_exactly(ranks: int, checkpoints: Checkpoints) -> None:
    model = loaded(checkpoints("gemma2"), ranks)
    text = "A lens gathers the light that leaves a lamp"
    tuned = lens.train_tuned_lens([text] * 10, steps=3, tokens_per_step=10, learning_rate=0.01, held_out=0.3)
    run = lens.run(text, 1, prompt_tokens=True, capture=["resid_pre"], lens=tuned)
    plain = lens.run(text, 1, prompt_tokens=True, capture=["resid_pre"])
    # Every token of the text is a position of the run: the last one predicts the token after it.
    assert np.allclose(tuned.divergences["tuned_lens"], run.variables["kl_final"][0].mean(-1), rtol=1e-3, atol=1e-4)
    assert np.allclose(tuned.divergences["logit_lens"], plain.variables["kl_final"][0].mean(-1), rtol=1e-3, atol=1e-4)
    assert tuned.fingerprint == run.provenance["model_fingerprint"]
    assert tuned.layers == model.config.num_hidden_layers


def test_training_and_measuring_in_pieces_give_the_same(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens are scored in blocks of a limited size, and read in batches of one."""
    model = loaded(checkpoints("gemma2"), 1)
    whole, cut = [], []
    for found, tokens in ((whole, 1000), (cut, 7)):
        monkeypatch.setattr(tune, "_ROOM", tokens * 4 * model.config.vocab_size)
        monkeypatch.setattr(tune, "_FORWARD_TOKENS", tokens)
        found.append(lens.train_tuned_lens(TEXTS, steps=2, tokens_per_step=60, learning_rate=0.01, held_out=0.3))
    for name, values in whole[0].divergences.items():
        assert np.allclose(cut[0].divergences[name], values, rtol=1e-3)
    for one, other in zip(whole[0].weights, cut[0].weights, strict=True):
        assert float((one - other).norm() / one.norm()) < 0.02


def test_slopes_are_multiplied_with_a_head_in_16_bits_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(0)
    slopes, weight = torch.randn(5, 331, generator=random), torch.randn(331, 8, generator=random).to(torch.bfloat16)
    for rows in (1, 100, 331, 1000):
        monkeypatch.setattr(tune, "CONVERTED_ELEMENTS", rows * 8)
        torch.testing.assert_close(tune._times(slopes, weight), slopes @ weight.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.ranks(2)
def test_training_can_be_stopped(checkpoints: Checkpoints) -> None:
    once.load(checkpoints("llama-gqa"), 2)
    seen: list[int] = []

    def stop_at_two(event: tuple[Any, ...]) -> None:
        seen.append(event[1])
        if event[1] == 2:
            current().group.interrupt()

    with pytest.raises(lens.Interrupted) as stopped:
        lens.train_tuned_lens(TEXTS, steps=50, tokens_per_step=50, on_event=stop_at_two)
    assert stopped.value.result.provenance["steps"] == seen[-1] < stopped.value.result.provenance["steps_asked"] == 50
    assert float(stopped.value.result.weights[1].abs().max()) > 0
    assert lens.run(models.PROMPT, 1, lens=stopped.value.result).output_ids

    def stop_at_the_last(event: tuple[Any, ...]) -> None:
        if event[1] == 3:
            current().group.interrupt()

    with pytest.raises(lens.Interrupted) as stopped:
        lens.train_tuned_lens(TEXTS, steps=3, tokens_per_step=50, on_event=stop_at_the_last)
    assert stopped.value.result.provenance["steps"] == 3


@pytest.mark.ranks(2)
@pytest.mark.parametrize("when", ["before", "after"])
def test_measuring_can_be_stopped(when: str, checkpoints: Checkpoints) -> None:
    once.load(checkpoints("llama-gqa"), 2)
    seen: list[tuple[Any, ...]] = []

    def stop(event: tuple[Any, ...]) -> None:
        seen.append(event)
        if event[0] == "measuring" and (when == "before" or ("training", 2, 2) in seen):
            current().group.interrupt()

    with pytest.raises(lens.Interrupted) as stopped:
        lens.train_tuned_lens(TEXTS, steps=2, tokens_per_step=20, held_out=0.6, on_event=stop)
    tuned = stopped.value.result
    assert tuned.provenance["steps"] == (0 if when == "before" else 2)
    assert tuned.divergences == {}
    assert tuned.layers == 4
    assert "held-out" not in repr(tuned)
    assert seen[-1][:2] == ("measuring", 1)
    assert seen[-1][2] > 1  # there was more to measure
    assert lens.run(models.PROMPT, 1).output_ids  # nothing of it is left


def test_training_that_cannot_fit_is_refused(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    once.load(checkpoints("llama-gqa"))  # 4 layers, 128 wide: 16 · 4 · 128 · 129 bytes
    monkeypatch.setenv("LENS_FREE_MEMORY", "1000000")
    with pytest.raises(lens.LensError, match=r"needs 1\.1 MB on a rank .*, where 1\.0 MB is free; more ranks would do"):
        lens.train_tuned_lens(TEXTS, steps=2)
    monkeypatch.setenv("LENS_FREE_MEMORY", "2000000")  # a token's states at 5 places, read and put together: 5,120 bytes
    with pytest.raises(
        lens.LensError, match=r"on 2,000 tokens a step needs 11\.3 MB .*; tokens_per_step of at most 184 would do"
    ):
        lens.train_tuned_lens(TEXTS, steps=2, tokens_per_step=2000)
    monkeypatch.delenv("LENS_FREE_MEMORY")
    with pytest.raises(lens.LensError, match="on 1,000,000,000 tokens a step needs"):
        lens.train_tuned_lens(TEXTS, tokens_per_step=10**9)


def test_batches_are_drawn_as_training_comes_to_them(checkpoints: Checkpoints) -> None:
    once.load(checkpoints("llama-gqa"))

    def stop_at_two(event: tuple[Any, ...]) -> None:
        if event[1] == 2:
            current().group.interrupt()

    with pytest.raises(lens.Interrupted) as stopped:
        lens.train_tuned_lens(TEXTS, steps=10**9, tokens_per_step=20, held_out=0, on_event=stop_at_two)
    assert stopped.value.result.provenance["steps"] == 2


def test_every_step_has_as_many_tokens_as_it_should_and_every_pass_another_order() -> None:
    pieces = [[number] * (1 + number % 4) for number in range(40)]  # of 100 tokens
    request = tune.TrainingRequest(pieces, 50, 10, seed=3, held_out=[], learning_rate=0.01)
    batches = list(request.batches())
    for batch in batches:
        assert sum(map(len, batch)) >= 10 > sum(map(len, batch[:-1]))
    drawn = [piece[0] for batch in batches for piece in batch]
    passes = [drawn[:40], drawn[40:80], drawn[80:120]]
    assert [sorted(one) for one in passes] == [list(range(40))] * 3
    orders = [*passes, list(range(40)), list(range(39, -1, -1))]
    assert len({tuple(one) for one in orders}) == len(orders)
    assert list(request.batches()) == batches


def test_wrong_training_is_refused(checkpoints: Checkpoints) -> None:
    once.load(checkpoints("llama-gqa"))
    for texts, more, words in (
        ([], {}, "no texts to train on"),
        (["", ""], {}, "no texts"),
        ("one text", {}, "a list of str"),
        ([1, 2], {}, "a list of str"),
        (None, {}, "a list of str"),
        ({"a": 1}, {}, "a list of str, not {'a': 1}"),
        (np.array("a"), {}, "a list of str"),
        (TEXTS, {"steps": 2.5}, "steps 2.5 is not an integer"),
        (TEXTS, {"steps": "3"}, "steps '3' is not an integer"),
        (TEXTS, {"held_out": "a"}, "held_out 'a' is not a number"),
        (TEXTS, {"learning_rate": "1"}, "learning_rate '1' is not a number"),
        (TEXTS, {"seed": None}, "seed None is not an integer"),
        (TEXTS, {"steps": 0}, "steps 0 is too few"),
        (TEXTS, {"tokens_per_step": 0}, "tokens_per_step 0 is too few"),
        (TEXTS, {"learning_rate": float("nan")}, "not a positive number"),
        (TEXTS, {"learning_rate": 1e308}, r"learning_rate 1e\+308 is more than float32 can train with; 1e-3 would do"),
        (TEXTS, {"held_out": 1.0}, "not a share"),
    ):
        with pytest.raises(lens.LensError, match=words):
            lens.train_tuned_lens(texts, **more)


def test_numpys_numbers_may_be_trained_with_and_saved(checkpoints: Checkpoints, tmp_path: Path) -> None:
    once.load(checkpoints("llama-gqa"))
    asked = {"steps": np.int32(1), "tokens_per_step": np.int64(20), "held_out": np.float64(0.2), "seed": np.int64(3)}
    tuned = lens.train_tuned_lens(np.array(TEXTS), learning_rate=torch.tensor(0.5), **asked)  # type: ignore[arg-type]
    again = lens.load_tuned_lens(tuned.save(tmp_path / "tuned"))
    assert again.provenance == tuned.provenance
    assert again.provenance.items() >= {"steps": 1, "tokens_per_step": 20, "learning_rate": 0.5, "seed": 3}.items()


def test_a_trained_lens_is_nearer_to_the_output_on_held_out_text() -> None:
    """On the demo model: lower KL than the logit lens at every layer but the last, on questions it never saw."""
    import random

    import lens_magic.demo
    from lens_magic.demo.make import corpus

    once.load("demo")
    rng = random.Random(11)
    tuned = lens.train_tuned_lens([corpus.document(rng, 64) for _ in range(600)], steps=16, tokens_per_step=512)
    items = json.loads((lens_magic.demo.path().parent / "data" / "heldout.json").read_text(encoding="utf-8"))
    texts = [item["prompt"] + item["answer"] for item in items[:: len(items) // 30]]

    def divergence(**how: Any) -> np.ndarray:
        runs = [lens.run(text, 0, prompt_tokens=True, capture="resid_post", **how) for text in texts]
        return np.concatenate([run.variables["kl_final"][0] for run in runs], -1).mean(-1)

    before, after = divergence(), divergence(lens=tuned)
    assert (after[:-1] < 0.9 * before[:-1]).all(), (before, after)
    assert after[-1] == pytest.approx(before[-1], abs=1e-5)
    assert all(new < old for new, old in zip(*(tuned.divergences[name] for name in ("tuned_lens", "logit_lens")), strict=True))
