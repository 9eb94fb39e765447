"""The benchmarks measure what they claim: every baseline gives our results, and does the work it is said to do."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import torch

from benchmarks import (
    ablation,
    aims,
    checkpoints,
    machine,
    memory,
    methods,
    plan,
    plots,
    report,
    sharded,
    steerability,
    store,
    tables,
)
from benchmarks.bench_process import Bench
from benchmarks.plan import OURS, Row, Suite
from benchmarks.process import ROOT, Process, TooLong
from benchmarks.run import Runner, agreement
from benchmarks.store import Cell, Results
from lens_magic.cli import main
from lens_magic.errors import LensError
from lens_magic.session import current

Checkpoints = Callable[[str], Path]
TOKENS = 5


@pytest.fixture(scope="session", params=[1, 2], ids=["1-rank", "2-ranks"])
def ranks(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def bench(ranks: int, checkpoints: Checkpoints) -> Iterator[Bench]:
    """A small random Llama on which every method runs."""
    before = current().default_ranks
    yield Bench(str(checkpoints("llama-gqa")), "float32", ranks, models.PROMPT)
    current().default_ranks = before
    sharded.MODELS.clear()


@pytest.fixture(scope="module")
def ours(bench: Bench) -> dict[str, Any]:
    return bench.measure(OURS, TOKENS, answers=True)


@pytest.mark.parametrize("method", ["published", "eager", "afterwards", "afterwards-hooked"])
def test_a_baseline_sees_what_we_see(bench: Bench, ours: dict[str, Any], method: str) -> None:
    theirs = bench.measure(method, TOKENS, answers=True)
    assert theirs["output_ids"] == ours["output_ids"]
    sites = np.array(theirs["lens"]).shape[2]
    assert sites == (1 if method == "afterwards" else 3)
    mine = np.array(ours["lens"])[:, :, -sites:]
    np.testing.assert_array_equal(theirs["lens"], mine)
    np.testing.assert_allclose(theirs["probabilities"], np.array(ours["probabilities"])[:, :, -sites:], atol=1e-5)
    assert theirs["wall_s"] > 0


def test_the_papers_method_sees_the_same_candidates(bench: Bench, ours: dict[str, Any]) -> None:
    theirs = bench.measure("deferred", TOKENS, answers=True)
    np.testing.assert_array_equal(theirs["lens"], ours["lens"])
    among = np.array(ours["probabilities"])
    np.testing.assert_allclose(theirs["probabilities"], among / among.sum(-1, keepdims=True), atol=1e-5)


def test_plain_generation_gives_our_tokens(bench: Bench, ours: dict[str, Any]) -> None:
    for method in ("generate", plan.BARE, plan.RESIDUAL):
        assert bench.measure(method, TOKENS, answers=True)["output_ids"] == ours["output_ids"], method


def test_the_published_way_makes_two_forwards_and_four_projections_a_layer(checkpoints: Checkpoints) -> None:
    """Not a token is projected less, or more, than the original projects."""
    from lens_magic.ranks.rank import Rank

    rank = Rank()
    sharded.load(rank, str(checkpoints("llama-gqa")), "float32")
    subject = sharded.plain()
    lengths: list[int] = []
    handle = subject.model.lm_head.register_forward_hook(lambda module, inputs, output: lengths.append(inputs[0].shape[1]))
    methods.published(rank, [1, 2, 3], TOKENS, 2)
    handle.remove()
    expected = [length for length in range(3, 3 + TOKENS) for _ in range(2 * (4 * len(subject.blocks) + 1))]
    assert lengths == expected
    assert not any(module._forward_hooks for module in subject.model.modules())


def test_a_run_goes_on_where_it_was_and_keeps_to_its_time(tmp_path: Path) -> None:
    suite = Suite("speed", "?", (Row("demo", 1, 3, (OURS, "eager"), rounds=2),))
    for budget, rounds in ((0.0, 0), (120.0, 2)):
        runner = Runner(tmp_path, budget, tell=lambda line: None)
        try:
            results = runner.run(suite)
        finally:
            runner.close()
        for cell in results.cells.values():
            assert len(cell.samples) == rounds
            assert (cell.left_out is None) == (rounds == 2), cell.left_out
    assert cell.agrees == pytest.approx({"tokens": 1, "first": 1, "probability": 0}, abs=1e-5)
    before = json.loads((tmp_path / "speed.json").read_text())["cells"]
    again = Runner(tmp_path, 120.0, tell=lambda line: pytest.fail(f"measured again: {line}"))
    assert [cell.samples for cell in again.run(suite).cells.values()] == [cell["samples"] for cell in before]
    written = report.write(tmp_path)
    assert "lens-magic" in written[0].read_text()
    assert (tmp_path / "bench-speed.svg") in written


def test_results_of_other_sources_are_forgotten(tmp_path: Path) -> None:
    results = Results(tmp_path, "speed")
    results.cell("demo", "float32", 1, 10, OURS).samples.append({"round": 0, "wall_s": 1.0})
    results.save()
    assert len(Results(tmp_path, "speed").cells) == 1
    assert not Results(tmp_path, "speed", fresh=True).cells
    known = json.loads(results.path.read_text())
    known["about"]["sources"] = "another"
    results.path.write_text(json.dumps(known))
    assert not Results(tmp_path, "speed").cells


def test_results_name_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        names = ["-c", "user.name=one", "-c", "user.email=one@example.org"]
        ran = subprocess.run(["git", *names, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)
        return ran.stdout.strip()

    monkeypatch.setattr(store, "ROOT", tmp_path)
    assert store.commit() is None
    git("init", "-q")
    assert store.commit() is None  # none has been made yet
    for place in ("benchmarks/methods.py", "lens_magic/api.py", "docs/page.md"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text("")
    git("add", ".")
    git("commit", "-qm", "first")
    head = git("rev-parse", "--short=10", "HEAD")
    (tmp_path / "docs" / "page.md").write_text("what is not measured may change")
    assert store.commit() == head
    (tmp_path / "lens_magic" / "api.py").write_text("x = 1")
    assert store.commit() == f"{head}, with changes"
    about = {"machine": {"processor": "P", "cores": 2}, "time": "2026-11-22T05:30:13+00:00"}
    assert tables.measured_on({**about, "commit": head}) == f"*P, 2 cores, 2026-11-22, commit {head}.*"
    assert tables.measured_on(about) == "*P, 2 cores, 2026-11-22.*"  # before commits were recorded


def test_a_model_of_another_shape_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for layers in (2, 3):
        sizes = checkpoints.shape(layers, 32, 64, 4, 2, 2_304)
        monkeypatch.setitem(checkpoints.SHAPES, "small", ("Llama", sizes))
        path = checkpoints.folder("small", tmp_path)
        assert json.loads((path / "config.json").read_text())["num_hidden_layers"] == layers
        written = (path / "model.safetensors").stat().st_mtime_ns
        checkpoints.folder("small", tmp_path)
        assert (path / "model.safetensors").stat().st_mtime_ns == written


def test_a_process_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    process = Process([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "log")
    begun = time.monotonic()
    with pytest.raises(TooLong):
        process.ask({}, 0.3)
    assert time.monotonic() - begun < 10


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells peaks")
def test_peak_memory_is_seen() -> None:
    before = memory.begin()
    torch.ones(16 << 20)  # 64 MiB, freed at once
    assert memory.peak() - before == pytest.approx(64 << 20, rel=0.1)


LIBRARY = """
from serving import serve_lens
import numpy
given = {}

