"""Products with 16-bit weights on a CPU: rounded once, and greedy tokens that are the full product's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import models
import probes
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lens_magic as lens
from lens_magic.model import head as head_module
from lens_magic.model import products
from lens_magic.model.head import HeadShard, first_largest
from lens_magic.session import current

HALVES = [torch.bfloat16, torch.float16]
ROUNDING = {torch.bfloat16: 2**-8, torch.float16: 2**-11}  # largest relative error of one rounding


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without instructions for 16-bit numbers, whatever this one has."""
    monkeypatch.setattr(products, "is_slow", lambda device, dtype: dtype in HALVES)


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of states of each product that torch computed in 16 bits."""
    counted: list[int] = []

    def multiply(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        counted.append(states.numel() // max(1, states.shape[-1]))
        return F.linear(states, weight, bias)

    monkeypatch.setattr(products, "F", SimpleNamespace(linear=multiply))
    return counted


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", [(16, 300), (3, 211, 300), (2, 16, 300)], ids=str)
@torch.inference_mode()
def test_many_states_are_multiplied_in_float32_and_rounded_once(
    shape: tuple[int, ...], biased: bool, dtype: torch.dtype, slow: None, forwards: list[int]
) -> None:
    """Of several blocks of weights, and of states."""
    torch.manual_seed(len(shape))
    states, weight = torch.randn(shape).to(dtype), (torch.randn(5003, 300) / 8).to(dtype)
    assert weight.numel() > products.ROUNDED_ELEMENTS
    bias = torch.randn(5003).to(dtype) if biased else None
    found = products.linear(states, weight, bias)
    exact = F.linear(states.double(), weight.double(), None if bias is None else bias.double())
    assert found.dtype == dtype
    assert found.shape == (*shape[:-1], 5003)
    assert forwards == []
    assert ((found.double() - exact).abs() <= exact.abs() * ROUNDING[dtype] + 1e-5).all()


@pytest.mark.parametrize(("states", "weight"), [((15, 8), (9, 8)), ((1, 1, 8), (9, 8)), ((20, 0), (9, 0)), ((0, 8), (9, 8))])
def test_few_states_are_left_to_torch(
    states: tuple[int, ...], weight: tuple[int, ...], slow: None, forwards: list[int]
) -> None:
    """As are a rank's layers that have no inputs, with fewer heads than ranks."""
    given, weights = torch.randn(states).bfloat16(), torch.randn(weight).bfloat16()
    assert torch.equal(products.linear(given, weights), F.linear(given, weights))
    assert len(forwards) == 1
    assert products.linear(torch.randn(20, 8).bfloat16(), torch.empty(0, 8).bfloat16()).shape == (20, 0)


def test_only_slow_processors_convert() -> None:
    assert not products.is_slow(torch.device("cpu"), torch.float32)
    assert not products.is_slow(torch.device("cuda"), torch.bfloat16)
    supported = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert products.is_slow(torch.device("cpu"), torch.bfloat16) is not supported


def test_only_plain_layers_have_another_forward_and_their_own_again(slow: None) -> None:
    class Other(nn.Linear):
        pass

    class Quantised(torch.Tensor):
        pass

    model = nn.Sequential(nn.Linear(8, 8), Other(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)).bfloat16()
    model[3].weight = nn.Parameter(model[3].weight.detach().as_subclass(Quantised))
    assert isinstance(model[3].weight, Quantised)
    own = model[2].forward = lambda states: states

    def fail() -> None:
        with torch.no_grad(), products.fast(model, torch.device("cpu"), torch.bfloat16):
            assert "forward" in vars(model[0])
            assert "forward" not in vars(model[1])
            assert "forward" not in vars(model[3])
            assert model[2].forward is own
            assert model[0](input=torch.ones(20, 8).bfloat16()).dtype == torch.bfloat16
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert "forward" not in vars(model[0])
    assert model[2].forward is own


# -- the largest logit -------------------------------------------------------------------------------------------------------


