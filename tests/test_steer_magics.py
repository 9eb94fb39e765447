"""``%steer`` in a separate IPython shell, with one rank in this process."""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import models
import pytest
from IPython.core.interactiveshell import InteractiveShell
from steering_items import pairs, questions
from test_magics import Notebook, pressed

import lens_magic as lens
from lens_magic import vectors
from lens_magic.session import current
from lens_magic.view.steered import EVERY_S, Streaming
from lens_magic.view.text import running

Checkpoints = Callable[[str], Path]


@pytest.fixture(scope="module")
def shared() -> Iterator[Notebook]:
    current().close()
    yield Notebook()
    InteractiveShell.clear_instance()


@pytest.fixture
def notebook(shared: Notebook, checkpoints: Checkpoints) -> Notebook:
    if current().model is None or current().model.name != str(checkpoints("llama-gqa")):
        shared.run(f"%lens load {checkpoints('llama-gqa')} --ranks 1")
    current().vectors.clear()
    for name in ("mine", "cold_vector"):
        shared.shell.user_ns.pop(name, None)
    shared.shell.user_ns.update(items=questions(), texts=pairs())
    return shared


def test_training_shows_whether_a_direction_is_there(notebook: Notebook) -> None:
    vector = notebook.run("%steer train warm --pairs items --layers -1,0-1 --site resid_post --position last --method pca")
    assert (vector.name, vector.layers, vector.site, vector.position) == ("warm", (0, 1, 3), "resid_post", "last")
    assert vector.method == "pca"
    assert current().vectors["warm"] is vector
    assert "halves" in repr(vector)
    html = vector._repr_html_()
    assert html.count("<tr>") == 4
    assert "5 questions in both orders" in html


def test_pairs_may_be_a_file(notebook: Notebook, tmp_path: Path) -> None:
    path = tmp_path / "some pairs.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in [*pairs(), {"positive": "alone"}]))
    vector = notebook.run(f"%steer train cold --pairs '{path}' -l 1 --position mean -o cold_vector")
    assert vector.training.rejected == {"one-sided": 1}
    assert "left out 1 (one-sided)" in repr(vector)
    assert notebook.shell.user_ns["cold_vector"] is vector


def test_vectors_by_name(notebook: Notebook, tmp_path: Path) -> None:
    assert "no vectors" in repr(notebook.run("%steer list"))
    notebook.run("%steer train warm --pairs items -l 1")
    notebook.shell.user_ns["mine"] = lens.train_vector(pairs(), layers=[2], position="last")
    listed = notebook.run("%steer list")
    assert [vector.name for vector in listed.vectors] == ["mine", "warm"]
    for name in ("warm", "mine"):
        assert vectors.find(current(), name, notebook.shell.user_ns).name == name
        notebook.run(f"%steer save {name} {tmp_path / name}.safetensors")
    notebook.run("%steer drop warm")
    assert "warm" not in repr(notebook.run("%steer list"))
    notebook.run(f"%steer load again {tmp_path}/warm.safetensors")
    assert current().vectors["again"].name == "again"
    assert current().vectors["again"].training.questions == 5
    notebook.run("%lens restart")
    assert "again" in current().vectors


