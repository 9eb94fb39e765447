"""What a result was made with, recorded in the result itself."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any

from . import __version__

if TYPE_CHECKING:
    from .session import Session


def provenance(session: Session) -> dict[str, Any]:
    """Return what a result is made with: versions, model, ranks, dtype, time."""
    model = session.require_model()
    return {
        **versions("torch", "transformers", "deepspeed", "numpy", "mpi4py"),
        "python": platform.python_version(),
        "model": model.name,
        "model_fingerprint": model.fingerprint,
        "model_layers": model.layers,
        "revision": model.revision,
        "ranks": session.group.size,
        "dtype": model.dtype,
        "created": now(),
    }


def now() -> str:
    """Return the time in UTC, in ISO format."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of this package and of those others that are installed."""
    found = {package: _version(package) for package in packages}
    return {"lens_magic": __version__, **{package: version for package, version in found.items() if version is not None}}
