"""What a run looks like: an interactive explorer, a static table, a stand-alone page, a table of text, figures.

Data in, view out: the notebook's widget, the page on disk and the static table are drawn from one `Packed` value
(`lens_magic.view.data.pack`); what is drawn as text (`terminal`, `steered`) or by matplotlib (`plots`, `steerability`) reads
its subject itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data import Run
    from .explorer import Explorer
    from .live import LiveView
    from .static import StaticTable, page_html, table_html

__all__ = ["Explorer", "LiveView", "page_html", "show", "table_html"]


def show(
    run: Run, static: bool = False, compare: Run | None = None, names: tuple[str, str] | None = None
) -> Explorer | StaticTable:
    """The view of a run: the interactive explorer, or (`static=True`) a plain HTML table without scripts.

    Either is displayed by being a cell's value; the explorer carries the table along for readers without widgets.

    Args:
        compare: a second run, shown beside the first with linked scrolling, or as what changes from the first to it.
        names: what the two are called in the view; by default their models' names.
    """
    if static:
        from .static import StaticTable

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
    if name in ("table_html", "page_html"):
        from . import static

        return getattr(static, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
