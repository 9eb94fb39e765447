"""The harness's side of a measuring process: requests, answers, and ending one that takes too long."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


class TooLong(Exception):
    """No answer came in time; the process was ended."""


class Failed(Exception):
    """The process answered with an error, or died; the message is one line."""


def with_this_tree() -> dict[str, str]:
    """Return the environment in which a process and the ranks it spawns import this tree's packages."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}


class Process:
    """A process that answers requests with lines of JSON.

    Args:
        command: the command to run, from the repository's root.
        log: file for everything else that it prints.
        environment: added to this process's own environment, without its ``PYTHONPATH``.
    """

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        settings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        settings |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=ROOT,
                env={**settings, **(environment or {})},
                start_new_session=True,
            )
        self._log, self._read = log, b""

    def ask(self, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send a request and return the answer.

        Raises:
            TooLong: none came within ``timeout_s``. Failed: it was an error, or the process has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise Failed(f"the measuring process is gone ({self._log.name} may say why)") from None
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._read:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                self.end()
                raise TooLong
            piece = os.read(self._process.stdout.fileno(), 1 << 20)
            if not piece:
                self.end()
                raise Failed(f"the measuring process died ({self._log.name} may say why)")
            self._read += piece
        line, _, self._read = self._read.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def close(self) -> None:
        """Let the process end, or end it if it does not."""
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.end()

    def end(self) -> None:
        """End the process now. Its ranks notice and exit."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
