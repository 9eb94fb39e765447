"""Vectors as values and as files."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import once
import pytest
import torch
from steering_items import questions

import lens_magic as lens
from lens_magic.session import current
from lens_magic.steer.term import SteeringTerm, Terms
from lens_magic.steer.vector import Origin, Quality, SteeringVector

Checkpoints = Callable[[str], Path]
ROW = torch.arange(1.0, 9.0)


# --- the value -------------------------------------------------------------------------------------------------------


def made(layers: tuple[int, ...] = (1, 3), width: int = 8, **more: Any) -> SteeringVector:
    random = torch.Generator().manual_seed(0)
    raw = {layer: 3 * torch.randn(width, generator=random) for layer in layers}
    settings = {"site": "post_ln", "origin": Origin("tiny", "abc", "llama", 4, "float32"), **more}
    return SteeringVector.of(raw, **settings)


def test_a_vector_is_a_value() -> None:
    vector = made()
    before = vector.directions[1]
    vector.directions[1].zero_()
    assert torch.equal(vector.directions[1], before)
    with pytest.raises((AttributeError, TypeError)):
        vector.site = "mlp_out"  # type: ignore[misc]
    with pytest.raises(TypeError):
        vector.directions[1] = before  # type: ignore[index]
    with pytest.raises(TypeError):
        vector.norms[1] = 1.0  # type: ignore[index]


def test_terms_with_other_directions_have_another_digest() -> None:
    """Whatever their names, and on any number of layers."""
    vector = made()
    assert (vector * 1.5).digest == (vector.named("other") * -2).digest
    one, other = vector.layers[:2]
    swapped = replace(vector, directions={one: vector.directions[other], other: vector.directions[one]})
    several = [vector * 1, vector.steer(layers=one), swapped * 1, swapped.steer(layers=other)]
    assert len({term.digest for term in several}) == 4


def test_a_vector_can_be_copied() -> None:
    vector = made()
    for again in (copy.deepcopy(vector), pickle.loads(pickle.dumps(vector))):
        assert again == vector


def test_terms() -> None:
    vector = made()
    for term in (vector * 1.5, 1.5 * vector, np.float64(1.5) * vector, vector * torch.tensor(1.5), vector.steer(1.5)):
        assert isinstance(term, SteeringTerm)
        assert (term.alpha, term.site, sorted(term.directions), term.operator) == (1.5, "post_ln", [1, 3], "add")
    assert (-vector).alpha == -1
    some = vector.steer(
        [0, 1.0], layers="-1", site="resid_post", positions="-2:3", steps="0:4", decay=2, clip=0.5, scale={3: 2.0}
    )
    assert (some.alpha, list(some.directions), some.site, some.positions) == ((0.0, 1.0), [3], "resid_post", (-2, 3))
    assert (some.steps, some.decay, some.clip, some.scale) == ((0, 4), 2, 0.5, {3: 2.0})
    assert [term.alpha for term in vector * 1 + made() * 2 + vector * 3] == [1, 2, 3]
    assert [term.alpha for term in sum([vector * 1, made() * 2])] == [1, 2]
    for twice in (vector * 1 * 2, 2 * (vector * 1), np.float64(2) * (vector * 1), (vector * 1) * torch.tensor(2.0)):
        assert isinstance(twice, SteeringTerm)
        assert twice.alpha == 2
    assert (vector.steer([1, 2]) * 2).alpha == (2, 4)
    difference = vector * 1 - made() * 2
    assert [term.alpha for term in difference] == [1, -2]
    assert [term.alpha for term in np.float64(2) * -difference - vector * 1 - difference] == [-2, 4, -1, -1, 2]
    other = made(name="other")
    for mixed, strengths in (
        (vector * 2 + other, [2, 1]),
        (other + vector * 2, [1, 2]),
        (vector + other, [1, 1]),
        (vector - other, [1, -1]),
        (vector * 2 - other, [2, -1]),
        (vector - (other * 2 + vector), [1, -2, -1]),
        (sum([vector, other]), [1, 1]),
        (sum([vector * 1 + other * 2, vector * 3 + other]), [1, 2, 3, 1]),
        ([vector, other] + vector * 2, [1, 1, 2]),
    ):
        assert isinstance(mixed, Terms)
        assert [term.alpha for term in mixed] == strengths
    for wrong, kind in ((lambda: vector + 3, "int"), (lambda: 3 + vector, "int"), (lambda: vector * 1 - "warm", "str")):
        with pytest.raises(lens.LensError, match=f"takes vectors and terms .* not {kind}"):
            wrong()
    with pytest.raises(lens.LensError, match="takes the whole projection away"):
        vector.steer(operator="ablate") * 2
    with pytest.raises(TypeError):
        (vector * 1) * "2"
    for factors in ([3, 4], np.array([3, 4]), torch.tensor([3.0, 4.0])):
        for several in (vector.steer([1, 2]) * factors, factors * vector.steer([1, 2])):
            assert several.alpha == (3, 8)
        assert ((vector * 2) * factors).alpha == (6, 8)
    for factor, words in (
        ([1, 2, 3], "2 values of alpha, not 3"),
        (10**400, "factor 1000.* is not a number"),
        (np.ones((2, 2)), "factor .* is not a number"),
        (float("nan"), "factor nan of 'vector' is not a finite number"),
    ):
        with pytest.raises(lens.LensError, match=words):
            vector.steer([1, 2]) * factor
    for other in (lens, SteeringVector):  # which have something of that name
        with pytest.raises(lens.LensError, match=f"takes vectors and terms .* not {type(other).__name__}"):
            vector + other  # type: ignore[operator]
    counted = vector.steer(1, positions=(np.int64(-2), None), steps=[None, np.int64(4)])  # as argmax and shape give them
    assert (counted.positions, counted.steps) == ((-2, None), (None, 4))
    numbers = (np.float32(0.5), np.float16(0.5), Fraction(1, 2), torch.tensor(0.5))
    assert {repr(vector.steer(1, clip=number, decay=number).clip) for number in numbers} == {"0.5"}  # a float
    assert {repr(vector.steer(1, clip=number, decay=number).decay) for number in numbers} == {"0.5"}
    # A cell that ends in a term shows what it does, not its numbers.
    assert repr(counted) == "<vector add α=1.0 at post_ln of layers 1, 3; positions -2:; steps :4>"


@pytest.mark.parametrize("sequences", [(), (-1,), (0, 0), ("a",), ([0],), (True,), (0.0,), (None,)])
def test_a_term_is_for_sequences_there_can_be(sequences: tuple[Any, ...]) -> None:
    with pytest.raises(lens.LensError, match=r"^sequences .* are (not integers$|no numbers from 0 on, each once)"):
        (made() * 1).for_sequences(*sequences)


def test_a_term_says_what_sequences_it_is_for() -> None:
    some = (made() * 1).for_sequences(np.int64(2), 0)  # type: ignore[arg-type]
    assert str(some) == "vector add α=1.0 at post_ln of layer 1,3; sequences 2,0"
    assert hash(some) != hash(made() * 1)


def test_a_linear_schedule_ends_with_each_sequence() -> None:
    term = made().steer(1, schedule="linear")
    two, four = term.over(2), term.over(4)
    assert term.over_each([4, 4]) == [four]
    assert term.over_each([4, 2, 4]) == [two.for_sequences(1), four.for_sequences(0, 2)]
    assert term.for_sequences(0, 1).over_each([4, 2, 4]) == [two.for_sequences(1), four.for_sequences(0)]
    [absent] = term.for_sequences(2).over_each([4, 2])  # to be refused, not left out without a word
    assert absent == four.for_sequences(2)


@pytest.mark.parametrize("alpha", [3.0, -3.0, [0.5, -3.0]])
@pytest.mark.parametrize("scale", [{1: 2.0}, {3: -2.0}])
@pytest.mark.parametrize("schedule", [[1, 4], [-4, 1]])
def test_the_largest_strength_is_what_a_model_must_compute_with(alpha: Any, scale: dict[int, float], schedule: Any) -> None:
    term = made().steer(alpha, scale=scale, schedule=schedule)
    term.check_effect(range(2), most=24)
    with pytest.raises(lens.LensError, match=r"α of 'vector' \(24 with scale and schedule\) is more than"):
        term.check_effect(range(2), most=23.9)


@pytest.mark.parametrize("numbers", [lambda v: v, lambda v: v.numpy(), lambda v: v.tolist(), lambda v: v.double()[None]])
def test_a_vector_is_made_of_any_numbers(numbers: Callable[[torch.Tensor], Any]) -> None:
    raw = torch.randn(8, generator=torch.Generator().manual_seed(0))
    assert SteeringVector.of({np.int64(1): numbers(raw)}, "post_ln") == SteeringVector.of({1: raw}, "post_ln")  # type: ignore[dict-item]


@pytest.mark.parametrize("size", [3e38, 1e-44, 1.0])
@pytest.mark.parametrize("width", [3, 256])
def test_directions_are_of_unit_length_and_stay_as_they_are(size: float, width: int) -> None:
    """However long they were, though their squares are beyond float32; and made again of what they are."""
    for seed in range(40):
        random = torch.rand(width, generator=torch.Generator().manual_seed(seed)) - 0.5
        vector = SteeringVector.of({0: random * size}, "post_ln")
        assert float(vector.directions[0].double().norm()) == pytest.approx(1, abs=1e-6)
        assert SteeringVector.of(vector.directions, "post_ln").directions == vector.directions


def test_a_direction_of_nearly_unit_length_is_made_one() -> None:
    unit = torch.nn.functional.normalize(ROW, dim=0)
    for apart in (1e-2, 1e-4, 1e-6, -1e-6, -1e-4):
        direction = SteeringVector.of({0: unit * (1 + apart)}, "post_ln").directions[0]
        assert float(direction.double().norm()) == pytest.approx(1, abs=2e-7)


def test_the_same_directions_steer_otherwise_at_another_site() -> None:
    assert made().steers_as(made(name="other"))
    assert not made().steers_as(made(site="mlp_out"))


@pytest.mark.parametrize(
    ("raw", "site", "words"),
    [
        (None, "post_ln", r"come by layer, \{5: direction\}, not as NoneType"),
        ([ROW], "post_ln", "not as list"),
        ({"0": ROW}, "post_ln", "layer '0' is not an integer"),
        ({0.0: ROW}, "post_ln", "layer 0.0 is not an integer"),
        ({None: ROW}, "post_ln", "layer None is not an integer"),
        ({True: ROW}, "post_ln", "layer True is not an integer"),
        ({-1: ROW}, "post_ln", "layer -1 counts from the end"),
        ({0: ROW.reshape(2, 4)}, "post_ln", "'layer 0' is not one direction"),
        ({0: ROW * 1j}, "post_ln", "'layer 0' is not one direction"),
        ({0: None}, "post_ln", "'layer 0' is not one direction"),
        ({0: torch.tensor(1.0)}, "post_ln", "'layer 0' is not one direction"),
        ({0: ROW * 0}, "post_ln", "layer 0 has no length"),
        ({0: ROW * np.inf}, "post_ln", "layer 0 is not finite"),
        ({0: ROW, 1: ROW[:3]}, "post_ln", "differ in width"),
        ({0: ROW}, "nowhere", "site 'nowhere' is not one of resid_pre"),
        ({0: ROW}, ["post_ln"], r"site \['post_ln'\] is not one of"),
    ],
)
def test_what_is_no_direction_makes_no_vector(raw: Any, site: Any, words: str) -> None:
    with pytest.raises(lens.LensError, match=words) as caught:
        SteeringVector.of(raw, site)
    assert "\n" not in str(caught.value)


def test_vectors_and_terms_are_equal_by_what_they_hold() -> None:
    vector, again = made(), made()
    assert vector == again
    assert hash(vector) == hash(again)
    raw = {layer: vector.directions[layer] for layer in vector.layers}
    others = [vector.named("other"), made(site="mlp_out"), replace(vector, norms={1: 1.0, 3: 2.0})]
    others += [replace(vector, directions={**raw, 3: raw[1]}), replace(vector, directions={1: raw[1]})]
    others += [replace(vector, quality={1: Quality(auc=0.5)})]
    assert all(vector != other for other in others)
    chosen: dict[str, Any] = {"positions": (-2, None), "steps": ":4", "scale": {3: 2.0}}
    term = vector.steer(1.5, **chosen)
    assert term == again.steer(1.5, positions=(-2, None), steps=(None, 4), scale={3: 2.0})
    assert len({vector * 1.5, vector.steer(1.5), 1.5 * again, vector * 2}) == 2
    assert vector * 1.5 in [vector * 1, vector * 1.5]
    assert all(term != other for other in (vector * 1.5, others[3].steer(1.5, **chosen)))


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"alpha": float("nan")}, "alpha nan of 'vector' is not a finite number"),
        ({"alpha": float("inf")}, "alpha inf of 'vector' is not a finite number"),
        ({"alpha": [1, float("inf")]}, "alpha inf"),
        ({"alpha": []}, "empty sequence"),
        ({"alpha": "much"}, "alpha 'much' of 'vector' is not a number"),
        ({"alpha": "1.5"}, "alpha '1.5' of 'vector' is not a number"),
        ({"alpha": None}, "alpha None"),
        ({"alpha": 10**400}, "alpha 1000.* of 'vector' is not a number"),
        ({"layers": 2}, "'vector' has no direction at layer 2; it has 1,3"),
        ({"layers": 4}, "layer 4 is out of range; the model has 4"),
        ({"site": "block"}, "site 'block' is not one of"),
        ({"operator": "multiply"}, "operator 'multiply'"),
        ({"positions": "middle"}, "positions 'middle'"),
        ({"positions": (0, 0.5)}, "positions 0.5 are not integers"),
        ({"steps": 4}, "steps 4 are not a span"),
        ({"clip": -1}, "clip -1"),
        ({"clip": float("inf")}, "clip inf of 'vector' is not a positive number"),
        ({"clip": 10**400}, "clip 1000.* of 'vector' is not a positive number"),
        ({"decay": float("nan")}, "decay nan of 'vector' is not a positive number"),
        ({"scale": [1, 2]}, r"scale \[1, 2\] of 'vector' are not factors by layer; \{1: 0.5\} would do"),
        ({"scale": {1: "half"}}, "are not factors by layer"),
        ({"scale": {2: 1.0}}, "no direction at layer 2"),
        ({"scale": {"1,3": 0.5}}, "'1,3' is several layers"),
        ({"scale": {(1, 3): 0.5}}, r"\(1, 3\) is several layers"),
        ({"scale": {1: 0.5, "1": 3.0}}, "layer 1 is there twice"),
        ({"scale": {1: 10**400}}, "are not factors by layer"),
        ({"scale": np.ones(2)}, "are not factors by layer"),
        ({"alpha": b"12"}, "alpha b'12' of 'vector' is not a number"),
        ({"alpha": {1.0, 2.0}}, "alpha {.*} of 'vector' is not a number"),
        ({"alpha": {1: 2}}, "alpha {1: 2} of 'vector' is not a number"),
        ({"alpha": torch.ones(2, 2)}, r"alpha tensor\(\[\[1., 1.\], \[1., 1.\]\]\) of"),
        ({"alpha": made()}, "alpha vector: post_ln, width 8, .* of 'vector' is not a number"),
        ({"layers": b"13"}, "layers b'13' are not integers"),
        ({"layers": "9" * 5000}, "layers '9{60}…' are not understood"),
        ({"positions": b"05"}, "positions b'05' are not understood"),
        ({"positions": [True, False]}, r"positions \[True, False\] are not integers"),
        ({"positions": ([0], 2)}, r"positions \(\[0\], 2\) are not a span"),
        ({"positions": np.array(0)}, r"positions array\(0\) are not understood"),
        ({"positions": "9" * 5000 + ":"}, "positions '9{60}…' are not understood; A:B would do"),
        ({"schedule": b"12"}, "not a number .b'12' is no list of factors"),
        ({"schedule": {0: 1.0}}, "no list of factors"),
        ({"schedule": {1.0, 0.5}}, "no list of factors"),
        ({"keep_norm": "False"}, "keep_norm of 'vector' 'False' is neither True nor False"),
        ({"keep_norm": np.array([True, False])}, "is neither True nor False"),
        ({"operator": np.array(["add", "set"])}, "operator array.* is not one of add, ablate, set"),
        ({"operator": "ablate", "alpha": [1, 2]}, "several alpha, .*; layers, positions and steps would do"),
    ],
)
def test_bad_terms_are_one_clear_line(choices: dict[str, Any], words: str) -> None:
    with pytest.raises(lens.LensError, match=words) as caught:
        made().steer(**choices)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", [-1, "-1", "1-", "::2", "1:", ":-1", [1, -1]])
def test_a_vector_that_does_not_know_its_models_last_layer_does_not_guess_it(spec: Any) -> None:
    unknown = made(origin=Origin())
    for steer in (lambda: unknown.steer(1, layers=spec), lambda: unknown.steer(1, scale={-1: 0.5})):
        with pytest.raises(lens.LensError, match=r"'vector' depend on how many its model has, .*; numbers among 1,3 would"):
            steer()


def test_layers_numbered_from_the_first_need_no_model() -> None:
    unknown = made((0, 1, 2, 3), origin=Origin())
    for spec in ("1-2", "1,2", [2, 1], iter([1, 2]), "1:3"):
        assert list(unknown.steer(1, layers=spec).directions) == [1, 2]
    with pytest.raises(lens.LensError, match="'vector' has no direction at layer 9; it has 0,1,2,3"):
        unknown.steer(1, layers=9)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (("qwen3", 4, 8), "made for a llama of 4 layers, width 8 .tiny.; the model loaded is a qwen3 of 4 layers, width 8"),
        (("llama", 5, 8), "the model loaded is a llama of 5 layers"),
        (("llama", 4, 16), "width 16"),
    ],
)
def test_a_vector_is_refused_by_another_kind_of_model(model: tuple[str, int, int], words: str) -> None:
    made().check_fits("llama", 4, 8)
    with pytest.raises(lens.LensError, match=words):
        made().check_fits(*model)
    unknown = made(origin=Origin())
    unknown.check_fits("qwen3", 7, 8)
    with pytest.raises(lens.LensError, match="of at least 4 layers, width 8; the model loaded is a llama of 3 layers"):
        unknown.check_fits("llama", 3, 8)


def test_generating_with_a_vector_that_does_not_fit_is_refused(checkpoints: Checkpoints) -> None:
    once.load(checkpoints("llama-gqa"))
    vector = lens.train_vector(questions(), layers=[1])
    plain = lens.generate("It is", 4, ignore_eos=True).output_ids
    assert lens.generate("It is", 4, ignore_eos=True, steer=vector * 0.0).output_ids == plain
    assert lens.generate("It is", 4, ignore_eos=True, steer=vector * 50.0 + vector * 1).output_ids != plain
    summed = lens.generate("It is", 4, ignore_eos=True, steer=[vector * 20 + vector * 30, vector]).output_ids
    assert summed == lens.generate("It is", 4, ignore_eos=True, steer=vector * 50 + vector).output_ids
    once.load(checkpoints("qwen3-odd"))
    with pytest.raises(lens.LensError, match="made for a llama of 4 layers, width 128"):
        lens.generate("It is", 4, steer=vector * 1.0)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(checkpoints: Checkpoints) -> SteeringVector:
    once.load(checkpoints("llama-gqa"))
    return lens.train_vector([*questions(), {"question": "?"}], layers="1-2", site="resid_post").named("warm")


@pytest.mark.parametrize("suffix", ["safetensors", "gguf"])
def test_files_keep_everything(trained: SteeringVector, suffix: str, tmp_path: Path) -> None:
    path = trained.save(tmp_path / f"v.{suffix}")
    read = lens.load_vector(str(path))
    assert read == trained
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    told = read.training
    assert (told.questions, told.texts, len(told.digests), told.rejected) == (5, 0, 5, {"one-sided": 1})
    assert told.labels == ("'A'", "'B'")
    model = current().require_model()
    assert read.origin == Origin(model.name, model.fingerprint, "llama", 4, "float32")
    assert set(read.versions) == {"lens_magic", "torch", "transformers"}


def test_safetensors_read_without_us(trained: SteeringVector, tmp_path: Path) -> None:
    from safetensors import safe_open

    with safe_open(trained.save(tmp_path / "v.safetensors"), framework="np") as opened:
        record = json.loads(opened.metadata()["lens_magic"])
        assert np.allclose(opened.get_tensor("direction.2"), trained.directions[2].numpy())
    assert record["norms"]["2"] == trained.norms[2]
    assert record["position"] == "label"


def control_vector(path: Path, hint: str) -> Path:
    import gguf

    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", hint)
    writer.add_uint32("controlvector.layer_count", 1)
    writer.add_tensor("direction.2", np.array([3, 0, 4], dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf_files_are_those_of_repeng_and_llama_cpp(tmp_path: Path) -> None:
    import gguf

    vector = made(site="resid_post")
    reader = gguf.GGUFReader(vector.save(tmp_path / "v.gguf"))
    assert reader.get_field("general.architecture").contents() == "controlvector"
    assert reader.get_field("controlvector.model_hint").contents() == "llama"
    assert reader.get_field("controlvector.layer_count").contents() == 2
    found = {tensor.name: tensor.data for tensor in reader.tensors}
    assert set(found) == {"direction.1", "direction.3"}
    assert np.allclose(found["direction.3"], vector.directions[3].numpy())

    theirs = lens.load_vector(control_vector(tmp_path / "theirs.gguf", "mistral"))
    assert (theirs.site, theirs.layers, theirs.norms[2], theirs.origin.family) == ("resid_post", (2,), 5, "mistral")
    assert theirs.directions[2].tolist() == pytest.approx([0.6, 0, 0.8])
    with pytest.raises(lens.LensError, match="made for a mistral of at least 3 layers, width 3"):
        theirs.check_fits("llama", 4, 3)


@pytest.mark.parametrize(
    ("hint", "families"),
    [
        ("llama", ["llama", "mistral", "mixtral"]),
        ("gemma3", ["gemma3", "gemma3_text"]),
        ("gemma2", ["gemma2"]),
        ("qwen3moe", ["qwen3_moe"]),
        ("phi2", ["phi"]),
        ("gptneox", ["gpt_neox"]),
    ],
)
def test_models_by_the_names_of_llama_cpp(hint: str, families: list[str], tmp_path: Path) -> None:
    vector = lens.load_vector(control_vector(tmp_path / "v.gguf", hint))
    for family in families:
        vector.check_fits(family, 3, 3)
        with pytest.raises(lens.LensError, match="width 3"):
            vector.check_fits(family, 3, 4)
    if len(families) == 1:
        with pytest.raises(lens.LensError, match=f"made for a {families[0]}"):
            vector.check_fits("llama", 3, 3)


def test_what_other_programs_would_misread_is_said(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="read at post_ln; other programs add control vectors to a block's output"):
        made().save(tmp_path / "v.gguf")
    assert lens.load_vector(tmp_path / "v.gguf").site == "post_ln"
    with pytest.warns(UserWarning, match="llama.cpp refuses"):
        made((0, 1), site="resid_post").save(tmp_path / "v.gguf")


def test_gguf_without_its_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(lens.LensError, match="pip install gguf"):
        made().save(tmp_path / "v.gguf")


def test_activations_of_steering_vectors(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    activations = {4: torch.tensor([0.0, 2.0]), 7: torch.tensor([1.0, 0.0])}
    given = [SimpleNamespace(layer_activations=activations, layer_type="mlp")]
    named = {str(layer): values for layer, values in activations.items()}
    save_file(named, tmp_path / "a.safetensors", metadata={"layer_type": "mlp"})
    given.append(tmp_path / "a.safetensors")
    for one in given:
        vector = lens.load_vector(one)
        assert (vector.site, vector.layers, dict(vector.norms)) == ("mlp_out", (4, 7), {4: 2, 7: 1})
        assert vector.directions[4].tolist() == [0, 1]
        assert lens.load_vector(vector.save(tmp_path / "ours.safetensors")).origin == Origin(layer_type="mlp")
    np.savez(tmp_path / "a.npz", **{f"layer_{layer}": values.numpy() for layer, values in activations.items()})
    assert lens.load_vector(tmp_path / "a.npz").layers == (4, 7)
    theirs = SimpleNamespace(directions={2: np.ones(4, dtype=np.float32)}, model_type="qwen3")
    assert lens.load_vector(theirs).origin.family == "qwen3"
    for name, words in ((-1, "'-1' counts from the last layer"), ("direction.-2", "counts from the last layer")):
        with pytest.raises(lens.LensError, match=words):
            lens.load_vector(SimpleNamespace(directions={name: np.ones(4)}))
    assert lens.load_vector(SimpleNamespace(directions={"layer-2": np.ones(4)})).layers == (2,)
    with pytest.raises(lens.LensError, match="'2' is not one direction"):
        lens.load_vector(SimpleNamespace(directions={2: None}))
    with pytest.raises(lens.LensError, match="'input_layernorm' are none of the sites"):
        lens.load_vector(SimpleNamespace(layer_activations=activations, layer_type="input_layernorm"))


def test_a_table_has_each_measure_under_its_name() -> None:
    quality = {1: Quality(halves=0.25, auc=0.75, pairs=0.5)}
    head, row, _ = repr(replace(made(), norms={1: 2.0, 3: 4.0}, quality=quality)).splitlines()[1:]
    assert dict(zip(head.split(), row.split(), strict=True)) == {
        "layer": "1",
        "norm": "2",
        "halves": "0.250",
        "AUC": "0.750",
        "pairs": "0.500",
    }


def test_columns_stay_apart() -> None:
    """Of a direction so short that its length needs an exponent, too."""
    vector = made()
    shown = repr(replace(vector, norms={1: 1.234e-05, 3: 2.853e38})).splitlines()[2:]
    assert [line.split()[:2] for line in shown] == [["1", "1.234e-05"], ["3", "2.853e+38"]]


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    proof = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> Any:
            return open, (str(proof), "w")

    for name in ("v.pt", "v.pkl", "v.safetensors", "v.gguf", "v.npz"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
        with pytest.raises(lens.LensError, match=r"is a pickle, which can run code|damaged") as caught:
            lens.load_vector(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert not proof.exists()
    np.savez(tmp_path / "objects.npz", a1=np.array([{"x": 1}], dtype=object))
    with pytest.raises(lens.LensError, match="no plain arrays"):
        lens.load_vector(tmp_path / "objects.npz")


def rewritten(path: Path, change: Callable[[dict[str, Any]], None], **tensors: torch.Tensor) -> Path:
    """Our own file with its record changed."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(path, framework="pt") as opened:
        record = json.loads(opened.metadata()["lens_magic"])
        own = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    change(record)
    target = path.with_name("changed.safetensors")
    save_file({**own, **tensors}, target, metadata={"lens_magic": json.dumps(record)})
    return target


