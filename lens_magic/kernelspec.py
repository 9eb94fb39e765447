"""The Lens kernel's specification, as in ``kernels/lens/kernel.json`` and as ``lens-magic kernel install`` writes it."""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from .errors import LensError
from .options import DEFAULT_RANKS, check_ranks
from .paths import path_of

NAME = "lens"
# What MPI reads at startup and must not depend on who starts the kernel. lens_magic.ranks.environment adds what may.
_ENVIRONMENT = {
    "OMPI_MCA_mpi_ft_enable": "1",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "PRTE_MCA_prte_enable_ft": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
}


def specification(
    ranks: int = DEFAULT_RANKS, hostfile: str | None = None, python: str = "python", display_name: str = "Lens"
) -> dict[str, Any]:
    """Return the contents of ``kernel.json``."""
    environment = {"LENS_DEFAULT_RANKS": str(ranks), **_ENVIRONMENT}
    if hostfile:
        environment["LENS_HOSTFILE"] = hostfile
    return {
        # -P: while the kernel starts, a queue.py beside the notebook does not stand in for Python's.
        "argv": [python, "-P", "-m", "lens_magic.kernel", "-f", "{connection_file}"],
        "display_name": display_name,
        "language": "python",
        # Signals would reach MPI's daemon too, which takes them as an order to abort everything.
        "interrupt_mode": "message",
        "env": environment,
        "metadata": {"debugger": False},
    }


def install(
    name: str = NAME,
    ranks: int = DEFAULT_RANKS,
    hostfile: str | None = None,
    user: bool = True,
    prefix: str | None = None,
) -> Path:
    """Install a kernel specification for this Python.

    Args:
        name: letters, digits, ``.``, ``_`` and ``-``.
        user: install for this user; otherwise below ``prefix``.

    Raises:
        LensError: the name, number of ranks or prefix is invalid, the host file does not exist, or writing fails.
    """
    from jupyter_client.kernelspec import KernelSpecManager

    check_ranks(ranks)
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
        raise LensError(f"{name!r} cannot name a kernel; letters, digits, ., _ and - would do, . and - not as the first")
    if prefix == "":  # from an unset shell variable; Jupyter would install for the whole system
        raise LensError("--prefix is empty; a folder would do, and without --prefix the kernel is this user's")
    below = None if prefix is None else str(path_of(prefix))
    hosts = None if hostfile is None else path_of(hostfile)
    if hosts is not None and not hosts.is_file():
        raise LensError(f"there is no host file {hostfile}")
    display_name = "Lens" if name == NAME else f"Lens ({name})"
    known_hostfile = str(hosts.resolve()) if hosts else None
    with tempfile.TemporaryDirectory() as own:
        folder = Path(own, name)  # Jupyter copies its mode too, and the temporary folder is private to this user
        folder.mkdir(mode=0o755)
        content = specification(ranks, known_hostfile, sys.executable, display_name)
        (folder / "kernel.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
        shutil.copy(Path(__file__).parent / "view" / "static" / "logo.svg", folder / "logo-svg.svg")
        try:
            return Path(KernelSpecManager().install_kernel_spec(str(folder), name, user=user, prefix=below))
        except (OSError, ValueError) as error:
            raise LensError(f"the kernel {name!r} could not be installed: {error}") from error


def found_first(name: str, folder: Path) -> Path | None:
    """Return where Jupyter finds another kernel of this name before the one in ``folder``; None if it does not.

    None too for a folder in which this environment's Jupyter does not look.
    """
    from jupyter_client.kernelspec import KernelSpecManager

    manager = KernelSpecManager()
    if folder.parent.resolve() not in [Path(place).resolve() for place in manager.kernel_dirs]:
        return None
    found = Path(manager.get_kernel_spec(name).resource_dir)
    return None if found.resolve() == folder.resolve() else found


def hidden(installed: dict[str, Path]) -> list[Path]:
    """Return the folders of kernels that Jupyter does not show, because it finds those installed by the same name first."""
    from jupyter_client.kernelspec import KernelSpecManager

    places = [Path(place) for place in KernelSpecManager().kernel_dirs]
    others = [place / name for name in installed for place in places if (place / name / "kernel.json").is_file()]
    known = {folder.resolve() for folder in installed.values()}
    return [folder for folder in others if folder.resolve() not in known]


def installed() -> dict[str, Path]:
    """Return the name and folder of every installed kernel that runs :mod:`lens_magic.kernel`."""
    from jupyter_client.kernelspec import KernelSpecManager

    found = {}
    for name, entry in KernelSpecManager().get_all_specs().items():
        if "lens_magic.kernel" in entry["spec"].get("argv", []):
            found[name] = Path(entry["resource_dir"])
    return found
