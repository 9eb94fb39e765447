"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lens_magic.errors import LensError
from lens_magic.lens.basis import load_basis
from lens_magic.model.checkpoint import find
from lens_magic.model.folders import config_folder
from lens_magic.paths import path_of
from lens_magic.writing import written_whole


def write(path: str | Path, text: str) -> None:
    with written_whole(path) as partial:
        partial.write_text(text)


def half_write(path: Path, error: Exception) -> None:
    path.write_text("half")
    raise error


@pytest.mark.parametrize("error", [OSError(28, "No space left"), RuntimeError("No space left\nby HDF5")])
def test_what_fails_leaves_what_was_there(error: Exception, tmp_path: Path) -> None:
    target = tmp_path / "run.json"
    write(target, "old")
    with pytest.raises(LensError, match=r"cannot be written: No space left$"), written_whole(target) as partial:
        half_write(partial, error)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_link_stays_a_link_and_what_is_private_stays_private(tmp_path: Path) -> None:
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    real.write_text("old")
    real.chmod(0o600)
    link.symlink_to(real)
    write(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"
    assert real.stat().st_mode & 0o777 == 0o600


def write_folder(path: Path, **files: str) -> None:
    with written_whole(path) as partial:
        partial.mkdir()
        for name, text in files.items():
            (partial / name).write_text(text)


def test_a_folder_replaces_another_with_all_that_is_in_it(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    write_folder(real, a="old", b="old")
    real.chmod(0o700)
    link.symlink_to(real)
    write_folder(link, a="new")
    assert link.is_symlink()
    assert [(file.name, file.read_text()) for file in real.iterdir()] == [("a", "new")]
    assert real.stat().st_mode & 0o777 == 0o700
    with pytest.raises(LensError, match="cannot be written: No such file or directory"):
        write_folder(real, **{"no/folder": "new"})
    assert [(file.name, file.read_text()) for file in real.iterdir()] == [("a", "new")]
    assert sorted(tmp_path.iterdir()) == [link, real]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_threads_that_write_the_same_do_not_meet(kind: str, tmp_path: Path) -> None:
    target, together = tmp_path / "same", threading.Barrier(4)

    def work(number: int) -> None:
        for _ in range(20):
            together.wait(10)
            if kind == "file":
                write(target, str(number))
            else:
                write_folder(target, text=str(number))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert list(tmp_path.iterdir()) == [target]
    assert (target if kind == "file" else target / "text").read_text() in "0123"


def test_a_name_may_be_as_long_as_names_are(tmp_path: Path) -> None:
    write(tmp_path / ("n" * 255), "text")
    with pytest.raises(LensError, match="is no path of a file or folder: File name too long; a path would do"):
        write(tmp_path / ("n" * 256), "text")


@pytest.mark.parametrize("path", ["", ".", "/", "~nobody_of_that_name/run.json", "run\0.json", "run\ud83d.json"])
def test_what_is_no_file_is_refused_in_one_line(path: str) -> None:
    with pytest.raises(LensError, match="is no path of a file") as refused:
        write(path, "text")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("given", [None, 5, b"run.json", []])
def test_what_is_neither_text_nor_a_path_is_refused(given: Any) -> None:
    with pytest.raises(LensError, match=f"text or a pathlib.Path, not {type(given).__name__}$"):
        path_of(given)


@pytest.mark.parametrize("text", ["x" * 300, '[{"question": "Do you like ' + "y" * 300, "a/" * 3000])
def test_a_text_longer_than_paths_are_is_quoted_in_part(text: str) -> None:
    with pytest.raises(LensError, match=r"File name too long; a path would do, not a file's contents$") as refused:
        path_of(text)
    assert len(str(refused.value)) < 200


def test_an_empty_path_is_not_the_working_folder() -> None:
    for uses in (path_of, find_one_rank, config_folder, load_basis):
        with pytest.raises(LensError, match=r"^'' is no path of a file or folder: it is empty; the name of"):
            uses("")


def find_one_rank(name: str) -> Any:
    return find(name, 1)
