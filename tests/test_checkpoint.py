"""Checkpoints that are refused before anything is loaded, and the error messages."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

import lens_magic as lens
from lens_magic import plan
from lens_magic.model.checkpoint import find
from lens_magic.model.load import MODEL
from lens_magic.session import Session, current

Checkpoints = Callable[[str], Path]


@pytest.fixture
def folder(checkpoints: Checkpoints, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(checkpoints("llama-gqa"), tmp_path / "model"))


def refused(name: str | Path, words: str, ranks: int = 1, **more: str) -> None:
    with pytest.raises(lens.LensError, match=words) as caught:
        find(str(name), ranks, **more)
    assert "\n" not in str(caught.value)


def test_a_good_folder(folder: Path) -> None:
    found = find(str(folder), 4)
    assert (found.dtype, found.context) == ("float32", 512)
    assert find(str(folder), 4, dtype="bfloat16").dtype == "bfloat16"


def test_no_such_folder(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", "is not a folder")


def test_no_such_name() -> None:
    refused("what is this?", "neither a folder, nor a hub id")


@pytest.mark.parametrize("name", ["demo", "folder"])
def test_what_is_here_has_no_revisions(name: str, folder: Path) -> None:
    given = {"demo": name, "folder": folder}[name]
    refused(given, "only a model of the hub has revisions, .* is a folder here; leave 'abc' out", revision="abc")


def test_the_hub_cannot_be_reached() -> None:
    refused("nobody/nothing-of-this-name", "nobody/nothing-of-this-name.*hub")


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    refused(folder, "no config.json")


def test_a_broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    refused(folder, "not valid JSON")
    (folder / "config.json").write_text("[]")
    refused(folder, "holds no settings, but a list")
    (folder / "config.json").write_text("[" * 100_000)
    refused(folder, "not valid JSON")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"text_config": "llama"}, "is damaged: its text_config holds no settings, but a str$"),
        ({"text_config": [{}]}, "its text_config holds no settings, but a list$"),
        ({"max_position_embeddings": 0}, "max_position_embeddings is 0, where 1 or more tokens would do"),
        ({"max_position_embeddings": -5}, "max_position_embeddings is -5"),
    ],
)
def test_settings_that_make_no_sense(folder: Path, settings: dict[str, Any], told: str) -> None:
    stated = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**stated, **settings}))
    refused(folder, told)


@pytest.mark.parametrize("dtype", ["", {}, []])
def test_an_empty_dtype_is_none(folder: Path, dtype: Any) -> None:
    with pytest.raises(lens.LensError, match="is not one of auto, float32"):
        find(str(folder), 1, dtype)


def test_pickled_weights_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, "pickled weights only.*safetensors")


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused(folder, r"no \*.safetensors")


def test_truncated_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(folder, "damaged or incomplete.*expected")
    weights.write_bytes(b"\xff" * 64)
    refused(folder, "damaged or incomplete")


@pytest.mark.parametrize(
    "table",
    [
        "5",
        '{"a": 5}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}',
        '{"a": {"shape": [1], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": 5, "shape": [1], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1e400]}}',
        "[" * 100_000,
    ],
)
def test_a_damaged_table_of_tensors(folder: Path, table: str) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(table)) + table.encode() + bytes(4))
    refused(folder, "damaged or incomplete")


def test_a_missing_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001.safetensors")
    index = {"weight_map": {"a": "model-00001.safetensors", "b": "model-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "lacks model-00002.safetensors")


def test_a_missing_weight(folder: Path) -> None:
    """transformers would make it up."""
    weights = load_file(folder / "model.safetensors")
    gone = "model.layers.1.mlp.down_proj.weight"
    del weights[gone]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(lens.LensError, match=rf"lacks {gone} \(1 of its weights are missing\)"):
        lens.load(str(folder), ranks=1)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": {"a": 1}}'])
def test_a_broken_index(folder: Path, content: str) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(content)
    refused(folder, "index.json (is not valid JSON|holds no settings|has no weight_map)")


@pytest.mark.parametrize("stale", [True, False])
def test_one_file_goes_before_shards(folder: Path, stale: bool) -> None:
    """As in transformers: saving a model in one file leaves an index that was there, and the shards that others had written."""
    alone = find(str(folder), 1)
    index = {"weight_map": {"a": "model-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if not stale:
        weights = load_file(folder / "model.safetensors")
        save_file({name: tensor.flip(0) for name, tensor in weights.items()}, folder / "model-00001.safetensors")
    found = find(str(folder), 1)
    assert (found.fingerprint, found.weight_bytes) == (alone.fingerprint, alone.weight_bytes)


@pytest.mark.parametrize("level", ["whole", "text"])
@pytest.mark.parametrize("how", [{"quant_method": "gptq", "bits": 4}, {}])
def test_quantised_weights(folder: Path, level: str, how: dict[str, object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    quantised = {"quantization_config": how}
    stated = {**config, **(quantised if level == "whole" else {"text_config": quantised})}
    (folder / "config.json").write_text(json.dumps(stated))
    words = r"is quantised \((gptq|it does not say how)\); one of float32, bfloat16 or float16 weights would do"
    refused(folder, words)
    with pytest.raises(lens.LensError, match=words):
        plan.make(str(folder), 1, 8)


@pytest.mark.parametrize("kinds", ["matrices", "all"])
def test_quantised_weights_of_which_nothing_is_said(folder: Path, kinds: str) -> None:
    """They would be read as the numbers they are coded in."""
    weights = load_file(folder / "model.safetensors")
    coded = {name: one.to(torch.int8) if one.ndim > 1 or kinds == "all" else one for name, one in weights.items()}
    save_file(coded, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, r"is quantised \(.*weight is I8\); one of float32, bfloat16 or float16 weights would do")


@pytest.mark.parametrize("alone", [False, True])
def test_an_adapter_that_is_not_merged(folder: Path, alone: bool) -> None:
    """transformers would apply it where PEFT is installed, and leave it out where not."""
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    if alone:
        (folder / "config.json").unlink()
        (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    words = r"has a PEFT adapter that is not merged; merge_and_unload\(\) and saving the result would do"
    refused(folder, words)
    with pytest.raises(lens.LensError, match=words):
        plan.make(str(folder), 1, 8)


@pytest.mark.ranks(2)
def test_what_transformers_cannot_build(checkpoints: Checkpoints, folder: Path) -> None:
    lens.load(str(checkpoints("llama-gqa")), ranks=2)
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "linear", "rope_theta": 1e4, "factor": "4"}
    (folder / "config.json").write_text(json.dumps(config))
    words = rf"^transformers cannot build {re.escape(str(folder))}: TypeError: unsupported operand .*'str'$"
    with pytest.raises(lens.LensError, match=words):
        lens.load(str(folder), ranks=2)
    with pytest.raises(lens.LensError, match=words):
        plan.make(str(folder), 2, 8)
    assert len(lens.generate("To be", 2, ignore_eos=True).output_ids) == 2


def test_an_interrupt_while_transformers_builds_is_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lens.load(str(folder), ranks=1)


def test_broken_settings_of_generation(folder: Path) -> None:
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(lens.LensError, match=r"generation_config\.json is not valid JSON"):
        lens.load(str(folder), ranks=1)


@pytest.mark.parametrize("stated", [0.5, [[0], 7], ["</s>"], True])
def test_end_tokens_that_are_no_tokens(folder: Path, stated: object) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stated}))
    with pytest.raises(lens.LensError, match=r"eos_token_id.* a whole number or a list of them would do"):
        lens.load(str(folder), ranks=1)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float64"])
def test_weights_of_a_type_that_cannot_be_asked_for(folder: Path, dtype: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": dtype}))
    words = f"its weights are {dtype}; --dtype float32, bfloat16, float16 would do"
    refused(folder, words)
    with pytest.raises(lens.LensError, match=words):
        plan.make(str(folder), 1, 8)
    assert find(str(folder), 1, dtype="float32").dtype == "float32"


@pytest.mark.ranks("own")
def test_the_model_before_comes_back_after_a_load_on_other_ranks_failed(
    checkpoints: Checkpoints, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = str(checkpoints("llama-gqa"))
    lens.load(good, ranks=1)
    before = lens.generate("To be", 3, ignore_eos=True).output_ids
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(lens.LensError, match=r"lacks model\.norm\.weight"):
        lens.load(str(folder), ranks=2)
    with pytest.raises(lens.LensError, match=f"no model is loaded; `%lens restart` loads {good} again"):
        lens.generate("To be", 3)
    restarted = current().restart()
    assert restarted is not None
    assert (restarted.name, current().group.size) == (good, 1)
    assert lens.generate("To be", 3, ignore_eos=True).output_ids == before


def test_a_restart_loads_what_was_loaded_whatever_its_name_means_now(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder's name is another from elsewhere, and a name on the hub that of newer weights."""

    def newer(*_: object, **__: object) -> str:
        raise RuntimeError("asked for newer weights")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(folder))
    for name in (folder.name, "owner/model"):
        lens.load(name, ranks=1)
        before, ids = current().require_model(), lens.generate("To be", 3, ignore_eos=True).output_ids
        with monkeypatch.context() as elsewhere:
            elsewhere.chdir("/")
            elsewhere.setattr("huggingface_hub.snapshot_download", newer)
            current().restart()
        after = current().require_model()
        assert (after.name, after.fingerprint) == (name, before.fingerprint)
        assert lens.generate("To be", 3, ignore_eos=True).output_ids == ids


