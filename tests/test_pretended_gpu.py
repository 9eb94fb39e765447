"""The package on a pretended GPU: the same texts and numbers as on a CPU, with steps replayed as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import numpy as np
import pretended
import probes
import pytest
import steering_items
import torch

import lens_magic as lens
from lens_magic.errors import RankError
from lens_magic.model import graph
from lens_magic.model.load import MODEL
from lens_magic.session import current

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU that need not be pretended")

PROMPTS = [models.PROMPT, "Grind the glass"]
TOKENS = 24


def looked_at(folder: Path, ranks: int = 1) -> list[lens.LensRun]:
    """A sampled and a steered run of two prompts side by side."""
    lens.load(str(folder), ranks=ranks)
    sampled = lens.run(PROMPTS, TOKENS, ignore_eos=True, temperature=1.0, top_p=0.9)
    return [
        *sampled,
        *lens.run(PROMPTS, TOKENS, ignore_eos=True, steer=steering_items.changing(current().require_model().width)),
    ]


def assert_alike(ours: list[lens.LensRun], reference: list[lens.LensRun]) -> None:
    for run, other in zip(ours, reference, strict=True):
        assert run.output_ids == other.output_ids
        mine, theirs = run.to_xarray(), other.to_xarray()
        for name in ("logit", "prob", "entropy", "kl_final", "target_prob"):
            np.testing.assert_allclose(mine[name].values, theirs[name].values, atol=2e-4, rtol=1e-4, err_msg=name)


def assert_replayed(group: Any, runs: int = 2) -> None:
    for replays, constants in group.call(pretended.recorded):
        assert replays == [TOKENS - 2] * runs, "all but the prefill's token, and the step that is watched"
        assert set(constants) <= {"aten.fill_.Tensor"}, "what changes from step to step is no constant of the host's"


@pytest.mark.parametrize("name", models.FAMILIES)
def test_every_family(name: str, checkpoints: Callable[[str], Path], with_gpus: Callable[..., Any]) -> None:
    reference = looked_at(checkpoints(name))
    group = with_gpus()
    assert_alike(looked_at(checkpoints(name)), reference)
    assert_replayed(group)


@pytest.mark.parametrize(("count", "name"), [(1, "qwen3-odd"), (2, "qwen3-moe"), (2, "llama-1kv")])
def test_ranks_that_exchange_in_kernels(
    count: int, name: str, checkpoints: Callable[[str], Path], with_gpus: Callable[..., Any]
) -> None:
    """The exchanges are in the graphs, and a token waits for the GPU once."""
    folder = checkpoints(name)
    reference = looked_at(folder)
    group = with_gpus(count)
    assert_alike(looked_at(folder, count), reference)
    assert_replayed(group)
    for options in ({}, {"steer": steering_items.changing(current().require_model().width)[0]}):
        few, many = (waits(group, tokens, **options) for tokens in (TOKENS, TOKENS + 10))
        assert [more - less for less, more in zip(few, many, strict=True)] == [10] * count, options
    assert_one_wait_a_block(group)


@pytest.mark.parametrize(("count", "name"), [(1, "qwen3-odd"), (2, "llama-1kv")])
def test_whatever_else_moves_tensors(
    count: int, name: str, checkpoints: Callable[[str], Path], with_gpus: Callable[..., Any]
) -> None:
    folder = str(checkpoints(name))
    lens.load(folder)
    tuned = lens.train_tuned_lens(models.TEXT.splitlines(), steps=2, tokens_per_step=64)  # autograd asks for true devices
    others, numbers = everything_else(tuned)
    with_gpus(count)
    lens.load(folder, ranks=count)
    ours, found = everything_else(tuned)
    assert_alike(ours, others)
    np.testing.assert_allclose(found, numbers, rtol=2e-3, atol=2e-3)


def assert_one_wait_a_block(group: Any) -> None:
    """Rank 0 waits for a block's figures when the next block has been asked for; the others for nothing."""
    cells = 3 * current().require_model().layers
    found = []
    for blocks in (1, 3, cells):
        group.call(pretended.cut_into_blocks_of, TOKENS * cells // blocks)
        group.call(pretended.waits)
        lens.run(models.PROMPT, TOKENS, ignore_eos=True)
        found.append(group.call(pretended.waits))
    first, *others = ([more - few for more in counts] for few, *counts in zip(*found, strict=True))
    assert first == [2, cells - 1]
    assert all(more == [0, 0] for more in others)


def waits(group: Any, tokens: int, **options: Any) -> list[int]:
    group.call(pretended.waits)
    lens.generate(PROMPTS[0], tokens, ignore_eos=True, **options)
    return list(group.call(pretended.waits))


def everything_else(tuned: lens.TunedLens) -> tuple[list[lens.LensRun], list[float]]:
    """Options of a run, other lenses, directions and what they are measured by."""
    columns = torch.eye(current().require_model().width)[:, :7]  # a basis is often a transposed view
    basis = lens.Basis(columns.numpy().T, [f"way {row}" for row in range(7)], name="ways")
    vector = lens.train_vector(steering_items.pairs(), layers=[0, 1], position="mean")
    ways: list[dict[str, Any]] = [
        {"offload": True, "prompt_tokens": True},
        {"stream_lens": True},
        {"capture_dtype": "float32", "capture": ("resid_pre", "mlp_out"), "track": True, "norm": "frozen"},
        {"lens": tuned, "force": "A lamp in the lens"},
        {"steer": vector.steer(operator="ablate")},
    ]
    runs, sums = [], []
    for way in ways:
        runs.append(lens.run(models.PROMPT, TOKENS, ignore_eos=True, **way))
        sums.append(float(runs[-1].activations("mlp_out").float().sum()))
    looked = lens.run(models.PROMPT, 8, ignore_eos=True, lens=basis)
    report = lens.evaluate(vector, steering_items.questions(), alphas=(-1.0, 1.0))
    parted = lens.diff(runs[0], steer=vector * 2.0)
    compared = lens.compare(models.PROMPT, steer=vector * 2.0, max_new_tokens=TOKENS)
    numbers = [
        *sums,
        float(looked.to_xarray()["logit"].values.sum()),
        *report.summary()["mean_slope"],
        float(parted.to_xarray()["kl"].sum()),
        *compared.steered.log_prob_change[:4],
    ]
    return runs, numbers


@pytest.mark.parametrize(
    ("name", "with_triton", "once"),
    [("llama-gqa", True, True), ("mistral-window", True, True), ("llama-gqa", False, False), ("gemma2", True, False)],
)
def test_where_attention_stops_at_a_steps_column_few_recordings_do(
    name: str,
    with_triton: bool,
    once: bool,
    checkpoints: Callable[[str], Path],
    with_gpus: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each costs a step that is run and one that is recorded. Torch's attention, which caps Gemma 2's scores, reads on."""
    reference = looked_at(checkpoints(name))
    monkeypatch.setattr(graph.Recorded, "boundary", 8)
    monkeypatch.setattr(graph, "LEAST", 3)
    group = with_gpus(with_triton=with_triton)
    assert_alike(looked_at(checkpoints(name)), reference)
    ((replays, _),) = group.call(pretended.recorded)
    if once:
        assert replays == [TOKENS - 2] * 2
    else:
        assert len(replays) >= 2 * 3
        assert max(replays) < 8


def test_ranks_record_together_or_not_at_all(checkpoints: Callable[[str], Path], with_gpus: Callable[..., Any]) -> None:
    """NCCL's exchanges are in graphs on all ranks or on none; here rank 0 alone has a hook of the user's to call."""
    folder = checkpoints("llama-gqa")
    group = with_gpus(2)
    lens.load(str(folder), ranks=2)
    group.call(pretended.recorded)
    lens.generate(models.PROMPT, TOKENS, ignore_eos=True)
    assert [replays for replays, _ in group.call(pretended.recorded)] == [[TOKENS - 2]] * 2
    handle = group.rank.store[MODEL].model.model.layers[0].mlp.register_forward_hook(lambda *_: None)
    try:
        lens.generate(models.PROMPT, TOKENS, ignore_eos=True)
    finally:
        handle.remove()
    assert [replays for replays, _ in group.call(pretended.recorded)] == [[], []]


def test_a_failed_call_leaves_no_kernel_for_the_next(checkpoints: Callable[[str], Path], with_gpus: Callable[..., Any]) -> None:
    """Every rank has waited for its own GPU when the call is over, those that noticed no failure too."""
    group = with_gpus(2)
    lens.load(str(checkpoints("llama-gqa")), ranks=2)
    group.call(pretended.waits)
    with pytest.raises(RankError, match="planned on 1"):
        group.call(probes.fail_alone, 1)
    assert group.call(pretended.waits) == [2, 2], "that call's, and the one's that asked before"


def test_ranks_that_share_a_gpu(checkpoints: Callable[[str], Path], with_gpus: Callable[..., Any]) -> None:
    """They exchange by way of the host, which no graph can hold."""
    reference = looked_at(checkpoints("llama-gqa"))
    group = with_gpus(2, with_nccl=False, with_triton=False)
    assert_alike(looked_at(checkpoints("llama-gqa"), 2), reference)
    assert_replayed(group, runs=0)