class Ids(list):
    def __getitem__(self, place):
        return numpy.array([list(self)])[place]

def run(prompt_ids, tokens):
    numpy.ones(8 << 20)  # 64 MiB, freed at once
    return Ids([*prompt_ids, *range(tokens)]), []

serve_lens(run, lambda folder, dtype: given.update(folder=folder))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells peaks")
def test_the_peak_of_another_library_is_measured_in_its_own_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoints: Checkpoints
) -> None:
    """Which sees no more of ours than what it measures with."""
    from benchmarks import run

    (tmp_path / "library.py").write_text(f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks' / 'peers')!r})\n{LIBRARY}")
    monkeypatch.setattr(run, "command", lambda name, out, left_s: [sys.executable, str(tmp_path / "library.py")])
    monkeypatch.setattr(run.checkpoints, "folder", lambda name, out: checkpoints("llama-gqa"))
    results = Runner(tmp_path / "out", tell=lambda line: None)
    found = results.run(Suite("memory", "", (Row("small", 1, 3, ("nnsight",), rounds=2, memory=True),)))
    (cell,) = found.cells.values()
    assert cell.left_out is None
    assert [sample["grown"][0] / (1 << 20) for sample in cell.samples] == pytest.approx([64, 64], rel=0.1)


def test_a_method_that_cannot_be_loaded_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoints: Checkpoints
) -> None:
    begun: list[Process] = []

    def begin(runner: Runner, name: str, environment: Any = None) -> Process:
        library = "import json, sys\nfor line in sys.stdin: print(json.dumps({'error': 'no such model'}), flush=True)"
        begun.append(Process([sys.executable, "-c", library], tmp_path / "log", environment))
        return begun[-1]

    monkeypatch.setattr(Runner, "_peer_process", begin)
    monkeypatch.setattr("benchmarks.checkpoints.folder", lambda name, out: checkpoints("llama-gqa"))
    runner = Runner(tmp_path / "out", tell=lambda line: None)
    found = runner.run(Suite("memory", "", (Row("small", 1, 3, ("nnsight",), rounds=2, memory=True),)))
    assert [cell.left_out for cell in found.cells.values()] == ["no such model"]
    assert [process._process.poll() is not None for process in begun] == [True]


