"""What splitting a model must not change: float32 buffers of 16-bit models, far positions, configurations."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import pytest
import reference as ref
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import lens_magic as lens
from lens_magic.model.checkpoint import read_config
from lens_magic.model.load import MODEL
from lens_magic.session import current

Checkpoints = Callable[[str], Path]
pytestmark = pytest.mark.ranks(2)
FAR, CONTEXT = 1200, 1600


_WIDTHS = ("intermediate_size", "moe_intermediate_size", "hidden_size")


def configuration(rank: Any) -> dict[str, Any]:
    return {name: getattr(rank.store[MODEL].model.config, name, None) for name in _WIDTHS}


def buffers(rank: Any) -> dict[str, torch.Tensor]:
    return {name: buffer for name, buffer in rank.store[MODEL].model.named_buffers() if buffer.is_floating_point()}


@pytest.mark.parametrize("name", models.FAMILIES)
def test_every_family_keeps_its_buffers(name: str, checkpoints: Checkpoints) -> None:
    """Rotary frequencies above all: transformers has them in float32 whatever the model's type."""
    lens.load(str(folder := checkpoints(name)), dtype="bfloat16", ranks=2)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    expected = {name: buffer for name, buffer in plain.named_buffers() if buffer.is_floating_point()}
    for found in current().group.call(buffers):
        for buffer, values in expected.items():
            if "vision" not in buffer:  # which is not kept
                assert found[buffer].dtype == values.dtype, buffer
                assert torch.equal(found[buffer], values), buffer


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_far_positions_are_as_near_to_float32_as_transformers_has_them(
    dtype: str, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    """Rotary frequencies of 16 bits would turn a token at position 1,200 by a radian too much or too little."""
    torch.manual_seed(3)
    shape = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "head_dim": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    model = models.causal(LlamaConfig, **shape, **heads, max_position_embeddings=CONTEXT, initializer_range=0.15)
    model.save_pretrained(tmp_path / "far")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "far" / file).write_bytes((checkpoints("llama-gqa") / file).read_bytes())

    lens.load(str(tmp_path / "far"), dtype=dtype, ranks=2)
    text = "".join(random.Random(4).choices("QZXJKVWU#%&+", k=CONTEXT - 100))  # a token each
    run = lens.run(text, 0, prompt_tokens=True, capture="resid_post", layers=2)
    far = range(-len(run.prompt_ids) + 1 + FAR, 0)
    ours = torch.as_tensor(run.activations("resid_post", [2], far)).float()[0]
    assert 200 < len(far) < CONTEXT - FAR

    def last_states(of: torch.dtype) -> torch.Tensor:
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "far", dtype=of, attn_implementation="eager").eval()
        return ref.states(plain, run.prompt_ids, len(run.prompt_ids), ("resid_post",), [2], far)["resid_post"][0].float()

    exact = last_states(torch.float32)
    off, allowed = (ours - exact).norm(), (last_states(getattr(torch, dtype)) - exact).norm()
    print(f"{dtype}: {off / exact.norm():.4f} of the states' length, transformers {allowed / exact.norm():.4f}")
    assert off < 1.5 * allowed


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe"])
def test_a_models_configuration_is_the_checkpoints(name: str, checkpoints: Checkpoints) -> None:
    """Experts are built narrower; what a run needs is estimated from the whole width."""
    lens.load(str(folder := checkpoints(name)), ranks=2)
    stated = read_config(folder)
    for config in current().group.call(configuration):
        assert {name: config[name] for name in _WIDTHS} == {name: getattr(stated, name, None) for name in _WIDTHS}