def test_a_name_with_two_vectors_is_refused(notebook: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which one was meant nobody can tell; that both are the same is no matter."""
    words = "%steer keeps another vector 'mine' than the vector in the variable; `%steer drop mine` leaves the variable's"
    notebook.run("%steer train mine --pairs items -l 1 -o mine")
    assert notebook.run("%steer mine:2 -n 2 'A lens'").steering
    notebook.shell.user_ns["mine"] = lens.train_vector(questions(), layers=[1], site="resid_post")
    for line in ("%steer mine:2 'A lens'", "%%lens --steer mine\nA lens", "%steer save mine v.safetensors", "%steer panel"):
        assert words in notebook.refuses(line)
    notebook.run("%steer drop mine")
    assert "resid_post" in notebook.run("%steer mine:2 -n 2 'A lens'").steering[0]


def test_both_texts_beside_each_other(notebook: Notebook) -> None:
    notebook.run("%steer train warm --pairs items -l 1-2 --site resid_post")
    made = notebook.run("%%steer warm:60 -l 1 -n 8 --ignore-eos --positions generated --steps 2:9 --decay 4\nA lens gathers")
    term = current().vectors["warm"].steer(60, layers=1, positions="generated", steps="2:9", decay=4.0)
    alone = [lens.generate("A lens gathers", 8, ignore_eos=True, steer=steer).output_ids for steer in ((), term)]
    assert [list(made.unsteered.output_ids), list(made.steered.output_ids)] == alone
    assert made.first_difference is not None
    assert made.first_difference >= 2
    assert made.prompt == "A lens gathers"
    for line in (
        'warm:60 -l 1 -n 8 {} "A lens gathers"',
        'warm:60 "A lens gathers" -l 1 -n 8 {}',
        '-n 8 -l 1 {} warm:60 "A lens gathers"',
    ):
        again = notebook.run("%steer " + line.format("--ignore-eos --positions generated --steps 2:9 --decay 4"))
        assert again.steered == made.steered
    for line in ('"-hello you"', "-n 2 -- -hello", "-n 2 -- --help"):
        made = notebook.run(f"%steer warm {line}")
        assert made.prompt == line.rpartition("-- ")[2].strip('"')
    for line in ("warm warm", "warm:1 warm:1", "-n 2 warm:1 warm:2", 'warm:1 "A" warm -n 2'):
        assert "the prompt is missing" in notebook.refuses(f"%steer {line}")
    assert notebook.run('%steer warm "warm" -n 1').prompt == "warm"
    notebook.run("%%steer warm:-3 --operator set -n 2 -o both\nA lens")
    assert notebook.shell.user_ns["both"].steering == ("warm set α=-3.0 at resid_post of layer 1,2",)


def test_the_prompt_on_the_line_is_taken_as_it_stands(notebook: Notebook, tmp_path: Path) -> None:
    """Variables are for all else: of the user's, or of the function the line stands in."""
    notebook.run("%steer train warm --pairs items -l 1")
    notebook.shell.user_ns.update(upon="never", alpha=3, line=2, cell=4)
    for prompt in ("Once {upon} a $upon", "{undefined} {", "{alpha}"):
        made = notebook.run(f"%steer -n {{line}} warm:{{alpha}} '{prompt}'")
        assert (made.prompt, made.steering[0][:14], made.options["max_new_tokens"]) == (prompt, "warm add α=3.0", 2)
    notebook.shell.user_ns.update(calls=[], flag="--chat", name="warm")
    for line, prompt in (
        ("warm '{calls.append(1)}'", "{calls.append(1)}"),  # whose value would be None
        ("warm -n 2 $line -n 2", "$line"),  # another word reads the same once expanded
        ("$name '$name' -n {line}", "$name"),
        ("warm '{flag}'", "{flag}"),
        ("warm -n {line} -- '{flag}'", "{flag}"),
        ("warm '{line}' --seed {line}", "{line}"),  # another word reads the same before
    ):
        assert notebook.run(f"%steer {line}").prompt == prompt
    assert notebook.shell.user_ns["calls"] == []
    assert "is not a command of %steer, nor a vector" in notebook.refuses("%steer '{calls.append(1)}'")
    assert notebook.shell.user_ns["calls"] == []
    assert notebook.run("%%steer warm:{alpha} -n {cell}\n{upon}").options["max_new_tokens"] == 4
    notebook.run(f"def save(name):\n    %steer save warm '{tmp_path}/{{name}}.safetensors'\nsave('a b')")
    assert (tmp_path / "a b.safetensors").is_file()
    notebook.run("def one(new):\n    return get_ipython().run_line_magic('steer', 'warm A -n $new -o both')\none(3)")
    assert notebook.shell.user_ns["both"].options["max_new_tokens"] == 3


def test_a_terminal_shows_the_steered_text_to_its_end(notebook: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what comes within a moment of the last time it was drawn."""
    notebook.run("%steer train warm --pairs items -l 1")
    monkeypatch.setattr("lens_magic.view.steered.time", SimpleNamespace(monotonic=itertools.count(1, 0.3 * EVERY_S).__next__))
    notebook.run("%%steer warm:2 -n 8 --ignore-eos -o both\nA lens gathers")
    whole = notebook.shell.user_ns["both"].steered.text.rstrip("\ufffd")  # but for half a character
    assert notebook.output.stdout.startswith(running(whole))


def test_growing_texts_leave_nothing_in_a_saved_notebook(notebook: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[dict[str, str]] = []
    monkeypatch.setattr("IPython.core.displaypub.DisplayPublisher.publish", lambda self, data, *_, **__: shown.append(data))
    monkeypatch.setattr("lens_magic.view.progress.in_notebook", lambda: True)
    with Streaming(current().require_model()) as streaming:
        streaming(("token", 5, 0))
    assert "lens-steered" in shown[0]["text/html"]
    assert shown[-1] == {"text/html": "", "text/plain": ""}


def test_an_interrupt_shows_both_texts_so_far(notebook: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook.run("%steer train warm --pairs items -l 1")
    monkeypatch.setattr("lens_magic.view.steered.Streaming.__call__", lambda self, event: current().group.interrupt())
    error = notebook.run("%%steer warm:2 -n 50 --ignore-eos -o both\nA lens gathers")
    assert isinstance(error, KeyboardInterrupt)
    partial = notebook.shell.user_ns["both"]
    assert partial.interrupted
    assert 0 < len(partial.steered.output_ids) == len(partial.steered.log_prob_change) < 50


@pytest.mark.parametrize("out", ["", " -o both"])
def test_another_interrupt_does_not_cost_the_texts(notebook: Notebook, out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While they are shown; and so for a report."""
    notebook.run("%steer train warm --pairs texts -l 1 --position last")
    monkeypatch.setattr("lens_magic.view.steered.Streaming.__call__", lambda self, event: current().group.interrupt())
    monkeypatch.setattr("lens_magic.view.progress.Bars.__call__", lambda self, event: current().group.interrupt())
    monkeypatch.setattr("lens_magic.steer_magics.display", pressed)
    name = "both" if out else "_"
    error = notebook.run(f"%%steer warm:2 -n 50 --ignore-eos{out}\nA lens gathers")
    tokens = len(notebook.shell.user_ns.pop(name).steered.output_ids)
    assert str(error) == f"stopped after {tokens} token{'s' * (tokens > 1)}; the result so far is in `{name}`"
    error = notebook.run(f"%steer eval warm --data items --alphas -1,1{out}")
    questions = len(notebook.shell.user_ns.pop(name).questions)
    assert str(error) == f"stopped evaluating warm after {questions} questions; the result so far is in `{name}`"


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("comparing._steered_text", "%%steer warm:2 -n 4 --ignore-eos -o made\nA lens gathers"),
        ("steerability._arrange", "%steer eval warm --data items --alphas -1,1 -o made"),
    ],
)
def test_an_interrupt_while_a_result_is_put_together(
    notebook: Notebook, where: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, name = where.split(".")
    make = getattr(import_module(f"lens_magic.{module}"), name)

    def interrupted(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return make(*arguments)

    notebook.run("%steer train warm --pairs texts -l 1 --position last")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(f"lens_magic.{where}", interrupted)
    try:
        error = notebook.run(line)
    finally:
        signal.signal(signal.SIGINT, before)
    assert "the result so far is in `made`" in str(error)
    assert notebook.shell.user_ns.pop("made")


def test_the_lens_under_steering(notebook: Notebook, tmp_path: Path) -> None:
    notebook.run("%steer train warm --pairs items -l 1")
    notebook.run(f"%steer save warm {tmp_path}/w.safetensors")
    expected = lens.run("A lens", 4, ignore_eos=True, steer=current().vectors["warm"] * 40)
    for steer in ("--steer warm:40", "--steer warm:15 --steer warm:25", f"--steer {tmp_path}/w.safetensors:40"):
        run = notebook.run(f"%%lens {steer} -n 4 --ignore-eos -o seen\nA lens") or notebook.shell.user_ns["seen"]
        assert run.output_ids == expected.output_ids
        assert run.options["steering"]


def test_a_term_in_a_variable_steers_with_its_own_choices(notebook: Notebook) -> None:
    notebook.run("%steer train warm --pairs items -l 0-1")
    warm = current().vectors["warm"]
    half = warm.steer(20, layers=1, site="resid_post", positions="generated", decay=2)
    gone = warm.steer(layers=1, operator="ablate")
    notebook.shell.user_ns.update(half=half, gone=gone, both=half + gone)
    expected = lens.run("A lens", 4, ignore_eos=True, steer=half + gone)
    run = notebook.run("%%lens --steer both -n 4 --ignore-eos\nA lens")
    assert run.output_ids == expected.output_ids
    assert run.options["steering"] == expected.options["steering"] == [str(half), str(gone)]
    assert notebook.run("%%steer half:2 warm:3 -n 4 --ignore-eos\nA lens").steering == (str(half * 2), str(warm * 3))
    assert notebook.run('%steer gone -n 2 "A lens"').steering == (str(gone),)
    assert "no strength that 2.0 would change" in notebook.refuses("%%steer gone:2\nA lens")
    words = "'half' is a steering term and has its layers and clip already; here only a vector's can be chosen"
    assert words in notebook.refuses("%%steer half:2 -l 1 --clip 2\nA lens")
    words = "'half' is a steering term, made of vectors, and none itself; those there are: warm"
    assert words in notebook.refuses("%steer eval half --data items")
    notebook.shell.user_ns["warm"] = warm * 2
    words = "%steer keeps another vector 'warm' than the term in the variable; `%steer drop warm` leaves the variable's"
    assert words in notebook.refuses("%%steer warm\nA lens")
    notebook.run("del warm, half, gone, both")


def test_a_chat_is_learnt_and_measured_in(notebook: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    template = "{% for m in messages %}<|user|>[{{ m.role }}] {{ m.content }}<|end|>{% endfor %}"
    monkeypatch.setattr(current().require_model().tokenizer, "chat_template", template)
    made = notebook.run("%steer train talk --pairs items -l 1 --chat")
    assert made == lens.train_vector(questions(), 1, chat=True).named("talk")
    current().vectors["plain"] = notebook.run("%steer train plain --pairs texts -l 1 --position last")
    for line, chat in (("eval plain", False), ("eval plain --chat", True)):
        assert notebook.run(f"%steer {line} --data items --alphas -1,1").provenance["chat"] is chat
    assert notebook.run("%steer sites --pairs texts --data items --sites post_ln --read last -l 1 --chat --alphas -1,1")
    report = notebook.shell.user_ns["_"].reports["post_ln", "last"]
    assert report.provenance["chat"] is True


def test_what_is_shown_is_escaped(notebook: Notebook) -> None:
    vector = lens.train_vector(pairs(), layers=[2], position="last").named("<b>")
    assert "<b>" not in vector._repr_html_()
    assert "&lt;b&gt;" in vector._repr_html_()


def test_sites_compared_are_what_the_function_gives(notebook: Notebook) -> None:
    line = "%steer sites --pairs two --data items --sites post_ln,resid_pre --read last -l 1 --alphas -1,1"
    notebook.shell.user_ns["two"] = questions()[:2]
    made = notebook.run(f"{line} -o where")
    expected = lens.ablate_sites(questions()[:2], questions(), "1", ("post_ln", "resid_pre"), ("last",), alphas=(-1, 1))
    assert made.summary().equals(expected.summary())
    assert notebook.shell.user_ns["where"] is made
    assert "all 5 questions are among those" in notebook.refuses(line.replace("two", "items"))
    assert "position 'first' is not one of label, last, mean" in notebook.refuses(
        line.replace("--read last", "--read label,first")
    )


def test_names_are_as_python_reads_them(notebook: Notebook) -> None:
    """A µ typed on a keyboard is the micro sign; in a program it is the Greek letter."""
    notebook.run("µ = texts")
    made = notebook.run("%steer train µ --pairs µ -l 1 --position last -o ﬁ")
    assert notebook.run("ﬁ") is made
    notebook.run("%steer drop µ")
    assert list(current().vectors) == []
    assert notebook.run("%steer ﬁ:2 -n 2 'A lens'").steering == ("fi add α=2.0 at post_ln of layer 1",)
    notebook.run("del ﬁ, µ")


def test_a_schedule_by_its_name(notebook: Notebook) -> None:
    notebook.run("%steer train warm --pairs items -l 1")
    made = notebook.run("%%steer warm:2 -n 4 --schedule on/off\nA lens")
    assert made.steering == ("warm add α=2.0 at post_ln of layer 1; schedule 1 0 1 0",)
    assert "schedule 'sometimes' is not one of" in notebook.refuses("%%steer warm:2 --schedule sometimes\nA lens")


def test_an_interrupt_shows_what_was_measured(notebook: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook.run("%steer train warm --pairs texts -l 1 --position last")
    monkeypatch.setattr("lens_magic.view.progress.Bars.__call__", lambda self, event: current().group.interrupt())
    error = notebook.run("%steer eval warm --data items --alphas -1,1")
    measured = len(notebook.shell.user_ns["_"].questions)
    assert 0 < measured < 5
    words = f"stopped evaluating warm after {measured} questions; the result so far is in `_`"
    assert error._render_traceback_() == [f"KeyboardInterrupt: {words}"]


def test_an_interrupt_keeps_nothing(notebook: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    from lens_magic.view.progress import Progress

    monkeypatch.setattr(Progress, "update", lambda self, done, total: current().group.interrupt())
    notebook.shell.user_ns["many"] = [{"positive": f"It is {n}", "negative": f"A lamp {n}"} for n in range(80)]
    error = notebook.run("%steer train warm --pairs many -l 1 --position last")
    assert isinstance(error, KeyboardInterrupt)
    assert error._render_traceback_() == ["KeyboardInterrupt: stopped training warm; nothing was kept"]
    assert current().vectors == {}
    monkeypatch.undo()
    assert notebook.run("%steer train warm --pairs many -l 1 --position last").training.texts == 80


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("%steer", "takes a command: train, list, save, load, drop, eval, sites, panel"),
        ("%steer fly", "'fly' is not a command of %steer, nor a vector; train, list, save, load, drop, eval, sites, panel are"),
        ("%steer pannel", "panel are; did you mean panel?"),
        ("%steer trian warm --pairs items", "panel are; did you mean train?"),
        ("%steer fly:2", "the prompt is missing"),
        ("%steer fly:2 prompt", "there is no vector 'fly'"),
        ("%steer -n 4 fly prompt", "there is no vector 'fly'"),
        ("%steer fly:1 -hello", "unknown option -hello; %%steer takes --help"),
        ("%steer fly:1 -now", "; a prompt that begins with - goes last, after --"),
        ("%steer -n 4", "arguments are required: NAME[:ALPHA]"),
        ("%steer --colour red", "unknown option --colour"),
        ("%steer fly:x prompt", "'x' is no number"),
        ("%%steer\nprompt", "arguments are required: NAME[:ALPHA]"),
        ("%%steer fly:nan --colour red\nprompt", "unknown option --colour"),
        ("%steer panel", "there is no vector for the panel"),
        ("%steer train", "arguments are required: NAME, --pairs"),
        ("%steer train warm", "arguments are required: --pairs"),
        ("%steer train list --pairs items", "'list' is a command of %steer and cannot name a vector"),
        ("%steer train a:b --pairs items", "'a:b' cannot name a vector"),
        ("%steer train warm --pairs nothing.jsonl -l 1", "'nothing.jsonl' is no file, and no set of Perez et al."),
        ("%steer train warm --pairs [] -l 1", "'[]' is no file"),
        ("%steer train warm --pairs nowhere -l 1", "there is no variable 'nowhere', and no such file; demo/mood-pairs, demo/"),
        ("%steer train warm --pairs empty -l 1", "there are no items"),
        ("%steer train warm --pairs texts -l 1", "are texts, which have no label"),
        ("%steer train warm --pairs items", "layer 5 is out of range; the model has 4"),
        ("%steer train warm --pairs items -l 1 --colour red", "unknown option --colour"),
        ("%steer train 'warm", "cannot be read"),
        ("%steer save nobody v.safetensors", "there is no vector 'nobody'; %steer train NAME --pairs … makes one"),
        ("%steer load panel v.safetensors", "'panel' is a command of %steer"),
        ("%steer load warm v.safetensors", "there is no file v.safetensors"),
        ("%steer train warm --pairs items -l 1 -o 1x", "--out '1x' is not a variable name"),
        ("%steer drop nobody", "%steer keeps no vector 'nobody'; it keeps none"),
    ],
)
def test_bad_input_is_one_clear_line(notebook: Notebook, line: str, words: str) -> None:
    notebook.shell.user_ns["empty"] = []
    assert words in notebook.refuses(line)
    assert current().vectors == {}


def test_the_last_layer_is_the_models(notebook: Notebook) -> None:
    """Of a vector that has none there, and does not say how many the model has."""
    notebook.shell.user_ns["mine"] = lens.SteeringVector.of({1: range(1, 129), 3: [1] * 128}, "post_ln")
    assert notebook.run("%%steer mine -l -1 -n 2\nA lens").steering[0].endswith("of layer 3")
    notebook.shell.user_ns["mine"] = lens.SteeringVector.of({0: range(1, 129), 1: [1] * 128}, "post_ln")
    assert "'mine' has no direction at layer 3; it has 0,1" in notebook.refuses("%%steer mine -l -1 -n 2\nA lens")


def test_a_vector_of_another_model_is_refused(notebook: Notebook, checkpoints: Checkpoints, tmp_path: Path) -> None:
    notebook.run(f"%steer train warm --pairs items -l 1\n%steer save warm {tmp_path}/v.safetensors")
    notebook.run(f"%lens load {checkpoints('qwen3-odd')}")
    assert "was made for a llama of 4 layers, width 128" in notebook.refuses(f"%steer load warm {tmp_path}/v.safetensors")
    notebook.run(f"%lens load {checkpoints('llama-gqa')}")
    assert len(lens.generate(models.PROMPT, 2, ignore_eos=True, steer=current().vectors["warm"] * 2).output_ids) == 2
