"""A Jupyter server for tests: fresh home and configuration, the loopback interface, a free port, a token."""

from __future__ import annotations

import json
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import driver


@dataclass
class Server:
    """A running server; ``mark`` finds it and everything it has started."""

    url: str
    token: str
    mark: str
    pid: int
    folder: Path
    log: Path

    def ask(self, path: str, body: dict[str, Any] | None = None, method: str | None = None) -> Any:
        """Its REST interface."""
        headers = {"Authorization": f"token {self.token}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/api/{path}", data=data, headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.loads(answer.read() or "null")


@contextmanager
def server(temporary: Path, application: str = "server", *options: str, **more: str) -> Iterator[Server]:
    """``jupyter server`` (or ``lab``) on a folder; ended, with all its processes, at the end."""
    token = secrets.token_hex(16)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = int(listening.getsockname()[1])
    folders = {f"JUPYTER_{name.upper()}_DIR": str(temporary / name) for name in ("config", "data")}
    env = driver.environment(temporary, **folders, **more)
    command = [
        *[sys.executable, "-m", "jupyter", application, "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}"],
        *["--ServerApp.port_retries=0", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={temporary}", *options],
    ]
    log = temporary / "server.log"
    with log.open("wb") as words:
        process = subprocess.Popen(command, env=env, stdout=words, stderr=subprocess.STDOUT, cwd=temporary)
    try:
        running = Server(f"http://127.0.0.1:{port}", token, env[driver.MARK], process.pid, temporary, log)
        deadline = time.monotonic() + 60
        while True:
            with suppress(OSError):
                running.ask("status")
                break
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield running
    finally:
        driver.end(env[driver.MARK])
        process.wait(timeout=10)
