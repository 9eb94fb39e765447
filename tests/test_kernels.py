"""The GPU's kernels: in Triton's interpreter against plain arithmetic, and through its compiler."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pretended import kernels
from safetensors.torch import load_file, save_file

from lens_magic.gpu import attention, onepass, steps
from lens_magic.gpu.trial import trial
from lens_magic.lens import figures

HERE = Path(__file__).parent
BESIDE = HERE.parent / ".triton"  # tools/triton.sh

PARTS = ("logits", "target", "weights")
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
    "none at first": (2, 2, 4500),
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
    if name == "none at first":
        logits[..., :2048] = -torch.inf
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


def of_steps() -> dict[str, list[torch.Tensor]]:
    """What the kernels of a step are given, by their name and the case's."""
    torch.manual_seed(1)
    cases = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        kind = str(dtype).removeprefix("torch.")
        for rows, width in (((2, 1), 96), ((1, 1, 4), 32), ((3, 1), 700), ((1, 1), 1)):
            states, weight = torch.randn(*rows, width).mul(30).to(dtype), torch.randn(width)
            cases[f"rms_norm/{width} {kind}"] = [states, weight.to(dtype)]
            cases[f"rms_norm/{width} {kind}, wide weight"] = [states, weight]
        for batch, heads, fewer, width in ((1, 4, 2, 32), (3, 6, 1, 24), (2, 2, 2, 2)):
            angles = torch.randn(batch, 1, width).mul(9)
            states = [torch.randn(batch, 1, many, width).mul(5).transpose(1, 2) for many in (heads, fewer)]
            cases[f"rotate/{width} {kind}"] = [one.to(dtype) for one in (*states, angles.cos(), angles.sin())]
        for count in (1, 511, 2 * 512 + 3):
            cases[f"gated/{count} {kind}"] = list(torch.randn(2, 1, 1, count).mul(6).to(dtype))
    cases["rotate/one angle for all float32"] = [
        *(torch.randn(2, heads, 1, 16) for heads in (4, 2)),
        *(torch.randn(1, 1, 16) for _ in range(2)),
    ]
    return cases


def of_attention() -> dict[str, list[torch.Tensor]]:
    """What attention's kernels are given, by the case's name: queries, keys, values and which columns are seen.

    (Not in bfloat16, of which the interpreter has no matrix product.)
    """
    torch.manual_seed(2)
    shapes = {
        "one head, one column": (1, 1, 1, 1, 16),
        "three queries a head": (2, 6, 2, 300, 24),
        "as many keys as queries": (1, 3, 3, 65, 64),
        "more queries than rows": (2, 20, 1, 128, 40),
        "many parts": (1, 4, 1, 1300, 8),
    }
    cases = {}
    for name, (batch, heads, key_heads, columns, width) in shapes.items():
        for dtype in (torch.float32, torch.float16):
            keys, values = torch.randn(2, batch, key_heads, columns + 7, width)
            mask = torch.rand(batch, 1, 1, columns) < 0.8
            mask[0, ..., :100] = False  # as by padding: more than is read at a time
            mask[..., -1] = True
            if name == "as many keys as queries":
                mask = mask[:1]
            queries = torch.randn(batch, 1, heads, width).mul(4).transpose(1, 2)
            given = [each.to(dtype) for each in (queries, keys, values)]
            cases[f"attend/{name} {dtype}"] = [*given, mask, torch.tensor([columns - 1])]
            if columns > 128:
                cases |= {f"attend/{name} {dtype}, {way}": told for way, told in _not_filled(*given, mask).items()}
    wide = [torch.randn(1, heads, columns, 256).half() for heads, columns in ((2, 1), (1, 80), (1, 80))]
    return {**cases, "attend/wide heads": [*wide, torch.ones(1, 1, 1, 77, dtype=torch.bool), torch.tensor([76])]}


def _not_filled(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor
) -> dict[str, list[torch.Tensor]]:
    """A cache that is filled up to one of its columns: as the mask tells, which is read whole, and as its number tells."""
    last = 101  # 128 are read: two times 64
    mask = mask & (torch.arange(mask.shape[-1]) <= last)
    mask[..., last] = True
    behind = [torch.where(torch.arange(each.shape[2])[:, None] >= 128, torch.nan, each) for each in (keys, values)]
    return {
        "by the mask": [queries, keys, values, mask, torch.tensor([mask.shape[-1] - 1])],
        "by its number": [queries, *behind, mask, torch.tensor([last])],
    }


STEPS, ATTENTION = of_steps(), of_attention()


