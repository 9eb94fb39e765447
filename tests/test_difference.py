"""``lens.diff`` against plain transformers: both distributions in full, by brute force, on 1 to 4 ranks."""

from __future__ import annotations

import base64
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import numpy as np
import once
import pytest
import reference as ref
import torch
from steered import Change, steered
from test_steering import direction, width_of

import lens_magic as lens
from lens_magic.errors import LensError
from lens_magic.lens.difference import divergence, first_beyond
from lens_magic.ranks.rank import Rank
from lens_magic.session import current
from lens_magic.steer.term import SteeringTerm
from lens_magic.view import codes

Checkpoints = Callable[[str], Path]
ALPHA = 60.0
LAYER = 1


def term(folder: Path, alpha: float = ALPHA) -> SteeringTerm:
    return SteeringTerm("test", {LAYER: direction(width_of(folder))}, "mlp_out", alpha)


@pytest.fixture
def made(ranks: int, checkpoints: Checkpoints) -> tuple[Path, Any]:
    folder = checkpoints("llama-odd-vocab")  # no number of ranks but 1 divides its vocabulary evenly
    once.load(folder, ranks)
    return folder, lens.run(models.PROMPT, 7, layers="0,1,2", prompt_tokens=True, ignore_eos=True, track=" a")


def test_every_cell_against_brute_force(made: tuple[Path, Any]) -> None:
    folder, run = made
    diff = lens.diff(run, steer=(term(folder),))
    model, _ = once.plain(folder)
    ids, prompt = run.prompt_ids + run.output_ids, len(run.prompt_ids)
    positions = ref.all_positions(ids, prompt, prompt_tokens=True)
    base = ref.lens(model, ids, prompt, run.sites, run.layers, positions=positions)
    with steered(model, [Change("mlp_out", LAYER, direction(width_of(folder)), lambda p: ALPHA)], prompt):
        other = ref.lens(model, ids, prompt, run.sites, run.layers, positions=positions)
    expected = ref.divergence(ref.log_softmax(base["all_logits"]), ref.log_softmax(other["all_logits"]))
    np.testing.assert_allclose(diff.kl, expected, atol=2e-4 * max(1, expected.max()))
    assert expected.max() > 0.5, "the test should see a difference"
    for own, reference in ((diff.base, base), (diff.steered, other)):
        ref.compare(own.to_xarray(), reference, ref.SHARDED)
    np.testing.assert_allclose(diff.target_prob_change, other["target_prob"] - base["target_prob"], atol=2e-4)
    assert np.abs(diff.target_rank_change - (other["target_rank"] - base["target_rank"])).max() <= 1  # near ties

    # Above the steered layer nothing is changed (but two rows of one product may round differently), below it the stream parts.
    assert diff.kl[:, 0].max() < 1e-6
    stream = expected[run.sites.index("resid_post")]
    first = [next((layer for layer in range(3) if stream[layer, p] > 0.1), -1) for p in range(len(positions))]
    assert diff.parts_at.tolist() == first
    assert LAYER in first


def test_nothing_changes_at_alpha_zero(made: tuple[Path, Any]) -> None:
    folder, run = made
    diff = lens.diff(run, steer=term(folder, 0.0))
    assert diff.kl.max() < 1e-6
    assert np.abs(diff.target_prob_change).max() < 1e-6
    assert diff.parts_at.tolist() == [-1] * len(run.positions)


