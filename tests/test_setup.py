"""``tools/setup.sh``: what it asks pip for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PYTHON = """#!/bin/sh
case "$1" in
    -c) echo 2.13.0 ;;
    *) echo "DS_IGNORE_CUDA_DETECTION=${DS_IGNORE_CUDA_DETECTION-} $*" >> calls ;;
esac
"""


def test_deepspeed_is_built_without_a_cuda_toolkit(tmp_path: Path) -> None:
    """Its build finds torch, and so the GPU, and would ask the toolkit's compiler for its version."""
    for name in ("tools/setup.sh", "pyproject.toml", "constraints.txt", "kernels/lens/kernel.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    environ = {**os.environ, "PYTHON": sys.executable}
    environ.pop("DS_IGNORE_CUDA_DETECTION", None)
    command = ["sh", "tools/setup.sh"]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    (built,) = (line for line in (tmp_path / "calls").read_text().splitlines() if "--no-build-isolation" in line)
    assert built.startswith("DS_IGNORE_CUDA_DETECTION=1 -m pip ")
