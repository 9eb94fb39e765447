"""The magics in a separate IPython shell, with one rank in this process: what they return, and what they refuse."""

from __future__ import annotations

import dataclasses
import functools
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import models
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

import lens_magic as lens
from lens_magic import magics, vectors
from lens_magic.errors import LensError
from lens_magic.lens.capture import Trajectories
from lens_magic.lens.run import LensRun
from lens_magic.model import load as loading
from lens_magic.ranks import memory
from lens_magic.session import current
from lens_magic.steer.vector import SteeringVector
from lens_magic.view.text import running

Checkpoints = Callable[[str], Path]


class Notebook:
    """Cells, as a notebook would run them."""

    def __init__(self) -> None:
        self.shell = InteractiveShell.instance()
        self.shell.run_line_magic("load_ext", "lens_magic")

    def run(self, source: str) -> Any:
        """The cell's value, or what it raised."""
        with capture_output() as self.output:
            result = self.shell.run_cell(source)
        return result.error_in_exec or result.result

    def refuses(self, source: str) -> str:
        """The one line with which a cell is refused."""
        error = self.run(source)
        assert isinstance(error, lens.LensError), error
        lines = error._render_traceback_()
        assert len(lines) == 1
        assert "\n" not in lines[0]
        return lines[0]


@pytest.fixture(scope="module")
def notebook() -> Iterator[Notebook]:
    current().close()
    yield Notebook()
    InteractiveShell.clear_instance()


@pytest.fixture
def loaded(notebook: Notebook, checkpoints: Checkpoints) -> Notebook:
    if current().model is None or current().model.name != str(checkpoints("llama-gqa")):
        notebook.run(f"%lens load {checkpoints('llama-gqa')} --ranks 1")
    return notebook


def test_nothing_is_loaded_yet(notebook: Notebook) -> None:
    current().close()
    assert "no model is loaded; `%lens load MODEL`" in notebook.refuses("%%lens\nhello")


def test_loading_says_what_was_loaded(notebook: Notebook, checkpoints: Checkpoints) -> None:
    assert notebook.run(f"%lens load {checkpoints('llama-gqa')}") is None
    assert "4 layers, width 128, vocabulary 320, float32, on 1 rank (cpu)" in notebook.output.stdout


def test_a_path_may_come_from_a_variable(notebook: Notebook, checkpoints: Checkpoints) -> None:
    notebook.shell.user_ns["folder"] = str(checkpoints("llama-gqa"))
    assert notebook.run("%lens load {folder}") is None


def test_the_run_is_the_cells_value(loaded: Notebook) -> None:
    run = loaded.run("%%lens -n 4 --ignore-eos\nTo be")
    assert isinstance(run, lens.LensRun)
    assert len(run.output_ids) == 4
    assert run.text.strip() in loaded.output.stdout


