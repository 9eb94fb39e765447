"""The plan's estimates against measurements, and what is refused."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import models
import once
import plan_measured
import plan_probes
import pytest
import torch
from safetensors.torch import load_file, save_file

import lens_magic as lens
from lens_magic import cli, needs, plan, rooms, runs
from lens_magic.errors import LensError
from lens_magic.lens import chosen, decode
from lens_magic.lens.capture import NEWEST, CapturePlan, Trajectories
from lens_magic.lens.projector import PLAIN, Projector
from lens_magic.model import footprint
from lens_magic.model.checkpoint import find, read_config
from lens_magic.model.head import HeadShard
from lens_magic.model.load import MODEL
from lens_magic.ranks import memory
from lens_magic.ranks.rank import Rank
from lens_magic.rooms import Room, spread
from lens_magic.session import current
from lens_magic.steer.vector import SteeringVector
from lens_magic.words import size

Checkpoints = Callable[[str], Path]
CPU = plan_measured.CPU
# One of every family, and shapes that do not divide by the ranks.
ODD = ("llama-1kv", "llama-bias", "llama-width72", "llama-6heads", "llama-odd-vocab", "qwen3-odd", "gemma2", "llama-bf16")
ODD += ("llama-3.1", "mistral-window", "qwen2-bias", "gemma", "gemma3-text", "gemma3-sees", "neox-parallel", "neox-sequential")
ODD += ("olmo", "olmo2", "opt", "phi", "phi3", "gpt2", "mixtral", "qwen3-moe")


@pytest.mark.parametrize("name", ODD)
def test_parameters_cache_and_captures_are_what_the_ranks_hold(name: str, ranks: int, checkpoints: Checkpoints) -> None:
    """To the byte, on shapes that do not divide by the ranks."""
    prompts, tokens = [[5, 6, 7], [8, 9, 10, 11, 12]], 4
    folder = checkpoints(name)
    once.load(folder, ranks)
    group = current().group
    made = plan.make(str(folder), ranks, tokens, prompt=5, batch=2, layers="1-", rooms=[CPU] * ranks)
    weights = footprint.weights(footprint.skeleton(read_config(folder), made.facts.dtype), ranks)
    assert [one.total for one in weights] == group.call(plan_probes.parameters)
    assert [need.cache for need in made.needs] == group.call(plan_probes.cache, prompts, tokens)

    run = lens.run(models.PROMPT, tokens, layers="1-", ignore_eos=True)
    made = plan.make(str(folder), ranks, tokens, prompt=len(run.prompt_ids), layers="1-", rooms=[CPU] * ranks)
    one_step = [need.captures // (tokens + 1) for need in made.needs]  # the buffer, and one step beside it
    kept = [need.captures - step for need, step in zip(made.needs, one_step, strict=True)]
    assert kept == run.memory["captures_by_rank"]


LONG = {"signs": 220}
MANY_CANDIDATES = {"signs": 120, "top_k": 2000, "layers": "0-3"}
ATTENTION = [("Llama", "float32"), ("Gemma2", "float32"), ("Llama", "bfloat16")]


def measured(*arguments: str) -> Any:
    """What :mod:`plan_measured` finds."""
    done = subprocess.run([sys.executable, plan_measured.__file__, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def measured_on(checkpoints: Checkpoints, large: Path) -> Callable[[int], Any]:
    """The large model and runs with it, measured once on as many ranks."""
    small = str(checkpoints("qwen3-odd"))

    def on(count: int) -> Any:
        runs = [LONG, MANY_CANDIDATES] if count <= 2 else [LONG]
        return measured("models", str(count), small, str(large), json.dumps(runs))

    return functools.cache(on)


@pytest.fixture(scope="module")
def measured_attention(checkpoints: Checkpoints) -> list[dict[str, int]]:
    found: list[dict[str, int]] = measured("attention", str(checkpoints("llama-gqa")), json.dumps(ATTENTION))
    return found


@pytest.mark.skipif(torch.cuda.is_available(), reason="weights are on the GPU there")
@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.ranks("own")
def test_the_memory_of_a_model_is_as_planned(count: int, large: Path, measured_on: Callable[[int], Any]) -> None:
    """Within 10 %, by what the operating system counts: a model of 278 MB, loaded, and the peak of a run with it."""
    found = measured_on(count)
    made = plan.make(str(large), count, 4, found["first"], rooms=[CPU] * count)
    planned, loaded = sum(need.weights + need.captures for need in made.needs), found["loaded"]  # what stays after a run
    print(f"{count} ranks: planned {planned / 1e6:.1f} MB, measured {loaded / 1e6:.1f} MB, {loaded / planned:.3f} ×")
    # A process grows by some MB whatever it loads, which in a model this small nears 10 % by itself.
    assert abs(loaded - planned) <= 0.1 * planned + count * (2 << 20)

    run = found["runs"][0]
    assert run["prompt"] > 1.9 * LONG["signs"]
    made = plan.make(str(large), count, 4, run["prompt"], whole_prompt=True, rooms=[CPU] * count)
    for rank, (need, most) in enumerate(zip(made.needs, run["grown"], strict=True)):
        print(f"  rank {rank}: {(need.total - need.weights) / 1e6:.1f} MB planned beside weights, {most / 1e6:.1f} MB measured")
    planned, peak = sum(need.total for need in made.needs), loaded + sum(run["grown"])
    print(f"  in all: planned {planned / 1e6:.1f} MB, measured {peak / 1e6:.1f} MB, {peak / planned:.3f} ×")
    assert abs(peak - planned) <= 0.1 * planned + count * (2 << 20)


@pytest.mark.parametrize("tracked", [0, 2])
def test_results_are_what_rank_0_makes(tracked: int, ranks: int, checkpoints: Checkpoints) -> None:
    """To the byte."""
    folder = checkpoints("llama-odd-vocab")
    once.load(folder, ranks)
    whole = decode._room(6, 7, 200, tracked)
    assert decode.result_bytes(6, 7, 200, tracked) == sum(array.nbytes for array in whole.values())
    runs = lens.run([models.PROMPT, models.PROMPT], 4, layers="1-", top_k=200, ignore_eos=True, prompt_tokens=True)
    options = {"layers": "1-", "top_k": 200, "whole_prompt": True, "rooms": [CPU] * ranks}
    made = plan.make(str(folder), ranks, 4, len(runs[0].prompt_ids), batch=2, **options)
    arrays = [array.nbytes for run in runs for array in run.variables.values()]
    assert [need.results for need in made.needs] == [sum(arrays), *[0] * (ranks - 1)]


@pytest.mark.skipif(torch.cuda.is_available() or sys.platform != "linux", reason="measured as Linux counts a process's memory")
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.ranks("own")
def test_many_candidates_are_planned_for(count: int, large: Path, measured_on: Callable[[int], Any]) -> None:
    run = measured_on(count)["runs"][1]
    assert run["prompt"] > 1.9 * MANY_CANDIDATES["signs"]
    options = {"layers": MANY_CANDIDATES["layers"], "top_k": MANY_CANDIDATES["top_k"], "whole_prompt": True}
    made = plan.make(str(large), count, 4, run["prompt"], rooms=[CPU] * count, **options)
    for rank, (need, most) in enumerate(zip(made.needs, run["grown"], strict=True)):
        planned = need.total - need.weights
        print(f"rank {rank} of {count}: {planned / 1e6:.1f} MB planned beside weights, {most / 1e6:.1f} MB measured")
        assert 0.9 * most < planned < 1.4 * most


@pytest.mark.skipif(torch.cuda.is_available() or sys.platform != "linux", reason="measured as Linux counts a process's memory")
@pytest.mark.parametrize("case", range(len(ATTENTION)), ids=["-".join(case) for case in ATTENTION])
@pytest.mark.ranks("own")
def test_a_long_prompts_attention_is_planned_for(case: int, measured_attention: list[dict[str, int]]) -> None:
    """Gemma 2 caps its scores and has them all at once; others have keys and values repeated for their query heads."""
    tokens, planned, most = (measured_attention[case][name] for name in ("tokens", "planned", "measured"))
    print(f"{ATTENTION[case]}, {tokens} tokens: planned {planned / 1e6:.0f} MB, measured {most / 1e6:.0f} MB")
    assert tokens > 3500
    assert 0.7 * most < planned < 1.4 * most


def test_what_old_checkpoints_keep_besides_weights_is_not_counted(checkpoints: Checkpoints, tmp_path: Path) -> None:
    weights = {name: tensor.bfloat16() for name, tensor in load_file(checkpoints("llama-gqa") / "model.safetensors").items()}
    masks = {"h.0.attention.bias": torch.ones(64, 64, dtype=torch.uint8), "h.0.rotary_emb.inv_freq": torch.ones(16)}
    save_file({**weights, **masks}, tmp_path / "model.safetensors")
    assert footprint.stored_dtypes(tmp_path) == ("bfloat16",)
    half = {name: tensor.float() if "mlp" in name else tensor for name, tensor in weights.items()}
    save_file(half, tmp_path / "model.safetensors")
    assert footprint.stored_dtypes(tmp_path) == ("float32", "bfloat16")  # that of the most bytes first


@pytest.mark.parametrize(("level", "expected"), [("whole", "float32"), ("text", "float16"), ("nowhere", "bfloat16")])
def test_a_plan_is_for_the_dtype_that_is_loaded(checkpoints: Checkpoints, tmp_path: Path, level: str, expected: str) -> None:
    """The one that the configuration states, for the whole model or its language model; else the weights'."""
    folder = shutil.copytree(checkpoints("gemma3-sees"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        del part["dtype"]
    if level != "nowhere":
        {"whole": config, "text": config["text_config"]}[level]["torch_dtype"] = expected
    (folder / "config.json").write_text(json.dumps(config))
    weights = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    found, planned = find(str(folder), 1), plan.make(str(folder), 1, 4, rooms=[CPU])
    assert (found.dtype, planned.facts.dtype, found.stored) == (expected, expected, ("bfloat16",))
    assert bool(planned.loading) == (expected != "bfloat16")
    (folder / "model.safetensors").unlink()
    alone = plan.make(str(folder), 1, 4, rooms=[CPU])
    assert alone.facts.dtype == ("float32" if level == "nowhere" else expected)
    assert alone.loading == 0
    assumed = "config.json states no dtype, and no weights are there to tell: float32 is assumed"
    assert alone.notes == ([assumed] if level == "nowhere" else [])
    assert assumed not in plan.make(str(folder), 1, 4, dtype="bfloat16", rooms=[CPU]).notes


def test_a_plan_reads_the_dtype_of_the_files_that_are_loaded(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """Those of the index, were it only some of them; not what lies beside them."""
    folder = shutil.copytree(checkpoints("llama-gqa"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    del config["dtype"]
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for name, dtype in (("model-00001-of-00001", torch.bfloat16), ("model.fp32", torch.float32)):
        stored = {key: tensor.to(dtype) for key, tensor in weights.items()}
        save_file(stored, folder / f"{name}.safetensors", metadata={"format": "pt"})
    index = {"weight_map": dict.fromkeys(weights, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    planned = plan.make(str(folder), 1, 4, rooms=[CPU])
    assert planned.facts.dtype == find(str(folder), 1).dtype == "bfloat16"
    index["weight_map"]["one more"] = "model-00002-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert plan.make(str(folder), 1, 4, rooms=[CPU]).facts.dtype == "bfloat16"


def test_weights_of_several_types_are_converted_to_one(checkpoints: Checkpoints, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoints("llama-gqa"), tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    mixed = {name: tensor.bfloat16() if "mlp" in name else tensor for name, tensor in weights.items()}
    save_file(mixed, folder / "model.safetensors", metadata={"format": "pt"})
    for dtype in ("float32", "bfloat16"):
        planned = plan.make(str(folder), 2, 4, dtype=dtype, rooms=[CPU] * 2)
        assert planned.loading > 0
        assert any(note.startswith(f"converting to {dtype} takes {size(planned.loading)}") for note in planned.notes)


def test_split_sizes_are_deepspeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    from deepspeed.module_inject.tp_shard import AutoTPMeta, get_shard_size

    for total in (1, 5, 63, 64, 100, 192, 1000, 4096):
        for ranks in (1, 2, 3, 4, 7):
            for heads in (None, 1, 2, 3, 8):
                meta = AutoTPMeta(num_kv_heads=heads, tp_grain_size=64)
                name = "self_attn.q_proj" if heads else "mlp.up_proj"
                theirs = [get_shard_size(total, ranks, meta, name, rank) for rank in range(ranks)]
                assert [footprint.share(total, ranks, rank, heads) for rank in range(ranks)] == theirs


def test_a_configuration_alone_is_enough(tmp_path: Path, checkpoints: Checkpoints) -> None:
    folder = checkpoints("llama-gqa")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    bare = plan.make(str(tmp_path / "config.json"), 2, 10, rooms=[CPU] * 2)
    whole = plan.make(str(folder), 2, 10, rooms=[CPU] * 2)
    assert bare.needs == whole.needs
    assert bare.fits


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe"])
def test_of_a_model_with_experts_the_routers_are_whole(name: str, checkpoints: Checkpoints) -> None:
    folder = checkpoints(name)
    weights = load_file(folder / "model.safetensors")
    routers = sum(tensor.nbytes for key, tensor in weights.items() if key.endswith(("mlp.gate.weight", "moe.gate.weight")))
    experts = sum(tensor.nbytes for key, tensor in weights.items() if ".experts." in key)
    made = plan.make(str(folder), 2, 4, rooms=[CPU] * 2)
    assert routers
    assert f"{size(routers)} of them are routers, which are not split; experts are" in made.notes
    split = footprint.weights(footprint.skeleton(read_config(folder), "float32"), 2)
    assert {one.routers for one in split} == {routers}
    assert sum(one.split for one in split) >= experts


def test_experts_that_are_not_split_are_whole_like_the_routers(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import Qwen3MoeConfig

    monkeypatch.setitem(footprint.anatomy_of.__globals__["FAMILIES"], "qwen3_moe", footprint.anatomy_of("qwen3"))
    config = Qwen3MoeConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16, vocab_size=100,
        num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, intermediate_size=96, mlp_only_layers=[],
    )  # fmt: skip
    one, two = (footprint.weights(footprint.skeleton(config, "float32"), ranks) for ranks in (1, 2))
    experts = 2 * 4 * (4 * 3 * 64 * 32 + 4 * 64)  # layers × bytes × (experts × matrices + router)
    assert one[0].routers == two[0].routers == two[1].routers == 2 * 4 * 4 * 64
    assert one[0].whole == two[1].whole >= experts
    assert two[0].split + two[1].split == one[0].split


def test_what_would_fit_does(checkpoints: Checkpoints) -> None:
    folder = str(checkpoints("llama-gqa"))
    roomy = plan.make(folder, 2, 400, 20, rooms=[CPU] * 2)
    for percent in range(100, 0, -2):  # the projection takes less where less is free: look for where it ends to fit
        room = Room("cpu", roomy.needs[0].total * percent // 100, 1 << 40)
        tight = plan.make(folder, 2, 400, 20, rooms=[room] * 2)
        if not tight.fits:
            break
    assert not tight.fits
    tokens = int(next(line for line in tight.would_fit if "new tokens" in line).split()[0])
    assert plan.make(folder, 2, tokens, 20, rooms=[room] * 2).fits
    assert not plan.make(folder, 2, tokens + 1, 20, rooms=[room] * 2).fits
    layers = int(next(line for line in tight.would_fit if "layers" in line).split()[0])
    assert plan.make(folder, 2, 400, 20, layers=f"0-{layers - 1}", rooms=[room] * 2).fits


@pytest.mark.parametrize("kind", ["cpu", "cuda:0"])
def test_what_cannot_be_loaded_does_not_fit(kind: str, checkpoints: Checkpoints) -> None:
    """Weights in another type are converted, whole on every rank, before they are split."""
    folder = str(checkpoints("llama-gqa"))
    loading = plan.make(folder, 2, 4, dtype="bfloat16", rooms=[Room(kind, 1 << 40, 1 << 40)] * 2).loading
    for host, fits in ((loading, True), (loading - 1, False)):
        room = Room(kind, host if kind == "cpu" else 1 << 40, host)
        made = plan.make(folder, 2, 4, dtype="bfloat16", rooms=[room] * 2)
        assert made.fits is fits
        assert ("where" in "".join(made.notes)) is not fits
        assert any("--dtype float32" in one for one in made.would_fit) is (not fits and kind != "cpu")
        assert made.to_json()["ranks"][1]["fits"] is fits


def test_more_ranks_have_no_more_of_the_host(checkpoints: Checkpoints) -> None:
    folder = str(checkpoints("llama-gqa"))
    ask = {"tokens": 400, "offload": True}
    need = plan.make(folder, 2, **ask, rooms=[Room("cuda:0", 1 << 40, 1 << 40)] * 2).needs[0]
    rooms = [Room(f"cuda:{rank}", 1 << 40, need.on_host * 3 // 4) for rank in range(2)]
    tight = plan.make(folder, 2, **ask, rooms=rooms)
    assert not tight.fits
    assert not plan.make(folder, 4, **ask, rooms=spread(rooms, 4)).fits
    assert not any("--ranks" in one for one in tight.would_fit)
    (without,) = (one for one in tight.would_fit if "offload" in one)
    assert without.startswith("states kept on the GPUs (without --offload)")
    assert plan.make(folder, 2, 400, rooms=rooms).fits


def test_what_is_on_the_host_is_told_beside_what_is_free_there(
    checkpoints: Checkpoints, capsys: pytest.CaptureFixture[str]
) -> None:
    there = ["plan", str(checkpoints("llama-gqa")), "--ranks", "2", "--tokens", "400", "--free", "80GB", "--device", "cuda"]
    for host, fits in (("1GB", True), ("2MB", False)):
        assert cli.main([*there, "--offload", "--free-host", host]) == 1 - fits
        head, *rows = [line.split("  ") for line in capsys.readouterr().out.splitlines() if "free" in line or "0 GB" in line][
            :2
        ]
        assert head[-2:] == ["on host", "free there"]
        assert size(int(float(host[0]) * {"GB": 1e9, "MB": 1e6}[host[1:]]) // 2) in " ".join(rows[0])
    assert cli.main([*there]) == 0
    assert "on host" not in capsys.readouterr().out
    assert cli.main([*there[:6], "--free-host", "1GB"]) == 2
    assert "--free-host goes with --free" in capsys.readouterr().err
    assert cli.main([*there, "--free-host", "much"]) == 2
    assert "--free-host 'much' is not a size" in capsys.readouterr().err


def test_of_another_dtype_what_a_plan_for_it_says_would_fit(checkpoints: Checkpoints) -> None:
    folder = str(checkpoints("llama-gqa"))
    half = plan.make(folder, 2, 400, 20, dtype="bfloat16", rooms=[CPU] * 2)
    for more in (1.0, 1.1, 1.2):
        tight = [Room("cpu", int(more * max(need.total for need in half.needs)), 1 << 40)] * 2
        there = plan.make(folder, 2, 400, 20, dtype="bfloat16", rooms=tight)
        (line,) = [line for line in plan.make(folder, 2, 400, 20, rooms=tight).would_fit if "--dtype" in line] or [""]
        assert line == (f"--dtype bfloat16 ({size(max(need.total for need in there.needs))} a rank)" if there.fits else "")


def test_a_row_of_the_table_is_of_ranks_with_as_much_free() -> None:
    need, room = needs.Need(1), Room("cpu", 10, 10)
    rooms_there = [room, room, Room("cpu", 20, 10), room]
    assert [row[:2] for row in plan._alike([need] * 4, rooms_there)] == [(0, 1), (2, 2), (3, 3)]
    assert [row[:2] for row in plan._alike([need, need, needs.Need(2), need], [room] * 4)] == [(0, 1), (2, 2), (3, 3)]


def test_blocks_are_of_the_size_that_the_rank_with_least_free_allows(checkpoints: Checkpoints) -> None:
    facts = footprint.Facts.of(read_config(checkpoints("llama-gqa")), "float32")
    ask = needs.Ask(2000, 20, layers=tuple(range(4)), sites=("resid_post",), top_k=5)
    much, little = Room("cuda:0", 1 << 40, 1 << 40), Room("cuda:1", 1 << 20, 1 << 40)
    needed = {there: needs.run_needs(facts, ask, there, [0, 0])[0].projection for there in ((much, little), (little, little))}
    assert needed[much, little] == needed[little, little] < needs.run_needs(facts, ask, (much, much), [0, 0])[0].projection


def test_a_given_text_is_read_in_one_forward(checkpoints: Checkpoints) -> None:
    facts = footprint.Facts.of(read_config(checkpoints("llama-gqa")), "float32")
    forced, prompt = (
        needs.run_needs(facts, ask, [CPU], [0])[0].forward for ask in (needs.Ask(400, 21, forced=True), needs.Ask(1, 420))
    )
    assert forced == prompt > needs.run_needs(facts, needs.Ask(400, 21), [CPU], [0])[0].forward


def test_captures_offloaded_are_the_hosts(checkpoints: Checkpoints) -> None:
    gpu = Room("cuda:0", 1 << 40, 1 << 40)
    kept, moved = (
        plan.make(str(checkpoints("llama-gqa")), 1, 100, offload=flag, rooms=[gpu]).needs[0] for flag in (False, True)
    )
    assert kept.on_host == kept.results == moved.results == 100 * 12 * (5 * 16 + 16)
    wanted = 100 * 12 * 128 * 4
    on_host = moved.on_host - moved.results
    assert wanted < on_host < 2 * wanted, "torch pins powers of two"
    assert on_host.bit_count() == 1
    assert kept.total - moved.total == wanted


def test_an_attached_model_is_measured_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on this process's GPU, which it may have nothing to do with."""
    monkeypatch.setattr("lens_magic.ranks.collectives.device_for", lambda rank: torch.device("cuda", 0))
    rank = Rank()
    rank.gpus = ["here GPU-a"]
    rank.store[MODEL] = SimpleNamespace(device=torch.device("cpu"), model=torch.nn.Linear(2, 2))
    assert rooms.room_of_rank(rank).device == "cpu"
    assert rooms.describe_rank(rank)["device"] == "cpu"
    assert rooms.describe_rank(rank)["free"] > 8 << 20


class FakeNVML:
    """The driver's library, for two GPUs that are each used by half; ``refuses`` is a function of it that fails."""

    def __init__(self, refuses: str, kind: str) -> None:
        self.refuses = refuses
        self.known = [f"{kind}-first".encode(), f"{kind}-second".encode()]
        self.open = 0

    def nvmlInit_v2(self) -> int:  # noqa: N802 - NVML's names
        self.open += self.refuses != "init"
        return int(self.refuses == "init")

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetHandleByUUID(self, name: bytes, handle: Any) -> int:  # noqa: N802
        if name not in self.known or self.refuses == "handle":
            return 6
        handle._obj.value = 1 + self.known.index(name)
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle: Any, found: Any) -> int:  # noqa: N802
        found._obj.free = handle.value * 40
        return int(self.refuses == "memory")


@pytest.mark.parametrize("kind", ["GPU", "MIG"])
@pytest.mark.parametrize("refuses", ["", "init", "handle", "memory", "load"])
def test_what_other_gpus_have_free_is_told_without_taking_any_of_it(
    refuses: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA would keep half a gigabyte of each for rank 0, which never uses them; it is asked where nothing else can be."""
    library = FakeNVML(refuses, kind)

    def load(name: str) -> FakeNVML:
        assert name == "libnvidia-ml.so.1"
        if refuses == "load":
            raise OSError("no such file")
        return library

    asked: list[int] = []
    monkeypatch.setattr(memory.ctypes, "CDLL", load)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: SimpleNamespace(uuid=("first", "second")[number]))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (asked.append(number), (60 + number, 100))[1])
    found = rooms.rooms_here(3)
    assert [room.device for room in found] == ["cuda:0", "cuda:1", "cuda:0"]
    assert [room.free for room in found] == ([30, 61, 30] if refuses else [20, 80, 20])
    assert asked == ([0, 1] if refuses else [])
    assert library.open == 0


def test_what_a_run_keeps_on_the_host_is_free_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is dropped before the next is kept: the same run again is no more than the first was."""
    monkeypatch.setattr("lens_magic.ranks.collectives.device_for", lambda rank: torch.device("cuda", 0))
    monkeypatch.setattr("lens_magic.ranks.memory.free_memory", lambda rank, device: 8 << 30)
    monkeypatch.setattr("lens_magic.ranks.memory.host_memory", lambda: 1 << 30)
    rank = Rank()
    rank.gpus = ["here GPU-a"]
    rank.store[NEWEST] = ("run", SimpleNamespace(nbytes=3 << 29, buffer=torch.empty(0)))
    room = rooms.room_of_rank(rank, drops=True)
    assert (room.free, room.host) == (8 << 30, 3 << 30)
    assert rooms.room_of_rank(rank).host == 1 << 30


def test_a_run_that_lacks_the_hosts_memory_says_so(checkpoints: Checkpoints) -> None:
    facts = footprint.Facts.of(read_config(checkpoints("llama-gqa")), "float32")
    ask = needs.Ask(1000, layers=(0, 1, 2), sites=("resid_post",), offload=True)
    with pytest.raises(LensError, match=r"2.1 MB of the host's memory on rank 0 .* and 1.0 MB is free there"):
        needs.refuse_run(facts, ask, [Room("cuda:0", 8 << 30, 10**6)])


def test_the_command(checkpoints: Checkpoints, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(checkpoints("llama-1kv"))
    assert cli.main(["plan", folder, "--ranks", "2", "--tokens", "8", "--free", "1GB"]) == 0
    out = capsys.readouterr().out
    assert "It fits." in out
    assert "KV cache" in out
    assert cli.main(["plan", folder, "--ranks", "2", "--tokens", "8", "--free", "20kB", "--json"]) == 1
    stated = json.loads(capsys.readouterr().out)
    assert stated["fits"] is False
    assert [rank["cache"] for rank in stated["ranks"]][1] == 0  # one key/value head: the second rank has none
    for wrong, words in (
        (["--tokens", "-1"], "--tokens -1 is too few"),
        (["--tokens", "100000"], "1 prompt token and 100000 new ones exceed the model's context of 512"),
        (["--free", "much"], "--free 'much' is not a size"),
        (["--dtype", "int8"], "dtype 'int8' is not one of"),
        (["--ranks", "5"], "it has 4 attention heads; 1 to 4 ranks work"),
        (
            ["--prompt-tokens", "600", "--tokens", "0", "--whole-prompt"],
            "the prompt has 600 tokens, more than the model's context of 512",
        ),
        (["--top-k", "100000"], "top-k 100000 is out of range; 1 to "),
    ):
        assert cli.main(["plan", folder, *wrong]) == 2
        assert words in capsys.readouterr().err
    for name, words in (("/nowhere", "is not a folder"), ("what is this?", "neither a folder, nor a hub id")):
        assert cli.main(["plan", name]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variables", "given", "ranks"),
    [
        ({}, [], 4),
        ({"LENS_DEFAULT_RANKS": "2"}, [], 2),
        ({"LENS_DEFAULT_RANKS": "2", "LENS_RANKS": "3"}, [], 3),
        ({"LENS_DEFAULT_RANKS": "2", "LENS_RANKS": "3"}, ["--ranks", "1"], 1),
    ],
)
def test_a_plan_is_for_the_ranks_there_would_be(
    variables: dict[str, str],
    given: list[str],
    ranks: int,
    checkpoints: Checkpoints,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("LENS_RANKS", "LENS_DEFAULT_RANKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["plan", str(checkpoints("llama-gqa")), "--free", "1GB", "--json", *given]) == 0
    assert len(json.loads(capsys.readouterr().out)["ranks"]) == ranks


def test_only_what_a_call_frees_is_counted_as_free(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    lens.load(str(checkpoints("llama-gqa")), ranks=1)
    run = lens.run(models.PROMPT, 2)
    monkeypatch.setattr(runs, "room_of_rank", plan_probes.room)
    lens.generate(models.PROMPT, 2)
    lens.compare(models.PROMPT, SteeringVector.of({1: torch.ones(128)}, site="mlp_out"), 2)
    assert run.activations("mlp_out").shape[1] == len(run.positions)
    assert lens.diff(run, steer=SteeringVector.of({1: torch.ones(128)}, site="mlp_out"))
    with pytest.raises(lens.LensError, match="no longer kept on the ranks"):
        run.activations("mlp_out")
    assert plan_probes.DROPPED == [False, False, True]


def test_a_run_is_checked_for_all_that_it_asks(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    once.load(checkpoints("llama-gqa"))
    asked: list[needs.Ask] = []
    monkeypatch.setattr(runs, "refuse_what_cannot_fit", lambda session, ask, *given, **more: asked.append(ask))
    prompts, sites = ["A lens", "A lens bends the light"], ("mlp_out", "resid_post")
    tokenizer = current().require_model().tokenizer
    longest, given = (len(tokenizer(text)["input_ids"]) for text in (prompts[1], " and sends it"))
    tuned = lens.TunedLens([torch.zeros(128, 128)] * 4, [torch.zeros(128)] * 4)
    how: dict[str, Any] = {"prompt_tokens": True, "capture_dtype": "bfloat16", "offload": True, "track": [1, 2], "top_k": 3}
    lens.run(prompts, 5, layers="1-2", capture=sites, lens=tuned, **how)
    lens.run(prompts[1], force=" and sends it", layers=[3], capture=sites, lens=lens.Basis(torch.eye(7, 128)))
    run = lens.run(prompts[::-1], 5, layers=[3], capture=sites, track=True)[0]
    lens.generate(prompts, 4)
    assert run.options["track"] == "first"
    assert asked == [
        needs.Ask(5, longest, True, (1, 2), sites, 2, capture_itemsize=2, offload=True, tuned=True, top_k=3, tracked=2),
        needs.Ask(given, longest, False, (3,), sites, forced=True, directions=7, top_k=5),
        needs.Ask(5, longest, False, (3,), sites, 2, top_k=5, tracked=chosen.MOST_FIRST),
        needs.Ask(4, longest, batch=2),
    ]


@pytest.mark.ranks(2)
def test_a_run_that_cannot_fit_is_refused(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    lens.load(str(checkpoints("llama-gqa")), ranks=2)
    current().group.call(plan_probes.forget_lens)
    before = lens.run(models.PROMPT, 3)
    monkeypatch.setenv("LENS_FREE_MEMORY", "1500000")
    with pytest.raises(lens.LensError, match=r"needs [\d.]+ MB on rank 0 .*captures.* and 1.5 MB is free") as refused:
        lens.run(models.PROMPT, 400)
    assert "\n" not in str(refused.value)
    assert before.activations("mlp_out").shape[0] == 4  # what was there is there still
    tokens = int(str(refused.value).split(" new tokens")[0].split()[-1].replace(",", ""))
    assert 3 < tokens < 400
    assert len(lens.run(models.PROMPT, tokens, ignore_eos=True).output_ids) == tokens
    monkeypatch.setenv("LENS_FREE_MEMORY", "1000")
    with pytest.raises(lens.LensError, match="keys and values"):
        lens.generate(models.PROMPT, 50)


@pytest.mark.parametrize("ranks", [1, 2], scope="session")
def test_more_candidates_than_fit_are_refused(ranks: int, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    lens.load(str(checkpoints("llama-gqa")), ranks=ranks)
    current().group.call(plan_probes.forget_lens)
    monkeypatch.setenv("LENS_FREE_MEMORY", "5000000")
    assert len(lens.run(models.PROMPT, 40, ignore_eos=True).output_ids) == 40
    words = r"needs [\d.]+ MB on rank 0 \(.*, results 2.5 MB, .*\) and 5.\d MB is free there; .* k of at most \d+ would fit"
    with pytest.raises(lens.LensError, match=words) as refused:
        lens.run(models.PROMPT, 40, top_k=320)
    assert "\n" not in str(refused.value)
    most = int(str(refused.value).split("k of at most ")[1].split()[0])
    assert 5 < most < 320
    assert lens.run(models.PROMPT, 40, top_k=most).variables["token_id"].shape[-1] == most
    with pytest.raises(lens.LensError, match=rf" k of at most {most} or "):
        lens.run(models.PROMPT, 40, top_k=most + 1)


def test_comparing_what_cannot_fit_is_refused(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both texts are read under both models: four sequences. A difference is as large as its run."""
    lens.load(str(checkpoints("llama-gqa")), ranks=1)
    vector = SteeringVector.of({1: torch.ones(128)}, site="post_ln")
    run = lens.run(models.PROMPT, 60, ignore_eos=True)
    monkeypatch.setenv("LENS_FREE_MEMORY", "2000000")
    with pytest.raises(lens.LensError, match=r"[\d.]+ MB is free there; [\d,]+ new tokens would fit$") as refused:
        lens.compare(models.PROMPT, vector * 1.5, 400)
    tokens = int(str(refused.value).split(" new tokens")[0].split()[-1])
    assert len(lens.compare(models.PROMPT, vector * 1.5, tokens, ignore_eos=True).steered.output_ids) == tokens
    monkeypatch.setenv("LENS_FREE_MEMORY", "200000")
    with pytest.raises(lens.LensError, match="more ranks or more memory would do"):
        lens.diff(run, vector * 1.5)
    for ranks in (1, 2):
        monkeypatch.setenv("LENS_FREE_MEMORY", "8GB")
        with pytest.raises(lens.LensError, match=r"LENS_FREE_MEMORY '8GB' is not a number of bytes"):
            lens.load("demo", ranks=ranks)
    monkeypatch.delenv("LENS_FREE_MEMORY")
    assert lens.diff(run, vector * 1.5).kl.shape[-1] == 60


@pytest.mark.ranks(2)
def test_a_model_that_cannot_fit_is_refused(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    lens.load(str(checkpoints("llama-gqa")), ranks=2)
    words = r"llama-8heads in float32 needs .* on rank \d \(cpu\) and 10.0 kB is free; .* would do"
    with monkeypatch.context() as small:
        small.setattr(rooms, "room_of_rank", no_model)
        with pytest.raises(lens.LensError, match=words) as refused:
            lens.load(str(checkpoints("llama-8heads")), ranks=2)
    assert "\n" not in str(refused.value)
    assert current().require_model().name.endswith("llama-gqa")
    assert len(lens.run(models.PROMPT, 2, ignore_eos=True).output_ids) == 2


def no_model(rank: Any, run: bool = False) -> Room:
    """As if nothing could be had by dropping the model."""
    return Room("cpu", 10_000, 1 << 40)


def a_little(rank: Any, run: bool = False) -> Room:
    return Room("cpu", 10_000, 1 << 40, model=1 << 30)


@pytest.mark.ranks(2)
def test_the_model_before_goes_first_where_both_do_not_fit(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    lens.load(str(checkpoints("llama-gqa")), ranks=2)
    words = r"llama-gqa was dropped first: .*llama-8heads does not fit beside it"
    with monkeypatch.context() as small:
        small.setattr(rooms, "room_of_rank", a_little)
        with pytest.warns(UserWarning, match=words):
            lens.load(str(checkpoints("llama-8heads")), ranks=2)
    assert current().require_model().name.endswith("llama-8heads")
    assert len(lens.run(models.PROMPT, 2, ignore_eos=True).output_ids) == 2


def test_a_planner_that_cannot_tell_refuses_nothing(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> Any:
        raise RuntimeError("a family's own code")

    monkeypatch.setattr(footprint, "skeleton", broken)
    monkeypatch.setattr(footprint.Facts, "of", broken_facts)
    lens.load(str(checkpoints("llama-gqa")), ranks=1)
    assert len(lens.run(models.PROMPT, 2, ignore_eos=True).output_ids) == 2


def broken_facts(config: Any, dtype: str) -> Any:
    raise AttributeError("num_attention_heads")


def test_ranks_agree_on_the_size_of_blocks(ranks: int, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 alone believes to have little."""
    lens.load(str(checkpoints("llama-gqa")), ranks=ranks)
    group = current().group
    plenty = group.call(plan_probes.cells_at_once)
    assert plenty == [plenty[0]] * ranks
    widest = -(-current().require_model().vocabulary // ranks)
    monkeypatch.setenv("LENS_FREE_MEMORY", str(8 * 4 * widest * 10))
    assert group.call(plan_probes.cells_at_once) == [10] * ranks


@pytest.fixture
def states() -> Callable[[int], tuple[Any, Trajectories]]:
    """States of a run of so many tokens, and a head of 20,000 rows that is a view of a larger embedding."""
    torch.manual_seed(0)
    embedding = torch.randn(20_000, 64)
    loaded: Any = SimpleNamespace(
        head=HeadShard(embedding, None, 0),
        norm=torch.nn.RMSNorm(64),
        bounds=[0, 20_000],
        device=torch.device("cpu"),
        vocabulary=20_000,
        width=64,
        layers=8,
        dtype=torch.float32,
    )

    def make(tokens: int) -> tuple[Any, Trajectories]:
        kept = Trajectories(Rank(), loaded, CapturePlan(("attn_out", "resid_post"), tuple(range(8)), 0, tokens))
        kept.buffer.normal_()
        return loaded, kept

    return make


def test_the_projections_memory_does_not_grow_with_tokens(
    states: Callable[[int], tuple[Any, Trajectories]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten times the tokens would take 700 MB more if all logits existed at once."""
    monkeypatch.setitem(decode._BLOCK_BYTES, "cpu", 8 << 20)
    device, peaks = torch.device("cpu"), []
    for tokens in (60, 60, 600):  # the first warms up
        loaded, kept = states(tokens)
        memory.reset_peak_memory(device)
        before = memory.peak_memory(device)
        decode.project(Rank(), loaded, Projector(loaded, PLAIN, None), kept, 0, [1] * tokens, 5)
        peaks.append(memory.peak_memory(device) - before)
    planned = decode.workspace_bytes("cpu", 1 << 40, 20_000, 64, 4, 16, 600, False)
    print(f"{peaks[1] / 1e6:.1f} MB for 60 tokens, {peaks[2] / 1e6:.1f} MB for 600, {planned / 1e6:.1f} MB planned")
    assert peaks[2] <= max(peaks[1], planned) + (96 << 20)  # the allocator does not hand everything back at once
