"""A decode step that is recorded once and replayed gives the same result as an eager step."""

from __future__ import annotations

import contextlib
import gc
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import models
import numpy as np
import once
import probes
import pytest
import steering_items
import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.masking_utils import sdpa_mask

import lens_magic as lens
from lens_magic import prompts
from lens_magic.model import graph as graph_module
from lens_magic.model.choose import Chooser
from lens_magic.model.graph import OnGPU, Recorded
from lens_magic.model.load import MODEL
from lens_magic.ranks.recording import Recording
from lens_magic.session import current

TOKENS = 40
EVERY = 8  # columns for which there is a recording
PROMPTS = [models.PROMPT, "Grind the glass"]
SIDE_BY_SIDE = ("llama-gqa", "qwen3-odd", "mistral-window", "gemma2")

Stepping = Callable[[bool], None]


@pytest.fixture
def stepping() -> Iterator[Stepping]:
    """Has the ranks of the loaded model replay steps, with many recordings, or run each anew."""
    changed = []

    def use(replayed: bool) -> None:
        changed.append(replayed)
        current().group.call(probes.step_by, "replay" if replayed else "eager", EVERY)

    yield use
    if changed and current().group is not None:
        current().group.call(probes.step_by, "usual")


def replays() -> int:
    counts: list[int] = current().group.call(probes.replays)
    assert len(set(counts)) == 1, counts
    return counts[0]


@pytest.mark.parametrize("name", SIDE_BY_SIDE)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_prompts_side_by_side_steered(
    name: str, temperature: float, checkpoints: Callable[[str], Path], stepping: Stepping
) -> None:
    once.load(checkpoints(name))
    steer = steering_items.changing(current().require_model().width)
    options = {"temperature": temperature, "top_p": 0.9, "ignore_eos": True, "capture": ("resid_pre", "mlp_out")}
    compared(stepping, lambda: lens.run(PROMPTS, TOKENS, steer=steer, **options))


@pytest.mark.parametrize(("ranks", "name"), [*((n, name) for n in (1, 2) for name in models.FAMILIES), (3, "llama-gqa")])
def test_every_family(ranks: int, name: str, checkpoints: Callable[[str], Path], stepping: Stepping) -> None:
    """A prompt alone, which needs no mask but a recorded step's."""
    once.load(checkpoints(name), ranks)
    compared(stepping, lambda: [lens.run(models.PROMPT, TOKENS, ignore_eos=True)], tied=0.01)


