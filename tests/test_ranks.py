"""The group of ranks: calls, failures, interrupts, deaths, and what is left behind."""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import probes
import psutil
import pytest
import torch
import torch.distributed as dist

from lens_magic.errors import Interrupted, LensError, RankError, RanksLost
from lens_magic.ranks import board, channel, collectives, environment, forks, memory, start, worker
from lens_magic.ranks.board import CAPACITY
from lens_magic.ranks.environment import prepare, runtime_folder
from lens_magic.ranks.group import Group
from lens_magic.ranks.rank import Rank
from lens_magic.session import current

pytestmark = pytest.mark.ranks("own")


@pytest.fixture(scope="module", params=[1, 2, 3], ids=lambda size: f"{size}-ranks")
def group(request: pytest.FixtureRequest) -> Iterator[Group]:
    current().close()  # torch.distributed of this process belongs to one group at a time
    made = Group(request.param)
    yield made
    made.close()
    collectives.disconnect()
    # What the ranks shared goes with them: a restart would leave a file in memory, mapped, and another on the way to it.
    held = [str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    assert not [path for path in held if f"{runtime_folder()}/board" in path]
    assert not list(runtime_folder().glob("store-*"))


@pytest.fixture
def pair() -> Iterator[Group]:
    """Two ranks of one's own, to lose."""
    made = Group(2)
    yield made
    made.close()


def workers(group: Group) -> list[psutil.Process]:
    return [psutil.Process(pid) for rank, pid, _ in group.processes() if rank > 0]


def test_a_rank_that_fails_before_it_meets_the_others_leaves_none_waiting(
    group: Group, capfd: pytest.CaptureFixture[str]
) -> None:
    """As where its GPU cannot be had. (First here: connected ranks do not meet again.)"""
    for who in range(group.size):
        with pytest.raises((ValueError, RankError), match=f"planned on {who}"):
            group.call(probes.connect_but, who)
    assert group.call(probes.connect_but, -1) == [group.size > 1] * group.size
    assert capfd.readouterr().err == "", "nothing for MPI to complain of"
    assert not list(runtime_folder().glob("board-*"))


@pytest.mark.parametrize(
    ("other", "backend", "free"),
    [
        ("here GPU-b", "nccl", 140),  # each is shown one GPU, as number 0, by a batch scheduler
        ("there GPU-c", "nccl", 140),
        ("here GPU-a", "lens_mpi", 70),  # NCCL refuses one that is shared
        ("", "lens_mpi", 140),  # one with a GPU would otherwise wait, in NCCL, for those of a host without
    ],
)
def test_ranks_compare_their_gpus(other: str, backend: str, free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 0)
    answers = {"is_available": True, "device_count": 1, "mem_get_info": (140, 140), "memory_reserved": 0, "memory_allocated": 0}
    answers |= {"get_device_properties": SimpleNamespace(uuid="GPU-a")}
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(socket, "gethostname", lambda: "here")
    rank = Rank()
    rank.size = rank.local_size = 2
    monkeypatch.setattr(rank, "texts", lambda own: [own, other])
    assert memory.free_memory(rank, device) == 70, "not compared yet: two ranks that see one GPU"
    assert collectives.backend_for(rank) == backend
    assert rank.gpus == ["here GPU-a", other]
    assert memory.free_memory(rank, device) == free


@pytest.mark.parametrize(
    ("usable", "cores"),
    [
        ([{0, 1}] * 2, 1),
        ([{0, 1}] * 4, Fraction(1, 2)),
        ([{0, 1, 2, 3}, {4, 5, 6, 7}], 4),  # a launcher has bound each to its own
        ([{0, 1, 2}, {2, 3}], Fraction(5, 2)),
        ([set(range(7))] * 7, 1),
    ],
)
def test_ranks_share_the_processors_they_may_use(
    usable: list[set[int]], cores: Fraction, monkeypatch: pytest.MonkeyPatch
) -> None:
    start.load_mpi()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: usable[0])
    local = SimpleNamespace(rank=0, size=len(usable), allgather=lambda own: usable, Free=lambda: None)
    rank = Rank(SimpleNamespace(rank=0, size=len(usable), Dup=lambda: None, Split_type=lambda kind: local))
    assert (rank.local_size, rank.cores) == (len(usable), cores)


