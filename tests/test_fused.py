"""Steps in fewer kernels give what the model's own modules give, to the bit where the sums are the same."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import pretended
import pytest
import torch
from pretended import kernels
from torch import nn
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm

import lens_magic as lens
from lens_magic.gpu import attention, steps
from lens_magic.model import fused as few
from lens_magic.model.cache import cache_argument
from lens_magic.session import current

GPU = torch.device("cuda", 0)
LLAMAS = {"llama-gqa", "mistral-window", "qwen2-bias", "qwen3-odd"}
KNOWN = {
    few.has_known_norm: {*LLAMAS, "phi3", "mixtral", "qwen3-moe"},
    few.has_known_gate: {*LLAMAS, "qwen3-moe", "olmo", "olmo2"},
    few.has_known_rotation: {*LLAMAS, "mixtral", "qwen3-moe", "gemma", "gemma2", "gemma3-text", "gemma3-sees", "phi"},
    few.has_known_attention: set(models.FAMILIES),
}

Checkpoints = Callable[[str], Path]


def model_of(name: str, checkpoints: Checkpoints, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(checkpoints(name), dtype=dtype).eval()


@pytest.fixture
def by_arithmetic(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Kernels' stand-ins on a CPU; the names of those called."""
    called: list[str] = []

    def noted(name: str) -> Callable[..., Any]:
        return lambda *given: (called.append(name), getattr(kernels, name)(*given))[1]

    for name in ("rms_norm", "rotate", "gated"):
        monkeypatch.setattr(steps, name, noted(name))
    monkeypatch.setattr(attention, "attend", noted("attend"))
    return called


@pytest.mark.parametrize("name", models.FAMILIES)
@torch.no_grad()
def test_norms_round_alike(name: str, checkpoints: Checkpoints) -> None:
    norms = [module for module in model_of(name, checkpoints).modules() if few.has_known_norm(module)]
    for norm in norms:
        width = norm.weight.shape[0]
        norm.weight.copy_(torch.linspace(-2.0, 3.0, width))
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            states = (30 * torch.randn(2, 5, width)).to(dtype)
            for given in (norm.to(dtype), norm.float()):  # weights kept in float32 make the result float32
                assert torch.equal(few.norm_in_few(given)(states), given(states))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", models.FAMILIES)
@torch.no_grad()
def test_a_recorded_step_gives_the_same_numbers(
    name: str, dtype: torch.dtype, checkpoints: Checkpoints, by_arithmetic: list[str]
) -> None:
    if name == "mixtral" and dtype != torch.float32:
        pytest.skip("transformers' product over experts wants other widths of 16 bits")
    model = model_of(name, checkpoints, dtype)
    of_text = [module for path, module in model.named_modules() if "vision" not in path]
    known = {kind: [module for module in of_text if kind(module)] for kind in KNOWN}
    for kind, modules in known.items():
        assert bool(modules) == (name in KNOWN[kind]), kind.__name__
    prompts, name_of_cache = torch.randint(5, 200, (2, 9)), cache_argument(model)

    def step(recorded: bool) -> torch.Tensor:
        cache = DynamicCache(config=model.config)
        model(prompts, **{name_of_cache: cache})
        ones = torch.ones((2, 10), dtype=torch.long)
        ones[1, :3] = 0  # a mask of yes and no
        with few.recorded(torch.tensor([9])) if recorded else contextlib.nullcontext():
            logits: torch.Tensor = model(prompts[:, :1], attention_mask=ones, **{name_of_cache: cache}).logits
        return logits

    expected = step(recorded=False)
    for module in model.modules():
        if (forward := few._fused(module, kernels=True, attends=True)) is not None:
            module.forward = forward
    assert torch.equal(step(recorded=True), expected)
    calls = {kind: len(modules) for kind, modules in known.items()}
    if name == "gemma2":  # whose scores are capped
        calls[few.has_known_attention] = 0
    assert [by_arithmetic.count(kernel) for kernel in ("rms_norm", "gated", "rotate", "attend")] == list(calls.values())
    by_arithmetic.clear()
    step(recorded=False)
    assert not by_arithmetic, "one by one they would take longer"