@pytest.fixture
def multiplied(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of rows of each product in float32."""
    rows: list[int] = []

    def product(states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        rows.append(len(weight))
        return products.float32_product(states, weight)

    monkeypatch.setattr(head_module, "float32_product", product)
    monkeypatch.setattr(head_module, "_SMALL", 0)
    return rows


def same_as_of_all(head: HeadShard, state: torch.Tensor) -> int:
    """Compare with the logits of all rows; return the row that has the largest."""
    logits = head.logits(state)
    row = first_largest(logits)
    values, places = head.largest(state)
    assert places.tolist() == row.tolist()
    torch.testing.assert_close(values, logits[:, row[0]], rtol=1e-6, atol=0)
    return int(row)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("more", [{}, {"bias": True}, {"softcap": 30.0}, {"bias": True, "softcap": 50.0}], ids=str)
def test_the_largest_is_the_float32_products(dtype: torch.dtype, more: dict[str, Any], multiplied: list[int]) -> None:
    """Where the 16-bit product has another one first, too."""
    torch.manual_seed(1)
    misled, rows = 0, 20_011
    for _ in range(40):
        weight, state = torch.randn(rows, 24).to(dtype), torch.randn(1, 24).to(dtype)
        bias = torch.randn(rows).masked_fill(torch.rand(rows) < 0.2, -torch.inf).to(dtype) if more.get("bias") else None
        first, near = int(F.linear(state, weight, bias)[0].argmax()), int(torch.randint(rows, ()))
        weight[near] = weight[first]
        weight[near, 3] += weight[near, 3].abs() * 2 * ROUNDING[dtype] * state[0, 3].sign()  # larger by the least there is
        if bias is not None:
            bias[near] = bias[first]
        head = HeadShard(weight, bias, offset=0, softcap=more.get("softcap"))
        row = same_as_of_all(head, state)
        rough = F.linear(state, weight)[0].float() + (0 if bias is None else bias.float())
        misled += int(rough.argmax()) != row
    some = [count for count in multiplied if count != rows]
    assert len(some) == 40, "rows are chosen every time"
    assert max(some) < 300
    assert misled > 5


def test_of_equal_rows_the_first_is_chosen(multiplied: list[int]) -> None:
    weight = torch.zeros(9000, 16, dtype=torch.bfloat16)
    weight[[8100, 700, 4001]] = torch.randn(16).bfloat16()
    state = weight[[700]].clone()
    assert [found.tolist()[0] for found in HeadShard(weight, None, 0).largest(state)][1] == 700
    assert multiplied == [3]


@pytest.mark.parametrize("spoiled", ["all alike", "nan", "infinite", "a coarse product"])
def test_all_rows_are_multiplied_where_some_would_not_do(
    spoiled: str, multiplied: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(2)
    weight, state = torch.randn(3000, 32).bfloat16(), torch.randn(1, 32).bfloat16()
    if spoiled == "all alike":
        weight[:] = weight[0].clone()
    elif spoiled == "nan":
        weight[2000, 3] = torch.nan
    elif spoiled == "infinite":
        weight[2000] = torch.inf * state[0].sign()
    else:  # as it would be if it summed in 16 bits
        noisy = SimpleNamespace(linear=lambda x, w: F.linear(x, w) * (1 + 0.05 * torch.randn(1, len(w))).bfloat16())
        monkeypatch.setattr(head_module, "F", noisy)
    head = HeadShard(weight, None, 0)
    value, row = head.largest(state)
    assert multiplied[-1] == 3000
    assert row.tolist() == first_largest(head.logits(state)).tolist()
    assert value.isfinite().item() == (spoiled in ("all alike", "a coarse product"))


def test_a_small_head_is_multiplied_whole(multiplied: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_module, "_SMALL", 900 * 16)
    HeadShard(torch.randn(900, 16).bfloat16(), None, 0).largest(torch.randn(1, 16).bfloat16())
    HeadShard(torch.randn(901, 16).bfloat16(), None, 0).largest(torch.randn(1, 16).bfloat16())
    assert multiplied[0] == 900
    assert multiplied[1] < 900


def test_several_states_and_float32_weights_are_multiplied_whole(multiplied: list[int]) -> None:
    weight, states = torch.randn(900, 16), torch.randn(3, 16)
    for given, weights in ((states[:1], weight), (states.bfloat16(), weight.bfloat16()), (states[:1], weight.bfloat16())):
        head = HeadShard(weights, None, 0)
        values, rows = head.largest(given)
        assert torch.equal(rows, head.logits(given).argmax(-1))
        assert torch.equal(values, head.logits(given).amax(-1))
    assert set(multiplied) == {900}


# -- in a run ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_run_on_a_slow_processor(ranks: int, checkpoints: Callable[[str], Path]) -> None:
    """Its states are as near to float32's as others' are, and replayed steps are the same as steps run one by one."""
    folder = str(checkpoints("llama-gqa"))
    lens.load(folder, ranks=ranks)
    prompt, many = models.PROMPT * 3, ["Grind the glass"] * 17
    exact = last_state(prompt)
    lens.load(folder, dtype="bfloat16", ranks=ranks)
    call = current().group.call
    found = {}
    try:
        for slow in (False, True):
            call(probes.multiply_as, slow)
            found[slow] = (last_state(prompt) - exact).norm()
        assert 0 < found[True] < 1.2 * found[False] < 0.1 * exact.norm()
        outputs = []
        for way in ("anew", "replay"):
            call(probes.step_by, way, 64)
            runs = lens.run([prompt, *many], 24, ignore_eos=True)
            outputs.append([run.output_ids for run in [*runs, lens.run(prompt, 24, ignore_eos=True)]])
        assert call(probes.replays)[0] > 20, "of both runs"
        assert outputs[0] == outputs[1]
    finally:
        call(probes.multiply_as, None)
        call(probes.step_by, "usual")


def last_state(prompt: str) -> torch.Tensor:
    run = lens.run(prompt, 0, prompt_tokens=True, capture="resid_post")
    assert len(run.prompt_ids) > 20
    return torch.as_tensor(run.activations("resid_post", [-1], [run.positions[-1]])).float()