def test_ratios_are_taken_round_by_round() -> None:
    ours = Cell("m", "float32", 1, 10, OURS, samples=[{"round": 0, "wall_s": 1.0}, {"round": 1, "wall_s": 2.0}])
    theirs = Cell("m", "float32", 1, 10, "published", samples=[{"round": 1, "wall_s": 8.0}])
    assert tables.ratios(theirs, ours, tables.wall) == [4.0]
    assert tables.spread([4.0, 6.0]) == "5.00 ± 1.41 (5.00)"
    assert "**4.00**" in tables.against_published([ours, theirs])


def test_generating_is_timed_by_one_clock() -> None:
    ours = {"wall_s": 3.0, "prefill_s": 0.5, "decode_s": 1.4, "project_s": 1.0}
    assert tables.generating(ours) == tables.generating({"wall_s": 2.0}) == 2.0


def test_what_a_token_reads() -> None:
    from lens_magic.demo import path

    weights = sum(tensor.numel() for tensor in _tensors(path() / "model.safetensors"))  # tied: the head is the embedding
    cached = 2 * 8 * 12 * 16 * (12 + 50)  # keys and values: layers · heads · width · positions half way
    assert tables.bytes_a_token("demo", "float32", 100) == 4 * (weights + cached)


def _tensors(file: Path) -> list[torch.Tensor]:
    from safetensors.torch import load_file

    return list(load_file(file).values())


def test_agreement_is_judged_up_to_the_first_other_token() -> None:
    mine = {"output_ids": [1, 2, 3], "lens": [[[[5]]], [[[6]]], [[[7]]]], "probabilities": [[[[0.5]]]] * 3}
    theirs = {"output_ids": [1, 9, 3], "lens": [[[[5]]], [[[8]]], [[[9]]]], "probabilities": [[[[0.4]]]] * 3}
    assert agreement(theirs, mine) == pytest.approx({"tokens": 2 / 3, "first": 0.5, "probability": 0.1})


def test_intervals_hold_the_mean() -> None:
    values = np.random.default_rng(1).normal(2.0, 1.0, 200)
    low, high = ablation.interval(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 / 200**0.5, rel=0.3)


