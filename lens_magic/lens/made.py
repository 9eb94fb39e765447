"""How a run was made, in one line, which everything that shows a run says beside its model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..steer.spans import in_short
from ..words import printable

_MOST = 200  # characters
_NORMS = {"frozen": "frozen norm", "none": "no norm"}


def how_made(options: Mapping[str, Any]) -> str:
    """Return what made a run other than the model and the logit lens: steering, another lens, another norm; "" if nothing did.

    >>> how_made({"steering": ["mood add α=-1.5 at resid_post of layer 4"], "norm": "frozen"})
    'mood add α=-1.5 at resid_post of layer 4 · frozen norm'
    """
    lens = options.get("lens") or {}
    seen = {"tuned": "tuned lens", "basis": f"basis {lens.get('name', '')}"}.get(str(lens.get("kind")), "")
    parts = [*map(in_short, options.get("steering") or ()), seen, _NORMS.get(str(options.get("norm")), "")]
    told = printable(" · ".join(filter(None, parts)))
    return told if len(told) <= _MOST else f"{told[: _MOST - 1]}…"
