"""Norms in fewer kernels give what the model's own give, to the bit where the sums are the same."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import pretended
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import lens_magic as lens
from lens_magic.model.fused import fused, fused_norms, fusible
from lens_magic.session import current

GPU = torch.device("cuda", 0)
FUSED = {"llama-gqa", "mistral-window", "qwen2-bias", "qwen3-odd", "phi3", "mixtral", "qwen3-moe"}

Checkpoints = Callable[[str], Path]


def model_of(name: str, checkpoints: Checkpoints) -> Any:
    return AutoModelForCausalLM.from_pretrained(checkpoints(name))


@pytest.mark.parametrize("name", models.FAMILIES)
@torch.no_grad()
def test_the_same_numbers_rounded_alike(name: str, checkpoints: Checkpoints) -> None:
    norms = [module for module in model_of(name, checkpoints).modules() if fusible(module)]
    assert bool(norms) == (name in FUSED)
    for norm in norms:
        width = norm.weight.shape[0]
        norm.weight.copy_(torch.linspace(-2.0, 3.0, width))
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            states = (30 * torch.randn(2, 5, width)).to(dtype)
            for given in (norm.to(dtype), norm.float()):  # weights kept in float32 make the result float32
                assert torch.equal(fused(given)(states), given(states))


def test_only_where_and_while_it_is_a_gain(checkpoints: Checkpoints) -> None:
    model = model_of("llama-gqa", checkpoints)
    stood_in = model.model.norm
    stood_in.forward = own = lambda states: states  # somebody has already
    norms = [module for module in model.modules() if isinstance(module, LlamaRMSNorm) and module is not stood_in]
    with fused_norms(model, torch.device("cpu")):
        assert not any("forward" in vars(norm) for norm in norms)
    with contextlib.suppress(ZeroDivisionError), fused_norms(model, GPU):
        assert all("forward" in vars(norm) for norm in norms)
        raise ZeroDivisionError
    assert not any("forward" in vars(norm) for norm in norms)
    assert stood_in.forward is own


def test_a_norm_of_somebody_elses_is_left_alone() -> None:
    class MyRMSNorm(LlamaRMSNorm):
        pass

    assert fusible(LlamaRMSNorm(8))
    assert not fusible(MyRMSNorm(8))
    assert not fusible(nn.RMSNorm(8))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU that need not be pretended")
def test_a_step_on_a_gpu_has_fewer_kernels(
    checkpoints: Checkpoints, with_gpus: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    group = with_gpus()
    lens.load(str(checkpoints("qwen3-odd")), ranks=1)

    def operations() -> int:
        lens.generate(models.PROMPT, 24, ignore_eos=True)
        ((count,),) = group.call(pretended.sizes)
        return int(count)

    few = operations()
    monkeypatch.setattr("lens_magic.model.fused._FAMILIES", ())
    norms = 4 * current().require_model().layers + 1
    assert operations() - few == 4 * norms, "of six in float32 two are left"