def test_suites_of_different_machines_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Published a part at a time: a suite replaces itself wherever it was measured, and the page holds all of them."""
    page = tmp_path / "page.md"
    page.write_text("".join(f"<!-- {name} -->\n<!-- end -->\n" for name in ("machine", "speed", "lengths", "plot-speed")))
    for name, value in (("ROOT", tmp_path), ("PUBLISHED", tmp_path / "results"), ("PAGES", (page,))):
        monkeypatch.setattr(report, name, value)

    def measure(suite: str, processor: str, tokens: int) -> None:
        results = Results(tmp_path / processor, suite)
        results.about["machine"] = {**results.about["machine"], "processor": processor, "cores": 2}
        results.about["copy_bytes_per_s"] = 2e10
        results.cell("demo", "float32", 1, tokens, OURS).samples.append({"round": 0, "wall_s": 1.0})
        results.save()
        report.write(tmp_path / processor, publish=[suite])

    measure("speed", "Old(R) One", 10)
    measure("lengths", "Other", 777)
    text = page.read_text()
    assert re.findall(r"\| (\d+) \| \*\*lens-magic", text) == ["10", "777"]
    assert re.findall(r"^\*(.*), 2 cores, ....-..-..(?:, commit .*)?\.\*$", text, re.MULTILINE) == ["Old One", "Other"]
    assert len(re.findall(r"^- (?:Old One|Other).* GB/s", text, re.MULTILINE)) == 2
    plot = (tmp_path / "docs" / "images" / "bench-speed.svg").read_text()
    assert "<!-- 10 -->" in plot
    assert "<!-- 777 -->" not in plot  # another machine's seconds are no point of this line

    measure("speed", "Other", 10)
    assert [path.relative_to(tmp_path).as_posix() for path in sorted((tmp_path / "results").rglob("*.json"))] == [
        "results/other-2-cores/lengths.json",
        "results/other-2-cores/speed.json",
    ]
    assert "Old One" not in page.read_text()
    assert "<!-- 777 -->" in (tmp_path / "docs" / "images" / "bench-speed.svg").read_text()


def test_what_is_published_is_named_and_has_no_fewer_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- lengths -->\n<!-- end -->\n<!-- aims -->\n<!-- end -->\n")
    for name, value in (("ROOT", tmp_path), ("PUBLISHED", tmp_path / "results"), ("PAGES", (page,))):
        monkeypatch.setattr(report, name, value)

    def measure(suite: str, samples: int) -> None:
        results = Results(tmp_path / "out", suite, fresh=True)
        cell = results.cell("demo", "float32", 1, 700, OURS)
        cell.samples = [{"round": number, "wall_s": 1.0} for number in range(samples)]
        results.save()

    def published() -> list[tuple[str, int]]:
        return sorted((path.stem, report.samples(path)) for path in (tmp_path / "results").glob("*/*.json"))

    measure("lengths", 3)
    measure("scaling", 3)
    report.write(tmp_path / "out")
    assert not published()
    report.write(tmp_path / "out", ["lengths"])
    assert published() == [("lengths", 3)]
    measure("lengths", 2)
    with pytest.raises(LensError, match=r"lengths.json has 2 samples, 3 are published .*--force"):
        report.write(tmp_path / "out", ["scaling", "lengths"])
    with pytest.raises(LensError, match=r"no peers.json in .* to publish"):
        report.write(tmp_path / "out", ["peers"])
    assert published() == [("lengths", 3)]
    report.write(tmp_path / "out", ["lengths"], force=True)
    assert published() == [("lengths", 2)]
    page.write_text("<!-- lengths -->\n<!-- end -->\n")
    report.write(tmp_path / "out", [])
    assert "| 700 | **lens-magic** | 2 |" in page.read_text(), "the page alone"


def test_results_from_a_copy_without_git_are_given_their_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ROOT", tmp_path), ("PUBLISHED", tmp_path / "results"), ("PAGES", ())):
        monkeypatch.setattr(report, name, value)
    monkeypatch.setattr(store, "commit", lambda: "0123456789")
    for sources, commit in ((store.sources(), "0123456789"), ("of another version", None)):
        results = Results(tmp_path / "out", "lengths", fresh=True)
        results.about |= {"commit": None, "sources": sources}
        results.save()
        (made,) = report.write(tmp_path / "out", ["lengths"])[-1:]
        assert json.loads(made.read_text())["about"]["commit"] == commit


def test_aims_are_told_whether_met_or_missed() -> None:
    assert "Of 0 measured, none is missed." in aims.table({})
    cells = [
        Cell("demo", "float32", 1, 9, method, samples=[{"round": 0, "wall_s": wall}])
        for method, wall in ((OURS, 2.0), ("eager", 1.0), ("deferred", 3.0))
    ]
    assert "Of 2 measured, 1 is missed." in aims.table({"speed": cells})


def test_a_sweep_is_timed_and_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steerability, "ALPHAS", (-1.0, 0.0, 1.0))
    path = steerability.measure(tmp_path, ranks=[1], questions=1, rounds=1)
    whole = json.loads(path.read_text())
    assert {"machine", "sources", "commit", "time", "load", "threads"} <= set(whole["about"])
    assert [(row["task"], sorted(row["seconds"])) for row in whole["results"]] == [
        ("one layer", ["apart", "ours", "plain"]),
        ("all layers", ["apart", "ours", "plain"]),
    ]
    assert report.samples(path) == 6
    assert "| 1 | one layer | **lens-magic** | 1 |" in report.write(tmp_path)[0].read_text()
    path.write_text(json.dumps({"machine": "x86_64", "cores": 2, "results": whole["results"]}))  # as it was written once
    (tables_of_it,) = report.write(tmp_path)
    assert tables.NOT_RECORDED in tables_of_it.read_text()
    assert report.samples(path) == 6


def test_a_gpus_figures_go_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    its = machine.describe() | {"gpu": "NVIDIA H200", "gpu_bytes": 140 << 30, "cuda": "13.0", "gpu_capability": "9.0"}
    about = {"machine": {**its, "driver": "580.1", "processor": "Host"}, "copy_bytes_per_s": 4.3e12, **machine.now()}
    told = tables.machines({"gpu": about})
    assert told.startswith("- NVIDIA H200, 140 GiB, capability 9.0, CUDA 13.0, driver 580.1; host: Host")
    assert "Memory copied at 4,300.0 GB/s" in told
    for name, value in (("ROOT", tmp_path), ("PUBLISHED", tmp_path / "results"), ("PAGES", ())):
        monkeypatch.setattr(report, name, value)
    whole = {"about": {**about, "tokens": 10, "kernels_not_used": {}}, "models": [{"model": "m", "left_out": "no room"}]}
    store.write(tmp_path / "out" / "gpu.json", whole)
    tables_of_it = report.write(tmp_path / "out", publish=["gpu"])[0].read_text()
    assert "| m | left out: no room |" in tables_of_it
    assert re.search(r"^\*NVIDIA H200, ....-..-..\.\*$", tables_of_it, re.MULTILINE)
    assert [path.parent.name for path in (tmp_path / "results").glob("*/gpu.json")] == ["nvidia-h200"]


def test_pages_have_a_place_for_everything_measured() -> None:
    measured = {suite.name for suite in plan.suites(full=True)} | set(report.SEPARATE)
    written = {"machine", "published", "aims", "left-out", *(f"plot-{name.removeprefix('bench-')}" for name in plots.WORDS)}
    assert set(tables.names_in(report.PAGES[0])) == measured | written
    assert set(tables.names_in(report.PAGES[1])) <= measured | written


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("fly", "there is no suite 'fly'; there are speed"),
        ("--budget much", "--budget 'much' is not a number"),
        ("--fly", "unknown option"),
        ("--publish", "--publish takes the suites to publish; report --publish makes the pages anew"),
    ],
)
def test_the_command(words: str, told: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words.split()]) == 2
    error = capfd.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert main(["bench", "--help"]) == 0
    told = capfd.readouterr().out
    assert "--publish" in told
    assert "Measure speed and memory" in told
