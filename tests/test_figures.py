"""One rank's measures of its rows against plain float64 arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lens_magic.lens import decode, figures
from lens_magic.ranks import memory
from lens_magic.ranks.rank import Rank


@pytest.mark.parametrize("rows", [1, 5, 127, 640, 2600, 2561])
@pytest.mark.parametrize("k", [1, 4])
def test_the_largest_are_those_of_a_stable_sort(rows: int, k: int) -> None:
    torch.manual_seed(rows)
    logits = torch.randn(40, rows)
    logits[20:] = logits[20:].mul(2).round()  # full of ties
    k = min(k, rows)
    values, ids = figures.top(logits, k)
    expected = logits.sort(dim=-1, descending=True, stable=True)
    assert torch.equal(values, expected.values[:, :k])
    assert torch.equal(ids, expected.indices[:, :k])


def test_a_tie_across_groups_goes_to_the_lower_index() -> None:
    logits = torch.zeros(1, 4096)
    logits[0, [4000, 130, 2000, 300]] = 1.0
    assert figures.top(logits, 3)[1].tolist() == [[130, 300, 2000]]
    logits[0, 3500] = 2.0
    assert figures.top(logits, 3)[1].tolist() == [[3500, 130, 300]]


@pytest.mark.parametrize(("keys", "positions", "most"), [(5, 3, 1), (5, 3, 2), (5, 3, 3), (5, 3, 7), (5, 3, 100), (1, 1, 1)])
def test_tiles_cover_every_cell_once(keys: int, positions: int, most: int) -> None:
    seen = torch.zeros(keys, positions)
    for tile in figures.tiles(keys, positions, most):
        seen[tile] += 1
        assert seen[tile].numel() <= most
        assert torch.zeros(keys, positions, 2)[tile].flatten(0, 1).shape[1] == 2
    assert (seen == 1).all()


@pytest.mark.parametrize("tile_cells", [1, 3, 4, 1000])
def test_sums_are_those_of_float64(tile_cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    keys, positions, rows = 5, 3, 3001
    logits = torch.randn(keys, positions, rows) * 6 + 40
    final = torch.randn(positions, rows) * 6 - 25
    target = logits[..., 17].clone()
    z, f = logits.double(), final.double()
    monkeypatch.setattr(figures, "cells_in_tile", lambda device, rows, cells: min(tile_cells, cells))
    output = figures.Output.of(final)
    values, ids, found = figures.read(logits, target, output, 4)

    assert torch.equal(ids, z.topk(4).indices)
    assert torch.equal(values.double(), z.topk(4).values)
    below, below_output = z - z.amax(-1, keepdim=True), f - f.amax(-1, keepdim=True)
    close = {"rtol": 2e-6, "atol": 0.0}
    torch.testing.assert_close(found.total.double(), below.exp().sum(-1), **close)
    torch.testing.assert_close(found.weighted.double(), (below.exp() * below).sum(-1), **close)
    torch.testing.assert_close(found.crossed.double(), torch.einsum("pr,kpr->kp", below_output.exp(), below), **close)
    torch.testing.assert_close(output.total.double(), below_output.exp().sum(-1), **close)
    torch.testing.assert_close(output.own.double(), (below_output.exp() * below_output).sum(-1), **close)
    assert torch.equal(found.above.long(), (z > target[..., None].double()).sum(-1))


def test_a_block_takes_a_share_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decode.block_bytes("cpu", 1 << 40) == decode._BLOCK_BYTES["cpu"]
    assert decode.block_bytes("cpu", 80 << 20) == 10 << 20
    monkeypatch.setenv("LENS_FREE_MEMORY", "12345")
    assert memory.free_memory(Rank(), torch.device("cpu")) == 12345


def test_free_memory_stays_below_the_limits_of_control_groups(tmp_path: Path) -> None:
    """A limit holds for every group below it; what files take of it can be had again."""
    own = tmp_path / "cgroup"
    own.write_text("0::/outer/inner\n")
    for name, limit, used, files in (("outer", "1000", "700", "200"), ("outer/inner", "max", "600", "0")):
        folder = tmp_path / "fs" / name
        folder.mkdir(parents=True)
        for file, content in (
            ("memory.max", limit),
            ("memory.current", used),
            ("memory.stat", f"anon 1\ninactive_file {files}"),
        ):
            (folder / file).write_text(content)
    assert list(memory._left_in_control_groups(tmp_path / "fs", own)) == [500]
    assert memory.host_memory() > 0
