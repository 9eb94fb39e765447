"""Exports of a run: Dataset, table, JSON, files."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import models
import numpy as np
import once
import pandas as pd
import pytest
import torch
import xarray as xr

import lens_magic as lens
from lens_magic import results
from lens_magic.lens.files import RUN_ENDINGS, packed
from lens_magic.lens.tracking import NOBODY
from lens_magic.lens.variables import VARIABLES
from lens_magic.outputs import check_output
from lens_magic.session import current
from lens_magic.view.terminal import table_text

Checkpoints = Callable[[str], Path]


@pytest.fixture(scope="module")
def run(checkpoints: Checkpoints) -> lens.LensRun:
    once.load(checkpoints("llama-gqa"))
    return lens.run(models.PROMPT, 6, top_k=4, layers="::2", prompt_tokens=True, ignore_eos=True)


def test_dataset(run: lens.LensRun) -> None:
    data = run.to_xarray()
    prompt = len(run.prompt_ids)
    assert dict(data.sizes) == {"site": 3, "layer": 2, "position": prompt - 1 + 6, "k": 4}
    assert data.site.values.tolist() == ["attn_out", "mlp_out", "resid_post"]
    assert data.layer.values.tolist() == [0, 2]
    assert data.position.values.tolist() == list(range(-(prompt - 1), 6))
    assert set(data.data_vars) == {
        *("token_id", "logit", "prob", "prob_topk"),
        *("entropy", "target_rank", "target_prob", "kl_final"),
    }
    assert data["logit"].dtype == np.float32
    following = [*run.prompt_ids, *run.output_ids][1:]
    assert data["target_id"].values.tolist() == following
    assert data["target"].values.tolist() == [run.token_texts[index] for index in following]
    assert data["target"].sel(position=0) == run.token_texts[run.output_ids[0]]
    assert np.allclose(data["prob_topk"].sum("k"), 1, atol=1e-6)
    assert (data["prob"].diff("k") <= 0).all()
    hit = data["target_rank"] == 0
    assert np.allclose(data["target_prob"].values[hit], data["prob"].isel(k=0).values[hit])


@pytest.mark.parametrize("tracked", [True, False])
@pytest.mark.parametrize("positions", [0, 1, 400])
def test_the_ids_that_occur_in_a_run(positions: int, tracked: bool) -> None:
    """Those that sorting them all would give, which takes long; −1, where no token is followed, is none of them."""
    drawn = np.random.default_rng(0)
    ids = {"token_id": drawn.integers(0, 5000, (3, 2, positions, 5), dtype=np.int32)}
    if tracked:
        ids["tracked_id"] = drawn.integers(NOBODY, 9000, (positions, 3), dtype=np.int32)
    occurring = np.unique(np.concatenate([each.reshape(-1) for each in ids.values()]))
    expected = occurring[occurring != NOBODY].tolist()
    found = results._candidates({"entropy": np.zeros((3, 2, positions)), **ids})
    assert found == expected
    assert all(type(index) is int for index in found), "as they go into JSON"


def test_table(run: lens.LensRun) -> None:
    table = run.to_pandas()
    assert len(table) == run.variables["token_id"].size
    row = table[(table.site == "mlp_out") & (table.layer == 2) & (table.position == 3) & (table.k == 1)].iloc[0]
    data = run.to_xarray().sel(site="mlp_out", layer=2, position=3, k=1)
    assert row.token_id == int(data["token_id"])
    assert row.token == run.token_texts[row.token_id]
    assert row.prob == pytest.approx(float(data["prob"]))


def test_paper_json(run: lens.LensRun, tmp_path: Path) -> None:
    record = json.loads(run.to_json(tmp_path / "run.json").read_text(encoding="utf-8"))
    step = record["step_0"]
    assert step["input_text"] == models.PROMPT
    assert step["predicted_token"] == run.text
    cell = step["all_tokens_data"]["0"]["2"]
    assert set(cell) == {"attention_mechanism", "mlp_output", "block_output"}
    data = run.to_xarray().sel(site="resid_post", layer=2, position=0)
    for k, (token, percent, index) in enumerate(cell["block_output"]):
        assert index == int(data["token_id"][k])
        assert token == run.token_texts[index]
        assert percent == pytest.approx(100 * float(data["prob_topk"][k]), abs=1e-4)


def test_what_a_file_says_cannot_write_to_the_terminal(run: lens.LensRun, tmp_path: Path) -> None:
    evil = "\x1b]0;gone\x07\n"
    made = replace(run, provenance={**run.provenance, "model": evil}, options={**run.options, "steering": [evil]})
    again = lens.open_run(made.save(tmp_path / "run.nc"))
    shown = "".join([repr(again), table_text(again), *again.options["steering"]])
    assert "gone" in shown
    assert shown.replace("\n", "").isprintable()


def test_what_the_papers_json_has_no_place_for_is_refused(run: lens.LensRun, tmp_path: Path) -> None:
    with pytest.raises(
        lens.LensError, match=r"the paper's JSON holds attn_out, mlp_out, resid_post; this run captured a, b, c"
    ):
        replace(run, sites=["a", "b", "c"]).to_json(tmp_path / "run.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", RUN_ENDINGS)
def test_saving_loses_nothing(run: lens.LensRun, tmp_path: Path, ending: str) -> None:
    if ending == ".zarr":
        pytest.importorskip("zarr", reason="Zarr files need the zarr extra")
    path = tmp_path / f"run{ending}"
    check_output("--out", path)
    assert run.save(path) == path
    again = lens.open_run(path)
    for name, values in run.variables.items():
        assert (again.variables[name] == values).all()
        assert again.variables[name].dtype == values.dtype
    for field in ("prompt", "prompt_ids", "output_ids", "text", "sites", "layers", "positions", "interrupted"):
        assert getattr(again, field) == getattr(run, field), field
    for field in ("token_texts", "options", "provenance", "memory"):
        assert dict(getattr(again, field)) == dict(getattr(run, field)), field
    assert again.timings["project_s"] == run.timings["project_s"]
    with pytest.raises(lens.LensError, match="no longer kept"):
        again.activations("mlp_out")


def test_provenance_says_how_it_was_made(run: lens.LensRun) -> None:
    for name in (
        "lens_magic",
        "python",
        "numpy",
        "torch",
        "transformers",
        "mpi4py",
        "model",
        "model_fingerprint",
        "ranks",
        "dtype",
        "created",
    ):
        assert run.provenance[name], name
    assert run.timings["tokens_per_s"] == pytest.approx(5 / run.timings["decode_s"])
    assert run.memory["peak"] > run.memory["captures"] > 0


def test_a_file_that_is_no_run_is_refused(tmp_path: Path) -> None:
    for name, words in (("nothing.nc", "no file"), ("run.txt", "should end in")):
        with pytest.raises(lens.LensError, match=words):
            lens.open_run(tmp_path / name)
    (tmp_path / "wrong.nc").write_bytes(b"not a NetCDF file")
    with pytest.raises(lens.LensError, match="not a saved run"):
        lens.open_run(tmp_path / "wrong.nc")


def test_a_damaged_record_is_refused(run: lens.LensRun, tmp_path: Path) -> None:
    path = run.save(tmp_path / "run.nc")
    with h5py.File(path, "r+") as file:
        file.attrs["run"] = "[]"
    with pytest.raises(lens.LensError, match="is not a saved run"):
        lens.open_run(path)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"options": None}, "its options should be a dict, not NoneType"),
        ({"provenance": None}, "its provenance should be a dict, not NoneType"),
        ({"token_texts": []}, "its token_texts should be a dict, not list"),
        ({"prompt": 5}, "its prompt should be a str, not int"),
        ({"interrupted": "no"}, "its interrupted should be a bool, not str"),
        ({"labels": 5}, "is not a saved run"),
        ({"options": {"steering": [5]}}, "its options steering or lens are not"),
        ({"options": {"lens": None}}, "its options steering or lens are not"),
    ],
)
def test_what_a_record_says_is_checked(run: lens.LensRun, record: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = run.save(tmp_path / "run.nc")
    with h5py.File(path, "r+") as file:
        file.attrs["run"] = json.dumps({**json.loads(file.attrs["run"]), **record})
    with pytest.raises(lens.LensError, match=words) as caught:
        lens.open_run(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        *((lambda data, name=name: data.drop_vars(name), f"'{name}'") for name in (*VARIABLES, "prompt_ids", "output_ids")),
        (lambda data: data.assign(entropy=data["entropy"].isel(site=0)), r"its entropy is float32 \[layer, position\], not \["),
        (lambda data: data.assign(prob=data["prob"].astype("int32")), r"its prob is int32"),
        (lambda data: data.assign(prompt_ids=data["prompt_ids"].astype("float64")), "its prompt_ids is float64"),
        *(
            (
                lambda data, by=by: data.assign_coords(position=data["position"] + by),
                "its positions are not all among its .* tokens",
            )
            for by in (5, 1, -1000)
        ),
    ],
)
def test_a_run_without_one_of_its_variables_is_refused(run: lens.LensRun, change: Any, words: str, tmp_path: Path) -> None:
    change(packed(run)).to_netcdf(tmp_path / "run.nc", engine="h5netcdf")
    with pytest.raises(lens.LensError, match=rf"is not a saved run: .*{words}") as caught:
        lens.open_run(tmp_path / "run.nc")
    assert "\n" not in str(caught.value)


def test_a_codec_that_unpickles_is_refused(run: lens.LensRun, tmp_path: Path) -> None:
    pytest.importorskip("zarr", reason="Zarr files need the zarr extra")
    path = run.save(tmp_path / "run.zarr")
    array = path / "entropy" / ".zarray"
    stated = json.loads(array.read_text())
    array.write_text(json.dumps({**stated, "filters": [{"id": "pickle", "protocol": 5}]}))
    with pytest.raises(lens.LensError, match="is coded as 'pickle', which no saved run is"):
        lens.open_run(path)


@pytest.mark.parametrize("codec", ["blosc", "lz4", "zlib", "zstd", "vlen-utf8"])
def test_a_damaged_chunk_is_one_line(run: lens.LensRun, tmp_path: Path, codec: str) -> None:
    """Each codec has errors of its own."""
    pytest.importorskip("zarr", reason="Zarr files need the zarr extra")
    numcodecs = pytest.importorskip("numcodecs")
    path = run.save(tmp_path / "run.zarr")
    array, chunk = path / "entropy" / ".zarray", path / "entropy" / "0.0.0"
    stated = json.loads(array.read_text())
    if codec == "vlen-utf8":
        texts = np.array(["one", "two"], dtype=object)
        whole = numcodecs.VLenUTF8().encode(texts)
        stated |= {"shape": [2], "chunks": [2], "dtype": "|O", "fill_value": "", "compressor": None}
        stated["filters"] = [{"id": "vlen-utf8"}]
        (path / "entropy" / ".zattrs").write_text('{"_ARRAY_DIMENSIONS": ["text"]}')
        chunk.unlink()
        chunk = chunk.with_name("0")
    else:
        coder = numcodecs.get_codec({"id": codec})
        whole = coder.encode(np.ascontiguousarray(run.variables["entropy"]))
        stated |= {"compressor": coder.get_config(), "chunks": stated["shape"]}
    array.write_text(json.dumps(stated))
    chunk.write_bytes(whole)
    if codec != "vlen-utf8":
        assert lens.open_run(path).output_ids == run.output_ids
    for damaged in (whole[: len(whole) // 2], b""):
        chunk.write_bytes(damaged)
        with pytest.raises(lens.LensError, match=r"run\.zarr is not a saved run: .") as refused:
            lens.open_run(path)
        assert "\n" not in str(refused.value)


def test_a_link_in_a_folder_is_refused(run: lens.LensRun, tmp_path: Path) -> None:
    """What it leads to would be read, and not have been looked at."""
    pytest.importorskip("zarr", reason="Zarr files need the zarr extra")
    path = run.save(tmp_path / "run.zarr")
    (path / "entropy").rename(tmp_path / "elsewhere")
    (path / "entropy").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(lens.LensError, match="entropy is a link, which no saved run has"):
        lens.open_run(path)


def test_a_run_is_a_value(run: lens.LensRun) -> None:
    again = pickle.loads(pickle.dumps(run))
    assert again.to_xarray().identical(run.to_xarray())
    assert run == run
    assert run != again
    with pytest.raises(lens.LensError, match="no longer kept"):
        again.activations("mlp_out")
    data = run.to_xarray()
    data["prob"] *= 100
    assert run.variables["prob"].max() <= 1


def test_numpys_integers_are_integers(run: lens.LensRun) -> None:
    site, layer = run.sites[-1], run.layers[-1]
    states = run.activations(site, np.int64(layer), positions=np.array([0, 1]))
    assert torch.equal(states, run.activations(site, layer, [0, 1]))
    with pytest.raises(lens.LensError, match="positions 'first' are not integers"):
        run.activations(site, positions="first")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"layers": 1}, r"layer 1 was not captured in this run; captured: 0, 2$"),
        ({"layers": -3}, r"layer -3 was not captured in this run; captured: 0, 2$"),
        ({"layers": "-3"}, r"layer -3 was not captured in this run; captured: 0, 2$"),
        ({"layers": "0-2"}, r"layer 1 was not captured in this run; captured: 0, 2$"),
        ({"layers": "3"}, r"layer 3 is out of range"),
        ({"layers": "first"}, r"layers 'first' are not understood"),
        ({"layers": []}, r"no layers were named; captured: 0, 2$"),
        ({"positions": 6}, r"position 6 was not captured in this run; captured: -\d+ … 5$"),
    ],
)
def test_states_that_are_not_there_are_refused(run: lens.LensRun, wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(lens.LensError, match=words):
        run.activations("mlp_out", **wrong)


def test_layers_of_states_count_from_the_end_too(run: lens.LensRun) -> None:
    for last in (-1, "-1", "2"):
        assert torch.equal(run.activations("mlp_out", last), run.activations("mlp_out", 2))
    assert torch.equal(run.activations("mlp_out", "0,-1"), run.activations("mlp_out", "::2"))
    for before in (-2, "-2", " -2 , 0"):  # layer 1 was not captured
        assert torch.equal(run.activations("mlp_out", before), run.activations("mlp_out", 0))
    with pytest.raises(lens.LensError, match=r"position 0 was not captured in this run; captured: none$"):
        replace(run, positions=[]).activations("mlp_out", positions=0)


def test_numpys_numbers_may_be_asked_for_and_saved(run: lens.LensRun, tmp_path: Path) -> None:
    asked = {"temperature": np.float32(0.5), "top_p": np.float32(0.75), "seed": np.int64(3)}
    asked |= {"ignore_eos": np.True_, "chat": np.False_, "prompt_tokens": np.True_, "offload": np.False_}
    one = lens.run(models.PROMPT, np.int64(2), top_k=np.int32(3), **asked)  # type: ignore[arg-type]
    again = lens.open_run(one.save(tmp_path / "run.nc"))
    assert again.options == one.options
    assert again.options.items() >= {"max_new_tokens": 2, "top_k": 3, "temperature": 0.5, "top_p": 0.75, "seed": 3}.items()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"max_new_tokens": 2.5}, "max-new-tokens 2.5 is not an integer"),
        ({"top_k": "many"}, "top-k 'many' is not an integer"),
        ({"temperature": None}, "temperature None is not a number"),
        ({"force": [1.5]}, r"the token ids to force \[1.5\] are not integers"),
        ({"capture": 5}, "site 5 is not one of resid_pre, attn_out"),
        ({"force": 320}, "force should be text, or token ids from 0 to 319"),
        ({"force": b" Paris"}, r"the token ids to force \[b' Paris'\] are not integers"),
        ({"force": True}, r"the token ids to force \[True\] are not integers"),
        ({"force": {1, 2}}, r"the token ids to force \[\{1, 2\}\] are not integers"),
        ({"force": {"input_ids": [1]}}, "the token ids to force .* are not integers"),
        ({"capture": {"resid_post": 1}}, "site {'resid_post': 1} is not one of"),
        ({"capture_dtype": np.array(["float32", "float16"])}, "dtype array.* is not one of float32, bfloat16, float16"),
        ({"norm": np.array(["own", "own"])}, "norm array.* is not one of own, frozen, none"),
        ({"stream_lens": np.array([True, False])}, "stream_lens array.* is neither True nor False"),
        ({"temperature": 10**400}, "temperature 1000.* is not a number"),
    ],
)
def test_what_is_no_number_is_refused(run: lens.LensRun, wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(lens.LensError, match=words):
        lens.run(models.PROMPT, **wrong)


@pytest.mark.parametrize("prompt", [{"prompt": "hi"}, pd.DataFrame({"prompt": ["hi"]}), b"hi", np.array("hi"), 5, None])
def test_what_holds_no_prompts_is_refused(run: lens.LensRun, prompt: Any) -> None:
    """And its keys or columns are not taken for them."""
    for ask in (lens.run, lens.generate):
        with pytest.raises(lens.LensError, match=rf"should be a text, .* or a list of several, not {type(prompt).__name__}$"):
            ask(prompt, 2)


def test_token_ids_and_messages_are_prompts_too(run: lens.LensRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every kind that holds integers; several are a batch; special tokens among ids are special."""
    tokenizer = current().require_model().tokenizer
    monkeypatch.setattr(tokenizer, "chat_template", "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}")
    ids = run.prompt_ids
    for given in (ids, tuple(ids), np.array(ids), torch.tensor(ids), iter(ids)):
        one = lens.run(given, 4, ignore_eos=True)
        assert (one.prompt, one.prompt_ids, one.options["chat"]) == (models.PROMPT, ids, False)
        assert one.output_ids == run.output_ids[:4]
        assert lens.generate(list(ids), 4, ignore_eos=True).output_ids == run.output_ids[:4]
    chat = [{"role": "system", "content": "A lens"}, {"role": "user", "content": "gathers"}]
    whole = tokenizer("A lens<|end|>gathers<|end|>", add_special_tokens=False)["input_ids"]
    assert whole.count(tokenizer.eos_token_id) == 2
    talk = lens.run(chat, 4, ignore_eos=True)
    assert (talk.prompt, talk.prompt_ids, talk.options["chat"]) == ("A lens<|end|>gathers<|end|>", whole, True)
    again = lens.run(whole, 4, ignore_eos=True, force=[5, 6])
    assert (again.prompt, again.prompt_ids, again.output_ids) == (talk.prompt, whole, [5, 6])
    batch = lens.run([chat, ids, models.PROMPT], 4, ignore_eos=True)
    assert [one.prompt_ids for one in batch] == [whole, ids, ids]
    assert [one.output_ids for one in batch] == [talk.output_ids, run.output_ids[:4], run.output_ids[:4]]
    assert [one.options["chat"] for one in batch] == [True, False, False]
    assert [one.prompt_ids for one in lens.run(torch.tensor([ids, ids]), 1)] == [ids, ids]
    assert [text.output_ids for text in lens.generate([chat], 4, ignore_eos=True)] == [talk.output_ids]
    vector = lens.SteeringVector.of({1: [1.0] * current().require_model().width}, "resid_post")
    both = lens.compare(chat, vector * 9, 4, ignore_eos=True)
    assert (both.prompt, both.options["chat"]) == (talk.prompt, True)
    assert list(both.unsteered.output_ids) == talk.output_ids


