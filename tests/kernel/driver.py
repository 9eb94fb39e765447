"""Drives a Jupyter kernel as a frontend does: cells in, what a reader sees out, and the processes behind it."""

from __future__ import annotations

import ast
import os
import queue
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager

HERE = Path(__file__).parent
MARK = "LENS_TEST_MARK"  # an environment variable that everything a test starts inherits
PROMPT = "A lens gathers the light"
# `call(f, …)` runs a function of faulty.py on every rank; `tokens()` is what the model says, for comparison.
SETUP = f"""
import faulty
import lens_magic as lens
from lens_magic.session import current
def call(function, *arguments):
    return current().group.call(function, *arguments)
def tokens(n=12):
    return lens.generate({PROMPT!r}, max_new_tokens=n, ignore_eos=True).output_ids
"""
PATIENCE_S = 120.0  # for what should take a few seconds; only ever used up by a failure
_pids_seen: set[str] = set()  # of every process that a test has started
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class Reply:
    """What one cell gave."""

    status: str = ""
    ename: str = ""
    evalue: str = ""
    traceback: list[str] = field(default_factory=list)
    stdout: str = ""
    stderr: str = ""
    displays: list[dict[str, Any]] = field(default_factory=list)
    text: str = ""  # the cell's value

    def __str__(self) -> str:
        error = "\n".join(self.traceback)
        return f"{self.status} {self.ename}: {self.evalue}\n{error}\n[stdout] {self.stdout}\n[stderr] {self.stderr}"


class Cell:
    """A cell that runs."""

    def __init__(self, client: BlockingKernelClient, code: str) -> None:
        self._client = client
        self.reply = Reply()
        self._idle = False
        self._request = client.execute(code, allow_stdin=False, stop_on_error=False)

    def until(self, seen: Callable[[Reply], Any], timeout: float = PATIENCE_S) -> Cell:
        """Go on reading until this holds."""
        deadline = time.monotonic() + timeout
        while not seen(self.reply):
            assert not self._idle, f"the cell ended first: {self.reply}"
            self._read(deadline)
        return self

    def says(self, words: str, timeout: float = PATIENCE_S) -> Cell:
        """Go on reading until the cell has printed, or displayed, this."""
        return self.until(lambda reply: words in reply.stdout or {"text/plain": words} in reply.displays, timeout)

    def wait(self, timeout: float = PATIENCE_S) -> Reply:
        """Go on reading until the cell has ended."""
        deadline = time.monotonic() + timeout
        while not self._idle:
            self._read(deadline)
        while not self.reply.status:
            message = self._client.get_shell_msg(timeout=max(0.1, deadline - time.monotonic()))
            if message["parent_header"].get("msg_id") == self._request:
                content = message["content"]
                self.reply.status = content["status"]
                self.reply.ename, self.reply.evalue = content.get("ename", ""), content.get("evalue", "")
        return self.reply

    def _read(self, deadline: float) -> None:
        try:
            message = self._client.get_iopub_msg(timeout=max(0.01, min(1.0, deadline - time.monotonic())))
        except queue.Empty:
            assert time.monotonic() < deadline, f"nothing came any more: {self.reply}"
            return
        if message["parent_header"].get("msg_id") == self._request:
            self._take(message["msg_type"], message["content"])

    def _take(self, kind: str, content: dict[str, Any]) -> None:
        if kind == "stream":
            old = getattr(self.reply, content["name"])
            setattr(self.reply, content["name"], old + content["text"])
        elif kind in ("display_data", "execute_result", "update_display_data"):
            self.reply.displays.append(content["data"])
            if kind == "execute_result":
                self.reply.text = content["data"].get("text/plain", "")
        elif kind == "error":
            self.reply.traceback = [_COLOURS.sub("", line) for line in content["traceback"]]
        elif kind == "status" and content["execution_state"] == "idle":
            self._idle = True


class Kernel:
    """A kernel, its client, and a way to find every process it has started."""

    def __init__(self, client: BlockingKernelClient, mark: str, manager: KernelManager | None = None) -> None:
        self.client = client
        self.mark = mark
        self._manager = manager

    @property
    def manager(self) -> KernelManager:
        assert self._manager is not None
        return self._manager

    @property
    def pid(self) -> int:
        return int(self.manager.provisioner.pid)

    def start(self, code: str) -> Cell:
        """Send a cell; do not wait for it."""
        return Cell(self.client, code)

    def run(self, code: str, timeout: float = PATIENCE_S) -> Reply:
        """Run a cell to its end, whatever that is."""
        return self.start(code).wait(timeout)

    def ok(self, code: str, timeout: float = PATIENCE_S) -> Reply:
        """Run a cell that must not fail."""
        reply = self.run(code, timeout)
        assert reply.status == "ok", f"{code}\n{reply}"
        return reply

    def value(self, expression: str, timeout: float = PATIENCE_S) -> Any:
        """A Python literal, evaluated in the kernel."""
        *statements, last = expression.split("\n")
        reply = self.ok("\n".join([*statements, f"repr(({last}))"]), timeout)
        return ast.literal_eval(ast.literal_eval(reply.text))

    def interrupt(self) -> None:
        self.manager.interrupt_kernel()

    def pids(self) -> list[int]:
        """Of its ranks."""
        return list(self.value("[rank['pid'] for rank in lens.status().ranks]"))

    def subshell(self) -> str:
        """A thread of the kernel that hears messages while a cell runs, as frontends ask for."""
        request = self.client.session.msg("create_subshell_request")
        self.client.control_channel.send(request)
        while True:
            reply = self.client.get_control_msg(timeout=30)
            if reply["parent_header"].get("msg_id") == request["header"]["msg_id"]:
                return str(reply["content"]["subshell_id"])

    def processes(self) -> list[psutil.Process]:
        return marked(self.mark)