@pytest.mark.parametrize(
    ("change", "tensors", "words"),
    [
        (lambda record: record.update(format=9), {}, "format 9; this version reads 1"),
        (lambda record: record.pop("training"), {}, "record is damaged"),
        (lambda record: record["training"].update(questions=float("inf")), {}, "record is damaged .*infinity"),
        (lambda record: record["origin"].update(layers=float("inf")), {}, "record is damaged .*infinity"),
        (lambda record: record.update(norms={"1": -1, "3": 1}), {}, "make no sense"),
        (lambda record: record.update(site="nowhere"), {}, "make no sense"),
        (lambda record: record["origin"].update(layer_type="nowhere"), {}, "layer type makes no sense"),
        (lambda record: None, {"direction.2": torch.zeros(8)}, "layer 2 has no length"),
        (lambda record: None, {"direction.2": torch.full((8,), float("nan"))}, "layer 2 is not finite"),
        (lambda record: None, {"direction.2": torch.ones(7)}, "differ in width"),
        (lambda record: None, {"direction.2": torch.ones(2, 4)}, "not one direction"),
        (lambda record: None, {"extra": torch.ones(8)}, "no layer's number"),
        (lambda record: None, {"other.1": torch.ones(8)}, "layer 1 twice"),
    ],
)
def test_damaged_records_are_one_clear_line(change: Any, tensors: dict[str, torch.Tensor], words: str, tmp_path: Path) -> None:
    path = rewritten(made().save(tmp_path / "v.safetensors"), change, **tensors)
    with pytest.raises(lens.LensError, match=words) as caught:
        lens.load_vector(path)
    assert "\n" not in str(caught.value)


