"""Views of a run: an interactive explorer, a static table, a stand-alone page, a text table, figures.

The notebook widget, the page on disk and the static table are drawn from one `Packed` value (`lens_magic.view.data.pack`).
Text views (`terminal`, `steered`) and matplotlib figures (`plots`, `steerability`) read the run or report itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..lens.run import LensRun
    from .explorer import Explorer
    from .live import LiveView
    from .page import page_html
    from .static_table import StaticTable, table_html

__all__ = ["Explorer", "LiveView", "page_html", "show", "table_html"]


def show(
    run: LensRun, static: bool = False, compare: LensRun | None = None, names: tuple[str, str] | None = None
) -> Explorer | StaticTable:
    """Return a view of a run: the interactive explorer, or (`static=True`) a plain HTML table without scripts.

    Either is displayed as a cell's value. The explorer includes the table for readers without widgets.

    Args:
        compare: a second run, shown beside the first with linked scrolling, or as the change from the first to it.
        names: names of the two runs in the view; by default their models' names.
    """
    if static:
        from .static_table import StaticTable

        return StaticTable(run)
    from .explorer import Explorer

    return Explorer(run, compare=compare, names=names)


def __getattr__(name: str) -> Any:
    if name == "Explorer":
        from .explorer import Explorer

        return Explorer
    if name == "LiveView":
        from .live import LiveView

        return LiveView
    if name == "page_html":
        from .page import page_html

        return page_html
    if name == "table_html":
        from .static_table import table_html

        return table_html
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
