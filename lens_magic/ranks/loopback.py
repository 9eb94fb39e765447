"""Keeping MPI's own sockets to this host.

Open MPI's transport and its daemon listen on every interface and have no option not to. On one host nobody else needs these
sockets, so a packet filter is attached to each: the operating system's kernel drops what does not come from the loopback
addresses before MPI sees it. Linux lets a process do so for its own sockets, and for those of its children
(``pidfd_getfd``). Where it does not, the sockets stay as MPI made them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

_SO_ATTACH_FILTER = 26
_SYS_PIDFD_GETFD = 438  # the same number on every architecture
_NETWORK_HEADER = 0xFFF00000  # SKF_NET_OFF: offsets from here count from the IP header
_LOAD_BYTE, _LOAD_WORD, _AND, _SHIFT_RIGHT, _JUMP_IF_EQUAL, _RETURN = 0x30, 0x20, 0x54, 0x74, 0x15, 0x06

# Classic BPF: (operation, value, instructions to skip if true, if false). Accept IPv4 from 127.0.0.0/8 and IPv6 from ::1.
_FROM_LOOPBACK = [
    (_LOAD_BYTE, _NETWORK_HEADER, 0, 0),
    (_SHIFT_RIGHT, 4, 0, 0),  # the IP version
    (_JUMP_IF_EQUAL, 4, 0, 3),
    (_LOAD_WORD, _NETWORK_HEADER + 12, 0, 0),  # IPv4 source address
    (_AND, 0xFF000000, 0, 0),
    (_JUMP_IF_EQUAL, 0x7F000000, 8, 9),
    (_LOAD_WORD, _NETWORK_HEADER + 8, 0, 0),  # IPv6 source address, four words
    (_JUMP_IF_EQUAL, 0, 0, 7),
    (_LOAD_WORD, _NETWORK_HEADER + 12, 0, 0),
    (_JUMP_IF_EQUAL, 0, 0, 5),
    (_LOAD_WORD, _NETWORK_HEADER + 16, 0, 0),
    (_JUMP_IF_EQUAL, 0, 0, 3),
    (_LOAD_WORD, _NETWORK_HEADER + 20, 0, 0),
    (_JUMP_IF_EQUAL, 1, 0, 1),
    (_RETURN, 0xFFFFFFFF, 0, 0),
    (_RETURN, 0, 0, 0),
]


def listening() -> set[str]:
    """Return the names in /proc of the sockets on which this process listens on every interface."""
    found = set()
    for name, handle in _wildcard_sockets(os.getpid()):
        handle.close()
        found.add(name)
    return found


def restrict(pid: int | None = None, only: set[str] | None = None) -> int:
    """Restrict the sockets on which a process listens on every interface to traffic from this host.

    Args:
        pid: this process (the default), or a child of it.
        only: the sockets to restrict (see :func:`listening`): others are the user's. By default all.

    Returns:
        How many sockets were restricted.
    """
    done = 0
    for name, handle in _wildcard_sockets(pid or os.getpid()):
        with handle, contextlib.suppress(OSError):
            if only is None or name in only:
                _attach(handle)
                done += 1
    return done


def _attach(handle: socket.socket) -> None:
    program = b"".join(struct.pack("HBBI", op, if_true, if_false, value) for op, value, if_true, if_false in _FROM_LOOPBACK)
    buffer = ctypes.create_string_buffer(program)
    handle.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", len(_FROM_LOOPBACK), ctypes.addressof(buffer)))


def _wildcard_sockets(pid: int) -> Iterator[tuple[str, socket.socket]]:
    """Yield the name in /proc and a handle of each of a process's TCP sockets that listen on 0.0.0.0 or ::."""
    try:
        entries = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return
    for entry in entries:
        with contextlib.suppress(OSError):
            name = str(entry.readlink())
            if not name.startswith("socket:"):
                continue
            handle = socket.socket(fileno=_handle_of(pid, int(entry.name)))
            if _listens_everywhere(handle):
                yield name, handle
            else:
                handle.close()


def _handle_of(pid: int, descriptor: int) -> int:
    """Return a descriptor of our own for a process's socket."""
    if pid == os.getpid():
        return os.dup(descriptor)
    process = os.pidfd_open(pid)
    try:
        found = int(ctypes.CDLL(None, use_errno=True).syscall(_SYS_PIDFD_GETFD, process, descriptor, 0))
    finally:
        os.close(process)
    if found < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return found


def _listens_everywhere(handle: socket.socket) -> bool:
    if handle.family not in (socket.AF_INET, socket.AF_INET6) or handle.type != socket.SOCK_STREAM:
        return False
    if not handle.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return False
    return handle.getsockname()[0] in ("0.0.0.0", "::")  # noqa: S104 - looked for, not bound to