def test_a_record_nested_too_deeply_is_damaged(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"direction.1": torch.ones(8)}, tmp_path / "v.safetensors", metadata={"lens_magic": "[" * 100_000})
    with pytest.raises(lens.LensError, match="record is damaged"):
        lens.load_vector(tmp_path / "v.safetensors")


def test_what_a_file_says_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    evil = "\x1b]0;gone\x07\n<script>"
    path = made(name=evil, origin=Origin(evil, evil, evil, 4)).save(tmp_path / "v.safetensors")
    vector = lens.load_vector(path)
    shown = repr(vector) + vector._repr_html_()
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "<script>" not in vector._repr_html_()
    with pytest.raises(lens.LensError, match="made for a") as caught:
        vector.check_fits("llama", 4, 8)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(("where", "what"), [("origin", "layer_type"), ("training", "chat")])
def test_files_without_what_was_added_later_are_read(where: str, what: str, tmp_path: Path) -> None:
    path = rewritten(made().save(tmp_path / "v.safetensors"), lambda record: record[where].pop(what))
    assert lens.load_vector(path) == made()


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, fill_disk: Callable[[], None]) -> None:
    before = made().save(tmp_path / "v.safetensors").read_bytes()
    fill_disk()
    with pytest.raises(lens.LensError, match="cannot be written: No space left"):
        made(name="other").save(tmp_path / "v.safetensors")
    assert (tmp_path / "v.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda folder: made().save(folder / "v.pt"), "should end in .safetensors"),
        (lambda folder: made().save(folder / "no" / "v.gguf"), "there is no folder"),
        (lambda folder: lens.load_vector(folder / "v.safetensors"), "there is no file"),
        (lambda folder: lens.load_vector(folder / "v.txt"), "should end in .safetensors, .gguf, .npz"),
        (lambda folder: lens.load_vector(3), "a int is no steering vector"),
    ],
)
def test_bad_files_are_one_clear_line(act: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(lens.LensError, match=words) as caught:
        act(tmp_path)
    assert "\n" not in str(caught.value)
