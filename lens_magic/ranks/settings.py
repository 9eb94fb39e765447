"""The torch settings under which a call runs: the same on every rank, whatever the user has set for rank 0's process."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

_EXACT = ("none", "ieee")  # of float32 products: the first is that nothing has been chosen


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Run the ``with`` block with torch's settings as they are in a fresh process, and restore the user's afterwards.

    They are the default dtype and device, autocast, the modes of autograd, and the precision of float32 products. They would
    change rank 0 alone: tensors that ranks exchange would have other types, or be on other devices or less exact there.
    Without torch there is nothing to do.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    dtype = torch.get_default_dtype()
    products = [(kind, kind.fp32_precision) for kind in (torch.backends.mkldnn.matmul, torch.backends.cuda.matmul)]
    with contextlib.ExitStack() as settings:
        for kind, precision in products:
            if precision not in _EXACT:
                settings.callback(setattr, kind, "fp32_precision", precision)
                kind.fp32_precision = "ieee"
        settings.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float32)
        if torch.is_inference_mode_enabled():  # not always, as leaving it undoes a mode that the call has entered and left on
            settings.enter_context(torch.inference_mode(False))  # first: it also sets the other mode
        settings.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                settings.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":  # not always, as it slows down every operation
            settings.enter_context(torch.device("cpu"))
        yield
