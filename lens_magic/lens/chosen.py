"""The lens options (``lens=``, ``norm=``, ``track=``): checks, and the compact form that is sent to the ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import LensError
from ..model.tokens import encode_rest, token_texts
from ..options import choice, token_ids
from ..paths import path_of
from .basis import Basis, load_basis
from .projector import NORMS, Look
from .translators import TunedLens, load_tuned_lens

Track = bool | str | int | Iterable[str | int]
MOST_FIRST = 8
"""Most tokens per position that ``track=True`` follows, of those ranked first in some layer."""
MOST_TRACKED = 64


def as_lens(given: Any) -> TunedLens | Basis | None:
    """Return a tuned lens or a basis, reading it if a path is given; None stands for the logit lens.

    Raises:
        LensError: it is neither, or cannot be read.
    """
    if given is None or isinstance(given, TunedLens | Basis):
        return given
    if not isinstance(given, str | Path):
        raise LensError(f"lens= takes a TunedLens, a Basis, or a path of one, not {type(given).__name__}")
    path = path_of(given)
    if not path.exists():
        raise LensError(f"{str(given)!r} is no tuned lens or basis: there is no such file or folder")
    return load_basis(path) if path.is_file() and _holds_a_matrix(path) else load_tuned_lens(path)


def _holds_a_matrix(file: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            return list(opened.keys()) == ["matrix"]
    except (OSError, SafetensorError):
        return False  # load_tuned_lens then says what is wrong with it


def look(lens: TunedLens | Basis | None, norm: str, track: Track, model: Any, sites: Sequence[str]) -> Look:
    """Check the lens options and return them as the ranks take them.

    Args:
        model: name, width, layers, vocabulary, fingerprint and tokenizer of the model (:class:`lens_magic.session.Model`).
        sites: the captured sites.

    Raises:
        LensError: the lens does not fit the model, the norm does not fit lens or sites, or a text is not one token.
    """
    choice("norm", norm, NORMS)
    if norm == "none" and not isinstance(lens, Basis):
        raise LensError("norm 'none' is for a Basis: the model's head reads normalised states only; own or frozen would do")
    if norm == "frozen" and isinstance(lens, TunedLens):
        raise LensError(
            "a tuned lens takes states to where the model's own norm reads them; leave norm 'frozen' or the lens out"
        )
    if norm == "frozen" and "post_ln" in sites:
        raise LensError("post_ln is no part of the residual stream, so it has no frozen norm; leave it out of the sites")
    followed, first = _track(track, model, lens.labels if isinstance(lens, Basis) else None)
    if lens is None:
        return Look(norm=norm, track=followed, track_first=first)
    if isinstance(lens, Basis):
        lens.check_fits(model.name, model.width)
        return Look(lens.digest, "basis", lens.name, len(lens), norm, followed, first)
    lens.check_fits(model.name, model.width, model.layers, model.fingerprint)
    return Look(lens.digest, "tuned", lens.model or "tuned lens", 0, norm, followed, first)


def _track(track: Track, model: Any, labels: Sequence[str] | None) -> tuple[tuple[int, ...], int]:
    """Return the ids to follow, and how many of those ranked first to follow instead (0 if ids are given)."""
    if track is True:
        return (), MOST_FIRST
    if track is False:
        return (), 0
    size = model.vocabulary if labels is None else len(labels)
    read: Callable[[str], int] = (
        (lambda text: _token(model.tokenizer, text)) if labels is None else (lambda t: _label(t, labels))
    )
    ids = token_ids("track", track, read)
    for index in ids:
        if not 0 <= index < size:
            raise LensError(f"track: {index} is out of range; ids go from 0 to {size - 1}")
    if len(ids) > MOST_TRACKED:
        raise LensError(f"{len(ids)} tokens to track are too many; at most {MOST_TRACKED} would do")
    return tuple(ids), 0


def _token(tokenizer: Any, text: str) -> int:
    """Return the id of the one token that a text is."""
    if not text:
        raise LensError("there is an empty text among the tokens to track; ' Paris, Rome' or id:42 would do")
    ids = encode_rest(tokenizer, text)
    if len(ids) == 1:
        return ids[0]
    parts = token_texts(tokenizer, ids)
    shown = ", ".join(repr(parts[index]) for index in ids[:4]) + (", …" if len(ids) > 4 else "")
    hint = f"; with a space before it, {' ' + text!r}, it is one" if len(encode_rest(tokenizer, f" {text}")) == 1 else ""
    raise LensError(f"{text[:80]!r} is {len(ids)} tokens ({shown}), and only single tokens can be tracked{hint}")


def _label(text: str, labels: Sequence[str]) -> int:
    found = [index for index, label in enumerate(labels) if label == text] or [
        index for index, label in enumerate(labels) if label == text.strip()
    ]
    if len(found) != 1:
        raise LensError(
            f"{'several directions are' if found else 'no direction is'} labelled {text[:80]!r}; ids work too (id:0)"
        )
    return found[0]
