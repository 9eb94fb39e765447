"""Ranks while starting: deaths, interrupts and changes meanwhile, and what a program started by a kernel finds."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Listener
from pathlib import Path
from types import SimpleNamespace

import probes
import psutil
import pytest
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM

import lens_magic as lens
from lens_magic.errors import LensError, RanksLost
from lens_magic.ranks import arrival, collectives, entry, environment, followed, memory, start
from lens_magic.ranks.group import Group
from lens_magic.session import Session, current


def program(code: str, folder: Path, **variables: str) -> str:
    """What a Python program prints that runs in a folder."""
    command, environ = [sys.executable, "-P", "-c", code], {**os.environ, **variables}
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


USES_RANKS = """
import probes
from lens_magic.ranks.group import Group
group = Group(2)
print(group.call(probes.place))
group.close()
"""


@pytest.mark.ranks(2)
def test_files_of_the_working_folder_stand_in_for_nothing(tmp_path: Path) -> None:
    for name in ("queue.py", "lens_magic.py"):
        (tmp_path / name).write_text("raise SystemExit('not this one')")
    assert program(USES_RANKS, tmp_path, LENS_HOSTFILE="") == "[(0, 2), (1, 2)]"  # and a variable that is set to nothing


@pytest.mark.ranks(2)
def test_a_program_that_a_kernel_starts_leaves_its_folder_alone(tmp_path: Path) -> None:
    ours = environment.prepare()
    assert program(USES_RANKS, tmp_path) == "[(0, 2), (1, 2)]"
    assert ours.is_dir()


DIES = """
import sys
from lens_magic.errors import LensError
from lens_magic.ranks import arrival, entry
from lens_magic.ranks.group import Group
real, entry.__file__, arrival._NONE_FOR_S, arrival._GONE_FOR_S = entry.__file__, sys.argv[1], 3.0, 1.0
try:
    Group(3)
except LensError as error:
    print(error)
entry.__file__, arrival._NONE_FOR_S, arrival._GONE_FOR_S = real, 60.0, 2.0
group = Group(2)  # MPI may still wait for those that have ended
print(group.size)
group.close()
"""


@pytest.mark.parametrize("seconds", [0, 1])
def test_ranks_that_end_on_their_way_are_not_waited_for(seconds: int, tmp_path: Path) -> None:
    (tmp_path / "rank.py").write_text(f"import time; time.sleep({seconds}); raise SystemExit('ended')")
    code = DIES.replace("sys.argv[1]", repr(str(tmp_path / "rank.py")))
    told, size = program(code, tmp_path).splitlines()[-2:]
    assert "ranks ended while they were starting" in told
    assert size == "2"


REFUSED = """
import time
import probes, psutil
from lens_magic.errors import LensError
from lens_magic.ranks import arrival, channel
from lens_magic.ranks.group import Group
accept = channel.accept_all
def refuse(communicator):
    raise OSError("AF_UNIX path too long")
for channel.accept_all in (refuse, refuse, accept):
    try:
        group = Group(2)
    except LensError as error:
        print(error)
        ended = [psutil.Process(pid) for pid in arrival._ranks_of_the_daemon()]
        assert not psutil.wait_procs(ended, timeout=5)[1], "a rank still runs"
print(group.call(probes.place))
group.close()
"""


@pytest.mark.ranks(2)
def test_a_start_that_fails_leaves_no_rank_behind(tmp_path: Path) -> None:
    """It would use a core for ever, and each further try another."""
    first, second, third = program(REFUSED, tmp_path).splitlines()
    assert first == second
    assert first.startswith("the ranks could not be started (AF_UNIX path too long); `lens-magic doctor` says")
    assert third == "[(0, 2), (1, 2)]"


@pytest.mark.ranks(2)
def test_programs_started_while_ranks_are_find_nothing_of_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would take themselves for a rank, and the ranks' folder, which is in memory, for the one of temporary files."""
    found, apart = [], start.daemon_apart

    @contextlib.contextmanager
    def seen(folder: Path) -> Iterator[None]:
        with apart(folder):
            found.append(subprocess.run("env", capture_output=True, text=True).stdout.splitlines())
            yield

    start.load_mpi()
    monkeypatch.setenv("TMPDIR", "/of/the/user")
    monkeypatch.setattr(start, "daemon_apart", seen)
    group = Group(2)
    try:
        (variables,) = found
        assert "TMPDIR=/of/the/user" in variables
        assert not [line for line in variables if line.startswith(("LENS_WORKER=", "LENS_TMPDIR="))]
        assert [name == "1" for name in group.call(probes.variable, "LENS_WORKER")] == [False, True]
    finally:
        group.close()


