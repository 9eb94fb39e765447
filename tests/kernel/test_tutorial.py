"""The second tutorial, executed on the Lens kernel."""

from __future__ import annotations

from pathlib import Path

import pytest
from driver import Kernel

pytestmark = [pytest.mark.kernel, pytest.mark.ranks("own")]

TUTORIAL = Path(__file__).parents[2] / "notebooks" / "02-steering.ipynb"


def test_every_cell_runs_and_steering_turns_the_text(kernel: Kernel) -> None:
    nbformat = pytest.importorskip("nbformat")
    cells = [cell.source for cell in nbformat.read(TUTORIAL, as_version=4).cells if cell.cell_type == "code"]
    replies = [kernel.ok(cell) for cell in cells]
    said = "\n".join(reply.text for reply in replies)
    assert "they part at token" in said
    parted = kernel.value("change.parts_at.tolist()")
    assert 4 in parted, "the layer that is steered is the first to part"
    assert set(parted) <= {-1, 4, 5, 6, 7}
