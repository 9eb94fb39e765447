"""What tells one model's weights from another's, without reading hundreds of gigabytes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a checkpoint is found before torch is needed
    from torch import nn

_SAMPLES, _SAMPLE_BYTES = 64, 1 << 16  # of a file
_NUMBERS = 1024  # of a tensor
_IN_MEMORY = "memory:"


def of_files(folder: Path, files: list[Path]) -> str:
    """Return the SHA-256 of the configuration and of every weight file's name, size and 64 evenly spaced samples of 64 KiB.

    Fine-tunes of one model differ in it too.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}".encode())
        with file.open("rb") as stream:
            for sample in range(_SAMPLES):
                stream.seek(max(0, size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1))
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def of_module(model: nn.Module) -> str:
    """Return the SHA-256 of every parameter's name, type, shape and some 1,024 evenly spaced numbers, as they are now.

    It begins with a mark: it cannot be compared with that of files (:func:`comparable`).
    """
    import torch

    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name}:{parameter.dtype}:{tuple(parameter.shape)}".encode())
        if type(values := parameter.detach()) is torch.Tensor:  # what is in a quantised or a split one, its own class knows
            flat = values.reshape(-1)
            some = flat[:: max(1, flat.numel() // _NUMBERS)].contiguous().cpu()
            digest.update(some.view(torch.uint8).numpy().tobytes())
    return _IN_MEMORY + digest.hexdigest()


def comparable(one: str | None, other: str | None) -> bool:
    """Whether two fingerprints, empty if unknown, can say that weights are the same or differ."""
    return bool(one and other) and str(one).startswith(_IN_MEMORY) == str(other).startswith(_IN_MEMORY)


def differ(one: str | None, other: str | None) -> bool:
    """Whether two fingerprints say that weights differ."""
    return comparable(one, other) and one != other
