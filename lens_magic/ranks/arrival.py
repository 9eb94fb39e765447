"""Waiting for ranks to start. It happens inside MPI, which notices neither an interrupt nor that a starting rank has died."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from ..errors import LensError, reason_of
from . import channel, entry, start

T = TypeVar("T")

_LOOKS_EVERY_S = 0.2
_GONE_FOR_S = 2.0  # within this time MPI would have reported a rank's end itself
_NONE_FOR_S = 60.0  # within this time ranks on this host have been seen; otherwise they ended at once


def spawned(size: int) -> tuple[Any, channel.Workers]:
    """Start ranks 1 … size − 1; return the communicator in which this process is rank 0, and the channels to them.

    Raises:
        LensError: MPI is missing, or refused to spawn; a rank ended while it was starting.
        KeyboardInterrupt: the user stopped waiting; ranks that start later are told to end.
    """

    def bring_up() -> tuple[Any, channel.Workers]:
        communicator = start.spawn(size)
        return communicator, channel.accept_all(communicator)

    def send_home(arrived: tuple[Any, channel.Workers]) -> None:
        for _, link in arrived[1].values():
            with contextlib.suppress(OSError):
                link.send(channel.End(finalise=False))
            link.close()

    return waited_for(bring_up, send_home)


def waited_for(action: Callable[[], T], discard: Callable[[T], None]) -> T:
    """Run an action that starts ranks in a thread of its own, wait for it and return its result.

    Starts come one after another, also those of several threads: MPI finds the environment changed while it starts ranks.
    So whatever would start ranks first waits for a start that nobody waits for any more.

    Args:
        action: may never return.
        discard: called with the action's result if nobody waits for it any more.

    Raises:
        LensError: a rank ended while it was starting, or the system refused what the action needs. Any other error is the
            action's. The ranks that have started by then are ended.
        KeyboardInterrupt: the user stopped waiting.
    """
    given: list[T] = []
    failed: list[BaseException] = []
    changing, left = threading.Lock(), threading.Event()

    def run() -> None:
        try:
            value = action()
        except BaseException as error:
            failed.append(error)
            watch.end_ranks()  # here: the next start's would be among them
            return
        with changing:
            given.append(value)
            if left.is_set():
                discard(value)

    thread = threading.Thread(target=run, daemon=True, name="lens-arrival")
    watch = _Watch()
    try:
        _begin(thread, watch)
        while thread.is_alive():
            thread.join(_LOOKS_EVERY_S)
            watch.look()
    except BaseException:
        with changing:
            left.set()
            for value in given:
                discard(value)
        raise
    if failed:
        if isinstance(failed[0], OSError):  # of a socket, say
            raise LensError(
                f"the ranks could not be started ({reason_of(failed[0])}); `lens-magic doctor` says what is missing, "
                "`--ranks 1` needs none"
            ) from failed[0]
        raise failed[0]
    return given[0]


_beginning = threading.Lock()
_begun: list[tuple[threading.Thread, _Watch]] = []  # the last start


def _begin(thread: threading.Thread, watch: _Watch) -> None:
    """Begin a start, once the last has come to its end, or can come to none because its ranks have died.

    Raises:
        KeyboardInterrupt: the user stopped waiting.
    """
    while True:
        with _beginning:
            if not any(last.is_alive() and not its.lost for last, its in _begun):
                watch.begin()
                _begun[:] = [(thread, watch)]
                thread.start()
                return
            last, its = _begun[0]
        last.join(_LOOKS_EVERY_S)
        with contextlib.suppress(LensError):  # told to whoever waited for it
            its.look()


class _Watch:
    """Checks that the ranks that MPI's daemon has started meanwhile are all still running.

    Attributes:
        lost: a rank has ended, and MPI may wait for it for ever.
    """

    def __init__(self) -> None:
        self.lost = False
        self._seen: set[int] = set()
        self._gone_since: float | None = None
        self.begin()

    def begin(self) -> None:
        """Watch the ranks that start from here on."""
        self._before = _ranks_of_the_daemon()
        self._begun = time.monotonic()

    def look(self) -> None:
        """Raise LensError if a rank has ended, after ending the others, which would wait for it."""
        now = _ranks_of_the_daemon() - self._before
        self._seen |= now
        if self._seen == now and (now or start.several_hosts() or time.monotonic() - self._begun < _NONE_FOR_S):
            self._gone_since = None
            return
        self._gone_since = self._gone_since or time.monotonic()
        if time.monotonic() - self._gone_since < _GONE_FOR_S:
            return
        self.lost = True
        self.end_ranks()
        raise LensError(
            "ranks ended while they were starting; what they said is in the terminal that this runs in. "
            "`lens-magic doctor` says what is missing, a fresh kernel starts fresh ranks, `--ranks 1` needs none"
        )

    def end_ranks(self) -> None:
        """End those that have started: they would wait for this process for ever, at full speed."""
        for pid in _ranks_of_the_daemon() - self._before:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _ranks_of_the_daemon() -> set[int]:
    """Return the ids of the processes below MPI's daemon that run ranks, on this host."""
    import psutil

    found = set()
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if entry.__file__ in process.cmdline():
                    found.add(process.pid)
    return found