SESSION_FILES = """
import os
import probes
from lens_magic.ranks import environment
from lens_magic.ranks.group import Group
group = Group(2)
print([*environment.runtime_folder().glob("prte.*")] != [], group.call(probes.variable, "TMPDIR"))
group.close()
"""


@pytest.mark.ranks(2)
def test_mpis_session_files_are_in_the_folder_and_the_ranks_temporary_files_where_the_user_has_them(tmp_path: Path) -> None:
    ours = str(tmp_path)
    assert program(SESSION_FILES, tmp_path, TMPDIR=ours) == f"True {[ours, ours]}"


AT_ONCE_AGAIN = """
import contextlib, os, signal, time
import probes
from lens_magic.ranks import arrival, environment, start
from lens_magic.ranks.group import Group
folder, apart = environment.prepare(), start.daemon_apart
names = ("PATH", "TMPDIR", "LENS_TMPDIR", "LENS_WORKER")
before = [os.environ.get(name) for name in names]
signal.signal(signal.SIGINT, signal.default_int_handler)

@contextlib.contextmanager
def interrupted(folder):
    start.daemon_apart = apart
    with apart(folder):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)  # the next start begins meanwhile
        yield

start.daemon_apart = interrupted
try:
    Group(2)
except KeyboardInterrupt:
    print("interrupted")
group = Group(2)
deadline = time.monotonic() + 30
while len(arrival._ranks_of_the_daemon()) > 1 and time.monotonic() < deadline:
    time.sleep(0.05)  # until those that nobody waited for have gone
print(group.call(probes.place), folder.is_dir(), environment.runtime_folder() == folder)
print([os.environ.get(name) for name in names] == before)
group.close()
"""


@pytest.mark.ranks(2)
def test_a_start_after_one_that_was_interrupted_waits_for_it_and_keeps_its_folder(tmp_path: Path) -> None:
    """Together they would mix up the environment that MPI starts in; and ranks sent home would remove a folder in use."""
    assert program(AT_ONCE_AGAIN, tmp_path).splitlines() == ["interrupted", "[(0, 2), (1, 2)] True True", "True"]