def test_a_restart_that_would_load_something_else_leaves_the_ranks_and_their_model(folder: Path) -> None:
    lens.load(str(folder), ranks=1)
    group, ids = current().group, lens.generate("To be", 3, ignore_eos=True).output_ids
    weights = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    weights["model.norm.weight"] += 1
    kept = folder.rename(folder.with_name("kept"))
    gone = rf"{re.escape(str(folder))} cannot be loaded again: there is no folder .*model any more"
    changed = r"cannot be loaded again: its files have changed; `%lens load .*model` loads what is there now"
    for words in (gone, changed):
        with pytest.raises(lens.LensError, match=words):
            current().restart()
        assert current().group is group
        assert lens.generate("To be", 3, ignore_eos=True).output_ids == ids
        shutil.copytree(kept, folder, dirs_exist_ok=True)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    refused(folder, "no tokenizer")


def test_a_tokenizer_that_cannot_be_read(folder: Path) -> None:
    settings = json.loads((folder / "tokenizer.json").read_text())
    settings["model"] = {"type": "Unknown"}
    for content in (json.dumps(settings), "{", ""):
        (folder / "tokenizer.json").write_text(content)
        with pytest.raises(lens.LensError, match=r"the tokenizer in .* cannot be read: .") as caught:
            lens.load(str(folder), ranks=1)
        assert "\n" not in str(caught.value)


