"""Replay on a CPU: the same operations on the same tensors, whatever values these hold by then."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from lens_magic.ranks import recording
from lens_magic.ranks.recording import Recording, do

Given = tuple[torch.Tensor, torch.Tensor]


def accumulated(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    total = x.new_zeros(4, 6)
    total[1:3] += y[:2]
    return total.add_(x, alpha=2)


def written_by_position(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    held = torch.ones(4, 6)
    held.index_copy_(0, torch.tensor([2]), y[:1])
    return held.narrow(0, 1, 3) @ x.T


def taken_apart(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, -1)
    values, places = (a * b).topk(2, -1)
    most, where = y.max(-1)
    ordered, order = x.sort(dim=-1, stable=True)
    return values.sum() + places.sum() + most.mean() + where.sum() + (ordered * order).sum()


def attended(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    heads = x.view(1, 4, 2, 3).transpose(1, 2)
    mask = torch.arange(4)[None] <= torch.arange(4)[:, None]
    return F.scaled_dot_product_attention(heads, heads, y.view(1, 4, 2, 3).transpose(1, 2), attn_mask=mask).reshape(4, 6)


def in_halves(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    half = x.to(torch.bfloat16)
    normed = half.float() * torch.rsqrt(half.float().pow(2).mean(-1, keepdim=True) + 1e-6)
    return (normed.to(torch.bfloat16) @ y.bfloat16().T).double()


def chosen(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    rows = (x.sum(-1) > 0).long()
    return torch.where(x > 0, y, 0.5)[rows] + torch.cat([x, y]).gather(0, rows[:, None].expand(4, 6))


def through_layers(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    inner = F.gelu(F.linear(F.layer_norm(x, (6,)), y, y[:, 0]), approximate="tanh")
    return F.dropout(F.silu(inner), 0.5, training=False).softmax(-1) - y.logsumexp(-1)


def copied_out_of_order(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x.T.reshape(-1) + y.T.contiguous().view(-1) + x.flip(0).clone().flatten()


FUNCTIONS = [accumulated, written_by_position, taken_apart, attended, in_halves, chosen, through_layers, copied_out_of_order]


def given(seed: int) -> Given:
    x, y = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(seed))
    return x.clone(), y.clone()


@pytest.mark.parametrize("function", FUNCTIONS)
@torch.inference_mode()
def test_a_replay_does_what_doing_it_anew_does(function: Callable[..., torch.Tensor]) -> None:
    x, y = given(0)
    first = function(x, y)
    with Recording() as recorded:
        result = function(x, y)
    assert recorded.refusal is None
    assert torch.equal(result, first), "recording itself"
    for seed in (1, 2, 3):
        for tensor, other in zip((x, y), given(seed), strict=True):
            tensor.copy_(other)
        recorded.replay()
        assert torch.equal(result, function(x, y))


@torch.inference_mode()
def test_what_is_frozen_is_frozen() -> None:
    """As it is in a CUDA graph: a step may not take from Python what changes."""
    state, counted = torch.zeros(1), 1
    with Recording() as recorded:
        result = state + counted
    counted += 1
    recorded.replay()
    assert result.item() == 1


@torch.inference_mode()
def test_operations_of_other_libraries() -> None:
    """Their results are put where they were, and what they write to is written to."""
    with torch.library._scoped_library("lens_magic_tests", "DEF") as library:
        library.define("doubled(Tensor x) -> Tensor")
        library.define("raise_(Tensor(a!) x, int by) -> Tensor(a!)")
        library.impl("doubled", lambda x: x * 2, "CompositeExplicitAutograd")
        library.impl("raise_", lambda x, by: x.add_(by), "CompositeExplicitAutograd")
        own = torch.ops.lens_magic_tests
        x, _ = given(0)
        with Recording() as recorded:
            result = own.doubled(x) * 3 + own.raise_(x.sum(0), 7)
        assert recorded.refusal is None
        for seed in (1, 2):
            x.copy_(given(seed)[0])
            recorded.replay()
            assert torch.equal(result, x * 2 * 3 + x.sum(0).add(7))


@torch.inference_mode()
def test_random_numbers_are_drawn_anew() -> None:
    with Recording() as recorded:
        result = torch.rand(8)
    before = result.clone()
    recorded.replay()
    assert not torch.equal(result, before)


WAITING: dict[str, Callable[[torch.Tensor], object]] = {
    "item": lambda x: x[0, 0].item(),
    "a branch": lambda x: 1 if x.sum() > 0 else 2,
    "float": lambda x: float(x.max()),
    "nonzero": lambda x: x.nonzero(),
    "a mask as index": lambda x: x[x > 0],
    "equal": lambda x: torch.equal(x, x),
    "unique": lambda x: x.unique(),
}


@pytest.mark.parametrize("name", WAITING)
@torch.inference_mode()
def test_what_hangs_on_values_is_refused_and_done_all_the_same(name: str) -> None:
    x, _ = given(0)
    with Recording() as recorded:
        before = x + 1
        got = WAITING[name](x)
        after = x + 2
    assert recorded.refusal is not None
    expected = WAITING[name](x)
    assert torch.equal(got, expected) if isinstance(got, torch.Tensor) else got == expected
    assert torch.equal(before, x + 1)
    assert torch.equal(after, x + 2)
    kept = after.clone()
    x += 1
    recorded.replay()
    assert torch.equal(after, kept), "nothing of a refused recording is done again"


@torch.inference_mode()
def test_other_actions_take_their_turn() -> None:
    """Such as exchanges between ranks, of which torch knows nothing."""
    x, _ = given(0)
    with Recording() as recorded:
        doubled = x * 2
        array = doubled.numpy()
        do(lambda: array.__iadd__(1))
        result = doubled * 3
    for seed in (1, 2):
        x.copy_(given(seed)[0])
        recorded.replay()
        assert torch.equal(result, (x * 2 + 1) * 3)
    do(lambda: array.__iadd__(1))  # and are done, no more, when nothing is recorded


@torch.inference_mode()
def test_a_recording_that_would_take_much_memory_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "MOST_BYTES", 4000)
    x = torch.zeros(300)
    with Recording() as small:
        x[:10].add(1).mul(2)
    assert small.refusal is None
    with Recording() as large:
        result = x.add(1).mul(2).sub(3).neg()
    assert "MiB" in str(large.refusal)
    assert torch.equal(result, -((x + 1) * 2 - 3))


@torch.inference_mode()
def test_an_error_ends_it() -> None:
    with pytest.raises(ZeroDivisionError), Recording() as recorded:
        1 / 0  # noqa: B018
    counted: list[int] = []
    do(lambda: counted.append(1))
    recorded.replay()
    assert counted == [1]
