"""Models as users have them in memory, or saved: settings and pieces of their own that change nothing in the results."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import numpy as np
import probes
import pytest
import reference as ref
import torch

import lens_magic as lens
from lens_magic.model.fingerprint import of_module
from lens_magic.model.graph import runner_for
from lens_magic.model.load import MODEL
from lens_magic.session import current

Checkpoints = Callable[[str], Path]


def same(one: lens.LensRun, other: lens.LensRun) -> bool:
    alike = all(np.array_equal(one.variables[name], other.variables[name]) for name in ("token_id", "logit", "entropy"))
    return one.output_ids == other.output_ids and alike


@pytest.mark.parametrize("name", ["llama-gqa", "gpt2", "gemma3-sees"])
def test_a_model_whose_configuration_asks_for_tuples(name: str, checkpoints: Checkpoints) -> None:
    model, tokenizer = models.load_plain(checkpoints(name))
    lens.attach(model, tokenizer)
    expected = lens.run(models.PROMPT, 20, ignore_eos=True)
    model.config.return_dict = model.config.get_text_config().return_dict = False
    assert same(lens.run(models.PROMPT, 20, ignore_eos=True), expected)


@pytest.mark.parametrize("ranks", [1, 2], scope="session")
def test_a_checkpoint_whose_configuration_asks_for_tuples(ranks: int, checkpoints: Checkpoints, tmp_path: Path) -> None:
    texts = [{"positive": "near and bright", "negative": "dark and far"}]
    runs: list[Any] = []
    for settings in ({}, {"return_dict": False}):
        folder = Path(shutil.copytree(checkpoints("llama-gqa"), tmp_path / str(len(runs))))
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **settings}))
        lens.load(str(folder), ranks=ranks)
        vector = lens.train_vector(texts, layers=[1], site="resid_post", position="last")
        runs.append(lens.run(models.PROMPT, 20, ignore_eos=True, steer=(vector * 2.0,)))
    assert same(*runs)


@pytest.mark.parametrize(("name", "head"), [("llama-bf16", torch.float32), ("llama-gqa", torch.bfloat16)])
def test_states_are_kept_in_the_blocks_type_whatever_the_heads(name: str, head: torch.dtype, checkpoints: Checkpoints) -> None:
    model, tokenizer = models.load_plain(checkpoints(name))
    lens.attach(model, tokenizer)
    blocks, usual = model.dtype, lens.run(models.PROMPT, 20, ignore_eos=True)
    model.lm_head.to(head)
    lens.attach(model, tokenizer)
    run = lens.run(models.PROMPT, 20, force=usual.output_ids)
    assert run.memory["captures"] == usual.memory["captures"]
    states = run.activations("resid_post", -1)
    assert states.dtype == blocks != head
    ids = [*run.prompt_ids, *run.output_ids]
    expected = ref.states(model, ids, len(run.prompt_ids), ["resid_post"], [model.config.num_hidden_layers - 1], run.positions)
    distance = (states.float().flatten() - expected["resid_post"].float().flatten()).abs().max()
    assert distance < (0.1 if blocks == torch.bfloat16 else 1e-4)
    if head == torch.float32:  # which holds all that was in the other type
        assert np.array_equal(run.variables["token_id"][..., 0], usual.variables["token_id"][..., 0])


@pytest.mark.parametrize("name", ["llama-gqa", "gpt2", "mixtral"])
def test_steps_are_recorded_after_hidden_states_were_asked_for(name: str, checkpoints: Checkpoints) -> None:
    """transformers then leaves hooks on its modules for good, which do nothing unless it is asked again."""
    model, tokenizer = models.load_plain(checkpoints(name))
    lens.attach(model, tokenizer)
    expected = lens.run(models.PROMPT, 24, ignore_eos=True)
    model(torch.tensor([[1, 2, 3]]), output_hidden_states=True, output_attentions=True)
    lens.attach(model, tokenizer)
    rank = current().group.rank
    backbone = rank.store[MODEL].backbone
    assert any(module._forward_hooks for module in backbone.modules())
    assert runner_for(rank, backbone, torch.zeros(1, dtype=torch.int64)).recorded
    probes.step_by(rank, "replay", 8)
    try:
        assert same(lens.run(models.PROMPT, 24, ignore_eos=True), expected)
        assert probes.replays(rank) > 8
    finally:
        probes.step_by(rank, "as usual")
    model.config.output_hidden_states = True  # now they keep what they see, at every step
    assert not runner_for(rank, backbone, torch.zeros(1, dtype=torch.int64)).recorded
    model.config.output_hidden_states = False
    with backbone.register_forward_hook(lambda *given: None):
        assert not runner_for(rank, backbone, torch.zeros(1, dtype=torch.int64)).recorded


def test_weights_that_changed_since_are_told_from_those_a_run_was_made_with(checkpoints: Checkpoints) -> None:
    """An attached model may be trained, or another one attached under the same name."""
    model, tokenizer = models.load_plain(checkpoints("llama-gqa"))
    lens.attach(model, tokenizer)
    run = lens.run(models.PROMPT, 4, ignore_eos=True)
    vector = lens.train_vector([{"positive": "A lens bends", "negative": "A lamp"}], 1, "resid_post", "last")
    tuned = lens.train_tuned_lens([models.TEXT], steps=1, tokens_per_step=64)
    assert vector.origin.fingerprint == tuned.fingerprint == run.provenance["model_fingerprint"]
    change = lens.diff(run, steer=vector)
    np.testing.assert_allclose(change.base.variables["logit"], run.variables["logit"], atol=1e-4)
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight.mul_(0.5)
    refused = (
        r"this run was made with .* \(fingerprint [0-9a-f]{12}\), but .* \([0-9a-f]{12}\) is loaded; a run made with these"
    )
    with pytest.raises(lens.LensError, match=refused):
        lens.diff(run, steer=vector)
    with pytest.raises(lens.LensError, match="trained on other weights"):
        lens.run(models.PROMPT, 2, lens=tuned)
    assert lens.run(models.PROMPT, 2).provenance["model_fingerprint"] != run.provenance["model_fingerprint"]
    lens.load(str(checkpoints("llama-gqa")), ranks=1)  # the same weights as before, which cannot be told
    with pytest.raises(lens.LensError, match=r"whether this run was made with the weights of .* cannot be told"):
        lens.diff(run, steer=vector)
    assert lens.run(models.PROMPT, 2, lens=tuned).options["lens"]["kind"] == "tuned"


@pytest.mark.parametrize("name", ["llama-bf16", "gpt2", "mixtral"])
def test_a_fingerprint_is_of_every_parameter(name: str, checkpoints: Checkpoints) -> None:
    model, _ = models.load_plain(checkpoints(name))
    before = of_module(model)
    assert of_module(model) == before
    for parameter in model.parameters():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter += 1  # as a step of training changes all of its numbers
        assert of_module(model) != before
        with torch.no_grad():
            parameter.copy_(kept)
    assert of_module(model) == before


def test_weights_are_looked_at_once_for_a_batch_and_not_to_generate(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a large model on a GPU it takes a while."""
    lens.attach(*models.load_plain(checkpoints("llama-gqa")))
    looked: list[Any] = []
    monkeypatch.setattr("lens_magic.session.of_module", lambda model: looked.append(model) or of_module(model))
    lens.generate(models.PROMPT, 2)
    assert looked == []
    runs = lens.run([models.PROMPT] * 3, 2)
    assert looked == [current().require_model().attached]
    assert {run.provenance["model_fingerprint"] for run in runs} == {of_module(looked[0])}