def test_a_sentencepiece_model_needs_its_packages(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = ("sentencepiece", "google", "google.protobuf")
    for package in packages:
        monkeypatch.setitem(sys.modules, package, SimpleNamespace(__path__=[]))
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    assert find(str(folder), 1).folder == folder
    for missing in (packages[0], packages[2]):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, missing, None)
            refused(folder, r"no tokenizer\.json, and its tokenizer\.model .* `pip install sentencepiece protobuf` would do")
            shutil.copy(folder / "tokenizer.model", folder / "tokenizer.json")
            assert find(str(folder), 1).folder == folder
            (folder / "tokenizer.json").unlink()


def test_an_unsupported_family(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "mamba"}))
    refused(folder, "'mamba' are not supported; supported are: llama, mistral, qwen2, .*qwen3_moe")


def test_too_many_ranks(folder: Path) -> None:
    refused(folder, "8 attention heads; 1 to 8 ranks work", ranks=9)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 3}))
    words = "cannot be split over 4 ranks: it has a vocabulary of 3; 1 to 3 ranks work"
    refused(folder, words, ranks=4)
    with pytest.raises(lens.LensError, match=words):
        plan.make(str(folder), 4, 8)


def test_a_dtype_may_be_torchs(folder: Path) -> None:
    assert find(str(folder), 1, torch.bfloat16).dtype == "bfloat16"  # type: ignore[arg-type]
    refused(folder, "'int8' is not one of auto, float32", dtype=torch.int8)