def run(*arguments: str, **variables: str) -> str:
    where = [str(HERE.parent), *([str(BESIDE)] if BESIDE.is_dir() else [])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(where), **variables}
    command = [sys.executable, str(HERE / "kernel_probe.py"), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def triton() -> None:
    if importlib.util.find_spec("triton") is None and not BESIDE.is_dir():
        pytest.skip("Triton is not here; tools/triton.sh gets it")


Interpreted = Callable[[str], list[torch.Tensor]]
ByName = Callable[[str], dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def interpreted(triton: None, tmp_path_factory: pytest.TempPathFactory) -> Interpreted:
    """What the kernels make of a case."""
    folder = tmp_path_factory.mktemp("kernels")
    figures_of = {name: case(name) for name in CASES} | {str(value): spoiled(value) for value in (np.nan, np.inf)}
    cases = STEPS | ATTENTION | {f"sums/{name}": [parts[part] for part in PARTS] for name, parts in figures_of.items()}
    given = {f"{name}/{number}": one.contiguous().clone() for name, parts in cases.items() for number, one in enumerate(parts)}
    save_file(given, folder / "cases.safetensors")
    run("run", str(folder / "cases.safetensors"), str(folder / "found.safetensors"), TRITON_INTERPRET="1")
    found = load_file(folder / "found.safetensors")
    return lambda name: [found[key] for key in sorted(found) if key.rpartition("/")[0] == name]


@pytest.fixture(scope="module")
def figures_by_kernel(interpreted: Interpreted) -> ByName:
    """What the kernel makes of a block, by name."""
    names = ("total", "weighted", "crossed", "above", "values", "ids")
    return lambda name: dict(zip(names, (one.numpy() for one in interpreted(f"sums/{name}")), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_the_sums_are_those_of_float64(name: str, figures_by_kernel: ByName) -> None:
    given, found = case(name), figures_by_kernel(name)
    logits, weights = given["logits"].double(), given["weights"].double()
    below = logits - logits.amax(-1, keepdim=True)
    expected = {
        "total": below.exp().sum(-1),
        "weighted": (below.exp() * below).nan_to_num().sum(-1),
        "crossed": torch.einsum("pr,kpr->kp", weights, below),
    }
    for part, values in expected.items():
        if name == "none at first" and part != "total":
            continue  # 0 times −∞, by torch's operations as well
        np.testing.assert_allclose(found[part], values.numpy(), rtol=3e-6, atol=0, err_msg=part)
    np.testing.assert_array_equal(found["above"], (given["logits"] > given["target"][..., None]).sum(-1))


@pytest.mark.parametrize("name", CASES)
def test_the_largest_are_those_of_a_stable_sort(name: str, figures_by_kernel: ByName) -> None:
    found, logits = figures_by_kernel(name), case(name)["logits"].flatten(0, 1)
    expected = logits.sort(dim=-1, descending=True, stable=True)
    k = found["ids"].shape[1]
    np.testing.assert_array_equal(found["values"], expected.values[:, :k])
    np.testing.assert_array_equal(found["ids"], expected.indices[:, :k])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_spoils_its_own_cell_alone(value: float, figures_by_kernel: ByName) -> None:
    found, given = figures_by_kernel(str(value)), spoiled(value)
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
@pytest.mark.parametrize(("k", "room"), [(1, 64 << 20), (4, 64 << 20), (4, 100_000)])
def test_nobody_has_to_look_for_ties(rows: int, k: int, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onepass, "_ROOM", room)
    torch.manual_seed(rows)
    logits = torch.randn(40, rows).mul(2).round()
    values, ids = onepass.top(logits, figures.group_maxima(logits), min(k, rows))
    expected = logits.sort(dim=-1, descending=True, stable=True)
    assert torch.equal(values, expected.values[:, :k])
    assert torch.equal(ids, expected.indices[:, :k])


@pytest.mark.parametrize("name", STEPS)
def test_a_steps_kernels_round_as_its_operations_do(name: str, interpreted: Interpreted) -> None:
    found, given, function = interpreted(name), STEPS[name], getattr(kernels, name.partition("/")[0])
    expected = function(*given, *([1e-6] if function is kernels.rms_norm else []))
    cut_off = given[0].dtype == torch.bfloat16  # the interpreter's way with it; the compiler rounds, see below
    for ours, theirs in zip(found, expected if isinstance(expected, tuple) else (expected,), strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        close = {"rtol": (6 if cut_off else 2) * torch.finfo(given[0].dtype).eps, "atol": 0.3 if cut_off else 1e-6}
        np.testing.assert_allclose(ours.double(), theirs.double(), **close)
        if given[0].dtype == torch.float16:  # the same but where a sum or an exponential comes out the other way just there
            assert (ours != theirs).float().mean() < 0.02


@pytest.mark.parametrize("name", [name for name in ATTENTION if "number" not in name])
def test_attention_in_parts_is_the_whole(name: str, interpreted: Interpreted) -> None:
    (found,), (queries, keys, values, mask, _) = interpreted(name), ATTENTION[name]
    group, columns = queries.shape[1] // keys.shape[1], mask.shape[-1]
    wide = [each[:, :, :columns].double().repeat_interleave(group, 1) for each in (keys, values)]
    scores = (0.3 * queries.double() @ wide[0].mT).masked_fill(~mask, -torch.inf)
    assert (found.dtype, found.shape) == (queries.dtype, queries.shape)
    # In float32 a score's last digit, of up to 30 here, is what the weights differ by.
    near = (2 if found.dtype == torch.float16 else 32) * torch.finfo(found.dtype).eps
    np.testing.assert_allclose(found.double(), (scores.softmax(-1) @ wide[1]), rtol=near, atol=near)


@pytest.mark.parametrize("name", [name for name in ATTENTION if "number" in name])
def test_columns_that_are_not_filled_are_not_read(name: str, interpreted: Interpreted) -> None:
    """They hold no numbers here, which would spoil all; and the rest is to the bit what the mask makes of it."""
    (found,), (masked,) = (interpreted(name.replace("its number", way)) for way in ("its number", "the mask"))
    assert torch.equal(found, masked)


@pytest.mark.parametrize("columns", [1, 256, 1536, 131_072])
@pytest.mark.parametrize("pairs", [1, 8, 1024])
def test_every_column_is_in_one_part(pairs: int, columns: int) -> None:
    parts, part = attention._parts(pairs, columns, 64)
    assert part % 64 == 0
    assert (parts - 1) * part < columns <= parts * part
    assert parts * pairs >= min(attention._PROGRAMS, pairs * -(-columns // 64)), "as much of a GPU as there is to do"
    assert parts * pairs <= 2 * max(attention._PROGRAMS, pairs), "and hardly more parts than that takes"


def test_they_compile_for_gpus(triton: None) -> None:
    """In registers alone; that of figures, where rows are aligned, by loads of 16 bytes, and thrice on a multiprocessor."""
    found: dict[str, dict[str, Any]] = json.loads(run("compile"))
    for name, said in found.items():
        assert said["spilled"] == 0, name
        if name.startswith("sums"):
            aligned = name in ("sums, 80", "sums, 90")
            assert bool(said["wide_loads"]) == aligned, name
            assert (3 if aligned else 2) * 32 * onepass._WARPS * said["registers"] <= 65536, name
        elif name.startswith(("attend", "put")):
            assert said["shared"] <= 48 << 10, name  # whatever the GPU: some have 99 KiB for all that run at once
            assert said["registers"] <= (168 if "fp32" in name else 128), name
            assert said["rounds_to_16_bits"] == ([] if "fp32" in name else ["rn"]), name
        else:
            assert said["registers"] <= 64, name
            assert not (name.startswith("rotate") and said["fused"]), f"{name}: a product is added before it is rounded"
            assert said["rounds_to_16_bits"] == ([] if "fp32" in name else ["rn"]), name


def test_where_they_cannot_be_had_the_reason_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on this machine without a GPU, be Triton there or not."""
    where = torch.device("cpu"), torch.float32
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert trial(lambda *_: True)(*where) == "Triton is not installed"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    tried: list[object] = []
    fails = trial(lambda *given: tried.append(given) or 1 / 0)  # type: ignore[func-returns-value]
    for _ in range(2):
        assert fails(*where) == "ZeroDivisionError: division by zero"
    assert tried == [where]
    assert trial(lambda *_: False)(*where) == "what they compute is wrong"
    assert trial(lambda *_: True)(*where) is None


@pytest.fixture(params=[torch.float32, torch.bfloat16])
def odd_defaults(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a notebook has set."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)
    torch.set_default_dtype(before)


@pytest.mark.parametrize("wrong", [None, 0, 1, 2, 3])
def test_a_kernel_that_is_wrong_is_not_used(wrong: int | None, odd_defaults: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def sums(*given: torch.Tensor) -> Any:
        found, maxima = kernels.sums(*given)
        return [one * 1.001 if place == wrong else one for place, one in enumerate(found)], maxima

    monkeypatch.setattr(onepass, "sums", sums)
    assert onepass._is_right(torch.device("cpu"), torch.float32) == (wrong is None)


@pytest.mark.parametrize("dtype", steps.KINDS)
@pytest.mark.parametrize("wrong", [None, "rms_norm", "rotate", "gated", "attend"])
def test_a_steps_kernel_that_is_wrong_is_not_used(
    wrong: str | None, dtype: torch.dtype, odd_defaults: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(result: Any) -> Any:
        return (result[0], result[1] * 1.05) if isinstance(result, tuple) else result * 1.05

    for module, names in ((steps, ("rms_norm", "rotate", "gated")), (attention, ("attend",))):
        for name in names:
            function = getattr(kernels, name)
            stand_in = (lambda *given, function=function: spoilt(function(*given))) if name == wrong else function
            monkeypatch.setattr(module, name, stand_in)
        assert module._is_right(torch.device("cpu"), dtype) == (wrong not in names)
