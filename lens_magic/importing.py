"""Imports that an interrupt cannot leave half done.

A KeyboardInterrupt in the middle of torch's first import leaves it unusable in that process, which cannot import it anew; so it
is with sympy, which transformers imports, and with pandas. They are imported in a thread, which no interrupt reaches, while the
main thread waits. An interrupt ends the waiting alone: the import goes on, and whatever needs it next waits for it.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
import threading
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType

AHEAD = ("torch", "transformers", "transformers.activations", "transformers.modeling_utils")
"""What the first model needs, in pieces that do not keep a command waiting for long. (Not DeepSpeed, which decides at its
import what it runs on.)
"""

_NEEDED = {"torch": AHEAD[:1], "transformers": AHEAD}
_AT_THE_TOP = re.compile(rf"^(?:import|from) ({'|'.join(_NEEDED)})\b", re.MULTILINE)
_whole: set[str] = set()


def import_whole(*names: str) -> None:
    """Import modules in a thread and wait for it; whatever then needs one that cannot be imported reports the error.

    Raises:
        KeyboardInterrupt: the user stopped waiting.
    """
    missing = [name for name in names if name not in _whole]
    if not missing or threading.current_thread() is not threading.main_thread():  # interrupts reach no other thread
        return

    def work() -> None:
        for name in missing:
            with contextlib.suppress(Exception):
                importlib.import_module(name)
                _whole.add(name)

    thread = threading.Thread(target=work, daemon=True, name="lens-imports")
    thread.start()
    while thread.is_alive():
        thread.join(0.1)


class _Loader(SourceFileLoader):
    """Before it runs a module of this package, imports whole what that imports at its top."""

    def exec_module(self, module: ModuleType) -> None:
        for package in _AT_THE_TOP.findall(self.get_source(module.__name__) or ""):
            import_whole(*_NEEDED[package])
        super().exec_module(module)


class _Finder:
    """Finds this package's modules where Python does, and gives them the loader above."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if not name.startswith(f"{__package__}."):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def watch() -> None:
    """Import torch and transformers whole before any module of this package that needs them."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):  # it has been reloaded
        sys.meta_path.insert(0, _Finder())
