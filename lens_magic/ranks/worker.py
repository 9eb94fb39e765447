"""Ranks 1 … n − 1: wait for a command, run it, report, until rank 0 says to leave or is gone.

Waiting is a blocking read of a socket, so an idle rank uses no processor time. A thread does the reading: it is also what
ends this process when rank 0 is gone, whatever the main thread is doing.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import io
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from ..errors import LensError
from ..importing import AHEAD
from . import channel, followed, settings, start
from .environment import remove_runtime_folder, restore_temporary_files
from .rank import Aborted, Rank

_MARK = "\0lens-magic\0\n"  # written to a rank's own output to learn when all before it has been relayed


def main() -> None:
    """Entry point of a spawned rank."""
    restore_temporary_files()
    serve(start.spawned_world())


def serve_unless_first() -> None:
    """Return on rank 0 of a launched world; the others serve it until it ends."""
    if start.load_mpi().COMM_WORLD.rank != 0:
        serve(start.joined_world())


def serve(communicator: Any) -> NoReturn:
    """Take part in the group that the communicator's rank 0 leads, until that ends; then end this process."""
    link = channel.connect(communicator)
    wait_until_relayed = _relay_output(link)
    commands: queue.SimpleQueue[Any] = queue.SimpleQueue()
    aborted = threading.Event()
    threading.Thread(target=_read, args=(link, commands, aborted), daemon=True, name="lens-commands").start()
    rank = Rank(communicator, aborted)
    try:
        _serve(rank, link, commands, wait_until_relayed)
    except BaseException:  # relayed while there is somebody to relay it: the threads that do would end with this one
        traceback.print_exc()
        _flush()
        wait_until_relayed()
        raise SystemExit(1) from None


def _serve(
    rank: Rank, link: channel.Link, commands: queue.SimpleQueue[Any], wait_until_relayed: Callable[[], None]
) -> NoReturn:
    ahead = list(AHEAD)  # imported while the user still types
    while True:
        while ahead and commands.empty():
            with contextlib.suppress(Exception):  # whatever needs it will report the error
                importlib.import_module(ahead.pop(0))
        command = commands.get()
        if isinstance(command, channel.End):
            _flush()
            if command.finalise:
                finalise()
                remove_runtime_folder()  # a launched rank's own; a spawned one shares rank 0's
            os._exit(0)
        elif isinstance(command, channel.Renew):
            rank.renew()
        elif isinstance(command, channel.Reply):  # of a call that could not be read
            link.send(command)
        else:
            reply = run(rank, command)
            wait_until_relayed()  # what a call printed comes before its reply, so that it belongs to the user's cell
            link.send(reply)


def run(rank: Rank, call: channel.Call, on_error: Callable[[BaseException], None] | None = None) -> channel.Reply:
    """Run one command on this rank and return its reply; an error becomes a reply too, and goes to ``on_error``.

    Once rank 0 learns of a failure, it releases the ranks that wait for this one in a collective.
    """
    try:
        followed.follow(call.environment)
        function = getattr(importlib.import_module(call.module), call.function)
        with settings.plain():
            value = function(rank, *call.arguments, **call.options)
        _finish_kernels(rank)
    except BaseException as error:
        if on_error is not None:
            on_error(error)
        with contextlib.suppress(Exception):  # the first error is the one to report
            _finish_kernels(rank)
        if is_abort(error):
            error.__traceback__ = None  # nobody needs it, and its frames keep alive what the ranks share
            return channel.Reply(call.number, "aborted")
        expected = isinstance(error, LensError)
        summary = str(error) if expected else f"{type(error).__name__}: {error}".rstrip(": ")
        return channel.Reply(call.number, "error", None, summary, traceback.format_exc(), expected)
    finally:
        followed.note_gpus()
        _flush()
    return channel.Reply(call.number, "ok", value)


def finalise() -> None:
    """Finalise MPI; collective over a launched world. Spawned ranks never do, since it can crash after a failure."""
    from mpi4py import MPI

    MPI.Finalize()


def is_abort(error: BaseException) -> bool:
    """Whether an error only echoes another rank's failure. Every MPI error here comes from a dead rank, which MPI reports
    under several error classes.
    """
    mpi = sys.modules.get("mpi4py.MPI")
    return isinstance(error, Aborted) or (mpi is not None and isinstance(error, mpi.Exception))


def _finish_kernels(rank: Rank) -> None:
    """Wait for all that this rank has asked of its GPU, if ranks wait for each other in its kernels.

    A kernel whose counterpart another rank never started, as it failed before, would else meet one of the next call. As long as
    it waits, the call is under way, and the group gives the ranks up.
    """
    if (collectives := sys.modules.get(f"{__package__}.collectives")) is not None and collectives.waits_in_kernels():
        collectives.torch.cuda.synchronize(collectives.device_for(rank))


def _read(link: channel.Link, commands: queue.SimpleQueue[Any], aborted: threading.Event) -> None:
    """Queue what rank 0 sends; when rank 0 is gone, clean up after it and exit at once.

    One that has said so first lives on: it has ended this rank, not itself, and its folder is in use.
    """
    ended = False
    try:
        while True:
            command = link.receive()
            if isinstance(command, channel.Abort):  # the main thread may be waiting for a rank that will never come
                aborted.set()
            else:
                ended = ended or isinstance(command, channel.End)
                commands.put(command)
    except (EOFError, OSError):
        if not ended:
            remove_runtime_folder()
        os._exit(1)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


def _relay_output(link: channel.Link) -> Callable[[], None]:
    """Send what this process prints (C libraries included) to rank 0; a crash's traceback goes to the original stderr.

    Returns:
        A function that waits until all that has been printed so far has been sent.
    """
    relayed = threading.Semaphore(0)
    faulthandler.enable(os.fdopen(os.dup(2), "w"))
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        readable, writable = os.pipe()
        os.dup2(writable, descriptor)
        os.close(writable)
        threading.Thread(target=_pump, args=(readable, name, link, relayed), daemon=True, name=f"lens-{name}").start()
    sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), line_buffering=True, errors="replace")
    sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", closefd=False), line_buffering=True, errors="replace")

    def wait() -> None:
        for descriptor in (1, 2):
            os.write(descriptor, _MARK.encode())
        for _ in (1, 2):
            relayed.acquire(timeout=1.0)  # times out only if a function has redirected a descriptor and left it so

    return wait


def _pump(descriptor: int, stream: str, link: channel.Link, relayed: threading.Semaphore) -> None:
    with os.fdopen(descriptor, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            text, mark, _ = line.partition(_MARK)
            try:
                if text:
                    link.send(channel.Printed(stream, text + "\n" if mark else text))
            except OSError:
                return
            if mark:
                relayed.release()


if __name__ == "__main__":
    main()
