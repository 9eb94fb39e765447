"""What the user has set in torch for a notebook's process is rank 0's alone; calls do not depend on it."""

from __future__ import annotations

import contextlib
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

import lens_magic as lens
from lens_magic.errors import RankError
from lens_magic.session import current

TEXTS = [models.TEXT[begin : begin + 60] for begin in range(0, 480, 40)]


@pytest.fixture(scope="session", params=(1, 2), ids=lambda count: f"{count}-ranks")
def ranks(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def less_exact() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


SETTINGS: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "default_device": lambda: default_device("meta"),
    "device": lambda: torch.device("meta"),
    "less_exact": less_exact,
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_call_runs_under_the_same_settings_on_every_rank(setting: str, ranks: int, checkpoints: Any) -> None:
    once.load(checkpoints("llama-gqa"), ranks)
    group = current().group
    usual = probes.torch_settings(group.rank)
    assert group.call(probes.torch_settings) == [usual] * ranks
    with SETTINGS[setting]():
        own = probes.torch_settings(group.rank)
        assert own != usual
        assert group.call(probes.torch_settings) == [usual] * ranks
        assert probes.torch_settings(group.rank) == own
        with pytest.raises((ValueError, RankError), match="planned"):
            group.call(probes.fail, ranks - 1)
        assert probes.torch_settings(group.rank) == own


def everything(folder: Path) -> list[Any]:
    """Numbers from every kind of call, none of which finds what an earlier one left on the ranks."""
    lens.load(str(folder), ranks=current().group.size)
    vector = lens.train_vector(steering_items.pairs(), layers=[1], site="resid_post", position="last", method="logistic")
    tuned = lens.train_tuned_lens(TEXTS, steps=2, tokens_per_step=64)
    basis = lens.Basis(np.random.default_rng(1).normal(size=(5, 128)))
    frozen = {"norm": "frozen", "capture": ("attn_out", "resid_post")}
    term, options = vector * 2.0, {"max_new_tokens": 20, "ignore_eos": True}
    runs = [
        lens.run("To be", **options, temperature=0.8, seed=1, steer=(term,)),
        lens.run("To be", **options, lens=basis),
        lens.run("To be", **options, lens=tuned),
        lens.run("To be", **options, **frozen),
        *lens.run(["To be", "A lens gathers"], **options, prompt_tokens=True),
    ]
    comparison = lens.compare("To be", (term,), 20, ignore_eos=True)
    change = lens.diff(runs[-1], steer=(term,))
    report = lens.evaluate(vector, steering_items.questions(), alphas=(-1.0, 0.0, 1.0))
    names = ("token_id", "logit", "entropy")
    return [
        vector.directions[1].numpy(),
        *(weight.numpy() for weight in tuned.weights),
        *(run.variables[name] for run in runs for name in names),
        *(values.to_numpy() for values in change.to_xarray().data_vars.values()),
        np.array([*comparison.unsteered.output_ids, *comparison.steered.output_ids]),
        report.to_pandas().select_dtypes("number").to_numpy(),
    ]


@pytest.mark.parametrize("setting", ["float64", "inference_mode", "autocast", "default_device", "less_exact"])
def test_results_do_not_depend_on_them(setting: str, ranks: int, checkpoints: Any) -> None:
    folder = checkpoints("llama-gqa")
    once.load(folder, ranks)
    if (folder, ranks) not in _usual:
        _usual[folder, ranks] = everything(folder)
    with SETTINGS[setting]():
        found = everything(folder)
    for array, expected in zip(found, _usual[folder, ranks], strict=True):
        np.testing.assert_array_equal(array, expected)


_usual: dict[tuple[Path, int], list[Any]] = {}  # without any of the settings