@pytest.mark.parametrize(("cores", "threads"), [(9, 5), (Fraction(7, 2), 3), (Fraction(1, 2), 1)])
def test_a_rank_has_no_more_threads_than_cores_nor_than_it_was_told(
    cores: int | Fraction, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By ``OMP_NUM_THREADS``, say."""

    def enough(_: Rank) -> str:
        raise InterruptedError

    current().close()
    collectives.disconnect()
    monkeypatch.setattr(collectives, "backend_for", enough)
    rank, before = Rank(), torch.get_num_threads()
    rank.size, rank.cores = 2, Fraction(cores)
    torch.set_num_threads(5)
    try:
        with pytest.raises(InterruptedError):
            collectives.connect(rank)
        assert torch.get_num_threads() == threads
        collectives.disconnect()
        assert torch.get_num_threads() == 5
    finally:
        torch.set_num_threads(before)


def test_ranks_of_several_hosts_meet_without_a_common_folder(pair: Group) -> None:
    collectives.disconnect()  # from the ranks of the tests before
    try:
        assert pair.call(probes.meet_from_afar) == [("TCPStore", 3.0)] * 2
    finally:
        pair.close()
        collectives.disconnect()


def test_a_service_has_no_home_and_mpi_wants_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it MPI_Init ends the process."""
    monkeypatch.delenv("HOME")
    prepare()
    assert Path(os.environ["HOME"]).is_absolute()


def test_a_call_runs_on_every_rank(group: Group) -> None:
    assert group.call(probes.place) == [(rank, group.size) for rank in range(group.size)]


def test_tensors_travel_as_values(group: Group) -> None:
    """Not as shared memory of a process, which the receiver would have to ask for and may not outlive."""
    sent = torch.arange(5.0)
    for number, received in enumerate(group.call(probes.plus_rank, sent)):
        assert received.tolist() == [value + number for value in range(5)]


def test_a_message_is_read_while_the_package_it_needs_is_being_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python fails one of two imports that wait for each other: a tensor came while a new rank was importing torch."""
    package = tmp_path / "slow" / "__init__.py"
    package.parent.mkdir()
    package.write_text("from . import part\n")
    package.with_name("part.py").write_text("class Thing:\n    pass\n")
    begun, imported = threading.Event(), []

    class Slowly(SourceFileLoader):
        def create_module(self, spec: ModuleSpec) -> None:
            """When it is called, the importing thread has locked the module, and Python does not know it yet."""
            begun.set()
            time.sleep(0.5)

    class Finder:
        def find_spec(self, name: str, *where: Any) -> ModuleSpec | None:
            return spec_from_file_location(name, package, loader=Slowly(name, str(package))) if name == "slow" else None

    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    importing = threading.Thread(target=lambda: imported.append(importlib.import_module("slow")))
    importing.start()
    assert begun.wait(10)
    ours, theirs = multiprocessing.Pipe()
    ours.send_bytes(pickle.dumps(1) + b"cslow.part\nThing\n.")
    received = channel.Link(theirs).receive()
    importing.join(10)
    assert [received] == [module.part.Thing for module in imported]


def test_what_a_rank_cannot_read_fails_the_call_alone(pair: Group) -> None:
    """It took the rank for dead, and the rank the living rank 0, whose folder it removed."""
    told = r"what one rank sent another cannot be read there \(No module named 'only_(here|there)'\); plain values would do"
    for given, who in ((probes.of_a_module_only_here("only_here"), None), (1, 1)):
        with pytest.raises(LensError, match=told):
            pair.call(probes.given_or_made, given, who)
        assert pair.call(probes.given_or_made, 1) == [1, 1]
    assert runtime_folder().is_dir()


def test_what_a_notebook_defines_is_not_sent(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks have another ``__main__``."""
    Mine = type("Mine", (), {"__module__": "__main__"})  # noqa: N806 - a class
    monkeypatch.setattr(sys.modules["__main__"], "Mine", Mine, raising=False)
    if group.size > 1:
        for given in (Mine, Mine(), [torch.ones(2), {"a": Mine()}]):
            with pytest.raises(LensError, match="Mine is defined in this notebook or script, where ranks do not find it"):
                group.call(probes.given_or_made, given)
    assert group.call(probes.given_or_made, 1) == [1] * group.size


@pytest.mark.parametrize("way", [probes.reductions, probes.reductions_by_torch])
def test_collectives(group: Group, way: Callable[..., Any]) -> None:
    for rank, got in enumerate(group.call(way)):
        tens = 10 * sum(range(group.size))
        assert got["sum"] == [tens + group.size * place for place in range(3)], rank
        assert got["max"] == [10.0 * (group.size - 1) + place for place in range(3)]
        assert got["min"] == [0.0, 1.0, 2.0]
        assert got["bfloat16"] == [[1.5 * group.size + sum(range(group.size))] * 2] * 2
        assert got["strided"] == [[float(group.size)] * 2] * 4
        assert got["gathered"] == [[[10.0 * other + place for place in range(3)]] for other in range(group.size)]
        assert got["integers"] == [[other] for other in range(group.size)]


def test_collectives_of_every_size(group: Group) -> None:
    """What fits on the ranks' shared board, what just does not, and nothing at all."""
    fits = CAPACITY // 4
    for found in group.call(probes.sizes, [0, 1, 1000, fits, fits + 1, 3 * fits]):
        assert all(found), found


def test_a_rank_that_is_late_spoils_nothing(group: Group) -> None:
    assert group.call(probes.in_a_hurry, 2000, 7) == [0] * group.size


def test_a_rank_that_fails_releases_those_that_wait_for_its_part(group: Group) -> None:
    for who in range(group.size):
        with pytest.raises((RankError, ValueError), match=f"planned on {who}"):
            group.call(probes.fail_while_others_sum, who)
        assert all(all(found) for found in group.call(probes.sizes, [5, 1000]))
    assert group.call(probes.in_a_hurry, 200, 8) == [0] * group.size


def test_a_failure_names_its_rank_and_the_group_goes_on(group: Group) -> None:
    last = group.size - 1
    with pytest.raises((RankError, ValueError), match=f"planned on {last}") as caught:
        group.call(probes.fail, last)
    if last > 0:
        assert isinstance(caught.value, RankError)
        assert caught.value.rank == last
        assert "in fail" in caught.value.remote_traceback
    assert len(group.call(probes.place)) == group.size


def test_a_failure_on_rank_0_is_raised_as_it_is(group: Group) -> None:
    with pytest.raises(ValueError, match="planned on 0"):
        group.call(probes.fail, 0)
    assert len(group.call(probes.place)) == group.size


def test_what_the_user_can_mend_is_told_alike_by_every_rank(group: Group) -> None:
    for who in range(group.size):
        with pytest.raises(LensError) as caught:
            group.call(probes.refuse, who)
        assert caught.value._render_traceback_() == [f"LensError: {who} is refused; another would do"]
    assert len(group.call(probes.place)) == group.size


def test_a_call_that_fails_while_ranks_still_meet_again_costs_none_of_them(group: Group) -> None:
    """Rank 0 is free for the next call as soon as all have come; another may see that only after that call has failed."""
    assert group.call(probes.in_a_hurry, 10, 7) == [0] * group.size  # they share a board, which they open anew
    for who in range(1, group.size):
        with pytest.raises(RankError, match="planned"):
            group.call(probes.fail_and_meet_late, who)
        with pytest.raises(ValueError, match="planned on 0"):
            group.call(probes.fail, 0)
        assert len(group.call(probes.place)) == group.size
    assert group.call(probes.in_a_hurry, 10, 8) == [0] * group.size


def test_ranks_stopped_while_they_compared_their_gpus_compare_them_again(group: Group) -> None:
    for who in range(group.size):
        with pytest.raises((RankError, ValueError), match=f"planned on {who}"):
            group.call(probes.compare_gpus, who)
        assert group.call(probes.compare_gpus) == [[""] * group.size] * group.size


def test_ranks_that_cannot_meet_again_after_a_failure_are_given_up(pair: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where no file can be opened for what they share: the others would wait for ever, and no later call would say so."""

    def none_left(size: int) -> str:
        raise OSError(errno.EMFILE, "Too many open files")

    collectives.disconnect()  # from the ranks of the tests before
    try:
        pair.call(probes.import_everything)
        assert pair.call(probes.in_a_hurry, 10, 7) == [0, 0]
        monkeypatch.setattr(board, "_make_file", none_left)
        ended, begun = workers(pair), time.monotonic()
        for function in (probes.fail, probes.die):
            with pytest.raises(RanksLost, match=r"could not meet again \(Too many open files\); .* `%lens restart` starts new"):
                pair.call(function, 1)
        assert time.monotonic() - begun < 10
        assert pair.lost
        _, alive = psutil.wait_procs(ended, timeout=5)
        assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    finally:
        pair.close()
        collectives.disconnect()


def test_an_interrupt_stops_all_ranks_at_the_same_step(group: Group) -> None:
    for _ in range(2):
        timer = threading.Timer(0.3, group.interrupt)
        timer.start()
        rounds = group.call(probes.until_stopped)
        timer.join()
        assert len(set(rounds)) == 1
        assert rounds[0] > 0


def test_an_interrupt_that_no_function_acts_on_is_raised_when_the_ranks_are_free(group: Group) -> None:
    """A loop over such calls could not be stopped otherwise."""
    assert group.interrupt(), "nothing runs: the caller raises it"
    seen: list[int] = []

    def work() -> None:
        with group.exclusive():
            group.call(probes.place)
            assert not group.interrupt()
            seen.append(len(group.call(probes.place)))  # the block goes on

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt) as raised:
            work()
        assert not isinstance(raised.value, Interrupted)
        assert len(group.call(probes.place)) == group.size
    assert seen == [group.size] * 2


@pytest.mark.parametrize("when", ["before", "after", "acknowledged", "an error"])
def test_an_interrupt_carries_what_was_made(group: Group, when: str) -> None:
    def work() -> None:
        with group.exclusive(), group.exclusive() as outcome:
            if when in ("before", "an error"):
                group.interrupt()
            assert outcome.keep("made", stopped=when == "acknowledged") == "made"
            if when == "after":
                os.kill(os.getpid(), signal.SIGINT)
            if when == "an error":
                raise ValueError("what went wrong is told")

    if when == "an error":
        with pytest.raises(ValueError, match="told"):
            work()
    else:
        with pytest.raises(Interrupted) as raised:
            work()
        assert raised.value.result == "made"
    assert len(group.call(probes.place)) == group.size


def test_events_reach_the_caller_of_rank_0_alone(group: Group) -> None:
    events: list[tuple[str, int]] = []

    def note(event: tuple[str, int]) -> None:
        events.append(event)
        if len(events) == 3:
            group.interrupt()

    group.call(probes.until_stopped, on_event=note)
    assert events == [("round", 1), ("round", 2), ("round", 3)]


def test_a_call_within_a_call_is_refused_and_nothing_waits(group: Group) -> None:
    refused: list[str] = []

    def ask(event: Any) -> None:
        for begin in (lambda: group.call(probes.place), lambda: group.exclusive().__enter__()):
            with pytest.raises(LensError) as error:
                begin()
            refused.append(str(error.value))
        group.rank.request_stop()

    group.call(probes.until_stopped, on_event=ask)
    assert set(refused) == {"the ranks are in the middle of a call, and what is called meanwhile cannot begin another"}
    assert len(refused) >= 2
    assert len(group.call(probes.place)) == group.size


def test_a_second_thread_is_refused_while_a_call_runs(group: Group) -> None:
    refused: list[BaseException] = []

    def intrude() -> None:
        try:
            group.call(probes.place)
        except LensError as error:
            refused.append(error)
        group.interrupt()

    timer = threading.Timer(0.2, intrude)
    timer.start()
    group.call(probes.until_stopped)
    timer.join()
    assert "busy" in str(refused[0])


def test_output_is_relayed_with_the_rank(group: Group, capfd: pytest.CaptureFixture[str]) -> None:
    group.call(probes.say, "well said")
    deadline = time.monotonic() + 5
    text = ""
    while text.count("well said") < group.size and time.monotonic() < deadline:
        time.sleep(0.05)
        group.flush_output()
        text += capfd.readouterr().out
    for rank in range(1, group.size):
        assert f"[rank {rank}] well said" in text
    assert "[rank 0]" not in text


def test_a_killed_rank_is_named_within_seconds(pair: Group) -> None:
    pid = pair.processes()[1][1]
    started = time.monotonic()
    with pytest.raises(RanksLost, match=rf"rank 1 \(pid {pid}\) ended unexpectedly"):
        pair.call(probes.die, 1)
    assert time.monotonic() - started < 10
    with pytest.raises(RanksLost, match="rank 1"):
        pair.call(probes.place)
    assert pair.lost


def test_a_rank_killed_while_idle_is_named_by_the_next_call(pair: Group) -> None:
    (worker,) = workers(pair)
    worker.kill()
    with pytest.raises(RanksLost, match=str(worker.pid)):
        pair.call(probes.place)


def test_a_hung_rank_is_given_up_at_the_second_interrupt(pair: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lens_magic.ranks.group.PATIENCE_S", 0.3)
    timers = [threading.Timer(delay, pair.interrupt) for delay in (0.2, 0.3, 1.0)]
    for timer in timers:
        timer.start()
    with pytest.raises(RanksLost, match="given up"):
        pair.call(probes.hang, 1)
    for timer in timers:
        timer.join()


def test_a_signal_to_the_process_group_stops_the_call_and_nothing_else() -> None:
    """Ctrl-C in a terminal, or a kernel in signal mode: MPI's daemon must not take it for the order to end every rank."""
    code = """
import os, signal, threading
import probes
from lens_magic.ranks.group import Group
group = Group(2)
threading.Timer(0.5, lambda: os.killpg(os.getpgrp(), signal.SIGINT)).start()
group.call(probes.until_stopped)
print(group.call(probes.place))
group.close()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, start_new_session=True)
    assert done.stdout.strip() == "[(0, 2), (1, 2)]", done.stderr


def test_closing_leaves_no_process(pair: Group) -> None:
    ended = workers(pair)
    pair.close()
    _, alive = psutil.wait_procs(ended, timeout=5)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    with pytest.raises(RanksLost):
        pair.call(probes.place)


def outside_address() -> str | None:
    """An address of this machine's that is not loopback; nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        address = str(probe.getsockname()[0])
    return None if address.startswith("127.") else address


@pytest.mark.skipif(sys.platform != "linux", reason="packet filters are Linux's")
def test_nothing_of_ours_is_heard_beyond_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    address = outside_address()
    if address is None:
        pytest.skip("this machine has the loopback interface alone")
    opened, apart = [], start.daemon_apart

    @contextlib.contextmanager
    def opened_meanwhile(folder: Path) -> Iterator[None]:
        with apart(folder), socket.create_server(("0.0.0.0", 0)) as server:
            opened.append(server.dup())
            yield

    monkeypatch.setattr(start, "daemon_apart", opened_meanwhile)
    with socket.create_server(("0.0.0.0", 0)) as users_own:
        group = Group(2)
        try:
            mine = psutil.Process()
            processes = [mine, *workers(group), *(child for child in mine.children() if child.name() == "prte")]
            listening = [
                {c.laddr.port for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
                - {own.getsockname()[1] for own in (users_own, *opened)}
                for process in processes
            ]
            assert len(listening) == 3
            assert all(listening)
            ports = set.union(*listening)
            for port in ports:
                with pytest.raises(OSError):  # noqa: PT011 - refused or not answered
                    socket.create_connection((address, port), timeout=0.5).close()
            # What the user opened is the user's business; what MPI has in this process since its start is not the user's.
            assert len(opened) == 1
            for own in (users_own, *opened):
                socket.create_connection((address, own.getsockname()[1]), timeout=5).close()
            assert group.call(probes.place) == [(0, 2), (1, 2)]
        finally:
            group.close()
            opened[0].close()


def test_everything_is_in_one_folder() -> None:
    """So that removing it, which both ends of the control channel do, leaves nothing behind."""
    gc.collect()
    group = Group(2)
    try:
        shared = Path("/dev/shm")
        strays = [path.name for path in shared.glob("sm_segment*") if path.stat().st_uid == os.getuid()]
        assert strays == []
        assert runtime_folder().stat().st_mode & 0o077 == 0
        assert list(runtime_folder().glob("sm_segment*"))
    finally:
        group.close()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_neither_uses_ends_nor_keeps_them(pair: Group, tmp_path: Path) -> None:
    """A worker of multiprocessing, say: what it does of ours is refused, and its end is not the ranks'."""
    said = tmp_path / "said"
    links = [str(Path(f"/proc/self/fd/{link.connection.fileno()}").readlink()) for _, link in pair._workers.values()]
    pid = os.fork()
    if pid == 0:
        for refused in (lambda: pair.call(probes.place), lambda: Group(2)):
            try:
                refused()
            except LensError as error:
                with said.open("a") as file:
                    file.write(f"{error}\n")
        pair.close()
        held = [entry.readlink() for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
        environment._remove_own(os.getppid())
        os._exit(sum(str(one) in links for one in held))
    assert os.waitpid(pid, 0)[1] == 0
    assert "forked from" in said.read_text()
    assert "MPI was started before this process was forked" in said.read_text()
    assert pair.call(probes.place) == [(0, 2), (1, 2)]
    assert runtime_folder().is_dir()


FORKS = """
import os, signal
import torch
import lens_magic as lens
from lens_magic.errors import RanksLost
from lens_magic.ranks.group import Group
torch.set_num_threads(2)
lens.load("demo")
text = lens.generate("Once upon a time", 5).text
pid = os.fork()
if pid == 0:
    signal.alarm(30)
    for use in (lambda: lens.generate("Once upon a time", 5), lambda: lens.load("demo"), lambda: Group(1)):
        try:
            use()
        except RanksLost as error:
            print(error, flush=True)
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert lens.generate("Once upon a time", 5).text == text
"""


def test_a_process_forked_from_a_single_rank_is_refused_and_does_not_hang() -> None:
    """torch would wait there for threads that were not forked."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORKS], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    assert len(told) == 3
    assert set(told) == {forks.NO_THREADS}


@pytest.fixture
def finished(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Rank 0 waits for the others in kernels, which the group ends soon after a failure; its waits for its GPU."""
    waits: list[str] = []
    monkeypatch.setattr("lens_magic.ranks.group.GRACE_S", 0.3)
    monkeypatch.setattr("lens_magic.ranks.collectives.waits_in_kernels", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: waits.append(str(device)))
    return waits


@pytest.mark.usefixtures("finished")
def test_ranks_that_wait_in_kernels_are_given_up_when_one_has_failed(pair: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    """In NCCL's kernels a rank does not hear that another has failed: here one sleeps in its place."""
    ended = []
    monkeypatch.setattr("lens_magic.ranks.collectives.abort_kernels", lambda: ended.append(True))
    assert pair.call(probes.place) == [(0, 2), (1, 2)]
    started = time.monotonic()
    with pytest.raises(RanksLost, match="given up") as caught:
        pair.call(probes.fail_while_others_hang, 0)
    assert isinstance(caught.value.__cause__, ValueError)
    assert ended == [True]
    assert time.monotonic() - started < 10


@pytest.mark.usefixtures("finished")
def test_rank_0_is_released_from_a_kernel_even_if_another_failed_before_it_began(
    pair: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "released", threading.Event())
    monkeypatch.setattr("lens_magic.ranks.collectives.abort_kernels", probes.released.set)
    pair.call(probes.import_everything)
    ((_, link),) = pair._workers.values()
    send = link.send_written

    def slowly(message: bytes) -> None:
        send(message)
        pair.rank.aborted.wait(10)
        time.sleep(0.2)

    monkeypatch.setattr(link, "send_written", slowly)
    with pytest.raises(RanksLost, match="given up"):
        pair.call(probes.fail_while_rank_0_waits)


@pytest.mark.parametrize(("backend", "ended_by"), [("nccl", "_abort_process_group"), ("lens_mpi", "destroy_process_group")])
def test_what_ranks_that_are_gone_would_take_part_in_is_not_waited_for(
    backend: str, ended_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the others have gone, NCCL's end in order, which all ranks of a host have to come to, would never come."""
    done = []
    monkeypatch.setattr(collectives, "_connected", [Rank()])
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_backend", lambda: backend)
    monkeypatch.setattr(dist.distributed_c10d, "_abort_process_group", lambda: done.append("_abort_process_group"))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: done.append("destroy_process_group"))
    collectives.disconnect()
    assert done == [ended_by]
    assert not collectives._connected


@pytest.mark.parametrize(("outcome", "function"), [("ok", "place"), ("error", "fail_alone"), ("aborted", "give_up")])
def test_a_call_ends_when_its_kernels_have(
    outcome: str, function: str, finished: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever comes of it: a kernel left waiting for another rank's would meet one of the next call."""
    call = channel.Call(1, "probes", function, (), {})
    assert worker.run(Rank(), call).outcome == outcome
    assert finished
    monkeypatch.setattr("lens_magic.ranks.collectives.waits_in_kernels", lambda: False)
    finished.clear()
    assert worker.run(Rank(), call).outcome == outcome
    assert not finished, "without such kernels nobody waits"


@pytest.mark.parametrize(("function", "told"), [("place", "RuntimeError: CUDA error"), ("fail_alone", "ValueError: planned")])
@pytest.mark.usefixtures("finished")
def test_an_error_of_a_calls_kernels_is_the_calls(function: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: torch.device) -> None:
        raise RuntimeError("CUDA error")

    monkeypatch.setattr(torch.cuda, "synchronize", fails)
    status = worker.run(Rank(), channel.Call(1, "probes", function, (), {}))
    assert status.outcome == "error"
    assert status.summary.startswith(told)


def test_a_rank_whose_kernels_wait_for_one_that_has_failed_is_given_up(
    pair: Group, finished: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has returned what it was asked for, and all the same the call goes on."""
    ended = threading.Event()
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: finished.append(str(ended.wait(10))))
    monkeypatch.setattr("lens_magic.ranks.collectives.abort_kernels", ended.set)
    with pytest.raises(RanksLost, match="given up"):
        pair.call(probes.fail_alone, 1)
    assert finished == ["True"]


@pytest.mark.usefixtures("finished")
def test_ranks_that_end_after_a_failure_are_not_given_up(pair: Group) -> None:
    pair.call(probes.import_everything)
    with pytest.raises(ValueError, match="planned on 0"):
        pair.call(probes.fail, 0)
    time.sleep(0.5)
    assert pair.call(probes.place) == [(0, 2), (1, 2)]