@pytest.mark.parametrize(
    ("prompt", "options", "words"),
    [
        ([3, 320], {}, "the prompt's token ids should be from 0 to 319$"),
        ([3, -1], {}, "the prompt's token ids should be from 0 to 319$"),
        ([3, 4], {"chat": True}, "token ids are read as they are, in no chat template; leave --chat out, or give text or mess"),
        ([True, False], {}, "the prompt should be a text, token ids or messages .*, not True$"),
        ([[3, 4], []], {}, r"the prompt should be a text, .*, not \[\]$"),
        ([[3, 4.5]], {}, r"the prompt should be a text, .*, not \[3, 4\.5\]$"),
        ([{"role": "user"}], {}, r"a message is {'role': 'user', 'content': 'a text'}, not {'role': 'user'}$"),
        ([{"role": "user", "content": ["a"]}], {}, r"a message is .*, not {'role': 'user', 'content': \['a'\]}$"),
        ([{"role": "user", "content": "hi"}], {}, "this model has no chat template; a plain text would do$"),
        ([], {}, "there is no prompt; give one text or several$"),
    ],
)
def test_what_is_no_prompt_is_refused(run: lens.LensRun, prompt: Any, options: dict[str, Any], words: str) -> None:
    for ask in (lens.run, lens.generate):
        with pytest.raises(lens.LensError, match=words):
            ask(prompt, 2, **options)


