"""Bringing ranks up: spawn them from this process, or join the world a launcher has already started."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import LensError, reason_of
from . import entry, loopback
from .environment import HOSTFILE, daemon_apart, mpi_prefix, prepare, temporary_files_in

_OF_THE_WORLD = ("OMPI_COMM_WORLD_", "PMI_", "PMIX_")  # how the variables begin by which a launcher's ranks know their place

_mpi_of: set[int] = set()  # the process that has initialised MPI
_mpis_sockets: set[str] = set()  # on which MPI listens in this process since then


def launched_ranks() -> int:
    """Return the number of ranks that a launcher (``mpiexec -n N``) started, this process included; 1 without a launcher.

    It is read from the environment, so that a kernel need not load MPI to know. ``LENS_WORKER``, which their script sets,
    marks spawned ranks.
    """
    if os.environ.get("LENS_WORKER"):
        return 1
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 1


def load_mpi() -> Any:
    """Return ``mpi4py.MPI``, initialised so that failures raise exceptions.

    Raises:
        LensError: MPI cannot be loaded, or was started before this process was forked.
    """
    if _mpi_of and os.getpid() not in _mpi_of:
        raise LensError("MPI was started before this process was forked and cannot be used in it; start one that is not forked")
    folder = prepare(one_host=not several_hosts())
    import mpi4py

    # After a rank has died MPI_Finalize can crash; ranks end without it (see Group.close).
    mpi4py.rc.finalize = False
    users = loopback.listening()
    try:
        with temporary_files_in(folder), _hang_up_kept():
            from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise LensError(f"MPI cannot be loaded ({error}); `lens-magic doctor` says what is missing") from error
    if not _mpi_of:
        _mpis_sockets.update(loopback.listening() - users)
    _mpi_of.add(os.getpid())
    for communicator in (MPI.COMM_WORLD, MPI.COMM_SELF):
        communicator.Set_errhandler(MPI.ERRORS_RETURN)
    return MPI


@contextlib.contextmanager
def _hang_up_kept() -> Iterator[None]:
    """Undo what MPI does about SIGHUP: it would ignore it, and a program would outlive its terminal, with all its ranks.

    By the C library, because MPI is loaded in a thread, where Python refuses to set handlers.
    """
    libc = ctypes.CDLL(None)
    before = ctypes.create_string_buffer(1024)  # more than any system's struct sigaction
    known = libc.sigaction(signal.SIGHUP, None, before) == 0
    try:
        yield
    finally:
        if known:
            libc.sigaction(signal.SIGHUP, before, None)


def spawn(size: int) -> Any:
    """Start ranks 1 … size − 1 and return the communicator in which this process is rank 0.

    Raises:
        LensError: MPI is missing, or refused to spawn; the working folder does not exist.
    """
    require_working_folder()
    if several_hosts() and not Path(os.environ[HOSTFILE]).is_file():
        raise LensError(f"there is no host file {os.environ[HOSTFILE]} ({HOSTFILE} names it)")
    mpi = load_mpi()
    info = mpi.Info.Create()
    if several_hosts():
        info.Set("hostfile", os.environ[HOSTFILE])
    folder = prepare(one_host=not several_hosts())
    script = ["-P", entry.__file__]
    try:
        with daemon_apart(folder):
            merged = mpi.COMM_SELF.Spawn(sys.executable, args=script, maxprocs=size - 1, info=info).Merge(high=False)
    except mpi.Exception as error:
        where = mpi_prefix() or "the system's MPI"
        raise LensError(
            f"MPI ({where}) could not spawn {size - 1} ranks: {error}; `lens-magic doctor` says what is missing, "
            "`--ranks 1` needs no MPI"
        ) from error
    except OSError as error:
        raise LensError(f"the ranks' folder {folder} cannot be written: {reason_of(error)}; `--ranks 1` needs none") from error
    merged.Set_errhandler(mpi.ERRORS_RETURN)
    if not several_hosts():
        keep_to_this_host()
    return merged


def require_working_folder() -> None:
    """Raise LensError if the folder in which this process works has been removed: MPI starts no ranks from there."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise LensError("the working folder no longer exists, and ranks start in it; %cd (or cd) to one that does") from None


def several_hosts() -> bool:
    """Whether the ranks are spread over the hosts of a hostfile."""
    return bool(os.environ.get(HOSTFILE))


def keep_to_this_host() -> None:
    """Restrict MPI's sockets, here and in its daemon, to traffic from this host.

    In this process they are those it had once MPI was loaded: spawning opens no more, and the user's code may meanwhile.
    """
    import psutil

    loopback.restrict(only=_mpis_sockets)
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if child.name() == "prte":
                loopback.restrict(child.pid)


def joined_world() -> Any:
    """Return the communicator of all ranks that a launcher has started."""
    mpi = load_mpi()
    for name in list(os.environ):  # the programs that the user starts are no ranks of this world
        if name.startswith(_OF_THE_WORLD) and name != "PMIX_PREFIX":
            del os.environ[name]
    merged = mpi.COMM_WORLD.Dup()
    merged.Set_errhandler(mpi.ERRORS_RETURN)
    return merged


def spawned_world() -> Any:
    """In a spawned rank: return the communicator shared with the process that spawned it."""
    mpi = load_mpi()
    merged = mpi.Comm.Get_parent().Merge(high=True)
    merged.Set_errhandler(mpi.ERRORS_RETURN)
    if not several_hosts():
        loopback.restrict()
    return merged