def test_an_answer_that_ends_at_once_says_so(loaded: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a chat model's does to a question that is not in its template: an empty text would look like a failure."""
    model = current().require_model()
    (first,) = lens.run("To be", 1).output_ids
    monkeypatch.setattr(current(), "model", dataclasses.replace(model, stop_ids=(first,)))
    said = f"the model ended its answer at once, with {model.tokenizer.convert_ids_to_tokens(first)!r}; "
    assert loaded.run("%%lens -n 4\nTo be").output_ids == [first]
    assert loaded.output.stdout.startswith(f"{said}--ignore-eos goes on\n")

    monkeypatch.setattr(model.tokenizer, "chat_template", "{{ messages[0].content }}")
    loaded.shell.user_ns["nowhere"] = SteeringVector({1: torch.eye(128)[0]}, {1: 1.0}, "resid_post")
    for magic in ("%%lens -n 4 --static -o mine", "%%lens -n 4 --stream-lens", "%%steer nowhere:0 -n 4"):
        loaded.run(f"{magic}\nTo be")
        assert f"{said}it has a chat template, into which --chat puts the prompt\n" in loaded.output.stdout
    loaded.run("%%lens -n 4 --chat\nTo be")
    assert f"{said}--ignore-eos goes on\n" in loaded.output.stdout
    for answered in ("%%lens -n 2 --ignore-eos\nTo be", "%%lens -n 0 --prompt-tokens\nTo be"):
        loaded.run(answered)
        assert "at once" not in loaded.output.stdout


def test_a_system_message_comes_before_the_prompt(loaded: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    monkeypatch.setattr(current().require_model().tokenizer, "chat_template", template)
    loaded.shell.user_ns["nowhere"] = SteeringVector({1: torch.eye(128)[0]}, {1: 1.0}, "resid_post")
    for magic in ("%%lens -n 2", "%%lens -n 2 --chat --stream-lens -o mine", "%%steer nowhere:0 -n 2"):
        made = loaded.run(f"{magic} --system 'Be brief.'\nTo be") or loaded.shell.user_ns["mine"]
        assert made.prompt == "[system] Be brief.\n[user] To be\n"
        assert made.options["chat"] is True
    assert "the prompt is empty" in loaded.refuses("%%steer nowhere:0 --system Be\n\n")


@pytest.mark.parametrize("stopped", [False, True])
def test_a_streamed_answer_stays_above_the_view(loaded: Notebook, stopped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it grows the view shows it, which is not saved with the notebook and goes with the Stop button."""
    if stopped:
        monkeypatch.setattr("lens_magic.view.live.LiveView.append", pressed)
    loaded.run("%%lens --stream-lens -n 6 --ignore-eos -o mine\nTo be")
    first, view, *later = [output.data for output in loaded.output.outputs]
    assert first == {"text/plain": ""}
    assert view["text/plain"] == ""
    answer = later[0]["text/plain"]
    assert answer
    if not stopped:
        assert answer == running(loaded.shell.user_ns.pop("mine").text)


def test_with_out_it_is_in_a_variable(loaded: Notebook) -> None:
    assert loaded.run("%%lens -n 3 -l -1,-2 -c post_ln,resid_pre -k 2 --ignore-eos -o mine\nTo be") is None
    run = loaded.shell.user_ns["mine"]
    assert (run.layers, run.sites, run.to_xarray().sizes["k"]) == ([2, 3], ["post_ln", "resid_pre"], 2)


def test_a_variable_is_named_as_python_names_it(loaded: Notebook) -> None:
    """A µ typed on a keyboard is the micro sign; in a program it is the Greek letter."""
    loaded.run("%%lens -n 2 --ignore-eos -o µ\nTo be")
    assert len(loaded.run("µ").output_ids) == 2
    assert "--out 'ｉｆ' is not a variable name" in loaded.refuses("%%lens -o ｉｆ\nTo be")
    loaded.run("import lens_magic\nﬁ = lens_magic.Basis([[1.0] * 128], name='one')")
    assert loaded.run("%%lens --lens ﬁ -n 2\nTo be").options["lens"]["name"] == "one"


@pytest.mark.parametrize(
    ("cell", "prompt"),
    [
        ("To {be} or $not", "To {be} or $not"),
        ("two lines\n  and a space ", "two lines\n  and a space "),
        ("a newline is kept\n\n", "a newline is kept\n\n"),
        ("%lens status", "%lens status"),
        ("!ls\n?print", "!ls\n?print"),
    ],
)
def test_the_prompt_is_taken_as_it_stands(loaded: Notebook, cell: str, prompt: str) -> None:
    run = loaded.shell.run_cell_magic("lens", "-n 1 --ignore-eos", cell + "\n")
    assert run.prompt == prompt


def test_a_run_can_be_saved_and_is_kept(loaded: Notebook, tmp_path: Path) -> None:
    loaded.run(f"%%lens -n 2 --save {tmp_path / 'r.nc'} -o saved\nTo be")
    assert lens.open_run(tmp_path / "r.nc").output_ids == loaded.shell.user_ns["saved"].output_ids
    kept = loaded.run("%lens runs")
    assert len(kept.files) == 1
    loaded.run("%lens runs --clear")
    assert "removed 1" in loaded.output.stdout
    for ending, words in (("json", '"step_0"'), ("html", "<!doctype html>")):
        loaded.run(f"%%lens -n 2 --save {tmp_path / 'r'}.{ending}\nTo be")
        assert words in (tmp_path / f"r.{ending}").read_text(encoding="utf-8").lower()


def test_what_cannot_be_kept_is_a_warning(loaded: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills under HDF5 is a RuntimeError."""

    def full(*_: object) -> None:
        raise RuntimeError("Can't decrement id ref count\n(no space)")

    monkeypatch.setattr(LensRun, "save", full)
    with pytest.warns(UserWarning, match="this run was not kept on disk: Can't decrement id ref count$"):
        run = loaded.run("%%lens -n 2\nTo be")
    assert isinstance(run, LensRun)


@pytest.mark.parametrize("out", ["", "-o unsaved"])
@pytest.mark.parametrize("stopped", [False, True])
def test_what_cannot_be_saved_costs_the_file_alone(
    loaded: Notebook, stopped: bool, out: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither the cell's value, nor the interrupt that ends "run all"."""
    save = LensRun.save

    def full(run: LensRun, path: Path | str) -> Path:
        if str(path).endswith("full.nc"):
            raise LensError("full.nc cannot be written: no space left")
        return save(run, path)

    monkeypatch.setattr(LensRun, "save", full)
    if stopped:
        monkeypatch.setattr("lens_magic.showing.Answer.__call__", lambda *_: current().group.interrupt())
    error = loaded.run(f"%%lens -n 7 --ignore-eos --save {tmp_path}/full.nc {out}\nTo be")
    assert isinstance(error, KeyboardInterrupt if stopped else LensError)
    assert "full.nc cannot be written: no space left" in str(error)
    run = loaded.shell.user_ns["unsaved" if out else "_"]
    assert (run.interrupted, len(run.output_ids) == 7) == (stopped, not stopped)


def test_where_nothing_can_be_saved_nothing_is_run(loaded: Notebook, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("lens_magic.runs.run", None)
    (tmp_path / "folder.nc").mkdir()
    assert "folder.nc' is a folder" in loaded.refuses(f"%%lens --save {tmp_path}/folder.nc\nx")
    (tmp_path / "mine.zarr").mkdir()
    monkeypatch.setitem(sys.modules, "zarr", SimpleNamespace())
    assert "mine.zarr is there and is no saved run" in loaded.refuses(f"%%lens --save {tmp_path}/mine.zarr\nx")
    with monkeypatch.context() as patched:
        patched.setattr("os.access", lambda *_: False)
        assert f"nothing can be written to {tmp_path}" in loaded.refuses(f"%%lens --save {tmp_path}/run.nc\nx")
    monkeypatch.setitem(sys.modules, "zarr", None)
    assert "pip install zarr" in loaded.refuses(f"%%lens --save {tmp_path}/run.zarr\nx")


def test_files_of_the_users_own_are_no_kept_runs(loaded: Notebook, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LENS_RUNS_DIR", str(tmp_path))
    (tmp_path / "baseline.nc").write_text("mine")
    loaded.run("%%lens -n 2 -o kept\nTo be")
    assert len(loaded.run("%lens runs").files) == 1
    loaded.run("%lens runs --clear")
    assert [file.name for file in tmp_path.iterdir()] == ["baseline.nc"]


@pytest.mark.parametrize("option", ["--static", "--stream-lens", "--save {folder}/run.nc"])
def test_a_run_shown_otherwise_is_the_cells_value_too(loaded: Notebook, option: str, tmp_path: Path) -> None:
    shell = loaded.shell
    shell.run_cell("'the value before'", store_history=True)
    count = shell.execution_count
    with capture_output():
        shell.run_cell(f"%%lens -n 2 {option.format(folder=tmp_path)}\nTo be", store_history=True)
    assert isinstance(shell.user_ns["_"], LensRun)
    assert shell.user_ns["Out"][count] is shell.user_ns["_"]


@pytest.mark.parametrize("error", [LensError("a rank is lost"), KeyboardInterrupt()])
def test_a_live_view_ends_with_a_run_that_fails(
    loaded: Notebook, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or its Stop would stop whatever runs then."""
    answers: list[Any] = []
    presses: list[int] = []

    def fails(*arguments: Any, on_event: Any, **options: Any) -> None:
        answers.append(on_event)
        on_event(("token", 5))
        raise error

    monkeypatch.setattr("lens_magic.runs.run", fails)
    monkeypatch.setattr(type(current().group), "interrupt", lambda group: presses.append(1))
    assert type(loaded.run("%%lens --stream-lens\nTo be")) is type(error)
    view = answers[0]._view
    assert view._sent[-1][0]["over"]
    view._heard(view, {"type": "stop"}, [])
    assert presses == []


def test_variables_in_a_line_are_the_users(loaded: Notebook) -> None:
    """Not the magics' own of the same names, and those of the function that calls."""
    loaded.shell.user_ns.update(line=2, cell=3)
    for name, tokens in (("line", 2), ("cell", 3)):
        loaded.run(f"%%lens -n {{{name}}} --ignore-eos -o counted\nTo be {{line}}")
        assert len(loaded.shell.user_ns["counted"].output_ids) == tokens
        assert loaded.shell.user_ns["counted"].prompt == "To be {line}"
    error = loaded.run("def load(name):\n    %lens load {name}\nload('no/such/folder/at/all')")
    assert "'no/such/folder/at/all' is not a folder" in str(error)


def test_an_interrupt_shows_and_keeps_the_part(loaded: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    from lens_magic import showing

    seen = []

    def stop(self: object, event: tuple[Any, ...]) -> None:
        seen.append(event)
        current().group.interrupt()

    monkeypatch.setattr(showing.Answer, "__call__", stop)
    error = loaded.run("%%lens -n 30 --ignore-eos -o part\nTo be")
    assert isinstance(error, KeyboardInterrupt)
    part = loaded.shell.user_ns["part"]
    assert part.interrupted
    assert 1 <= len(part.output_ids) <= 2
    assert loaded.output.outputs  # shown


def test_an_interrupt_says_where_the_part_is(loaded: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where IPython puts results once the user has used `_` for something else."""
    monkeypatch.setattr("lens_magic.showing.Answer.__call__", lambda *_: current().group.interrupt())
    loaded.run("for _ in range(3): pass")
    words, _, place = str(loaded.run("%%lens -n 30 --ignore-eos\nTo be")).strip("`").rpartition("`")
    assert words.endswith("the result so far is in ")
    assert place.startswith("Out[")
    assert loaded.run(place).interrupted
    loaded.run("del _, __, ___")
    assert str(loaded.run("%%lens -n 30 --ignore-eos\nTo be")).endswith("the result so far is in `_`")


def pressed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize(
    ("options", "where"),
    [
        ("", "lens.kept.keep"),
        ("-o part", "lens.kept.keep"),
        ("-o part", "showing.show"),
        ("--static", "showing.show"),
        ("--stream-lens", "lens.kept.keep"),
        ("--stream-lens", "view.live.pack"),
        ("--save {folder}/run.nc", "lens.run.LensRun.save"),
    ],
)
def test_another_interrupt_does_not_cost_the_run(
    loaded: Notebook, options: str, where: str, stopped: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """While it is kept, shown or saved."""
    from lens_magic.showing import Answer, LiveAnswer

    answers: list[Any] = []
    take = Answer.__call__

    def call(answer: Any, event: tuple[Any, ...]) -> None:
        answers.append(answer)
        take(answer, event)
        if stopped:
            current().group.interrupt()

    monkeypatch.setattr(Answer, "__call__", call)
    monkeypatch.setattr(f"lens_magic.{where}", pressed)
    before = loaded.shell.displayhook._
    error = loaded.run(f"%%lens -n 7 --ignore-eos {options.format(folder=tmp_path)}\nTo be")
    name = "part" if "-o" in options else "_"
    run = loaded.shell.user_ns.pop(name)
    assert (type(run), run.interrupted, len(run.output_ids) == 7) == (LensRun, stopped, not stopped)
    tokens = "1 token" if len(run.output_ids) == 1 else f"{len(run.output_ids)} tokens"
    assert error._render_traceback_() == [f"KeyboardInterrupt: stopped after {tokens}; the result so far is in `{name}`"]
    if name == "_":  # stored once
        assert loaded.shell.displayhook.__dict__["__"] is before
    if isinstance(answers[0], LiveAnswer):
        assert answers[0]._view._sent[-1][0]["over"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("%%lens --nonsense\nx", "unknown option --nonsense"),
        ("%%lens -k 0\nx", "top-k 0 is out of range; 1 to 320"),
        ("%%lens -k 321\nx", "top-k 321 is out of range"),
        ("%%lens -l 4\nx", "layer 4 is out of range"),
        ("%%lens -l 3-1\nx", "reversed"),
        ("%%lens -c block\nx", "'block' is not one of"),
        ("%%lens -n 0\nx", "max-new-tokens 0 is too few; 1 or more would do; with --prompt-tokens, 0 gives"),
        ("%%lens -n -3\nx", "max-new-tokens -3 is too few"),
        ("%%lens -n 600\nx", "exceed the model's context of 512; at most"),
        ("%%lens -n 1\n" + "word " * 600, "more than the model's context of 512"),
        ("%%lens\n\n", "prompt is empty"),
        ("%%lens --temperature -1\nx", "temperature -1.0"),
        ("%%lens --top-p 0\nx", "top-p 0.0"),
        ("%%lens -o 1x\nx", "not a variable name"),
        ("%%lens -o class\nx", "not a variable name"),
        ("%%lens -o get_ipython\nx", "'get_ipython' is IPython's own; another name would do"),
        ("%%lens -o _\nx", "'_' is IPython's own; another name would do"),
        ("%%lens --save x.pickle\nx", "should end in one of .json, .html, .nc, .netcdf, .h5, .zarr"),
        ("%%lens --save nowhere/x.nc\nx", "no folder nowhere"),
        ("%%lens --chat\nx", "no chat template; leave --chat out"),
        ("%%lens --system be\nx", "no chat template; a plain text would do"),
        ("%%lens --steer v:1\nx", "there is no vector 'v'"),
        ("%%lens --steer v:x\nx", "'x' is no number"),
        ("%lens", "arguments are required"),
        ("%lens fly", "'fly' is not a command of %lens; load, status, restart, runs are"),
        ("%lens laod demo", "'laod' is not a command of %lens; load, status, restart, runs are; did you mean load?"),
        ("%lens load", "arguments are required: MODEL"),
        ("%lens load demo --ranks 0", "--ranks '0' is not a number of ranks"),
        ("%lens load demo --ranks many", "--ranks 'many' is not a number of ranks"),
        ("%lens load /nowhere/at/all", "is not a folder"),
        ("%lens load demo --dtype int4", "'int4' is not one of"),
    ],
)
def test_bad_input_is_one_clear_line_and_changes_nothing(loaded: Notebook, line: str, words: str) -> None:
    before = (current().model, current().group, dict(loaded.shell.user_ns))
    assert words in loaded.refuses(line)
    ignored = {"_i", "_ii", "_iii", "_ih", "_oh", "_dh", "In", "Out", "_", "__", "___", "_exit_code"}
    now = {name for name in loaded.shell.user_ns if not name.startswith("_i")} - ignored
    assert now <= set(before[2])
    assert (current().model, current().group) == before[:2]
    assert len(loaded.run("%%lens -n 1 --ignore-eos\nTo be").output_ids) == 1


def test_status(loaded: Notebook) -> None:
    status = loaded.run("%lens status")
    (rank,) = status.ranks
    assert rank["rank"] == 0
    assert rank["memory"] > 0
    assert rank["free"] > 0
    assert "</table>" in status._repr_html_()
    assert "llama-gqa" in repr(status)
    assert "nothing is steering" in repr(status)
    current().vectors["<glad>"] = SteeringVector.of({1: torch.eye(128)[0], 3: torch.eye(128)[1]}, site="post_ln")
    try:
        status = loaded.run("%lens status")
    finally:
        current().vectors.clear()
    assert "vectors: <glad> (layers 1,3)" in repr(status)
    assert "&lt;glad&gt; (layers 1,3)" in status._repr_html_()


def pressing(made: Callable[..., Any]) -> Callable[..., Any]:
    """The function, during which the user interrupts."""

    @functools.wraps(made)  # ranks find functions by name
    def press(*given: Any) -> Any:
        current().group.interrupt()
        return made(*given)

    return press


@pytest.mark.parametrize("call", ["%lens status", "lens.status()", "seen.activations('resid_post')"])
def test_an_interrupt_of_a_short_call_is_heard(loaded: Notebook, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded.shell.user_ns |= {"lens": lens, "seen": lens.run(models.PROMPT, 3, ignore_eos=True)}
    with monkeypatch.context() as patched:
        patched.setattr(memory, "free_memory", pressing(memory.free_memory))
        patched.setattr(Trajectories, "share", pressing(Trajectories.share))
        assert type(loaded.run(call)) is KeyboardInterrupt
    assert not isinstance(loaded.run(call), KeyboardInterrupt)


@pytest.mark.parametrize("command", ["load {folder}", "restart"])
@pytest.mark.parametrize("where", [(loading, "_use"), (magics, "_device")], ids=["on the ranks", "then"])
def test_an_interrupt_at_the_end_of_loading_comes_too_late(
    loaded: Notebook, checkpoints: Checkpoints, command: str, where: tuple[Any, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, before = checkpoints("llama-gqa"), current().require_model()
    with monkeypatch.context() as patched:
        patched.setattr(*where, pressing(getattr(*where)))
        error = loaded.run(f"%lens {command.format(folder=folder)}")
    assert error._render_traceback_() == [f"KeyboardInterrupt: too late to stop: {folder} is loaded"]
    assert current().require_model() is not before
    assert len(lens.generate(models.PROMPT, 3, ignore_eos=True).output_ids) == 3


def test_restart_loads_the_model_again(loaded: Notebook) -> None:
    before = lens.generate(models.PROMPT, 4, ignore_eos=True).output_ids
    loaded.run("%lens restart")
    assert lens.generate(models.PROMPT, 4, ignore_eos=True).output_ids == before


def test_a_restart_that_fails_is_not_forgotten(loaded: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    before = lens.generate(models.PROMPT, 4, ignore_eos=True).output_ids

    def fails(*arguments: object, **options: object) -> None:
        raise LensError("the disk is gone")

    with monkeypatch.context() as patched:
        patched.setattr("lens_magic.session.Session._load", fails)
        assert "the disk is gone" in str(loaded.run("%lens restart"))
    assert "no model is loaded" in str(loaded.run("%%lens\nx"))
    loaded.run("%lens restart")
    assert lens.generate(models.PROMPT, 4, ignore_eos=True).output_ids == before


def asked_for(notebook: Notebook, line: str) -> str:
    """The help that a cell prints; it has no value, and does not stop "run all" as an error would."""
    assert notebook.run(line) is None
    return str(notebook.output.stdout)


def test_help(loaded: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    """IPython itself refuses `%%lens --help` with nothing below it, and proposes `%lens`."""
    monkeypatch.setattr("lens_magic.session.Session.require_model", None)  # nothing runs
    for line in ("%%lens --help\nx", "%%lens -n 4 -o mine -h\nx", "%lens --help"):
        assert "--max-new-tokens" in asked_for(loaded, line)
    assert "--dtype" in asked_for(loaded, "%lens load --help")
    for line in ("%steer --help", "%steer v:1 'x' --help", "%%steer v:1 --help\nx"):
        assert "--operator" in asked_for(loaded, line)
    assert "--pairs" in asked_for(loaded, "%steer train --help")
    for command, does in vectors.COMMANDS.items():
        assert re.search(rf"{command} +{re.escape(does)}", asked_for(loaded, "%steer --help"))


def test_the_help_that_an_error_names_is_to_be_had(loaded: Notebook) -> None:
    for line in ("%%lens -n x\nTo be", "%%steer v:1 -n x\nTo be", "%lens load", "%steer train"):
        told = loaded.refuses(line)
        named = re.search(r"\((%.* --help) says more\)", told)
        assert named, told
        assert "--help" in asked_for(loaded, named[1])


def test_an_unknown_option_is_told_what_its_command_takes(loaded: Notebook) -> None:
    assert "%lens load takes --help, --dtype" in str(loaded.run("%lens load demo --rank 2"))
