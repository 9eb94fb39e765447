"""The browser component as two strings: one script, one style sheet.

The component is a set of plain ES modules, but both places that run it, anywidget's `_esm` and the inline script of a
stand-alone page, need a single source text. The modules import only each other, in a fixed order and with one-line
imports, so bundling means dropping those imports and keeping `export` in the last file only. A test checks that every
module follows this.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "static"
MODULES = (
    *(
        "dom.js",
        "keys.js",
        "format.js",
        "data.js",
        "query.js",
        "theme.js",
        "measures.js",
        "frame.js",
        "axes.js",
        "cells.js",
        "fit.js",
        "grid.js",
    ),
    *(
        "overview.js",
        "detail.js",
        "chart.js",
        "pins.js",
        "find.js",
        "toolbar.js",
        "legend.js",
        "live.js",
        "copy.js",
        "paper.js",
    ),
    *("stage.js", "explorer.js", "widget.js"),
)
STYLES = ("theme.css", "grid.css", "controls.css", "panels.css", "paper.css")
_IMPORT = re.compile(r'^import \{[^}]*\} from "\./[a-z]+\.js";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|class|const)\b)", re.MULTILINE)


@cache
def script() -> str:
    """The component as one ES module, which exports `mount` and anywidget's `default`."""
    sources = [_IMPORT.sub("", (FOLDER / name).read_text(encoding="utf-8")) for name in MODULES]
    return "\n".join([*(_EXPORT.sub("", source) for source in sources[:-1]), sources[-1]])


@cache
def style() -> str:
    """The component's style sheet."""
    return "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in STYLES)