def test_starts_of_several_threads_come_one_after_another() -> None:
    under_way, most = [], []

    def start_ranks() -> None:
        under_way.append(1)
        most.append(len(under_way))
        time.sleep(0.3)
        under_way.pop()

    threads = [threading.Thread(target=arrival.waited_for, args=(start_ranks, lambda _: None)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most == [1, 1, 1]


def test_only_the_ranks_that_are_asked_for_are_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those first that a model has by default."""
    started: list[int] = []
    monkeypatch.setattr("lens_magic.ranks.group.Group", lambda size, **_: started.append(size) or SimpleNamespace(size=size))
    Session(4)._group_of(2)
    assert started == [2]


def test_threads_that_need_the_first_ranks_together_get_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    made, session, got = [], Session(2), []

    def make(size: int) -> int:
        time.sleep(0.2)
        made.append(size)
        return len(made)

    monkeypatch.setattr(session, "_new_group", make)
    threads = [threading.Thread(target=lambda: got.append(session.group)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (made, got) == ([2], [1, 1])


WITHOUT_A_FOLDER = """
import os
from lens_magic.errors import LensError
from lens_magic.session import Session
from lens_magic.ranks.group import Group
os.mkdir("gone")
os.chdir("gone")
session = Session(2)
group = session.group
os.rmdir("../gone")
for start in (session.restart, lambda: Group(3)):
    try:
        start()
    except LensError as error:
        print(error)
assert session.group is group and not group.closed
os.chdir("/")
session.restart()
print(session.group.size)
session.close()
"""


@pytest.mark.ranks(2)
def test_a_working_folder_that_has_been_removed_is_told_before_ranks_are_dropped(tmp_path: Path) -> None:
    gone = "the working folder no longer exists, and ranks start in it; %cd (or cd) to one that does"
    assert program(WITHOUT_A_FOLDER, tmp_path).splitlines() == [gone, gone, "2"]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """As from a terminal: what a shell runs in the background ignores interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_whoever_would_not_wait_leaves_no_rank_behind(interruptible: None) -> None:
    arrived, discarded, begun, go = threading.Event(), [], threading.Event(), threading.Event()

    def slow() -> str:
        begun.set()
        go.wait(10)
        arrived.set()
        return "ranks"

    def interrupt() -> None:
        begun.wait(10)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        arrival.waited_for(slow, discarded.append)
    go.set()
    arrived.wait(10)
    for thread in threading.enumerate():
        if thread.name == "lens-arrival":
            thread.join(10)
    assert discarded == ["ranks"]
    assert arrival.waited_for(lambda: "others", discarded.append) == "others"
    with pytest.raises(ZeroDivisionError):
        arrival.waited_for(lambda: 1 / 0, discarded.append)


def test_what_the_user_sets_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = str(tmp_path / "ours"), str(tmp_path / "theirs")
    Path(ours).mkdir()
    monkeypatch.setenv("PATH", os.environ["PATH"])
    environment.prepare()  # finds prte
    monkeypatch.setenv("TMPDIR", "/before")
    before = os.environ["PATH"]
    with environment.temporary_files_in(Path(ours)), environment.daemon_apart(Path(ours)):
        assert os.environ["PATH"].startswith(ours)
        assert os.environ["TMPDIR"] == ours
    assert (os.environ["PATH"], os.environ["TMPDIR"]) == (before, "/before")
    with environment.temporary_files_in(Path(ours)), environment.daemon_apart(Path(ours)):
        os.environ["PATH"] += f"{os.pathsep}{theirs}"
        os.environ["TMPDIR"] = theirs
    assert (os.environ["PATH"], os.environ["TMPDIR"]) == (f"{before}{os.pathsep}{theirs}", theirs)
    assert "LENS_TMPDIR" not in os.environ


def test_a_folder_without_the_right_to_run_programs_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a container's /dev/shm, in which no rank could be started."""
    monkeypatch.setenv("PATH", os.environ["PATH"])
    environment.prepare()  # finds prte
    before = os.environ["PATH"]
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=os.ST_NOEXEC if path == tmp_path else 0))
    with environment.daemon_apart(tmp_path):
        script = Path(os.environ["PATH"].split(os.pathsep)[0], "prte")
        assert script.parent != tmp_path
        assert os.access(script, os.X_OK)
    assert os.environ["PATH"] == before
    assert not script.parent.exists()
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=os.ST_NOEXEC))
    with environment.daemon_apart(tmp_path):
        assert os.environ["PATH"] == before


