"""The GPU's kernel for a block's figures: in Triton's interpreter against float64, and through its compiler."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lens_magic.lens import figures, onepass

HERE = Path(__file__).parent
BESIDE = HERE.parent / ".triton"  # tools/triton.sh

CASES = {
    "awkward rows": (5, 3, 3001),
    "one block of rows": (2, 1, 2048),
    "a group and two": (3, 2, 130),
    "few": (2, 2, 3),
    "one row": (2, 2, 1),
    "largest last": (2, 3, 6001),
    "largest first": (2, 3, 6001),
    "far apart": (2, 3, 4500),
    "full of ties": (4, 2, 5000),
    "no target": (2, 2, 2600),
}


def case(name: str) -> dict[str, torch.Tensor]:
    """Logits, targets and the output's weights."""
    torch.manual_seed(sum(map(ord, name)))
    logits = torch.randn(CASES[name]) * 6 + 40
    if name == "largest last":
        logits += torch.linspace(-200, 0, logits.shape[-1])
    if name == "largest first":
        logits -= torch.linspace(0, 200, logits.shape[-1])
    if name == "far apart":
        logits *= 1e4
        logits[..., 1000:] = -1e30
    if name == "full of ties":
        logits = logits.div(6).round()
    target = logits[..., logits.shape[-1] // 2].clone()
    if name == "no target":
        target.fill_(torch.inf)
    weights = torch.randn(logits.shape[1:]).mul(4).sub(4).exp()
    return {"logits": logits, "target": target, "weights": weights}


def spoiled(value: float) -> dict[str, torch.Tensor]:
    """As :func:`case`, with one logit of one cell that is no number, and some of the others negative zeros."""
    given = case("awkward rows")
    given["logits"] = given["logits"] - given["logits"].amax() - 1
    given["logits"][..., 40:42] = torch.tensor([0.0, -0.0])
    given["logits"][1, 2, 2500] = value
    return given


def run(*arguments: str, **variables: str) -> str:
    where = [str(HERE.parent), *([str(BESIDE)] if BESIDE.is_dir() else [])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(where), **variables}
    done = subprocess.run(
        [sys.executable, str(HERE / "kernel_probe.py"), *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def triton() -> None:
    if importlib.util.find_spec("triton") is None and not BESIDE.is_dir():
        pytest.skip("Triton is not here; tools/triton.sh gets it")


@pytest.fixture(scope="module")
def interpreted(triton: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, np.ndarray]]:
    """What the kernel makes of a case."""
    folder = tmp_path_factory.mktemp("kernel")
    given = {name: case(name) for name in CASES} | {str(value): spoiled(value) for value in (np.nan, np.inf)}
    np.savez(
        folder / "cases.npz", **{f"{name}.{part}": one.numpy() for name, parts in given.items() for part, one in parts.items()}
    )
    run("sums", str(folder / "cases.npz"), str(folder / "found.npz"), TRITON_INTERPRET="1")
    found = np.load(folder / "found.npz")
    return lambda name: {key.partition(".")[2]: found[key] for key in found.files if key.startswith(f"{name}.")}


@pytest.mark.parametrize("name", CASES)
def test_the_sums_are_those_of_float64(name: str, interpreted: Callable[[str], dict[str, np.ndarray]]) -> None:
    given, found = case(name), interpreted(name)
    logits, weights = given["logits"].double(), given["weights"].double()
    below = logits - logits.amax(-1, keepdim=True)
    expected = {
        "total": below.exp().sum(-1),
        "weighted": (below.exp() * below).nan_to_num().sum(-1),
        "crossed": torch.einsum("pr,kpr->kp", weights, below),
    }
    for part, values in expected.items():
        np.testing.assert_allclose(found[part], values.numpy(), rtol=3e-6, atol=0, err_msg=part)
    np.testing.assert_array_equal(found["above"], (given["logits"] > given["target"][..., None]).sum(-1))


@pytest.mark.parametrize("name", CASES)
def test_the_largest_are_those_of_a_stable_sort(name: str, interpreted: Callable[[str], dict[str, np.ndarray]]) -> None:
    found, logits = interpreted(name), case(name)["logits"].flatten(0, 1)
    expected = logits.sort(dim=-1, descending=True, stable=True)
    k = found["ids"].shape[1]
    np.testing.assert_array_equal(found["values"], expected.values[:, :k])
    np.testing.assert_array_equal(found["ids"], expected.indices[:, :k])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_spoils_its_own_cell_alone(value: float, interpreted: Callable[[str], dict[str, np.ndarray]]) -> None:
    found, given = interpreted(str(value)), spoiled(value)
    bad = np.zeros((5, 3), bool)
    bad[1, 2] = True
    np.testing.assert_array_equal(~np.isfinite(found["total"]), bad)
    ids = found["ids"].reshape(5, 3, -1)
    assert ids[1, 2, 0] == 2500
    assert (ids[~bad][:, :2] == [40, 41]).all(), "−0 is 0"
    values, _, rest = figures.read(given["logits"], given["target"], figures.Output.of(given["weights"].log()), 4)
    np.testing.assert_array_equal(found["values"][:, 0], values.flatten(0, 1)[:, 0])
    np.testing.assert_array_equal(~np.isfinite(found["total"]), ~np.isfinite(rest.total.numpy()))


@pytest.mark.parametrize("rows", [1, 5, 127, 640, 2600, 2561])
@pytest.mark.parametrize("k", [1, 4])
def test_nobody_has_to_look_for_ties(rows: int, k: int) -> None:
    torch.manual_seed(rows)
    logits = torch.randn(40, rows).mul(2).round()
    maxima = torch.nn.functional.pad(logits, (0, -rows % onepass.GROUP), value=-torch.inf)
    maxima = maxima.unflatten(-1, (-1, onepass.GROUP)).amax(-1)
    values, ids = onepass.top(logits, maxima, min(k, rows))
    expected = logits.sort(dim=-1, descending=True, stable=True)
    assert torch.equal(values, expected.values[:, :k])
    assert torch.equal(ids, expected.indices[:, :k])


def test_it_compiles_for_gpus(triton: None) -> None:
    """In registers alone; where rows are aligned with loads of 16 bytes, and so that three blocks fit a multiprocessor."""
    found: dict[str, dict[str, int]] = json.loads(run("compile"))
    assert set(found) == {"80", "90", "90, odd", "90, one position", "90, one of each"}
    for name, said in found.items():
        aligned = name in ("80", "90", "90, one position")
        assert said["spilled"] == 0, name
        assert bool(said["wide_loads"]) == aligned, name
        assert (3 if aligned else 2) * 32 * onepass._WARPS * said["registers"] <= 65536, name


def test_it_is_for_gpus_alone() -> None:
    assert not onepass.works_on(torch.device("cpu"))


def test_where_it_cannot_be_had_the_reason_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on this machine without a GPU, be Triton there or not."""
    monkeypatch.setattr(onepass, "sums", lambda *_: 1 / 0)
    onepass.trouble.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    words = onepass.trouble(torch.device("cpu"))
    onepass.trouble.cache_clear()
    assert words == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize("wrong", [None, 0, 1, 2, 3])
def test_a_kernel_that_is_wrong_is_not_used(wrong: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    from pretended import kernels

    def sums(*given: torch.Tensor) -> Any:
        found, maxima = kernels.sums(*given)
        return [one * 1.001 if place == wrong else one for place, one in enumerate(found)], maxima

    monkeypatch.setattr(onepass, "sums", sums)
    assert onepass._is_right(torch.device("cpu")) == (wrong is None)