def test_an_unknown_dtype(folder: Path) -> None:
    refused(folder, "'int8' is not one of auto, float32", dtype="int8")


def test_the_fingerprint_tells_fine_tunes_apart(folder: Path) -> None:
    before = find(str(folder), 1).fingerprint
    assert find(str(folder), 1).fingerprint == before
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1000] ^= 1
    weights.write_bytes(bytes(data))
    assert find(str(folder), 1).fingerprint != before


def test_a_refused_model_leaves_the_loaded_one(checkpoints: Checkpoints, folder: Path) -> None:
    lens.load(str(checkpoints("qwen3-gqa")), ranks=1)
    (folder / "model.safetensors").unlink()
    with pytest.raises(lens.LensError):
        lens.load(str(folder))
    assert lens.status().model == str(checkpoints("qwen3-gqa"))
    assert len(lens.generate("To be", 2, ignore_eos=True).output_ids) == 2


@pytest.mark.ranks("own")
def test_torch_distributed_in_use_is_refused_and_left_alone(checkpoints: Checkpoints) -> None:
    model = str(checkpoints("llama-gqa"))
    current().close()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(lens.LensError, match="in use in this process already"):
            lens.load(model, ranks=2)
        current().close()
        assert dist.is_initialized(), "it is the user's"
    finally:
        dist.destroy_process_group()
    lens.load(model, ranks=2)
    assert len(lens.generate("A lens", 2, ignore_eos=True).output_ids) == 2


