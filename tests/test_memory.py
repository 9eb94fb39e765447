"""Ranks on one host share the checkpoint's pages: n ranks do not need n copies."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import models
import pytest
import torch

import lens_magic as lens
from lens_magic.session import current

RANKS = 4
ALLOWANCE = 48 << 20  # bytes a rank: allocator slack and the sharded modules' own objects


def proportional(pids: list[int]) -> int:
    """Bytes of all processes together, shared pages counted once.

    Without libraries: a page's share grows when another process that had it mapped ends.
    """
    total, counts = 0, True
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
            if line.startswith("Pss:"):
                total += counts * int(line.split()[1]) * 1024
            elif "-" in line.split(maxsplit=1)[0]:  # a mapping's first line, which ends with its file
                counts = ".so" not in line
    return total


class Watch(threading.Thread):
    """The largest memory of all ranks together while it runs."""

    def __init__(self, pids: list[int]) -> None:
        super().__init__(daemon=True)
        self.pids, self.most, self.going = pids, 0, True

    def run(self) -> None:
        while self.going:
            self.most = max(self.most, proportional(self.pids))
            time.sleep(0.01)


@pytest.mark.ranks(RANKS)
@pytest.mark.skipif(torch.cuda.is_available(), reason="weights are on the GPU there")
def test_ranks_share_the_pages(large: Path, checkpoints: Callable[[str], Path]) -> None:
    lens.load(str(checkpoints("llama-gqa")), ranks=RANKS)  # everything is imported and connected
    lens.run(models.PROMPT, 4)
    pids = [rank["pid"] for rank in lens.status().ranks]
    before = proportional(pids)
    watch = Watch(pids)
    watch.start()
    lens.load(str(large), ranks=RANKS)
    watch.going = False
    watch.join()
    lens.run(models.PROMPT, 4)
    after = proportional(pids)
    size = current().require_model().checkpoint.weight_bytes  # type: ignore[union-attr]
    loading, afterwards = (watch.most - before) / size, (after - before) / size
    print(f"checkpoint {size / 1e6:.0f} MB: {loading:.2f} × while loading, {afterwards:.2f} × after a run")
    assert watch.most - before <= 1.5 * size + RANKS * ALLOWANCE
    assert after - before <= 1.5 * size + RANKS * ALLOWANCE
