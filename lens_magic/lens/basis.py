"""A user-defined basis: directions of the residual stream that take the place of the vocabulary."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import LensError
from ..options import listed
from ..paths import path_of
from ..writing import written_whole
from .digest import digest_of


@dataclass(frozen=True, eq=False)
class Basis:
    """Directions to project states onto: ``lens.run(prompt, lens=lens.Basis(matrix, labels))``.

    A cell's candidates are then directions j = 0 … n − 1, its logits ``matrix @ norm(h)``, and its probabilities a softmax
    over these n logits. No direction is the target, so ``target_rank`` is −1 and ``target_prob`` NaN. ``kl_final`` compares
    with the model's final state projected onto the same directions.

    Args:
        matrix: ``[n, d]``, anything torch or numpy can read; kept in float32.
        labels: n texts; by default ``direction 0``, ….
        name: its name in results.

    Raises:
        LensError: not a matrix of finite numbers, or not one label per row.
    """

    matrix: torch.Tensor
    labels: Sequence[str]
    name: str

    def __init__(self, matrix: Any, labels: Sequence[str] | None = None, name: str = "basis") -> None:
        try:
            given = torch.as_tensor(matrix, device="cpu").detach()
            if given.is_complex():  # of which the imaginary part would be lost
                raise LensError("a basis should be a matrix of real numbers, not of complex ones")
            rows = given.to(torch.float32).clone()
        except (TypeError, ValueError, RuntimeError) as error:
            raise LensError(f"a basis should be a matrix of numbers, not {type(matrix).__name__}") from error
        if rows.ndim != 2 or 0 in rows.shape:
            raise LensError(f"a basis should be a matrix [directions, width]; this has shape {list(rows.shape)}")
        if not bool(rows.isfinite().all()):
            raise LensError("the basis holds numbers that are not finite")
        if labels is None:
            labels = [f"direction {row}" for row in range(len(rows))]
        several = listed(labels)
        texts = [str(text) for text in several or ()]
        if len(texts) != len(rows):
            told = f"{len(texts)} labels" if several is not None else f"{str(labels)[:40]!r} as labels"
            raise LensError(f"the basis has {len(rows)} directions and {told}; a list of {len(rows)} texts would do")
        for text in (*texts, str(name)):
            try:
                text.encode()
            except UnicodeEncodeError:  # which no file could hold
                raise LensError(f"{text[:40]!r} holds half a character and can name no direction or basis") from None
        object.__setattr__(self, "matrix", rows)
        object.__setattr__(self, "labels", tuple(texts))
        object.__setattr__(self, "name", str(name))

    @property
    def width(self) -> int:
        """Width of the residual stream."""
        return int(self.matrix.shape[1])

    def __len__(self) -> int:
        return int(self.matrix.shape[0])

    @property
    def digest(self) -> str:
        """SHA-256 of the matrix."""
        return digest_of(self, [self.matrix])

    def check_fits(self, name: str, width: int) -> None:
        """Check that the directions have the width of a model's residual stream.

        Raises:
            LensError: they have another width.
        """
        if self.width != width:
            raise LensError(f"the directions of {self.name!r} have width {self.width}; {name} has width {width}")

    def save(self, path: str | Path) -> Path:
        """Write ``matrix``, with labels and name, as one safetensors file; :func:`load_basis` reads it.

        Raises:
            LensError: the path does not end in ``.safetensors``, or its folder does not exist.
        """
        from safetensors.torch import save

        target = path_of(path)
        if target.suffix != ".safetensors" or not target.parent.is_dir():
            raise LensError(f"{str(target)!r} should end in .safetensors, in a folder that is there")
        record = {"basis": json.dumps({"labels": self.labels, "name": self.name})}
        with written_whole(target) as partial:
            partial.write_bytes(save({"matrix": self.matrix}, metadata=record))
        return target

    def __repr__(self) -> str:
        return f"<Basis {self.name!r}: {len(self)} directions of width {self.width}>"


def load_basis(path: str | Path) -> Basis:
    """Read a basis that :meth:`Basis.save` wrote, or a safetensors file with one tensor named ``matrix``.

    Raises:
        LensError: there is no such file, or it holds something else.
    """
    from safetensors import SafetensorError, safe_open

    file = path_of(path)
    if not file.is_file():
        raise LensError(f"there is no file {file}")
    try:
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
            if names != ["matrix"]:
                raise LensError(f"{file} holds {', '.join(names[:3]) or 'nothing'}; a basis is one tensor named matrix")
            matrix = opened.get_tensor("matrix")
            stated = dict(json.loads((opened.metadata() or {}).get("basis", "{}")))
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise LensError(f"{file} is damaged or incomplete: {error}") from error
    labels, name = stated.get("labels"), stated.get("name", file.stem)
    if not (labels is None or isinstance(labels, list)) or not all(isinstance(text, str) for text in (*(labels or ()), name)):
        raise LensError(f"{file} is damaged: its labels or its name are no texts")
    return Basis(matrix, labels, name)