@pytest.mark.parametrize("ask", [lens.generate, lambda prompt, new: lens.compare(prompt, (), new)])
def test_what_is_refused_is_told_options_there_are(run: lens.LensRun, ask: Callable[[str, int], Any]) -> None:
    with pytest.raises(lens.LensError, match=r"max-new-tokens 0 is too few; 1 or more would do$"):
        ask(models.PROMPT, 0)


def test_a_single_token_may_be_forced(run: lens.LensRun) -> None:
    assert lens.run(models.PROMPT, force=7).output_ids == [7]


def test_cells_without_numbers_are_told_and_rank_no_token(tmp_path: Path) -> None:
    """States beyond what the type they are kept in can hold: no token is the first there."""
    model = models.create("llama-odd-vocab")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight *= 3e4
    lens.attach(model, models.tokenizer_of(300))
    with pytest.warns(UserWarning, match=r"^\d+ of 18 cells hold no numbers: float16 is too narrow .*bfloat16 would do"):
        run = lens.run("A lens", 2, capture_dtype="float16", track=[7], ignore_eos=True)
    lost = np.isnan(run.variables["entropy"])
    assert lost[run.sites.index("mlp_out"), 0].all()
    assert (run.variables["target_rank"][lost] == -1).all()
    assert (run.variables["tracked_rank"][lost] == -1).all()
    assert (run.variables["target_rank"][~lost] >= 0).all()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    with pytest.warns(UserWarning, match="cells hold no numbers"):
        first = lens.run("A lens", 2, capture="mlp_out", capture_dtype="float16", track=True, ignore_eos=True)
    leading = first.variables["token_id"][0, 1:, :, 0]  # [layer, position], but for the layer that has no first
    for ids, column in zip(first.variables["tracked_id"], leading.T, strict=True):
        assert set(ids) - {-1} == set(column)

    record = json.loads(run.to_json(tmp_path / "run.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert record["step_0"]["all_tokens_data"]["0"]["0"]["mlp_output"][0][1] is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isfinite(lens.run("A lens", 2, capture_dtype="bfloat16").variables["entropy"]).all()


def test_a_home_may_be_written_with_a_tilde(run: lens.LensRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for write, name in ((run.save, "~/run.nc"), (run.to_json, "~/run.json"), (run.to_html, "~/run.html")):
        assert write(name) == tmp_path / name[2:]
    assert lens.open_run("~/run.nc").output_ids == run.output_ids


def test_saving_elsewhere_is_refused_before_anything_is_written(run: lens.LensRun, tmp_path: Path) -> None:
    with pytest.raises(lens.LensError, match=r"\.nc"):
        run.save(tmp_path / "run.pickle")
    assert list(tmp_path.glob("run*")) == []


@pytest.mark.parametrize(
    ("name", "owner", "method"),
    [("run.nc", Path, "write_bytes"), ("run.zarr", xr.Dataset, "to_zarr"), ("run.zarr", Path, "replace")],
)
def test_a_full_disk_leaves_what_was_there(
    run: lens.LensRun, tmp_path: Path, name: str, owner: type, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "run.zarr":
        pytest.importorskip("zarr", reason="Zarr files need the zarr extra")
    path = run.save(tmp_path / name)
    before = sorted(tmp_path.rglob("*"))
    original, to_netcdf = getattr(owner, method), xr.Dataset.to_netcdf

    def full(*given: Any, **options: Any) -> Any:
        if any(isinstance(one, Path) and one.suffix == ".partial" for one in given[:2]):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*given, **options)

    def to_memory(dataset: xr.Dataset, where: Any, **options: Any) -> Any:
        assert not isinstance(where, str | Path), "HDF5 would end the process"
        return to_netcdf(dataset, where, **options)

    monkeypatch.setattr(owner, method, full)
    monkeypatch.setattr(xr.Dataset, "to_netcdf", to_memory)
    with pytest.raises(lens.LensError, match=rf"{name} cannot be written: No space left on device$"):
        run.save(path)
    assert sorted(tmp_path.rglob("*")) == before
    assert lens.open_run(path).output_ids == run.output_ids


def test_a_folder_that_is_no_saved_run_is_left_alone(run: lens.LensRun, tmp_path: Path) -> None:
    pytest.importorskip("zarr", reason="Zarr files need the zarr extra")
    (tmp_path / "mine.zarr").mkdir()
    (tmp_path / "mine.zarr" / ".zattrs").write_text("{}")
    with pytest.raises(lens.LensError, match=r"mine\.zarr is there and is no saved run; another name would do"):
        run.save(tmp_path / "mine.zarr")
    assert (tmp_path / "mine.zarr" / ".zattrs").read_text() == "{}"
    with pytest.raises(lens.LensError, match="there is no folder"):
        run.save(tmp_path / "no" / "run.zarr")
    long = tmp_path / ("n" * 250 + ".zarr")
    assert lens.open_run(run.save(long)).output_ids == run.output_ids
    with pytest.raises(lens.LensError, match="File name too long"):
        run.save(tmp_path / ("n" * 251 + ".zarr"))
    (tmp_path / "run.zarr").symlink_to(run.save(tmp_path / "elsewhere.zarr"))
    assert lens.open_run(run.save(tmp_path / "run.zarr")).output_ids == run.output_ids
    assert (tmp_path / "run.zarr").is_symlink()


def test_kept_runs(run: lens.LensRun, monkeypatch: pytest.MonkeyPatch) -> None:
    from lens_magic.lens import kept

    monkeypatch.setattr(kept, "MOST", 2)
    moments = iter((1_699_999_999_999_000_000, 1_700_000_000_000_000_001, 1_700_000_000_001_000_000))
    monkeypatch.setattr(kept.time, "time_ns", lambda: next(moments))
    paths = [kept.keep(run) for _ in range(3)]
    assert [path for path, _ in kept.listing().files] == [paths[2], paths[1]]
    assert kept.clear() == 2
    assert kept.listing().files == []


def test_an_old_run_that_may_not_be_deleted_costs_no_new_one(run: lens.LensRun, monkeypatch: pytest.MonkeyPatch) -> None:
    from lens_magic.lens import kept

    monkeypatch.setattr(kept, "MOST", 1)
    stuck, old = (kept.folder() / f"2000010{day}-000000-000000000Z.nc" for day in (2, 1))
    stuck.mkdir(parents=True)  # a folder, which no user's rights unlink
    old.touch()
    path = kept.keep(run)
    assert path is not None
    assert path.exists()
    assert not old.exists(), "the others are"


def test_kept_runs_are_in_order_when_clocks_are_put_back(run: lens.LensRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are in UTC; older ones, in local time, are still known."""
    from lens_magic.lens import kept

    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    try:
        hour = 3_600_000_000_000
        begin = 1_729_989_000 * 10**9  # 2024-10-27 02:30 in summer time; an hour later it is 02:30 again
        moments = iter((begin, begin + hour - 10**9, begin + 2 * hour))
        monkeypatch.setattr(kept.time, "time_ns", lambda: next(moments))
        paths = [kept.keep(run) for _ in range(3)]
        assert [path.name[:13] for path in paths] == ["20241027-0030", "20241027-0129", "20241027-0230"]
        older = kept.folder() / "20241027-013000-000000000.nc"  # 01:30 in summer time is 23:30 in UTC
        shutil.copy(paths[0], older)
        (kept.folder() / "20241327-013000-000000000.nc").write_bytes(b"the user's own")
        assert [path for path, _ in kept.listing().files] == [*reversed(paths), older]
        assert kept.clear() == 4
    finally:
        monkeypatch.undo()
        time.tzset()


def test_kept_runs_say_which_prompt_they_are_of(run: lens.LensRun) -> None:
    from lens_magic.lens import kept

    paths = [kept.keep(replace(run, prompt=prompt)) for prompt in ("one <b>", "\x1b[2J" + 50 * "word ")]
    paths.append(kept.folder() / "20000101-000000-000000000Z.nc")
    paths[-1].write_bytes(b"damaged")
    listed = repr(kept.listing()).splitlines()[1:]
    assert [line.partition("  ")[0] for line in listed] == [str(paths[n]) for n in (1, 0, 2)]
    assert [line.partition("B  ")[2][:12] for line in listed] == ["'\\x1b[2Jword", "'one <b>'", ""]
    assert max(map(len, listed)) < len(str(paths[0])) + 90
    assert "&lt;b&gt;" in kept.listing()._repr_html_()


def test_kept_runs_that_another_kernel_removes_meanwhile(
    run: lens.LensRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lens_magic.lens import kept

    there, gone = kept.keep(run), tmp_path / "gone.nc"
    monkeypatch.setattr(kept, "_files", lambda: [gone, there])
    assert [path for path, _ in kept.listing().files] == [there]
    assert kept.clear() == 2


@pytest.mark.parametrize(("variable", "below"), [("LENS_RUNS_DIR", ""), ("XDG_DATA_HOME", "lens-magic/runs")])
def test_where_runs_are_kept_may_be_written_with_a_tilde(
    variable: str, below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lens_magic.lens import kept

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("LENS_RUNS_DIR")
    monkeypatch.setenv(variable, "~/mine")
    assert kept.folder() == tmp_path / "mine" / below


def test_a_full_disk_costs_no_run(run: lens.LensRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lens_magic.lens import kept

    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LENS_RUNS_DIR", str(tmp_path / "file" / "runs"))
    with pytest.warns(UserWarning, match="this run was not kept on disk: .*file"):
        assert kept.keep(run) is None
