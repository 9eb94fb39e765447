"""The group of ranks as rank 0 sees it: one call runs a function on every rank.

Life of a group: ``Group(size)`` starts it; ``call`` as often as wanted; ``close``. A function that fails on a rank leaves the
group usable. A rank that dies ends the group: every later call raises :class:`RanksLost` until a new group is made.

Life of a call: the command goes to all ranks; each runs it, rank 0 in the calling thread; the replies come back; if any
rank failed, the communicator the failure interrupted is replaced on all; then the failure is raised, with the number and
the traceback of the rank it came from, unless it is one that the user can mend, which is told in one line.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from typing import Any

from ..errors import Interrupted, LensError, Outcome, RanksLost, reason_of
from . import arrival, channel, followed, forks, interrupts, start, worker
from .rank import Rank

GRACE_S = 10.0  # after a failure, the time for the ranks to end the call
PATIENCE_S = 3.0  # an interrupt this long after one without effect gives the ranks up


class Group:
    """Rank 0's handle on all ranks; ``size`` 1 is this process alone, without MPI.

    Args:
        size: number of ranks, this process included.
        joined: a launcher has started the ranks already; join them instead of spawning.

    Raises:
        LensError: MPI is missing or could not start the ranks.
    """

    def __init__(self, size: int = 1, joined: bool = False) -> None:
        communicator, self._workers = None, channel.Workers()
        if size == 1:
            forks.require_own_threads()
        if joined:
            communicator = start.joined_world()
            self._workers = channel.accept_all(communicator)
        elif size > 1:
            communicator, self._workers = arrival.spawned(size)
        self.joined = joined
        self.rank = Rank(communicator)
        self.size = self.rank.size
        self._changed = threading.Condition()
        self._replies: dict[int, channel.Reply] = {}
        self._gone: set[int] = set()
        self._output: list[tuple[int, channel.Printed]] = []
        self._busy = threading.RLock()
        self._depth = self._number = 0
        self._interrupted_at = 0.0
        self._given_up = ""  # why
        self._under_way: int | None = None  # the number of the running call
        self._loss: RanksLost | None = None
        self.closed = False
        self._forked = ""  # where the ranks are, if not here
        forks.tell(self)
        if self._workers:
            threading.Thread(target=self._listen, daemon=True, name="lens-ranks").start()

    # -- what the user's thread calls ---------------------------------------------------------------------------------

    def call(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        on_event: Callable[[Any], None] | None = None,
        **options: Any,
    ) -> list[Any]:
        """Run ``function(rank, *arguments, **options)`` on every rank.

        Args:
            function: a module-level function (ranks import it by name; it is not sent).
            on_event: called on rank 0 with what the function emits.

        Returns:
            What the function returned on each rank, rank 0 first.

        Raises:
            LensError: a call is under way already (in another thread, for a widget's callback; in this one, for ``on_event``).
            RankError: the function failed on another rank. An error on rank 0 is raised as it is, a LensError on any rank too.
            RanksLost: a rank has died.
            KeyboardInterrupt: the user has interrupted, and the function has not acknowledged it.
        """
        with self.exclusive():
            self.require_all()
            self._number += 1
            before, self.rank.on_event = self.rank.on_event, self._relaying(on_event)
            # A launcher, or a host, may show each of its ranks other GPUs.
            own = followed.stated() if self._workers and not (self.joined or start.several_hosts()) else {}
            command = channel.Call(self._number, function.__module__, function.__qualname__, arguments, options, own)
            try:
                return self._run_everywhere(command)
            finally:
                self.rank.on_event = before
                self.flush_output()

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[Outcome]:
        """Hold the ranks for several calls and the work between them; meanwhile an interrupt only sets the flag.

        Raises:
            LensError: another thread holds them, or this one is within a call.
            Interrupted: at the end, if the user has interrupted and the block has kept a result.
            KeyboardInterrupt: at the end of the outermost block, likewise without a result.
        """
        if not self._busy.acquire(blocking=False):
            raise LensError("the ranks are busy with another call; wait for it, or interrupt it")
        if self._under_way is not None:  # in this thread, by an ``on_event``; no other rank listens now
            self._busy.release()
            raise LensError("the ranks are in the middle of a call, and what is called meanwhile cannot begin another")
        outcome = Outcome()
        try:
            if not self._depth:
                self.rank.acknowledge_stop()
            with interrupts.handled_by(self._note_interrupt) if not self._depth else contextlib.nullcontext():
                with self._changed:
                    self._depth += 1
                try:
                    yield outcome
                finally:
                    with self._changed:
                        self._depth -= 1
            stopped = outcome.stopped or self.rank.stop_requested  # now that no interrupt sets the flag any more
            if stopped and outcome.result is not None:
                raise Interrupted(outcome.result)
            if stopped and not self._depth:
                raise KeyboardInterrupt
        finally:
            self._busy.release()

    def _relaying(self, on_event: Callable[[Any], None] | None) -> Callable[[Any], None]:
        """Wrap ``on_event`` so that what other ranks print is shown during a call, too."""

        def relay(event: Any) -> None:
            if self._output:
                self.flush_output()
            if on_event is not None:
                on_event(event)

        return relay

    @property
    def busy(self) -> bool:
        """Whether a call is under way."""
        return self._depth > 0

    @property
    def lost(self) -> bool:
        """Whether a rank has died or the ranks were given up, so that only a new group can go on."""
        return bool(self._gone) or self._loss is not None

    @property
    def usable(self) -> bool:
        """Whether it can take calls: neither lost nor closed."""
        return not (self.lost or self.closed)

    def interrupt(self) -> bool:
        """Ask the running call to stop; from any thread. A second interrupt, after a while without effect, gives the ranks up.

        Returns:
            True if the caller must raise KeyboardInterrupt on rank 0 itself: nothing runs, or no rank can be asked to stop
            any more.
        """
        now = time.monotonic()
        with self._changed:  # what runs now sees the flag when it ends, if not before
            if not self._depth:
                return True
            again = self.rank.stop_requested
            self.rank.request_stop()
        if not again:
            self._interrupted_at = now
        elif now - self._interrupted_at > PATIENCE_S:
            if not self._workers or self._given_up or self._loss is not None:
                return True
            self._interrupted_at = now
            self._give_up()
        return False

    def flush_output(self) -> None:
        """Write what other ranks have printed to this process's streams, prefixed with the rank."""
        with self._changed:
            pending, self._output = self._output, []
        for number, piece in pending:
            stream = sys.stderr if piece.stream == "stderr" else sys.stdout
            stream.write(f"[rank {number}] {piece.text}" if piece.text.strip() else piece.text)

    def processes(self) -> list[tuple[int, int, str]]:
        """(rank, process id, host) of every rank."""
        workers = [(joined.rank, joined.pid, joined.host) for joined, _ in self._workers.values()]
        return [(0, os.getpid(), socket.gethostname()), *sorted(workers)]

    def close(self) -> None:
        """End the other ranks. Safe to call twice, and for ranks already dead."""
        if self.closed:
            return
        self.closed = True
        finalise = self.joined and not self._gone
        for _, link in self._workers.values():
            with contextlib.suppress(OSError):
                link.send(channel.End(finalise))
        if finalise:
            worker.finalise()
        deadline = time.monotonic() + 2.0
        with self._changed:
            while len(self._gone) < len(self._workers) and time.monotonic() < deadline:
                self._changed.wait(0.1)
        self._kill_workers()
        for _, link in self._workers.values():
            link.close()

    # -- the call ------------------------------------------------------------------------------------------------------

    def _run_everywhere(self, command: channel.Call) -> list[Any]:
        with self._changed:
            self._replies = {}
        message = channel.written(command) if self._workers else b""  # a model that is attached need not be picklable
        self._under_way = command.number  # first: a rank may have failed before the last has heard of the call
        try:
            for _, link in self._workers.values():
                with contextlib.suppress(OSError):  # a rank that has just died is found below, by name
                    link.send_written(message)
            own = _run_here(self.rank, command)
            if own.outcome != "ok":
                self._abort()
            replies = {0: own, **self._wait_for_replies()}
        finally:
            self._under_way = None
        if self._gone:
            raise self._describe_loss() from own.error
        if any(reply.outcome != "ok" for reply in replies.values()):
            self._renew()
            raise channel.failure(replies)
        return [replies[number].value for number in range(self.size)]

    def _wait_for_replies(self) -> dict[int, channel.Reply]:
        with self._changed:
            while len(self._replies) < len(self._workers) and not self._gone:
                self._changed.wait(0.2)  # wakes up for signals
            return dict(self._replies)

    def _abort(self, failed: int = 0) -> None:
        """Release the ranks that wait for a failed one."""
        self.rank.aborted.set()
        self._require_an_end()
        for number, (_, link) in self._workers.items():
            if number != failed:
                with contextlib.suppress(OSError):
                    link.send(channel.Abort())

    def _require_an_end(self) -> None:
        """Make sure that the running call ends even if ranks cannot notice a failure: in NCCL's kernels."""
        call = self._under_way
        if call is None or not _waits_in_kernels():
            return

        def look() -> None:
            if self._under_way == call:
                self._give_up()

        timer = threading.Timer(GRACE_S, look)
        timer.daemon = True
        timer.start()

    def _give_up(self) -> None:
        """End the other ranks, and the kernels in which this one waits for them."""
        if self._gone:
            self._describe_loss()  # names the dead, while they are the only ones
        else:
            self._given_up = "the ranks did not stop and were given up"
        self._kill_workers()
        if _waits_in_kernels():
            from .collectives import abort_kernels

            abort_kernels()

    def _renew(self) -> None:
        try:
            for _, link in self._workers.values():
                link.send(channel.Renew())
            self.rank.renew()
        except Exception as error:
            with self._changed:  # the listening thread learns of a rank that has just died
                if worker.is_abort(error) or isinstance(error, ConnectionError):
                    self._changed.wait_for(lambda: self._gone, GRACE_S)
            if not self._gone:  # they wait for this rank, and would take part in no other call
                self._given_up = f"the ranks were given up: after a failure they could not meet again ({reason_of(error)})"
            raise self._describe_loss() from error

    def _note_interrupt(self) -> None:
        """Set the flag: a KeyboardInterrupt in the middle of rank 0's work would leave other ranks waiting."""
        if not self._depth:  # just before or after the block, which looks at the flag once more
            self.rank.request_stop()
        elif self.interrupt():
            raise KeyboardInterrupt

    # -- listening to the other ranks, in a thread ---------------------------------------------------------------------

    def _listen(self) -> None:
        links = {link.connection: (number, link) for number, (_, link) in self._workers.items()}
        while links:
            try:
                ready = wait(list(links))
            except OSError:
                return  # closed meanwhile: the group is being closed
            for connection in ready:
                number, link = links[connection]  # type: ignore[index]
                try:
                    self._take(number, link.receive())
                except (EOFError, OSError):
                    del links[connection]  # type: ignore[arg-type]
                    self.rank.aborted.set()
                    with self._changed:
                        self._gone.add(number)
                        self._changed.notify_all()
                    self._require_an_end()

    def _take(self, number: int, message: Any) -> None:
        if isinstance(message, channel.Reply) and message.outcome == "error":
            # Before the reply counts: once all have come, the ranks are renewed, and a late abort would hit the next call.
            self._abort(failed=number)
        with self._changed:
            if isinstance(message, channel.Printed):
                self._output.append((number, message))
            elif isinstance(message, channel.Reply) and message.number == self._number:
                self._replies[number] = message
                self._changed.notify_all()

    # -- losing ranks --------------------------------------------------------------------------------------------------

    def require_all(self) -> None:
        """Raise RanksLost, naming them, if any rank is gone."""
        if self._forked:
            raise RanksLost(self._forked)
        if self.closed:
            raise RanksLost("these ranks were ended; `%lens restart` starts new ones")
        if self.lost:
            raise self._describe_loss()

    def _describe_loss(self) -> RanksLost:
        """Return the error that names the dead ranks, made once. The survivors cannot go on without them and are killed."""
        if self._loss is None:
            time.sleep(0.1)  # ranks that died together are named together
            with self._changed:
                dead = sorted(self._gone)
            names = ", ".join(f"rank {number} (pid {self._workers[number][0].pid})" for number in dead)
            ended = "these ranks were ended while they worked" if self.closed else f"{names} ended unexpectedly"
            happened = self._given_up or ended
            remedy = "start the job again" if self.joined else "`%lens restart` starts new ranks and loads the model again"
            self._loss = RanksLost(f"{happened}; variables and results are untouched, {remedy}")
            self._kill_workers()
        return self._loss

    def disown(self) -> bool:
        """Let go of the ranks in a forked process: they are not its own, and would live as long as it is connected to them.

        Returns:
            Whether calls may have given torch threads, which are not forked.
        """
        used = self._number > 0 and "torch" in sys.modules
        if self._workers:
            self._forked, self.closed = "the ranks belong to the process that this one was forked from; use them there", True
        elif used:
            self._forked = forks.NO_THREADS
        for _, link in self._workers.values():
            link.close()
        return used

    def _kill_workers(self) -> None:
        here = socket.gethostname()
        for joined, _ in self._workers.values():
            if joined.host == here and joined.rank not in self._gone:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(joined.pid, signal.SIGKILL)


def _waits_in_kernels() -> bool:
    if "torch" not in sys.modules:  # not imported before it is needed
        return False
    from .collectives import waits_in_kernels

    return waits_in_kernels()


def _run_here(rank: Rank, command: channel.Call) -> channel.Reply:
    """Run a command on rank 0, keeping the exception itself, so that it can be raised unchanged."""
    raised: list[BaseException] = []
    reply = worker.run(rank, command, raised.append)
    return reply if not raised else channel.Reply(reply.number, reply.outcome, error=raised[0])
