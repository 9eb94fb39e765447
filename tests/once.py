"""What is loaded or read once, for all the tests that leave it as it is."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import models
from transformers import PreTrainedModel

import lens_magic as lens
from lens_magic.session import Model, current

_loaded: list[Model] = []  # what `load` had loaded last


def load(folder: Path | str, ranks: int = 1) -> None:
    """Load a checkpoint, unless it is on as many ranks already, by this function, and nothing has taken its place since.

    Tests of loading load themselves, and so do those that spoil what they have loaded.
    """
    session = current()
    group = session.running_group
    there = group is not None and group.size == ranks and group.usable
    if there and _loaded and session.model is _loaded[0] and _loaded[0].name == str(folder):
        return
    _loaded.clear()
    lens.load(str(folder), ranks=ranks)
    _loaded.append(session.require_model())


@functools.cache
def plain(folder: Path) -> tuple[PreTrainedModel, Any]:
    """A checkpoint of the session's, and its tokenizer, as transformers alone reads them."""
    return models.load_plain(folder)