def test_an_interrupt_after_the_last_block_keeps_what_is_complete(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lens_magic import comparing, results

    once.load(folder := checkpoints("llama-odd-vocab"))
    run = lens.run(models.PROMPT, 3)
    whole = lens.diff(run, steer=term(folder))
    make_run = results.make_run

    def stopped_meanwhile(*given: Any) -> Any:
        current().group.interrupt()
        return make_run(*given)

    monkeypatch.setattr(comparing.results, "make_run", stopped_meanwhile)
    with pytest.raises(lens.Interrupted) as stopped:
        lens.diff(run, steer=term(folder))
    assert np.array_equal(stopped.value.result.kl, whole.kl)


def test_blocks_of_any_size_give_the_same_and_fit_their_room(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    from lens_magic.lens import decode, difference

    once.load(folder := checkpoints("llama-odd-vocab"))
    run = lens.run(models.PROMPT, 7, prompt_tokens=True, ignore_eos=True)
    whole, divergence, seen = lens.diff(run, steer=term(folder)).kl, difference.divergence, []

    def watched(rank: Any, base: Any, other: Any) -> Any:
        seen.append(base.nbytes + other.nbytes)
        return divergence(rank, base, other)

    monkeypatch.setattr(difference, "divergence", watched)
    for cells in (2, 7, 40):
        monkeypatch.setitem(decode._BLOCK_BYTES, "cpu", cells * 4 * 331)
        np.testing.assert_allclose(lens.diff(run, steer=term(folder)).kl, whole, atol=1e-5)
        assert max(seen) <= cells * 4 * 331


@pytest.mark.ranks(2)
def test_an_interrupt_of_a_comparison_on_several_ranks_ends_it(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While rows are projected, and between two blocks of what is compared; the next is as if nothing had happened."""
    from lens_magic import comparing
    from lens_magic.lens import decode, difference

    once.load(folder := checkpoints("llama-odd-vocab"), 2)
    session = current()
    run = lens.run(models.PROMPT, 7, ignore_eos=True)
    whole, divergence, seen = lens.diff(run, steer=term(folder)).kl, difference.divergence, []
    monkeypatch.setitem(decode._BLOCK_BYTES, "cpu", 2 * 4 * 166)

    def stop(event: tuple[Any, ...]) -> None:
        if event[0] == "projecting":
            session.group.interrupt()

    def counted(*given: Any) -> Any:
        seen.append(1)
        return divergence(*given)

    monkeypatch.setattr(difference, "divergence", counted)
    with pytest.raises(KeyboardInterrupt):
        comparing.diff(session, run, term(folder), on_event=stop)
    assert not seen

    def stopped_meanwhile(*given: Any) -> Any:
        session.group.interrupt()
        return counted(*given)

    monkeypatch.setattr(difference, "divergence", stopped_meanwhile)
    with pytest.raises(KeyboardInterrupt):
        lens.diff(run, steer=term(folder))
    assert len(seen) == 1
    monkeypatch.setattr(difference, "divergence", divergence)
    np.testing.assert_allclose(lens.diff(run, steer=term(folder)).kl, whole, atol=1e-6)


def test_a_divergence_is_that_of_the_distributions_and_never_negative() -> None:
    random = torch.Generator().manual_seed(0)
    base = 5 * torch.randn(200, 331, generator=random)
    for other in (base + 3, base + 1e-4 * torch.randn(200, 331, generator=random), base.roll(1, 0), base - 200):
        found = divergence(Rank(), base, other)
        expected = torch.nn.functional.kl_div(
            other.double().log_softmax(-1), base.double().log_softmax(-1), reduction="none", log_target=True
        ).sum(-1)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert float(found.min()) >= 0


def test_forms_and_files(checkpoints: Checkpoints, tmp_path: Path) -> None:
    folder = checkpoints("llama-odd-vocab")
    once.load(folder)
    run = lens.run(models.PROMPT, 0, prompt_tokens=True)  # the lens of a text: nothing generated
    diff = lens.diff(run, steer=term(folder))
    assert diff.base.positions == run.positions
    data = diff.to_xarray()
    assert data.kl.dims == ("site", "layer", "position")
    np.testing.assert_array_equal(data.token_id.sel(run="base"), run.to_xarray().token_id)
    assert data.parts_at.values.tolist() == diff.parts_at.tolist()
    assert "settled_layer" not in data.coords  # each run has its own
    assert "part by more than 0.1 nats" in repr(diff)
    again = lens.LensDiff.load(diff.save(tmp_path / "change.nc"))
    assert again.to_xarray().identical(data)
    assert again.steered.options["steering"] == diff.steered.options["steering"] != diff.base.options["steering"] == []
    for name, words in (("change.zarr", "should end in .nc"), ("nothing.nc", "there is no file")):
        with pytest.raises(LensError, match=words):
            lens.LensDiff.load(tmp_path / name)
    run.save(tmp_path / "run.nc")
    with pytest.raises(LensError, match="is no difference"):
        lens.LensDiff.load(tmp_path / "run.nc")
    from lens_magic.view.explorer import Explorer

    view = diff.view()
    assert isinstance(view, Explorer)
    assert [view.header["name"], view.other_header["name"]] == ["unsteered", "steered"]
    apart = np.frombuffer(view.other_buffers["kl_apart"], "<u2").reshape(diff.kl.shape)
    np.testing.assert_allclose(codes.decoded(apart, view.other_header["encoding"]["kl_apart"]), diff.kl, atol=1e-3)
    assert "kl_apart" not in view.buffers
    page = diff.to_html(tmp_path / "change.html").read_text()
    first, second = json.loads(page.split('id="lens-data">')[1].split("</script>")[0])
    assert second["header"] == view.other_header
    assert base64.b64decode(second["buffers"]["kl_apart"]) == view.other_buffers["kl_apart"]
    assert "kl_apart" not in first["buffers"]


def test_a_cell_without_numbers_has_no_change(checkpoints: Checkpoints) -> None:
    once.load(folder := checkpoints("llama-odd-vocab"))
    diff = lens.diff(lens.run(models.PROMPT, 2, capture="resid_post", ignore_eos=True), steer=term(folder))
    lost = np.zeros(diff.kl.shape, dtype=bool)
    lost[0, :, 1] = lost[0, 0, 0] = True
    ranks = np.where(lost, -1, diff.steered.variables["target_rank"])
    steered = replace(diff.steered, variables={**diff.steered.variables, "target_rank": ranks})
    other = replace(diff, steered=steered, kl=np.where(lost, np.nan, diff.kl))
    assert np.array_equal(np.isnan(other.target_rank_change), lost)
    assert np.array_equal(other.target_rank_change[~lost], diff.target_rank_change[~lost])
    assert np.isnan(other.to_xarray()["target_rank_change"].values[lost]).all()
    assert other.parts_at[1] == -1
    assert "nan" not in repr(other)
    told = "4 of 6 cells hold no numbers; 1 of 2 positions part by more than 0.1 nats, first at layer 1; 1 cannot be told"
    assert told in repr(other)
    none = repr(replace(other, kl=np.full_like(diff.kl, np.nan)))
    assert "6 of 6 cells hold no numbers; 0 of 2 positions part by more than 0.1 nats; 2 cannot be told" in none
    assert "KL at most" not in none
    later = diff.kl.copy()
    later[0, 0], later[0, 2] = 1, np.nan
    assert "2 of 2 positions part by more than 0.1 nats, first at layer 0>" in repr(replace(other, kl=later))


def test_steering_beyond_what_can_be_computed_is_told(checkpoints: Checkpoints) -> None:
    once.load(folder := checkpoints("llama-odd-vocab"))
    run = lens.run(models.PROMPT, 3, ignore_eos=True)
    strong = SteeringTerm("test", {LAYER: 1e15 * direction(width_of(folder))}, "post_ln", 1e18)  # its square is infinite
    with pytest.warns(UserWarning, match=r"^\d+ of \d+ cells hold no numbers: states are not finite \(a smaller α may help\)$"):
        diff = lens.diff(run, steer=strong)
    lost = np.isnan(diff.kl)
    assert lost.any()
    assert f"{lost.sum()} of {lost.size} cells hold no numbers" in repr(diff)
    assert "0 of 3 positions part by more than 0.1 nats; 3 cannot be told" in repr(diff)
    with pytest.raises(LensError, match=r"the model's logits are not finite; a smaller α may help$"):
        lens.run(models.PROMPT, 3, steer=strong)


def test_runs_part_at_the_number_of_the_first_layer_beyond_the_threshold() -> None:
    kl = np.array([[0.0, 0.1, 0.2, np.nan], [0.0, 0.05, 0.0, 0.3], [0.2, 0.1, 0.3, 0.3]])  # [layer, position]
    assert first_beyond(kl, [3, 4, 7], 0.1).tolist() == [7, -1, 3, 4]


def test_where_runs_part_is_read_from_the_stream_wherever_it_is(checkpoints: Checkpoints) -> None:
    once.load(folder := checkpoints("llama-odd-vocab"))
    for sites in ("resid_post,mlp_out,attn_out", "attn_out,resid_post,mlp_out"):
        diff = lens.diff(lens.run(models.PROMPT, 2, capture=sites, ignore_eos=True), steer=term(folder))
        kl = np.zeros_like(diff.kl)
        kl[diff.base.sites.index("resid_post"), 2] = 1
        assert replace(diff, kl=kl).parts_at.tolist() == [2, 2]


def test_a_difference_in_a_later_format_is_not_read(checkpoints: Checkpoints, tmp_path: Path) -> None:
    import h5py

    once.load(folder := checkpoints("llama-odd-vocab"))
    path = lens.diff(lens.run(models.PROMPT, 1), steer=term(folder)).save(tmp_path / "change.nc")
    with h5py.File(path, "r+") as file:
        file.attrs["lens_magic_diff"] = 2
    with pytest.raises(LensError, match="is no difference"):
        lens.LensDiff.load(path)


@pytest.mark.parametrize("threshold", ["a", None, float("nan"), np.ones(2)])
def test_a_threshold_is_a_number(threshold: Any, checkpoints: Checkpoints) -> None:
    once.load(folder := checkpoints("llama-odd-vocab"))
    diff = lens.diff(lens.run(models.PROMPT, 2, ignore_eos=True), steer=term(folder))
    with pytest.raises(LensError, match=r"^threshold .* is not a number"):
        diff.parting(threshold)


def test_a_difference_is_a_value(checkpoints: Checkpoints, tmp_path: Path, fill_disk: Callable[[], None]) -> None:
    once.load(folder := checkpoints("llama-odd-vocab"))
    diff = lens.diff(lens.run(models.PROMPT, 2, ignore_eos=True), steer=term(folder))
    assert pickle.loads(pickle.dumps(diff)).to_xarray().identical(diff.to_xarray())
    assert diff == diff
    assert diff != replace(diff)
    data = diff.to_xarray()
    data["kl"] += 1
    assert diff.kl[0, 0, 0] == data["kl"].values[0, 0, 0] - 1
    fill_disk()
    with pytest.raises(LensError, match=r"change\.nc cannot be written: No space left on device$"):
        diff.save(tmp_path / "change.nc")


def test_states_are_kept_as_the_run_kept_them(checkpoints: Checkpoints) -> None:
    once.load(folder := checkpoints("llama-odd-vocab"))
    run = lens.run(models.PROMPT, 2, capture_dtype="bfloat16", offload=True)
    assert lens.diff(run, steer=term(folder)).base.options.items() >= {"capture_dtype": "bfloat16", "offload": True}.items()
    older = {name: value for name, value in run.options.items() if name not in ("capture_dtype", "offload")}
    assert lens.diff(replace(run, options=older), steer=term(folder)).base.options["capture_dtype"] is None


def test_a_schedule_is_over_as_many_tokens_as_the_run_asked_for(checkpoints: Checkpoints) -> None:
    """Of a run that ended early, too: steered anew with the same limit, it is steered as much."""
    once.load(folder := checkpoints("llama-odd-vocab"))
    run = lens.run(models.PROMPT, 3, layers=-1, ignore_eos=True)
    ended_early = replace(run, options={**run.options, "max_new_tokens": 30})
    steered = replace(term(folder), schedule="linear")
    change = lens.diff(ended_early, steer=steered)
    factors = " ".join(str(1 - step / 30) for step in range(1, 30))
    assert change.steered.options["steering"][0].endswith(f"schedule 1 {factors}")
    assert "; schedule 1 0.967 0.933 0.9 … 0.0333: " in repr(change)
    forced = lens.run(models.PROMPT, layers=-1, force=run.output_ids)  # whatever else might have been generated
    for short in (run, forced):
        assert lens.diff(short, steer=steered).steered.options["steering"][0].endswith(f"schedule 1 {1 - 1 / 3} {1 - 2 / 3}")


def test_what_cannot_be_compared_is_refused(checkpoints: Checkpoints) -> None:
    folder = checkpoints("llama-odd-vocab")
    once.load(folder)
    run = lens.run(models.PROMPT, 2, ignore_eos=True)
    with pytest.raises(LensError, match="needs something that makes a difference"):
        lens.diff(run, steer=())
    with pytest.raises(LensError, match=r"takes one run of lens\.run, not list; of several, each by itself"):
        lens.diff([run, run], steer=term(folder))  # type: ignore[arg-type]
    with pytest.raises(LensError, match=r"was steered itself \(test add"):
        lens.diff(lens.run(models.PROMPT, 2, ignore_eos=True, steer=term(folder)), steer=term(folder))
    with pytest.raises(LensError, match="seen through a tuned one"):
        lens.diff(replace(run, options={**run.options, "lens": {"kind": "tuned"}}), steer=term(folder))
    for damaged in ({"output_ids": [10**6, 1]}, {"prompt_ids": [-1, *run.prompt_ids[1:]]}):
        with pytest.raises(LensError, match=r"has tokens beyond the .* vocabulary: its file is damaged"):
            lens.diff(replace(run, **damaged), steer=term(folder))  # type: ignore[arg-type]
    with pytest.raises(LensError, match="layer 99 is out of range"):
        lens.diff(replace(run, layers=[*run.layers[:-1], 99]), steer=term(folder))
    once.load(checkpoints("llama-6heads"))
    with pytest.raises(
        LensError, match=r"this run was made with .*llama-odd-vocab .* is loaded; `%lens load .*`, the run's, would do$"
    ):
        lens.diff(run, steer=term(checkpoints("llama-6heads")))
