"""The torch settings under which a call runs: the same on every rank, whatever the user has set for rank 0's process."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Run the ``with`` block with torch's settings as they are in a fresh process, and restore the user's afterwards.

    They are the default dtype and device, autocast, and the modes of autograd. They would change rank 0 alone: tensors that
    ranks exchange would have other types or be on other devices there. Without torch there is nothing to do.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    dtype = torch.get_default_dtype()
    with contextlib.ExitStack() as settings:
        settings.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float32)
        settings.enter_context(torch.inference_mode(False))  # first: it also sets the other mode
        settings.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                settings.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":  # not always, as it slows down every operation
            settings.enter_context(torch.device("cpu"))
        yield
