"""The digest that identifies a lens, to the ranks that hold it and in a run's record."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch

_TAKEN: WeakKeyDictionary[Any, tuple[list[int | None], str]] = WeakKeyDictionary()
"""Each lens's digest with the versions of its tensors when it was taken; hashing gigabytes takes seconds."""


def digest_of(lens: Any, tensors: Sequence[torch.Tensor]) -> str:
    """Return the SHA-256 of a lens's tensors, recomputed if one was changed in place."""
    # Tensors made in inference mode have no version counter.
    versions = [None if tensor.is_inference() else tensor._version for tensor in tensors]
    known, digest = _TAKEN.get(lens, (None, ""))
    if versions != known or None in versions:
        hashed = hashlib.sha256()
        for tensor in tensors:
            hashed.update(tensor.contiguous().numpy().data)
        digest = hashed.hexdigest()
        _TAKEN[lens] = versions, digest
    return digest