def marked(mark: str) -> list[psutil.Process]:
    """Every live process that carries the mark, however far it has wandered from its parent."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark:
                found.append(process)
    _pids_seen.update(str(process.pid) for process in found)
    return found


def gone(mark: str, within_s: float) -> list[str]:
    """What still runs when the time is up; empty as soon as nothing does."""
    deadline = time.monotonic() + within_s
    while left := marked(mark):
        if time.monotonic() > deadline:
            return [describe(process) for process in left]
        time.sleep(0.1)
    return []


def describe(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return f"{process.pid} {process.status()} {' '.join(process.cmdline())}"
    return f"{process.pid} (gone)"


def environment(temporary: Path, **more: str) -> dict[str, str]:
    """The environment of what a test starts: marked, with its own home, folder for temporary files and kept runs."""
    inherited = {name: text for name, text in os.environ.items() if not name.startswith(("LENS_", "JUPYTER", "IPYTHON"))}
    for name in ("home", "tmp", "runs", "runtime"):
        (temporary / name).mkdir(exist_ok=True)
    return {
        **inherited,
        MARK: uuid4().hex,
        "HOME": str(temporary / "home"),
        "TMPDIR": str(temporary / "tmp"),
        "LENS_RUNS_DIR": str(temporary / "runs"),
        "JUPYTER_RUNTIME_DIR": str(temporary / "runtime"),
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])]),  # faulty.py, and this checkout before any other
        "HF_HUB_OFFLINE": "1",
        **more,
    }


def left_behind(temporary: Path) -> list[str]:
    """What is in the folder for temporary files, but for torch's cache of compiled code."""
    names = [path.name for path in (temporary / "tmp").iterdir()]
    return [name for name in names if not name.startswith("torchinductor_")]


def shared_files() -> list[str]:
    """Files in shared memory that a process of these tests has left there, or that MPI has made outside our folders."""
    ours = [path for path in Path("/dev/shm").glob("lens-magic-*") if path.name.split("-")[-2] in _pids_seen]
    return [path.name for path in [*ours, *Path("/dev/shm").glob("sm_segment*")]]


def connected(pid: int) -> bool:
    """Whether a rank is connected to this process's socket, as its rank 0."""
    connections = (line.split() for line in Path("/proc/net/unix").read_text(encoding="ascii", errors="replace").splitlines())
    ours = (entry for entry in connections if f"-{pid}-" in entry[-1] and "/control-" in entry[-1])
    return any(entry[5] == "03" for entry in ours)  # its state; 01 is that of one that listens


def process(pid: int) -> psutil.Process:
    return psutil.Process(pid)


def alive(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def end(mark: str) -> None:
    """Kill everything that carries the mark."""
    for process in marked(mark):
        with suppress(psutil.Error):
            process.kill()


def wait_until_ready(client: BlockingKernelClient, timeout: float = 60.0) -> None:
    """Wait for a kernel that was not started here. Its own ``wait_for_ready`` calls a kernel dead that is busy starting."""
    deadline = time.monotonic() + timeout
    while True:
        client.kernel_info()
        with suppress(queue.Empty):
            client.get_shell_msg(timeout=1)
            client.get_iopub_msg(timeout=1)  # the channel of outputs is connected too
            return
        assert time.monotonic() < deadline, "the kernel did not answer"


@contextmanager
def kernel(temporary: Path, name: str = "lens", kernel_dir: Path | None = None, **more: str) -> Iterator[Kernel]:
    """A kernel of this name, as Jupyter starts it; ended, with all its processes, at the end."""
    env = environment(temporary, **more)
    specifications = KernelSpecManager()
    if kernel_dir is not None:
        specifications.kernel_dirs = [str(kernel_dir)]
    manager = KernelManager(kernel_name=name, kernel_spec_manager=specifications)
    manager.connection_file = str(temporary / "runtime" / f"kernel-{env[MARK]}.json")
    manager.start_kernel(env=env, cwd=str(temporary))
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        started = Kernel(client, env[MARK], manager)
        started.processes()  # noted, for what it may leave behind
        yield started
    finally:
        client.stop_channels()
        if manager.has_kernel:
            manager.shutdown_kernel(now=True)
        manager.cleanup_resources()
        end(env[MARK])


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
