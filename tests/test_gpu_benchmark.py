"""The GPU benchmark on a pretended GPU: the same code, with meaningless numbers."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import checkpoints, gpu, gpu_checks, machine, report, store

TOKENS = 24
ROUNDS = {"tiny": 2, "wrong": 2, "tiny-too": 1}

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU that need not be pretended")


def sample(wall: float, project: float | None = None) -> dict[str, float]:
    """Ours tell the seconds of their parts: the prompt took 1.01 s."""
    return {"wall_s": wall, **({} if project is None else {"project_s": project, "decode_s": wall - project - 1.01})}


def made_up() -> dict[str, Any]:
    """Results of 100 tokens: a model with everything, one short of rounds, one without."""
    its = machine.describe() | {"gpu": "NVIDIA H200", "gpu_bytes": 140 << 30, "cuda": "13.0"}
    rounds = [
        {"capturing": sample(3.0, 1.0), "not_capturing": sample(1.5), "transformers": sample(4.0), "peak_beyond_weights": 2e9}
    ]
    rounds += [{"capturing": sample(2.5, 0.5), "not_capturing": sample(1.5), "peak_beyond_weights": 2e9}]
    whole = {"bytes_a_token": 2e10, "wanted": 2, "steps_replayed": True, "rounds": rounds}
    models = [
        {"model": "one", **whole},
        {"model": "short", **whole, "wanted": 3, "steps_replayed": False, "left_out": "no time"},
        {"model": "failed", "rounds": [], "wanted": 2, "left_out": "OutOfMemoryError: none left"},
        {"model": "cut", "rounds": [], "wanted": 2},
    ]
    checked = {
        "dtype": "bfloat16",
        "against": "transformers",
        "first": 0.999,
        "logit": 0.0123,
        "alike": 7,
        "of": 8,
        "margin": 0.03,
    }
    checks = {
        "prompts": 2,
        "tokens": 4,
        "models": [{**checked, "replayed": True}, {**checked, "replayed": False, "dtype": "float32", "alike": 8, "margin": 0}],
        "kernels": [
            {"kernel": "norm", "dtype": "float32", "ours": 1e-7, "torch": 2e-7},
            {"kernel": "sums", "dtype": "float32", "ours": 1e-7, "torch": 2e-7, "exactly": False},
            {"kernel": "gate", "dtype": "bfloat16", "left_out": "Triton is not installed"},
        ],
    }
    about = {"machine": its, "copy_bytes_per_s": 4e12, "tokens": 100, "kernels_not_used": {"attention's": "no Triton"}}
    return {"about": {**about, **machine.now(), **store.of_this_tree()}, "models": models, "checks": checks}


def test_the_table(tmp_path: Path) -> None:
    store.write(tmp_path / "gpu.json", made_up())
    text = report.write(tmp_path)[0].read_text()
    lines = [
        "NVIDIA H200, copies at 4,000 GB/s",
        "ours of the copy rate by those of the decode steps alone",
        "Without attention's kernels: no Triton.",
        # 2 s of generation are 50 tokens a second; of them 0.99 s for 99 steps of 20 GB: half of the copy rate
        "| one | 50.0 ± 0.0 (50.0) | 50.0 ± 0.0 (50.0) % | 0.750 ± 0.000 (0.750) | 2.00 | 37.5 ± 17.7 (37.5) % | 2.00 | 2 |",
        "| one, transformers' `generate`, no lens | 25.0 | 12.5 % | | | | | 1 |",
        "| short (steps not replayed) | 50.0",
        "| short, 1 of 3 rounds | left out: no time | | | | | | |",
        "| failed | left out: OutOfMemoryError: none left | | | | | | 0 |",
        "| cut | left out: the run was cut short | | | | | | 0 |",
        "| bfloat16 | transformers | 99.90 % | 1.2e-02 | 7 of 8, then 3.0e-02 of a logit apart at most |",
        "| float32 | transformers | 99.90 % | 1.2e-02 | 8 of 8 (no step was replayed) |",
        "| norm | float32 | 1.0e-07 | 2.0e-07 |",
        "| sums | float32 | 1.0e-07 (counts or the largest differ) | 2.0e-07 |",
        "| gate | bfloat16 | left out: Triton is not installed | |",
        "*NVIDIA H200, ",
        "GB/s (read and written). Measured, with the load before it: gpu (",
    ]
    at = 0
    for line in lines:
        at = text.index(line, at)
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in table[:8]} == {9}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, with_gpus: Callable[..., Any]) -> list[str]:
    """A pretended GPU, and shapes for it; one of them no model can have. Gives what is told."""
    tiny = checkpoints.shape(2, 32, 64, 4, 2, 2_304)
    for name in ("tiny", "tiny-too"):
        monkeypatch.setitem(checkpoints.SHAPES, name, ("Qwen3", {**tiny, "head_dim": 8}))
    monkeypatch.setitem(checkpoints.SHAPES, "wrong", ("Llama", {**tiny, "num_key_value_heads": 3}))
    monkeypatch.setattr(gpu, "COPIED_MB", 1)
    monkeypatch.setattr(gpu, "THEIRS", {"tiny": 1})
    quickly = functools.partial(gpu_checks.check, prompts=1, tokens=TOKENS, vocabulary=2_304)
    monkeypatch.setattr(gpu_checks, "check", quickly)
    with_gpus()
    return []


@no_gpu
def test_the_rounds(tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_short(line: str) -> None:
        small.append(line)
        if "round 1 of 2" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gpu.measure(tmp_path, rounds=ROUNDS, tokens=TOKENS, tell=cut_short)
    first = json.loads((tmp_path / "gpu.json").read_text())
    assert [len(model["rounds"]) for model in first["models"]] == [1]

    monkeypatch.setattr(machine, "copy_rate", lambda *_, **__: pytest.fail("measured again"))
    path = gpu.measure(tmp_path, rounds=ROUNDS, tokens=TOKENS, tell=small.append)
    assert path == tmp_path / "gpu.json"
    whole = json.loads(path.read_text())
    tiny, wrong, too = whole["models"]
    assert tiny["rounds"][0] == first["models"][0]["rounds"][0]
    assert [sorted(each["ways"]) for each in tiny["rounds"]] == [
        ["capturing", "not_capturing", "transformers"],
        ["capturing", "not_capturing"],
    ]
    assert tiny["steps_replayed"]
    assert len(too["rounds"]) == 1, "an error in one shape ends no other"
    assert not wrong["rounds"]
    assert wrong["left_out"]
    assert f"gpu: wrong left out: {wrong['left_out']}" in small
    assert sum("round 2 of 2, tokens/s: capturing" in line for line in small) == 1
    assert f"| wrong | left out: {wrong['left_out']} |" in small[-1]

    count = len(small)
    gpu.measure(tmp_path, rounds={"tiny": 2}, tokens=TOKENS, tell=small.append)
    assert len(small) == count + 1, "there is nothing left to measure, and the table is told"
    checks = whole["checks"]
    assert [row["against"] for row in checks["models"]] == ["transformers", "steps run one by one"] * 2
    for row in checks["models"]:
        assert row["replayed"]
        assert row["first"] > (0.98 if row["dtype"] == "bfloat16" else 0.9999)
        assert row["margin"] < 0.2
        assert row["logit"] < (1.0 if row["dtype"] == "bfloat16" else 1e-3)
        assert row["dtype"] == "bfloat16" or row["alike"] == row["of"]
    assert len(checks["kernels"]) == 9
    for row in checks["kernels"]:
        assert row["ours"] < (2e-2 if row["dtype"] == "bfloat16" else 1e-5), row
        assert row.get("exactly", True)


@no_gpu
def test_no_round_is_begun_that_would_outlast_the_time(
    tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = gpu.turn

    def slow(way: str, tokens: int) -> dict[str, float]:
        return {**turn(way, tokens), **({"wall_s": 7200.0} if tokens == TOKENS else {})}  # as if it had taken hours

    monkeypatch.setattr(gpu, "turn", slow)
    monkeypatch.setattr(gpu_checks, "check", lambda: {"prompts": 0, "tokens": 0, "models": [], "kernels": []})
    gpu.measure(tmp_path, budget_s=3600, rounds=ROUNDS, tokens=TOKENS, tell=small.append)
    tiny, wrong, too = json.loads((tmp_path / "gpu.json").read_text())["models"]
    assert len(tiny["rounds"]) == 1
    assert not too["rounds"]
    for model in (tiny, wrong, too):
        assert model["left_out"].startswith("the next round would take about 1")
        assert model["left_out"].endswith("s were left")


def test_without_a_gpu_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    told: list[str] = []
    assert gpu.measure(tmp_path, tell=told.append) is None
    assert told == ["gpu: there is no CUDA device here; nothing was run"]
    assert not list(tmp_path.iterdir())