def compared(stepping: Stepping, run: Callable[[], list[lens.LensRun]], tied: float = 0.0) -> None:
    """Both ways, and all they give; in a share of cells, ids and ranks may swap where two tokens are equal up to rounding."""
    stepping(False)
    eager = run()
    assert replays() == 0
    stepping(True)
    replayed = run()
    assert replays() >= TOKENS - 3 * (1 + TOKENS // EVERY), "most steps are replayed"
    for before, after in zip(eager, replayed, strict=True):
        assert after.output_ids == before.output_ids
        for variable, values in before.variables.items():
            if tied and variable in ("token_id", "target_rank"):
                assert (after.variables[variable] != values).mean() < tied, variable
                continue
            np.testing.assert_allclose(after.variables[variable], values, rtol=1e-4, atol=1e-5, err_msg=variable)


def test_a_model_with_hooks_of_its_owner_is_never_replayed(checkpoints: Callable[[str], Path], stepping: Stepping) -> None:
    """They are to be called at every token."""
    once.load(checkpoints("llama-gqa"))
    stepping(True)
    layer = current().group.rank.store[MODEL].model.model.layers[0].mlp
    called: list[int] = []
    handle = layer.register_forward_hook(lambda *_: called.append(1))
    try:
        lens.generate(models.PROMPT, TOKENS, ignore_eos=True)
    finally:
        handle.remove()
    assert len(called) == TOKENS
    assert replays() == 0


def test_a_compiled_module_is_never_replayed(
    checkpoints: Callable[[str], Path], stepping: Stepping, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What compiled code does is not seen by who records."""
    once.load(checkpoints("llama-gqa"))
    stepping(True)
    layer = current().group.rank.store[MODEL].model.model.layers[0].mlp
    monkeypatch.setattr(layer, "_compiled_call_impl", layer.forward)  # as nn.Module.compile does
    lens.generate(models.PROMPT, TOKENS, ignore_eos=True)
    assert replays() == 0


def test_a_model_whose_code_is_not_known_is_never_replayed(checkpoints: Callable[[str], Path], stepping: Stepping) -> None:
    """It may keep count in Python."""
    once.load(checkpoints("llama-gqa"))
    stepping(True)
    layer: Any = current().group.rank.store[MODEL].model.model.layers[0].mlp
    usual = type(layer)

    class Counting(usual):  # type: ignore[misc, valid-type]
        called = 0

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            self.called += 1
            return super().forward(states)  # type: ignore[no-any-return]

    layer.__class__ = Counting
    try:
        lens.generate(models.PROMPT, TOKENS, ignore_eos=True)
        assert layer.called == TOKENS
    finally:
        layer.__class__ = usual
    assert replays() == 0


def test_attention_of_somebody_elses_is_never_replayed(checkpoints: Callable[[str], Path], stepping: Stepping) -> None:
    """It may take no mask, and so look at columns that only a recorded step has in sight."""
    folder = checkpoints("llama-gqa")
    once.load(folder)
    expected = lens.generate(models.PROMPT, TOKENS, ignore_eos=True).output_ids
    shown: list[int] = []

    def unmasked(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **_: Any) -> Any:
        shown.append(key.shape[2])
        out = F.scaled_dot_product_attention(query, key, value, is_causal=query.shape[2] > 1, enable_gqa=True)
        return out.transpose(1, 2), None

    AttentionInterface.register("unmasked", unmasked)
    AttentionMaskInterface.register("unmasked", sdpa_mask)
    model, tokenizer = models.load_plain(folder)
    model.set_attn_implementation("unmasked")
    lens.attach(model, tokenizer)
    stepping(True)
    assert lens.generate(models.PROMPT, TOKENS, ignore_eos=True).output_ids == expected
    assert replays() == 0
    assert shown[-1] == len(prompts.read(current().require_model(), models.PROMPT).ids) + TOKENS - 1, "and no column more"


def test_few_steps_are_not_worth_a_recording(checkpoints: Callable[[str], Path], stepping: Stepping) -> None:
    once.load(checkpoints("llama-gqa"))
    stepping(True)
    lens.generate(models.PROMPT, 3, ignore_eos=True)
    assert replays() == 0


def dynamic_rope(checkpoints: Callable[[str], Path]) -> None:
    """Attach a model whose rotary embedding asks, at every token, how long the text is by now."""
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 320}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**shape, rope_parameters=rope, bos_token_id=None, eos_token_id=None)).eval()
    lens.attach(model, AutoTokenizer.from_pretrained(checkpoints("llama-gqa")))


def test_a_step_that_waits_for_a_value_is_run_anew_each_time(checkpoints: Callable[[str], Path], stepping: Stepping) -> None:
    dynamic_rope(checkpoints)
    stepping(False)
    eager = lens.generate(models.PROMPT, TOKENS, ignore_eos=True)
    stepping(True)
    tried = lens.generate(models.PROMPT, TOKENS, ignore_eos=True)
    assert replays() == 0
    assert tried.output_ids == eager.output_ids


def test_on_a_gpu_it_is_known_before_a_graph_is_recorded(checkpoints: Callable[[str], Path]) -> None:
    """There, it would be an error."""
    dynamic_rope(checkpoints)
    waiting, fine = (OnGPU(torch.device("cuda"), torch.zeros(1)) for _ in range(2))
    loaded = current().group.rank.store[MODEL]
    ids = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        expected = loaded.backbone(ids).last_hidden_state
        assert torch.equal(waiting.warm_up(lambda: loaded.backbone(ids).last_hidden_state), expected)
        replay, again = waiting.record(lambda: loaded.backbone(ids).last_hidden_state)
        assert replay is None
        assert torch.equal(again, expected)
        fine.warm_up(lambda: loaded.head.logits(expected[0]))
    assert fine._watched is not None
    assert fine._watched.refusal is None


class FakeGraph:
    """Gives its pool back by itself once its recording has ended; torch ends the process where a pool is given back twice."""

    def __init__(self, given_back: list[str]) -> None:
        self.has_ended = False
        self._given_back = given_back

    def pool(self) -> tuple[int, int]:
        if not self.has_ended:
            raise RuntimeError("Called CUDAGraph::pool() without a preceding successful capture.")
        return (0, 1)

    def reset(self) -> None:
        if self.has_ended:
            self._given_back.append("by the graph")
            self.has_ended = False

    def replay(self) -> None:
        pass

    __del__ = reset


class FakeGraphs:
    """Stands in for CUDA graphs, and fails as they do where a step turns out not to be recordable.

    Args:
        invalidated: CUDA has refused something, so the recording cannot end; otherwise torch has, before it called CUDA.
    """

    def __init__(self, patch: pytest.MonkeyPatch, invalidated: bool) -> None:
        self.stream = "own"
        self.invalidated = invalidated
        self.ended: list[str] = []
        for name in ("CUDAGraph", "graph_pool_handle", "Stream", "set_stream", "graph"):
            patch.setattr(torch.cuda, name, getattr(self, name))
        patch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
        patch.setattr(torch.cuda, "current_device", lambda: 0)
        patch.setattr(torch.cuda, "current_stream", lambda: self.stream)
        for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
            patch.setattr(torch._C, name, lambda *_, name=name: self.ended.append(name), raising=False)
        graph_module._recording_stream.cache_clear()

    def CUDAGraph(self) -> FakeGraph:  # noqa: N802 - torch's names
        return FakeGraph(self.ended)

    def graph_pool_handle(self) -> tuple[int, int]:
        return (0, 1)

    def Stream(self, device: Any) -> str:  # noqa: N802
        return "side"

    def set_stream(self, stream: str) -> None:
        self.stream = stream

    @contextlib.contextmanager
    def graph(self, graph: FakeGraph, pool: Any, stream: str, capture_error_mode: str) -> Iterator[None]:
        before, self.stream = self.stream, stream
        try:
            yield
        except RuntimeError as error:
            if self.invalidated:  # torch ends the capture, which raises, and so leaves its stream in place
                raise RuntimeError("CUDA error: operation failed due to a previous error\nmore lines") from error
            graph.has_ended, self.stream = True, before
            raise
        graph.has_ended, self.stream = True, before


@pytest.mark.parametrize("telling", [True, False])
@pytest.mark.parametrize(
    ("invalidated", "ended", "reason"),
    [
        (True, ["_cuda_endAllocateToPool", "_cuda_releasePool"], "CUDA error: operation failed due to a previous error"),
        (False, ["by the graph"], "Cannot copy between CPU and CUDA tensors during CUDA graph capture"),
    ],
)
def test_a_graph_that_cannot_be_recorded_costs_speed_alone(
    invalidated: bool, ended: list[str], reason: str, telling: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of a step has run by then: it is run as it is, where it would have been, and so are those after it."""
    graphs = FakeGraphs(monkeypatch, invalidated)
    streams: list[str] = []
    fails = True

    def step() -> torch.Tensor:
        streams.append(graphs.stream)
        if fails and graphs.stream == "side":
            raise RuntimeError("Cannot copy between CPU and CUDA tensors during CUDA graph capture")
        return torch.ones(1)

    recorded = Recorded(OnGPU(torch.device("cuda", 0), torch.zeros(1), telling))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        results = [recorded(step, "shape", like_it=100) for _ in range(4)]
    assert all(torch.equal(one, torch.ones(1)) for one in results)
    assert streams == ["own", "side", "own", "own", "own"]
    gc.collect()
    assert graphs.ended == ended, "given back once, and by one of the two"
    words = f"a decode step cannot be made a CUDA graph ({reason})"
    assert [words in str(one.message) for one in said] == [True] * telling

    fails = False
    recorded, streams = Recorded(OnGPU(torch.device("cuda", 0), torch.zeros(1))), []
    for _ in range(4):
        recorded(step, "shape", like_it=100)
    assert streams == ["own", "side"]


def test_a_recording_goes_with_its_generation(checkpoints: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds keys, values and a step's results: not until Python next looks for cycles."""
    made: list[weakref.ref[Recording]] = []

    class Noted(Recording):
        def __init__(self) -> None:
            super().__init__()
            made.append(weakref.ref(self))

    monkeypatch.setattr("lens_magic.model.graph.Recording", Noted)
    once.load(checkpoints("llama-gqa"))
    gc.disable()
    try:
        lens.generate(models.PROMPT, TOKENS, ignore_eos=True)
        assert [recording() for recording in made] == [None]
    finally:
        gc.enable()


def test_a_recording_goes_with_a_generation_that_failed(
    checkpoints: Callable[[str], Path], stepping: Stepping, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long its error is kept: NCCL's communicators wait for the last graph that uses them."""
    once.load(checkpoints("llama-gqa"))
    stepping(True)
    kept: list[weakref.ref[Recording]] = []
    usual = Chooser.read

    def fail_at_length(self: Chooser, chosen: torch.Tensor) -> Any:
        if kept:
            raise ValueError("on purpose")
        return usual(self, chosen)

    def noted(self: Recording, replay: Callable[[Recording], None] = Recording.replay) -> None:
        kept.append(weakref.ref(self))
        replay(self)

    monkeypatch.setattr(Chooser, "read", fail_at_length)
    monkeypatch.setattr(Recording, "replay", noted)
    gc.disable()
    try:
        with pytest.raises(ValueError, match="on purpose") as caught:
            lens.generate(models.PROMPT, TOKENS, ignore_eos=True)
        assert caught.tb is not None
        assert [recording() for recording in kept] == [None]
    finally:
        gc.enable()
