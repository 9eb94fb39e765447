"""Look inside, and steer, language models too large for one GPU, from a notebook.

``import lens_magic as lens`` loads nothing heavy: torch, transformers and DeepSpeed are imported with the first model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import importing

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .api import attach, generate, load, run, status, train_tuned_lens
    from .errors import Interrupted, LensError, RankError, RanksLost
    from .lens.basis import Basis, load_basis
    from .lens.difference import LensDiff
    from .lens.run import LensRun, open_run
    from .lens.translators import TunedLens, load_tuned_lens
    from .ranks.status import Status
    from .results import GeneratedText
    from .steer.ablation import SiteAblation, open_ablation
    from .steer.compare import SteeredText
    from .steer.report import SteerabilityReport, open_report
    from .steer.term import SteeringTerm
    from .steer.vector import SteeringVector
    from .steer_api import ablate_sites, compare, diff, evaluate, load_vector, panel, train_vector

_HOMES = {
    "ablate_sites": "steer_api",
    "attach": "api",
    "compare": "steer_api",
    "diff": "steer_api",
    "evaluate": "steer_api",
    "generate": "api",
    "load": "api",
    "load_vector": "steer_api",
    "panel": "steer_api",
    "run": "api",
    "status": "api",
    "train_vector": "steer_api",
    "Interrupted": "errors",
    "LensError": "errors",
    "RankError": "errors",
    "RanksLost": "errors",
    "Basis": "lens.basis",
    "load_basis": "lens.basis",
    "GeneratedText": "results",
    "LensDiff": "lens.difference",
    "LensRun": "lens.run",
    "open_run": "lens.run",
    "TunedLens": "lens.translators",
    "load_tuned_lens": "lens.translators",
    "train_tuned_lens": "api",
    "SiteAblation": "steer.ablation",
    "open_ablation": "steer.ablation",
    "SteerabilityReport": "steer.report",
    "SteeredText": "steer.compare",
    "SteeringTerm": "steer.term",
    "SteeringVector": "steer.vector",
    "Status": "ranks.status",
    "open_report": "steer.report",
}

__all__ = [
    "Basis",
    "GeneratedText",
    "Interrupted",
    "LensDiff",
    "LensError",
    "LensRun",
    "RankError",
    "RanksLost",
    "SiteAblation",
    "Status",
    "SteerabilityReport",
    "SteeredText",
    "SteeringTerm",
    "SteeringVector",
    "TunedLens",
    "ablate_sites",
    "attach",
    "compare",
    "diff",
    "evaluate",
    "generate",
    "load",
    "load_basis",
    "load_ipython_extension",
    "load_tuned_lens",
    "load_vector",
    "open_ablation",
    "open_report",
    "open_run",
    "panel",
    "run",
    "status",
    "train_tuned_lens",
    "train_vector",
    "unload_ipython_extension",
]


importing.watch()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def load_ipython_extension(shell: Any) -> None:
    """``%load_ext lens_magic``: register the magics. Outside a Lens kernel this process is the only rank by default."""
    from .magics import LensMagics
    from .steer_magics import SteerMagics

    shell.register_magics(LensMagics(shell), SteerMagics(shell))


def unload_ipython_extension(shell: Any) -> None:
    """``%unload_ext lens_magic``: end the ranks and forget the model."""
    from .session import current

    current().close()
