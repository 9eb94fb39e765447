"""The control channel: commands down to the ranks, replies, output and events up to rank 0.

Numbers travel by MPI or NCCL; this channel carries only small messages. It is a socket, because a socket can be waited on
without using the processor, and because the operating system closes it the moment a process dies, however it died:
that is how rank 0 learns which rank is gone, and how a rank learns that rank 0 is gone.

On one host it is a Unix socket in the group's private folder; over several hosts (asked for with a hostfile) a TCP socket.
Both ends prove to each other that they know a random key, which travels by MPI.
"""

from __future__ import annotations

import importlib
import io
import os
import pickle
import re
import secrets
import socket
import threading
from dataclasses import dataclass, field
from multiprocessing.connection import Client, Connection, Listener
from types import FunctionType
from typing import Any, Literal

from ..errors import LensError, RankError, reason_of
from .environment import SOCKET, runtime_folder


@dataclass(frozen=True)
class Call:
    """Down: run ``module:function`` with these arguments and report under ``number``.

    Before, each rank sets the variables of its ``environment`` to what they are on rank 0.
    """

    number: int
    module: str
    function: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    environment: dict[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Abort:
    """Down: another rank has failed; stop waiting for it in a collective."""


@dataclass(frozen=True)
class Renew:
    """Down: the communicator was given up after a failure; make a fresh one."""


@dataclass(frozen=True)
class End:
    """Down: exit; in a launched world after finalising MPI, as the launcher would otherwise consider the job failed."""

    finalise: bool = False


@dataclass(frozen=True)
class Printed:
    """Up: a piece of what a rank printed."""

    stream: str
    text: str


@dataclass(frozen=True)
class Reply:
    """Up: how call ``number`` ended on a rank: "ok" with its value, "error", or "aborted" because another rank failed.

    An error is ``expected`` if it is a LensError: its text, in ``summary``, says all that the user needs.
    """

    number: int
    outcome: Literal["ok", "error", "aborted"]
    value: Any = None
    summary: str = ""
    traceback: str = ""
    expected: bool = False
    error: BaseException | None = None


def failure(replies: dict[int, Reply]) -> BaseException:
    """Return the error to raise: rank 0's own, else the first other rank's; one that only echoes another's as a last resort."""
    own = replies[0]
    if own.outcome == "error" and own.error is not None:
        return own.error
    for number, reply in sorted(replies.items()):
        if reply.outcome == "error":
            return LensError(reply.summary) if reply.expected else RankError(number, reply.summary, reply.traceback)
    return own.error or LensError("the ranks gave up without saying why")


@dataclass(frozen=True)
class Joined:
    """Up, once: a rank introduces itself."""

    rank: int
    pid: int
    host: str


class _Pickler(pickle.Pickler):
    def reducer_override(self, given: Any) -> Any:
        """Refuse what pickle would write as a name in ``__main__``, which another process has its own of."""
        if isinstance(given, type | FunctionType) and given.__module__ == "__main__":
            raise LensError(
                f"{given.__qualname__} is defined in this notebook or script, where ranks do not find it; "
                "plain values, or one from a module that can be imported, would do"
            )
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        """Import the packages that a module is in first, from the outermost on.

        Messages are read in a thread. Python locks a module before it imports the package around it: if another thread was
        importing that package, and came to the module, each would wait for the other, and Python fails one of the imports.
        """
        for dot in re.finditer(r"\.", module):
            importlib.import_module(module[: dot.start()])
        return super().find_class(module, name)


def written(message: object) -> bytes:
    """Return a message as it is sent: its call's number, so that one that cannot be read can be answered, and itself.

    Raises:
        LensError: it holds something that the user's notebook or script defines.
    """
    # Pickled here: the connection's own pickling would share a tensor's memory between processes instead of sending it.
    pickled = io.BytesIO()
    pickle.dump(getattr(message, "number", 0), pickled)
    _Pickler(pickled, protocol=pickle.HIGHEST_PROTOCOL).dump(message)
    return pickled.getvalue()


class Link:
    """One end of the channel; sends are safe from any thread."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._sending = threading.Lock()

    def send(self, message: object) -> None:
        """Send one message."""
        self.send_written(written(message))

    def send_written(self, message: bytes) -> None:
        """Send what :func:`written` has returned: one that goes to several ranks is written once."""
        with self._sending:
            self.connection.send_bytes(message)

    def receive(self) -> Any:
        """Wait for the next message; in place of one that cannot be read, return the reply of a call that has failed so.

        Raises:
            EOFError, OSError: the other process is gone.
        """
        message = io.BytesIO(self.connection.recv_bytes())
        number = pickle.load(message)  # noqa: S301 - from a process that has shown it knows the group's key
        try:
            return _Unpickler(message).load()
        except Exception as error:
            summary = f"what one rank sent another cannot be read there ({reason_of(error)}); plain values would do"
            return Reply(number, "error", None, summary, expected=True)

    def close(self) -> None:
        """Close this end."""
        self.connection.close()


Workers = dict[int, tuple[Joined, Link]]
"""The ranks other than 0, by their number."""


def accept_all(communicator: Any) -> Workers:
    """On rank 0: let every other rank of the communicator connect. Collective with :func:`connect`."""
    hosts = communicator.gather(socket.gethostname(), root=0)
    key = secrets.token_bytes(32)
    family = "AF_UNIX" if len(set(hosts)) == 1 else "AF_INET"
    address: Any = (
        str(runtime_folder() / f"{SOCKET}{secrets.token_hex(4)}") if family == "AF_UNIX" else (socket.gethostname(), 0)
    )
    with Listener(address, family, backlog=communicator.size, authkey=key) as listener:
        communicator.bcast((listener.address, family, key), root=0)
        links = Workers()
        while len(links) < communicator.size - 1:
            link = Link(listener.accept())
            joined: Joined = link.receive()
            links[joined.rank] = (joined, link)
    return links


def connect(communicator: Any) -> Link:
    """On every other rank: connect to rank 0 and introduce this rank."""
    communicator.gather(socket.gethostname(), root=0)
    address, family, key = communicator.bcast(None, root=0)
    link = Link(Client(address, family, authkey=key))
    link.send(Joined(communicator.rank, os.getpid(), socket.gethostname()))
    return link
