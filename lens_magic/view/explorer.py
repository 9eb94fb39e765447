"""The interactive table as a Jupyter widget."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import traitlets
from numpy.typing import NDArray

from ..errors import LensError
from ..paths import path_of
from ..words import dimensions
from ..writing import written_whole
from . import bundle
from .data import Shown, on_show, pack
from .static_table import fallback_html, tables_html
from .terminal import table_text

if TYPE_CHECKING:
    from ..lens.run import LensRun


class RunView(anywidget.AnyWidget):
    """A run in the browser, drawn from binary traits: the base of `Explorer` and `LiveView`.

    `selected` is the chosen cell, `{"site": str, "layer": int, "position": int}` or empty. It follows the reader's
    clicks and keys (`view.observe(handler, "selected")`), and setting it moves the view.

    Displaying it makes two outputs: the widget, and a static table for readers without one (GitHub, nbconvert, a
    notebook opened again), which stays hidden while the widget is live.
    """

    _esm = bundle.script()
    _css = bundle.style()

    header: Any = traitlets.Dict().tag(sync=True)
    buffers: Any = traitlets.Dict().tag(sync=True)
    other_header: Any = traitlets.Dict().tag(sync=True)
    other_buffers: Any = traitlets.Dict().tag(sync=True)
    live: Any = traitlets.Bool(False).tag(sync=True)
    selected: Any = traitlets.Dict().tag(sync=True)
    fallback: Any = traitlets.Unicode().tag(sync=True)

    def __init__(self, shown: Sequence[Shown], **traits: Any) -> None:
        self._shown = shown
        super().__init__(**traits, fallback=uuid.uuid4().hex)

    @traitlets.validate("selected")
    def _known_cell(self, proposal: dict[str, Any]) -> dict[str, Any]:
        cell: dict[str, Any] = dict(proposal["value"])
        if self.live:  # the run grows, and the browser may be ahead
            return cell
        for key, plural in (("site", "sites"), ("layer", "layers"), ("position", "positions")):
            known = sorted({*self.header[plural], *self.other_header.get(plural, ())})
            if cell and cell.get(key) not in known:
                has = f"{plural} {known[0]} … {known[-1]}" if known else f"no {plural}"
                raise traitlets.TraitError(f"selected[{key!r}] is {cell.get(key)!r}, and this run has {has}")
        return cell

    def __repr__(self) -> str:
        head = self.header
        sizes = dimensions(position=len(head["positions"]), layer=len(head["layers"]), site=len(head["sites"]))
        made = ", ".join(filter(None, (head["model"], head["how"])))
        return f"Explorer({made}: {sizes}, top {head['k']})"

    def to_png(self, path: str | Path, dark: bool = False, dpi: int = 200, **options: Any) -> Path:
        """Write the (first) run's heatmap at the selected cell's site as a PNG; `options` as for `LensRun.plot`."""
        return self._write(path, "png", dark, dpi, options)

    def to_svg(self, path: str | Path, dark: bool = False, **options: Any) -> Path:
        """Write the same heatmap as SVG, in which text stays text."""
        return self._write(path, "svg", dark, 200, options)

    def _write(self, path: str | Path, kind: str, dark: bool, dpi: int, options: dict[str, Any]) -> Path:
        from .figure import check_dpi
        from .plots import plot

        if not self._shown:
            raise LensError("the run is not finished; its heatmap can be written afterwards")
        given = {"site": self.selected.get("site"), **options}
        figure = plot(self._shown[0].run, "heatmap", dark, **given)
        if kind == "png":
            check_dpi(figure, dpi)
        with written_whole(path) as partial:
            figure.savefig(partial, format=kind, dpi=dpi)
        return path_of(path)

    def _ipython_display_(self, **kwargs: Any) -> None:
        # JupyterLab shows a widget's output as a widget or as "model not found", never as the HTML stored with it:
        # only a second output is still visible when the notebook is opened again.
        from IPython.display import display

        bundled = super()._repr_mimebundle_(**kwargs)
        if bundled is not None:
            data, metadata = bundled
            display({**data, "text/plain": ""}, metadata=metadata, raw=True)  # readers without widgets see the second alone
            self._display_fallback()

    def _display_fallback(self) -> None:
        """Display what readers without widgets see: HTML tables, or text tables in a terminal."""
        from IPython.display import display

        text = "\n\n".join(table_text(one.run) for one in self._shown)
        display({"text/html": fallback_html(self._shown, self.fallback), "text/plain": text}, raw=True)

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
        bundled = super()._repr_mimebundle_(**kwargs)
        if bundled is None:
            return None
        data, metadata = bundled
        return {**data, "text/html": tables_html(self._shown)}, metadata


class Explorer(RunView):
    """Interactive table of tokens × layers; only the cells in view exist as elements. See `RunView` for `selected`.

    With `compare`, a second run is shown beside the first, or as the change from the first to it; `names` names the two, and
    `apart` is KL(run ‖ compare) of every cell, nats, ``[site, layer, position]``.
    """

    def __init__(
        self,
        run: LensRun,
        compare: LensRun | None = None,
        names: tuple[str, str] | None = None,
        apart: NDArray[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        shown = on_show(run, compare, names, apart)
        packs = [pack(*one) for one in shown]
        traits: dict[str, Any] = {"header": packs[0].header, "buffers": packs[0].to_bytes()}
        if compare is not None:
            traits |= {"other_header": packs[1].header, "other_buffers": packs[1].to_bytes()}
        super().__init__(shown, **traits, **kwargs)