@pytest.mark.ranks("own")
def test_ranks_share_the_processor_and_give_it_back(checkpoints: Checkpoints) -> None:
    """A model on one rank after one on several has all cores again, or as many as the user had set."""
    model, own = str(checkpoints("llama-gqa")), torch.get_num_threads()
    current().close()
    torch.set_num_threads(own + 1)
    try:
        lens.load(model, ranks=2)
        assert torch.get_num_threads() == min(own + 1, max(1, len(os.sched_getaffinity(0)) // 2))
        lens.load(model, ranks=1)
        assert torch.get_num_threads() == own + 1
    finally:
        torch.set_num_threads(own)


def test_a_bad_number_of_ranks_is_said_each_time(folder: Path) -> None:
    session = Session(1)
    session.fail_with(lens.LensError("LENS_RANKS 'many' is not a number of ranks"))
    try:
        for _ in range(2):
            with pytest.raises(lens.LensError, match="LENS_RANKS 'many'"):
                session.load(str(folder))
        assert session.load(str(folder), ranks=1).layers == 4
        assert session.load(str(folder)).layers == 4
    finally:
        session.close()


def test_a_restart_waits_for_ranks_that_are_being_started(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[SimpleNamespace] = []

    def slowly(session: Session, size: int, joined: bool = False) -> SimpleNamespace:
        time.sleep(0.2)
        rank, free = SimpleNamespace(store={}), contextlib.nullcontext
        group = SimpleNamespace(size=size, joined=joined, closed=False, usable=True, exclusive=free, rank=rank)
        group.close = lambda: setattr(group, "closed", True)
        made.append(group)
        return group

    monkeypatch.setattr(Session, "_new_group", slowly)
    session = Session(2)
    session.start_in_background()
    session.restart()
    assert [group.closed for group in made] == [True, False]  # never two at once
    assert session.running_group is made[1]


def test_all_that_the_hub_says_is_in_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its errors begin with a number; that a licence is to be accepted, or a name is wrong, comes below."""
    said = "401 Client Error. (Request ID: Root=1-abc)\n\nAccess to model owner/gated is restricted.\nPlease log in."

    def denied(*_: object, **__: object) -> str:
        raise RuntimeError(said)

    monkeypatch.setattr("huggingface_hub.snapshot_download", denied)
    refused(
        "owner/gated", r"fetched from the hub: 401 .*Root=1-abc\) Access to model owner/gated is restricted. Please log in."
    )


def test_weights_are_fetched_once_and_code_on_request(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some repositories have the same weights again under their makers' own names."""
    from huggingface_hub.utils import filter_repo_objects

    wanted = {"config.json", "model-00001-of-00002.safetensors", "tokenizer.json"}
    code = {"tokenization.py"}
    all_of_them = [
        *wanted,
        *code,
        "consolidated.safetensors",
        "consolidated-00001-of-00002.safetensors",
        "original/params.json",
    ]
    fetched: list[set[str]] = []

    def fetch(name: str, allow_patterns: list[str], ignore_patterns: list[str], **_: object) -> str:
        fetched.append(set(filter_repo_objects(all_of_them, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    find("owner/model", 1)
    find("owner/model", 1, trust_remote_code=True)
    assert fetched == [wanted, wanted | code]


def test_weights_under_another_name(folder: Path) -> None:
    """A file beside the weights is none of them; alone it is not what transformers reads."""
    alone = find(str(folder), 1)
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    assert find(str(folder), 1).weight_bytes == alone.weight_bytes
    (folder / "model.safetensors").unlink()
    refused(folder, "has consolidated.safetensors, but neither model.safetensors nor model.safetensors.index.json")


@pytest.mark.parametrize("ranks", [1, 2])
def test_weights_that_the_model_does_not_use_are_told_once(ranks: int, folder: Path) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    surplus = {f"model.layers.{layer}.self_attn.q_proj.bias": torch.ones(128) for layer in (0, 1)}
    constants = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    file.unlink()
    save_file({**weights, **surplus, **constants}, file, metadata={"format": "pt"})
    words = r"has model\.layers\.0\.self_attn\.q_proj\.bias, which the 'llama' model .* \(2 of its weights are not used\)$"
    with pytest.warns(UserWarning, match=words) as told:
        lens.load(str(folder), ranks=ranks)
    assert len(told) == 1


def test_weights_of_another_shape(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((folder / "config.json").read_text())
    had = config["vocab_size"]
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": had + 3}))
    words = rf"lm_head.weight of {had} × 128 where its config.json makes it {had + 3} × 128 \(2 of"
    with pytest.raises(lens.LensError, match=words):
        lens.load(str(folder), ranks=1)
    assert "MISMATCH" not in "".join(capsys.readouterr())


def test_a_familys_code_is_transformers_whatever_comes_with_it(folder: Path) -> None:
    """Code of the checkpoint's own would not be what the family's parts were looked up in; for a tokenizer it is asked for."""
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "their.Config", "AutoModelForCausalLM": "their.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    lens.load(str(folder), ranks=1, trust_remote_code=True)
    assert type(current().group.rank.store[MODEL].model).__module__.startswith("transformers.")


@pytest.mark.parametrize("given", ["False", "no", 2, None])
def test_a_tokenizers_code_is_run_for_true_alone(folder: Path, given: Any) -> None:
    """Any text counts as true in Python, whatever it says."""
    told = json.loads((folder / "tokenizer_config.json").read_text())
    told |= {"auto_map": {"AutoTokenizer": [None, "their.Tokenizer"]}, "tokenizer_class": "Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    proof = folder / "ran"
    code = f"from transformers import PreTrainedTokenizerFast as Tokenizer\nopen({str(proof)!r}, 'w').close()\n"
    (folder / "their.py").write_text(code)
    with pytest.raises(lens.LensError, match=f"^trust_remote_code {given!r} is neither True nor False$"):
        lens.load(str(folder), ranks=1, trust_remote_code=given)
    assert not proof.exists()


def test_tokens_that_the_model_lacks(folder: Path, tmp_path: Path) -> None:
    """Of a tokenizer that was extended, and the model was not."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)
    lens.load(str(folder), ranks=1)
    words = r"has a token '<new>' with id \d+, beyond the model's vocabulary of \d+"
    for ask in (
        lambda: lens.run("a <new> word"),
        lambda: lens.run("a word", force="a <new> word"),
        lambda: lens.train_tuned_lens(["a <new> word"]),
        lambda: lens.train_vector([{"positive": "a <new> word", "negative": "a word"}], layers=1, position="last"),
    ):
        with pytest.raises(lens.LensError, match=words):
            ask()
    assert lens.generate("a word", 2).output_ids
