"""Shared by all figures: light and dark colours, text that stays text in vector files, and fonts that have the glyphs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from ..errors import LensError
from ..options import number
from .text import visible

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

_MOST_PIXELS_A_SIDE, _MOST_PIXELS = (1 << 16) - 1, 1 << 28
_LEAST = (4.0, 2.6)  # width and height of a figure, inches: as much as its title and a colour bar's label take

# Fonts with wide coverage that systems have; the installed ones are tried in this order for each character.
_FONTS = (
    "DejaVu Sans",
    "Noto Sans",
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Noto Sans Arabic",
    "Noto Sans Hebrew",
    "Noto Sans Devanagari",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Arial Unicode MS",
)


@dataclass(frozen=True)
class Palette:
    """Colours of a figure.

    Attributes:
        sure: name of the colour map of what is greatest where the model is sure.
        unsure: violet, as in the explorer, for what is greatest where it is not (:attr:`unsure_map`).
        lines: distinguishable with red-green colour blindness too (Wong 2011, Nature Methods 8:441).
    """

    paper: str
    ink: str
    faint: str
    sure: str
    unsure: str
    lines: tuple[str, ...]

    @property
    def unsure_map(self) -> Colormap:
        """From no colour to violet."""
        from matplotlib.colors import LinearSegmentedColormap

        return LinearSegmentedColormap.from_list("unsure", [self.paper, self.unsure])


LIGHT = Palette(
    "#ffffff",
    "#1a1a1a",
    "#8a8a8a",
    sure="Blues",
    unsure="#8054c4",
    lines=("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
)
DARK = Palette(
    "#111417",
    "#e6e6e6",
    "#8f979e",
    sure="cividis",
    unsure="#9e74e8",
    lines=("#56b4e9", "#e69f00", "#2fbf95", "#e392c0", "#f0e442", "#8ab8ff"),
)


@contextlib.contextmanager
def styled(dark: bool) -> Iterator[Palette]:
    """Apply the common style to everything drawn inside: colours, fonts with wide coverage, text taken literally."""
    import matplotlib as mpl

    palette = DARK if dark else LIGHT
    settings: Any = {
        "font.family": [name for name in _FONTS if name in _installed()] or ["sans-serif"],
        "font.size": 9,
        "axes.titlesize": 9,
        "figure.titlesize": 11,
        "text.parse_math": False,  # a token may be "$x_1$"
        "text.usetex": False,  # nor LaTeX, whatever the user's settings say
        "figure.facecolor": palette.paper,
        "savefig.facecolor": palette.paper,
        "axes.facecolor": palette.paper,
        "axes.edgecolor": palette.faint,
        "axes.spines.top": False,
        "axes.spines.right": False,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), palette.ink),
    }
    with mpl.rc_context(settings):
        yield palette


def panels(widths: Sequence[float], height: float, rows: int = 1) -> tuple[Figure, list[Any]]:
    """Return a figure, not registered with pyplot, with axes side by side, of these widths in inches or a little more.

    Args:
        rows: so many times, one row below another, each ``height`` high.
    """
    size = max(sum(widths), _LEAST[0]), max(height, _LEAST[1]) * rows
    figure: Figure = _figure_class()(figsize=size, layout="constrained")
    axes = figure.subplots(rows, len(widths), squeeze=False, gridspec_kw={"width_ratios": list(widths)})
    return figure, list(axes.flat)


@cache
def _figure_class() -> Any:
    import io

    import matplotlib as mpl
    from matplotlib.figure import Figure

    class VectorFigure(Figure):
        """A figure whose text stays text in vector files, and which Jupyter displays as a cell's value."""

        def savefig(self, *arguments: Any, **options: Any) -> None:
            with mpl.rc_context({"svg.fonttype": "none", "pdf.fonttype": 42}):
                super().savefig(*arguments, **options)

        def _repr_png_(self) -> bytes:
            buffer = io.BytesIO()
            self.savefig(buffer, format="png", dpi=110)
            return buffer.getvalue()

    return VectorFigure


def check_dpi(figure: Figure, dpi: float) -> None:
    """Check a figure's dots per inch.

    Raises:
        LensError: it is not a number, or gives more pixels than matplotlib draws or 1 GiB holds.
    """
    width, height = map(float, figure.get_size_inches())
    most = int(min(_MOST_PIXELS_A_SIDE / max(width, height), (_MOST_PIXELS / (width * height)) ** 0.5))
    if not 1 <= (dpi := number("dpi", dpi)) <= most:
        raise LensError(f"dpi {dpi:g} is out of range for a figure of {width:.3g} × {height:.3g} inches; 1 to {most} would do")


def label(text: str, longest: int = 14, keep: str = "") -> str:
    """A token's text for a figure: visible but for ``keep``, short, and escaped where no installed font has the glyph."""
    shown = "".join(char if _has_glyph(char) else _escaped(char) for char in visible(text, keep))
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def _escaped(char: str) -> str:
    return f"\\u{{{ord(char):x}}}"


@cache
def _installed() -> frozenset[str]:
    from matplotlib import font_manager

    return frozenset(font.name for font in font_manager.fontManager.ttflist)


@cache
def _characters() -> frozenset[int]:
    """Code points of all characters that an installed font has."""
    from matplotlib import font_manager

    found: set[int] = set()
    for name in _FONTS:
        if name in _installed():
            path = font_manager.findfont(font_manager.FontProperties(family=name), fallback_to_default=True)
            found |= font_manager.get_font(path).get_charmap().keys()
    return frozenset(found)


def _has_glyph(char: str) -> bool:
    return ord(char) in _characters()
