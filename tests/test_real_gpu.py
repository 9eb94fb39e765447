"""The package on a real GPU, where there is one, as a pretended one knows nothing of CUDA's kernels, graphs and copies."""

from __future__ import annotations

from collections.abc import Iterator

import probes
import pytest
import steering_items
import torch
from test_pretended_gpu import assert_alike
from transformers import AutoModelForCausalLM, AutoTokenizer

import lens_magic as lens
from benchmarks import gpu_checks
from benchmarks.ablation import held_out_prompts
from benchmarks.checkpoints import DEMO
from lens_magic.errors import RankError
from lens_magic.session import current

pytestmark = [
    pytest.mark.ranks("own"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]

TOKENS = 64


@pytest.fixture(autouse=True)
def freed() -> Iterator[None]:
    """Nothing is left on the GPU."""
    before = current().default_ranks
    yield
    current().close()
    current().default_ranks = before


def attach_demo(device: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32).eval().requires_grad_(False).to(device)
    lens.attach(model, AutoTokenizer.from_pretrained(DEMO))


def looked_at() -> list[lens.LensRun]:
    """Prompts alone and side by side, the latter steered."""
    prompts = held_out_prompts(2)
    steer = steering_items.changing(current().require_model().width)
    alone = [lens.run(prompt, TOKENS, ignore_eos=True) for prompt in prompts]
    return [*alone, *lens.run(prompts, TOKENS, ignore_eos=True, steer=steer)]


def test_tokens_figures_and_kernels_are_transformers() -> None:
    """And those of replayed steps the ones of steps run one by one."""
    found = gpu_checks.check(prompts=2, tokens=TOKENS)
    for row in found["models"]:
        exact = row["dtype"] == "float32"
        assert "left_out" not in row, row
        assert row["replayed"], row
        assert row["first"] > (0.999 if exact else 0.95), row
        assert row["logit"] < (1e-2 if exact else 1.0), row
        assert row["margin"] < (1e-2 if exact else 0.3), row
    for row in found["kernels"]:
        assert "left_out" not in row, row
        assert row["ours"] < (1e-5 if row["dtype"] == "float32" else 2e-2), row
        assert row.get("exactly", True), row


def test_runs_are_those_of_a_processor() -> None:
    attach_demo("cpu")
    reference = looked_at()
    attach_demo("cuda")
    with gpu_checks.recordings() as recorded:
        assert_alike(looked_at(), reference)
    assert recorded
    assert all(recorded)


def test_states_kept_on_the_host_are_those_of_the_gpu() -> None:
    attach_demo("cuda")
    (prompt,) = held_out_prompts(1)
    runs, states = [], []
    for offload in (False, True):
        runs.append(lens.run(prompt, TOKENS, ignore_eos=True, offload=offload))
        states.append(torch.stack([runs[-1].activations(site) for site in runs[-1].sites]))
    assert_alike(runs[1:], runs[:1])
    torch.testing.assert_close(states[1], states[0], rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs")
def test_ranks_with_a_gpu_each_go_on_after_a_failure() -> None:
    attach_demo("cpu")
    reference = looked_at()
    lens.load(str(DEMO), ranks=2)
    assert_alike(looked_at(), reference)
    group = current().group
    with pytest.raises(RankError, match="planned on 1"):
        group.call(probes.fail_alone, 1)
    assert_alike(looked_at(), reference)