@pytest.mark.parametrize("free", [1 << 20, 17 << 20])
def test_a_full_folder_in_memory_is_passed_over(free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open MPI would complain of one with less than 16.8 MiB."""
    with tempfile.TemporaryDirectory(dir="/tmp") as temporary:
        monkeypatch.delenv(environment.RUNTIME_VARIABLE, raising=False)
        monkeypatch.setattr(environment.tempfile, "gettempdir", lambda: temporary)
        monkeypatch.setattr(environment, "_free", lambda folder: free)
        monkeypatch.setattr(environment.util, "Finalize", lambda *_, **options: None)
        assert environment.runtime_folder().parent == Path(temporary)


def test_a_temporary_folder_too_deep_for_sockets_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.delenv(environment.RUNTIME_VARIABLE, raising=False)
    monkeypatch.setattr(environment.tempfile, "gettempdir", lambda: str(deep))
    monkeypatch.setattr(environment, "_free", lambda folder: 0)
    monkeypatch.setattr(environment.util, "Finalize", lambda *_, **options: None)
    folder = environment.runtime_folder()
    try:
        assert folder.stat().st_mode & 0o777 == 0o700
        with Listener(str(folder / f"{environment.SOCKET}{'x' * 8}"), "AF_UNIX"):
            pass
    finally:
        environment.remove_runtime_folder()


@pytest.fixture
def made_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where runtime folders are made, instead of in /dev/shm; this process has none yet."""
    monkeypatch.setenv(environment.RUNTIME_VARIABLE, "")
    monkeypatch.delenv("LENS_WORKER", raising=False)
    monkeypatch.setattr(environment.os, "access", lambda *_: False)
    monkeypatch.setattr(environment.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(environment.util, "Finalize", lambda *_, **options: None)
    return tmp_path


def test_no_folder_is_used_that_others_could_have_made_or_can_enter(made_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program is run from it."""
    (made_in / f"lens-magic-{os.getuid()}-{os.getpid()}").mkdir(mode=0o777)  # as one who foresees a name
    ours = environment.runtime_folder()
    assert environment.runtime_folder() == ours
    assert ours.stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("LENS_WORKER", "1")  # a rank that is started uses its rank 0's
    assert environment.runtime_folder() == ours
    ours.chmod(0o770)
    with pytest.raises(SystemExit):  # it does not make one that its rank 0 does not know
        environment.runtime_folder()
    monkeypatch.delenv("LENS_WORKER")
    others = environment.runtime_folder()
    assert others != ours
    link = others.with_name(f"{others.name}x")
    link.symlink_to(others)
    monkeypatch.setenv(environment.RUNTIME_VARIABLE, str(link))
    assert environment.runtime_folder() not in (link, others)
    other = os.getuid() + 1
    monkeypatch.setattr(environment.os, "getuid", lambda: other)
    assert not environment._is_private(others)


def test_a_process_that_ends_makes_no_folder_any_more(made_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks may just be starting, in a thread, and nobody would remove it."""
    monkeypatch.setattr(environment, "_ended", [])
    environment.runtime_folder()
    environment._remove_own(os.getpid())
    with pytest.raises(LensError, match="this process is ending"):
        environment.runtime_folder()
    assert not list(made_in.iterdir())


def test_a_rank_whose_rank_0_has_ended_while_it_started_ends_too(tmp_path: Path) -> None:
    gone = f"/dev/shm/lens-magic-{os.getuid()}-{environment._pid_namespace()}-{os.getpid()}-gone"
    command, environ = [sys.executable, "-P", entry.__file__], {**os.environ, environment.RUNTIME_VARIABLE: gone}
    environ.pop(start.HOSTFILE, None)
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=90)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


FORKED = """
import multiprocessing
from lens_magic.ranks import environment
def work():
    print(environment.runtime_folder(), flush=True)
print(environment.runtime_folder(), flush=True)
process = multiprocessing.get_context("fork").Process(target=work)
process.start()
process.join(60)
assert environment.runtime_folder().is_dir()
"""


def test_processes_of_multiprocessing_remove_their_folders_too(tmp_path: Path) -> None:
    folders = program(FORKED, tmp_path).splitlines()
    assert len(set(folders)) == 2
    assert not [folder for folder in folders if Path(folder).exists()]


def test_folders_of_processes_that_are_gone_are_removed(made_in: Path) -> None:
    """Not those of another container, which may share the folder they are in: its processes are not seen here."""
    namespace, gone = environment._pid_namespace(), int(Path("/proc/sys/kernel/pid_max").read_text())
    stale, living, foreign, entered = (
        made_in / f"lens-magic-{os.getuid()}-{place}-{pid}-abc"
        for place, pid in ((namespace, gone), (namespace, os.getppid()), (namespace + 1, gone), (namespace, gone + 1))
    )
    for folder in (stale, living, foreign, entered):
        folder.mkdir(mode=0o700)
    entered.chmod(0o750)
    ours = environment.runtime_folder()
    assert sorted(made_in.iterdir()) == sorted([living, foreign, entered, ours])


def test_a_host_file_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(start.HOSTFILE, str(tmp_path / "gone"))
    with pytest.raises(LensError, match=r"there is no host file .*gone \(LENS_HOSTFILE names it\)"):
        start.spawn(2)


def test_a_folder_that_cannot_be_written_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(start, "daemon_apart", full)
    with pytest.raises(LensError, match=r"the ranks' folder .* cannot be written: No space left on device"):
        start.spawn(2)


def test_a_hang_up_ends_a_program_that_has_ranks() -> None:
    code = """
import os, signal, threading, time
from lens_magic.ranks import start
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever this runs under
loading = threading.Thread(target=start.load_mpi)  # as ranks are waited for
loading.start()
loading.join()
os.kill(os.getpid(), signal.SIGHUP)
time.sleep(5)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGHUP, done.stderr


def test_programs_started_by_a_launched_rank_are_none_of_its_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would wait to join it."""
    world = SimpleNamespace(Dup=lambda: SimpleNamespace(Set_errhandler=lambda _: None))
    monkeypatch.setattr(start, "load_mpi", lambda: SimpleNamespace(COMM_WORLD=world, ERRORS_RETURN=0))
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK", "PMIX_PREFIX"):
        monkeypatch.setenv(name, "2")
    monkeypatch.delenv("LENS_WORKER", raising=False)
    assert start.launched_ranks() == 2
    start.joined_world()
    assert start.launched_ranks() == 1
    assert "PMIX_RANK" not in os.environ
    assert os.environ["PMIX_PREFIX"] == "2"


@pytest.mark.ranks(2)
def test_attaching_and_restarting_wait_for_no_other_threads_call() -> None:
    lens.load("demo", ranks=2)
    held, leave = threading.Event(), threading.Event()

    def work() -> None:
        with current().group.exclusive():
            held.set()
            leave.wait(30)

    thread = threading.Thread(target=work)
    thread.start()
    held.wait(30)
    model = SimpleNamespace(config=LlamaConfig())
    try:
        for use in (lambda: lens.attach(model, current().require_model().tokenizer), current().restart):
            with pytest.raises(LensError, match="busy with another call"):
                use()
    finally:
        leave.set()
        thread.join()
    assert lens.generate("Hi", 2).output_ids


@pytest.mark.ranks(2)
def test_a_restart_within_a_call_is_refused_and_ends_nothing() -> None:
    """By an ``on_event``: the call waited for ranks that its own thread had ended."""
    lens.load("demo", ranks=2)
    group, told = current().group, []

    def restart(_: object) -> None:
        try:
            current().restart()
        except LensError as error:
            told.append(str(error))
        group.rank.request_stop()

    group.call(probes.until_stopped, on_event=restart)
    assert told[0] == "the ranks are in the middle of a call, and what is called meanwhile cannot begin another"
    assert current().group is group
    assert lens.generate("Hi", 2).output_ids


@pytest.mark.ranks(2)
def test_ranks_follow_what_a_cell_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """They have the environment of MPI's daemon, from the first start on."""
    lens.load("demo", ranks=2)
    monkeypatch.setenv("LENS_FREE_MEMORY", "123456789")
    assert [rank["free"] for rank in lens.status().ranks] == [123456789] * 2
    monkeypatch.delenv("LENS_FREE_MEMORY")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    for _ in range(2):
        assert current().group.call(probes.variable, "CUDA_VISIBLE_DEVICES") == ["2,3"] * 2
        assert current().group.call(probes.variable, "LENS_FREE_MEMORY") == [None] * 2
        current().restart()


@pytest.mark.ranks(2)
@pytest.mark.parametrize("late", [0, 1])
def test_other_gpus_than_a_rank_can_still_have_are_refused(late: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA reads the variable once, so rank 1 might take a GPU that is somebody else's."""
    monkeypatch.setattr(followed, "_shown", [])
    monkeypatch.setattr(followed, "_cuda_has_begun", followed._cuda_has_begun)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    current().close()
    lens.load("demo", ranks=2)
    current().group.call(probes.begin_cuda, late)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(LensError, match=f"CUDA_VISIBLE_DEVICES was changed from nothing to '3' when rank {late} already used"):
        lens.load("demo", ranks=2)
    assert lens.generate("Once upon a time", 3).output_ids, "the model stays"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    lens.load("demo", ranks=2)
    current().close()


def test_ranks_that_are_ended_while_they_work_are_not_said_to_have_died() -> None:
    group, told = Group(2), []

    def work() -> None:
        try:
            group.call(probes.hang, 1)
        except RanksLost as error:
            told.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    while not group.busy:
        time.sleep(0.01)
    time.sleep(0.3)
    group.close()
    thread.join(30)
    assert len(told) == 1
    assert told[0].startswith("these ranks were ended while they worked")


def test_ranks_that_a_startup_file_has_needed_are_not_started_again() -> None:
    session = Session(1)
    group = session.group
    session.default_ranks = 2
    session.start_in_background()
    assert session.group is group


@pytest.mark.parametrize(
    ("launched", "first", "then"),
    [
        (False, "`%lens restart` tries again", "once more: 3"),
        (True, "start the job again", "started by a launcher .*; start the job again"),
    ],
)
def test_whatever_keeps_ranks_from_starting_is_told_and_launched_ones_are_joined_once(
    launched: bool, first: str, then: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a thread's traceback; and more ranks, spawned, are none of a launched world."""
    asked = []

    def fails(size: int, joined: bool = False) -> Group:
        asked.append(joined)
        if len(asked) == 1:
            raise multiprocessing.AuthenticationError("digest was wrong")
        raise LensError(f"once more: {size}")

    monkeypatch.setattr("lens_magic.ranks.group.Group", fails)
    session = Session(3, launched)
    session.start_in_background()
    with pytest.raises(LensError, match=rf"not be started \(AuthenticationError: digest was wrong\); {first}"):
        assert session.group
    for act in (lambda: session.group, session.restart, lambda: session.load("demo", ranks=2)):
        with pytest.raises(LensError, match=then.replace("3", "[23]")):
            act()
    assert (asked == [True]) if launched else not any(asked)


def test_ranks_that_end_leave_no_memory_of_their_gpu_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next ones may share the GPU, and count on what rank 0's allocator would keep."""
    lens.load("demo", ranks=1)
    freed: list[int] = []
    monkeypatch.setattr(memory, "give_back_cached", lambda: freed.append(len(current().group.rank.store)))
    held = current().group.rank.store
    lens.load("demo", ranks=2)
    assert freed == [0]
    assert not held


def test_an_interrupt_while_ranks_are_asked_for_their_room_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    lens.load("demo", ranks=1)
    before, free = current().require_model(), memory.free_memory
    monkeypatch.setattr(memory, "free_memory", lambda *given: (current().group.interrupt(), free(*given))[1])
    with pytest.raises(KeyboardInterrupt):
        lens.load("demo", ranks=1)
    assert current().require_model() is before


@pytest.mark.parametrize("times", [2, 3])
def test_what_is_stuck_on_rank_0_ends_at_the_second_interrupt(times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lens_magic.ranks.group.PATIENCE_S", 0.4)
    group = Group(1)
    timers = [threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT)) for delay in (0.2, 0.4, 0.9)[-times:]]
    for timer in timers:
        timer.start()
    with pytest.raises(KeyboardInterrupt):
        group.call(probes.hang, 0)
    for timer in timers:
        timer.join()
    assert group.call(probes.place) == [(0, 1)]


@pytest.mark.ranks(2)
def test_a_rank_that_dies_after_its_error_is_named() -> None:
    group = Group(2)
    try:
        (_, _, _), (_, pid, _) = group.processes()
        with pytest.raises(RanksLost, match=rf"rank 1 \(pid {pid}\)"):
            group.call(probes.fail_and_die_when_renewed, 1)
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    finally:
        group.close()


@pytest.mark.ranks(2)
def test_what_connects_the_ranks_was_ended_by_the_user() -> None:
    lens.load("demo", ranks=2)
    dist.destroy_process_group()
    with pytest.raises(LensError, match="ended by code of yours; `%lens restart`"):
        lens.load("demo")
    current().restart()
    assert lens.generate("Hi", 2).output_ids


def test_ranks_of_a_launcher_that_are_lost_are_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(1)
    monkeypatch.setattr(session.group, "joined", True)
    monkeypatch.setattr(session.group, "_gone", {0})
    monkeypatch.setattr(session.group, "_describe_loss", lambda: RanksLost("start the job again"))
    with pytest.raises(RanksLost, match="start the job again"):
        session._group_of(1)


def test_the_script_of_a_rank_runs_this_package() -> None:
    assert Path(entry.__file__).parent.parent == Path(collectives.__file__).parent.parent


def small_llama(device: str) -> LlamaForCausalLM:
    config = LlamaConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=100)
    return LlamaForCausalLM(config).to(device)


@pytest.mark.ranks(2)
def test_a_model_that_cannot_be_attached_leaves_the_one_before_on_its_ranks() -> None:
    lens.load("demo", ranks=2)
    before, group = current().require_model(), current().group
    broken = SimpleNamespace(config=LlamaConfig())  # and nothing else of a model
    for model, words in ((broken, "where its family keeps it"), (small_llama("meta"), "weights are on meta")):
        with pytest.raises(LensError, match=words):
            lens.attach(model, before.tokenizer)
    assert current().require_model() is before
    assert current().group is group
    assert lens.generate("Hi", 2).output_ids


@pytest.mark.ranks(2)
def test_a_model_that_went_for_one_that_could_not_be_attached_is_what_a_restart_loads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lens.load("demo", ranks=2)

    def full(*_: object) -> None:
        raise LensError("no memory for it")

    with monkeypatch.context() as patched:
        patched.setattr("lens_magic.model.load.describe", full)
        with pytest.raises(LensError, match="no memory for it"):
            lens.attach(small_llama("cpu"), current().require_model().tokenizer)
    with pytest.raises(LensError, match="`%lens restart` loads demo again"):
        lens.generate("Hi", 2)
    current().restart()
    assert lens.generate("Hi", 2).output_ids
