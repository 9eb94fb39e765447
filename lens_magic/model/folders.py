"""Where the files of a model are: in a folder here, or in one that the hub's library fetches them to."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from ..errors import LensError, reason_of
from ..paths import path_of

_HUB_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
_SAME_AGAIN = ["consolidated*", "original/*"]  # the same weights once more, under their publishers' names


def model_folder(name: str, revision: str | None = None, trust_remote_code: bool = False) -> Path:
    """Return the folder of a model; one on the hub is fetched (with the hub library's own progress bars), no pickled weights.

    Args:
        name: a folder, a hub id, or "demo".
        trust_remote_code: fetch code too.

    Raises:
        LensError: there is no such model.
    """
    if here := _here(name):
        if revision is not None:
            raise LensError(f"only a model of the hub has revisions, and {name!r} is a folder here; leave {revision!r} out")
        return here
    _require_id(name)
    files = [*_HUB_FILES, *(["*.py"] if trust_remote_code else [])]
    with _fetching(name):
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, revision=revision, allow_patterns=files, ignore_patterns=_SAME_AGAIN))


def config_folder(name: str) -> Path:
    """Return a folder with a model's config.json; for a model on the hub nothing else is fetched.

    Args:
        name: as for :func:`model_folder`, or a config.json.

    Raises:
        LensError: there is no such model.
    """
    given = path_of(name)
    if given.name == "config.json" and given.is_file():
        return given.parent
    if here := _here(name):
        return here
    _require_id(name)
    with _fetching(name):
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(name, "config.json")).parent


def _require_id(name: str) -> None:
    """Refuse what is no folder and cannot be the name of a model on the hub."""
    if Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise LensError(f"{name!r} is not a folder")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise LensError(f"{name!r} is neither a folder, nor a hub id (owner/model), nor 'demo'")


def _here(name: str) -> Path | None:
    """Return the folder of the embedded model or of a model on this machine; None if it is neither."""
    if name == "demo":
        from ..demo import path

        return path()
    folder = path_of(name)
    return folder.resolve() if folder.is_dir() else None


@contextlib.contextmanager
def _fetching(name: str) -> Iterator[None]:
    """Turn whatever the hub's library raises in a ``with`` block into one error; its errors have no common base."""
    try:
        yield
    except Exception as error:
        reason = reason_of(error, whole=True)
        raise LensError(f"{name!r} is neither a folder here nor could it be fetched from the hub: {reason}") from error