def test_only_where_and_while_it_is_a_gain(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama-gqa", checkpoints)
    stood_in = model.model.norm
    stood_in.forward = own = lambda states: states  # somebody has already
    of_llama = [module for module in model.modules() if isinstance(module, (LlamaRMSNorm, LlamaAttention, LlamaMLP))]
    of_llama.remove(stood_in)

    def changed() -> set[type]:
        return {type(module) for module in of_llama if "forward" in vars(module)}

    with few.fused(model, torch.device("cpu"), torch.float32):
        assert not changed()
    for troubles, expected in (
        (("no compiler", "no compiler"), {LlamaRMSNorm}),
        (("no compiler", None), {LlamaRMSNorm, LlamaAttention}),
        ((None, "no compiler"), {LlamaRMSNorm, LlamaAttention, LlamaMLP}),
        ((None, None), {LlamaRMSNorm, LlamaAttention, LlamaMLP}),
    ):
        for its, trouble in zip((steps, attention), troubles, strict=True):
            monkeypatch.setattr(its, "trouble", lambda *_, trouble=trouble: trouble)
        with contextlib.suppress(ZeroDivisionError), few.fused(model, GPU, torch.float32):
            assert changed() == expected
            assert not torch.backends.cuda.cudnn_sdp_enabled()
            raise ZeroDivisionError
        assert not changed()
        assert torch.backends.cuda.cudnn_sdp_enabled()
    assert stood_in.forward is own


def test_what_is_somebody_elses_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class MyRMSNorm(LlamaRMSNorm):
        pass

    class MyMLP(LlamaMLP):
        pass

    config = models.MODELS["llama-gqa"]().config
    assert few.has_known_norm(LlamaRMSNorm(8))
    assert few.has_known_gate(LlamaMLP(config))
    assert few.has_known_rotation(LlamaAttention(config, 0))
    for module in (MyRMSNorm(8), nn.RMSNorm(8), MyMLP(config), nn.MultiheadAttention(8, 2)):
        assert few._fused(module, kernels=True, attends=True) is None
    patched = {LlamaRMSNorm: LlamaRMSNorm(8), LlamaMLP: LlamaMLP(config)}
    for kind, module in patched.items():
        monkeypatch.setattr(kind, "forward", lambda self, states: states)
        assert few._fused(module, kernels=True, attends=True) is None, "what a user has put there counts"
    monkeypatch.undo()
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", lambda q, k, cos, sin: (q, k))
    assert few._fused(LlamaAttention(config, 0), kernels=True, attends=False) is None
    monkeypatch.undo()
    config.hidden_act = "gelu"
    assert not few.has_known_gate(LlamaMLP(config))


def test_what_transformers_wraps_is_known_by_its_own_code_and_what_others_wrap_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """transformers 5.24 wraps forwards of which an argument has had another name."""
    config = models.MODELS["llama-gqa"]().config
    attention, mlp = LlamaAttention(config, 0), LlamaMLP(config)
    for writer, known in (("transformers.utils.deprecation", True), ("notebook", False)):
        for kind in (LlamaAttention, LlamaMLP):
            monkeypatch.setattr(kind, "forward", wrapped(kind.forward, writer))
        assert few.has_known_rotation(attention) == few.has_known_attention(attention) == few.has_known_gate(mlp) == known
        monkeypatch.undo()
    own = LlamaAttention.forward
    monkeypatch.setattr(LlamaAttention, "forward", wrapped(own, "transformers.utils.deprecation"))
    assert few.attention_in_few(attention, turns=False, attends=True).func.__code__ is inspect.unwrap(own).__code__  # type: ignore[attr-defined]
    assert not few._same_code(wrapped(LlamaMLP.forward, "transformers"), wrapped(LlamaRMSNorm.forward, "transformers"))


def wrapped(function: Any, writer: str) -> Any:
    """A function within another that is written in a module of this name."""
    names = {"__name__": writer, "wraps": functools.wraps}
    exec("def wrap(inner):\n    return wraps(inner)(lambda *given, **named: inner(*given, **named))", names)
    return names["wrap"](function)  # type: ignore[operator]


@pytest.mark.parametrize("argument", ["cache", "past_key_values"])
def test_a_cache_goes_by_the_name_that_the_model_knows(argument: str) -> None:
    class Model:
        pass

    names: dict[str, Any] = {}
    exec(f"def forward(self, input_ids, {argument}=None, **named): pass", names)
    for forward in (names["forward"], wrapped(names["forward"], "transformers.utils.deprecation")):
        Model.forward = forward  # type: ignore[attr-defined]
        assert cache_argument(Model()) == argument


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU that need not be pretended")
@pytest.mark.parametrize("with_triton", [False, True])
def test_a_step_on_a_gpu_has_fewer_kernels(
    with_triton: bool, checkpoints: Checkpoints, with_gpus: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    group = with_gpus(with_triton=with_triton)
    lens.load(str(checkpoints("qwen3-odd")), ranks=1)
    layers = current().require_model().layers

    def operations() -> int:
        lens.generate(models.PROMPT, 24, ignore_eos=True)
        ((count,),) = group.call(pretended.sizes)
        return int(count)

    found = operations()
    monkeypatch.setattr(few, "_fused", lambda module, *_: None)
    fewer = operations() - found
    if with_triton:
        # Norms: one of six in float32. Rotation: one of ten. A gate: one of two. Attention: one of nine, three of them the
        # mask's (it is operations one by one here, as on a GPU for which torch has no kernel).
        assert fewer == (4 * layers + 1) * 5 + layers * (9 + 1 + 8)
    else:
        assert fewer == (4 * layers + 1) * 4, "of six two are left"


def test_torchs_own_attention_is_asked_for_what_kernels_are_not_for(
    checkpoints: Checkpoints, by_arithmetic: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = model_of("llama-gqa", checkpoints).model.layers[0].self_attn
    attend = few._choosing(few._transformers().ALL_ATTENTION_FUNCTIONS.get_interface)
    queries, keys, values = torch.randn(2, 8, 1, 16), torch.randn(2, 4, 9, 16), torch.randn(2, 4, 9, 16)
    mask = torch.rand(2, 1, 1, 9) < 0.7
    mask[..., 0] = True
    scores = 0.25 * queries @ keys.repeat_interleave(2, 1).mT
    expected = (scores.masked_fill(~mask, -torch.inf).softmax(-1) @ values.repeat_interleave(2, 1)).transpose(1, 2)

    def kernels_used(q: torch.Tensor = queries, mask: Any = mask, name: str = "sdpa", **named: Any) -> int:
        by_arithmetic.clear()
        module.eval()
        function = attend(name, modeling_llama.eager_attention_forward)
        found = function(module, q, keys.to(q.dtype), values.to(q.dtype), mask, **{"scaling": 0.25, **named})[0]
        if q is queries and mask is not None and mask.dtype == torch.bool:
            torch.testing.assert_close(found, expected)
        return by_arithmetic.count("attend")

    assert kernels_used() == 0, "not recorded"
    nothing = attend("sdpa", modeling_llama.eager_attention_forward)(module, queries[:, :0], keys[:, :0], values[:, :0], mask)
    assert nothing[0].shape == (2, 1, 0, 16), "no kernel is started over no heads"
    with few.recorded(torch.tensor([8])):
        assert kernels_used() == 1
        assert kernels_used(torch.randn(2, 8, 3, 16), mask.expand(2, 1, 3, 9)) == 0, "more than one position"
        assert kernels_used(queries.double()) == 0, "a type without kernels"
        assert kernels_used(mask=None) == 0
        assert kernels_used(mask=torch.zeros(2, 1, 1, 9)) == 0, "numbers to be added"
        assert kernels_used(scaling=None, q=queries * 1) == 0
        assert kernels_used(mask=torch.zeros(2, 1, 1, 9), name="eager") == 0
        assert kernels_used(position_bias=torch.ones(2, 8, 1, 9), q=queries * 1) == 0
        monkeypatch.setitem(attention.WIDEST, torch.float32, 15)
        assert kernels_used() == 0, "too wide"
