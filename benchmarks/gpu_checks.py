"""What is looked at on a GPU before anything is timed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock


def in_a_line(error: Exception) -> str:
    """What an error says, its first line and no more than fits a table."""
    words = " ".join(f"{type(error).__name__}: {error}".splitlines()[0].replace("|", "/").split())
    return words if len(words) <= 200 else f"{words[:200]} …"


def kernels_not_used() -> dict[str, str]:
    """Our own kernels that torch's operations stand in for here, and why."""
    import torch

    from lens_magic.gpu import attention, onepass, steps

    device = torch.device("cuda", 0)
    reasons = {
        "the projection's": onepass.trouble(device, torch.float32),
        "decode steps'": steps.trouble(device, torch.bfloat16),
        "attention's": attention.trouble(device, torch.bfloat16),
    }
    return {whose: reason for whose, reason in reasons.items() if reason is not None}


@contextlib.contextmanager
def recordings() -> Iterator[list[bool]]:
    """Notes each decode step that is to be recorded, and whether it could be."""
    from lens_magic.model.graph import OnGPU

    found: list[bool] = []
    record = OnGPU.record

    def noted(recorder: OnGPU, step: Callable[[], Any]) -> Any:
        replay, result = record(recorder, step)
        found.append(replay is not None)
        return replay, result

    with mock.patch.object(OnGPU, "record", noted):
        yield found
