"""The memory that ranks of one host share for small collectives, and MPI in its place."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator

import probes
import psutil
import pytest

from lens_magic.errors import RankError, RanksLost
from lens_magic.ranks import board, collectives
from lens_magic.ranks.environment import runtime_folder
from lens_magic.ranks.group import Group
from lens_magic.session import current

pytestmark = pytest.mark.ranks("own")


@pytest.fixture(params=["board", "mpi"])
def pair(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Group]:
    """Two ranks with a board; or without, as where there is no room for its memory."""
    current().close()  # torch.distributed of this process belongs to one group at a time
    if request.param == "mpi":
        monkeypatch.setattr(board, "_make_file", lambda size: "")
    made = Group(2)
    yield made
    made.close()
    collectives.disconnect()


def test_both_ways_give_the_same(pair: Group, request: pytest.FixtureRequest) -> None:
    for found in pair.call(probes.sizes, [0, 1, 1000, board.CAPACITY // 4 + 1]):
        assert all(found), found
    assert pair.call(probes.has_board) == [request.node.callspec.params["pair"] == "board"] * 2
    assert pair.call(probes.in_a_hurry, 500, 3) == [0, 0]
    with pytest.raises(RankError, match="planned on 1"):
        pair.call(probes.fail_while_others_sum, 1)
    assert pair.call(probes.in_a_hurry, 500, 4) == [0, 0]


def test_a_rank_that_dies_releases_those_that_wait_for_its_part(pair: Group) -> None:
    assert pair.call(probes.in_a_hurry, 10, 3) == [0, 0]
    worker = next(pid for rank, pid, _ in pair.processes() if rank == 1)
    psutil.Process(worker).send_signal(signal.SIGSTOP)  # it comes to no exchange any more

    def kill_it(event: object) -> None:
        psutil.Process(worker).kill()

    with pytest.raises(RanksLost, match=re.escape("rank 1")):
        pair.call(probes.tell_and_sum, on_event=kill_it)


def test_its_memory_is_this_users_alone_and_has_no_name(pair: Group) -> None:
    pair.call(probes.in_a_hurry, 10, 3)
    assert not list(runtime_folder().glob("board-*"))
    assert runtime_folder().stat().st_mode & 0o077 == 0
