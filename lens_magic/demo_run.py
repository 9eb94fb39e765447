"""``lens-magic demo``: execute the first tutorial on the real Lens kernel, unattended."""

from __future__ import annotations

import asyncio
import os
import sysconfig
import time
from pathlib import Path
from typing import Any, NoReturn

from .errors import LensError, reason_of
from .paths import path_of
from .words import counted

TUTORIAL = "01-logit-lens.ipynb"
_RUN = "run"  # the variable that holds the tutorial's first run
_TIMEOUT_S = 1800


def notebooks() -> Path:
    """Return the folder of the tutorials: that of a checkout, or where the installed package put them.

    Raises:
        LensError: there is neither.
    """
    data = [sysconfig.get_path("data"), sysconfig.get_path("data", sysconfig.get_preferred_scheme("user"))]
    places = [Path(__file__).parent.parent / "notebooks", *(Path(folder, "share/lens-magic/notebooks") for folder in data)]
    for place in places:
        if (place / TUTORIAL).is_file():
            return place
    raise LensError(f"the tutorials are not there; looked in {', '.join(map(str, places))}")


def execute(out: Path) -> None:
    """Execute the tutorial, print a small table, and write ``demo.ipynb`` (executed) and ``demo.html`` (interactive).

    ``LENS_MODEL`` selects another model than the embedded one.

    Raises:
        LensError: nbclient is missing, the folder cannot be made, or a cell failed.
    """
    nbformat, nbclient = _notebook_packages()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LensError(f"--out {str(out)!r}: there cannot be such a folder: {reason_of(error)}") from None
    begun = time.perf_counter()
    notebook = nbformat.read(notebooks() / TUTORIAL, as_version=4)
    if model := os.environ.get("LENS_MODEL"):
        if (folder := path_of(model)).is_dir():
            model = str(folder.resolve())  # the kernel runs in another folder
        for cell in notebook.cells:
            cell.source = cell.source.replace("%lens load demo", f"%lens load {model!r}")
    saved, page = (out / "demo.nc").resolve(), (out / "demo.html").resolve()
    take = f"{_RUN}.save({str(saved)!r}); {_RUN}.to_html({str(page)!r}); None"
    notebook.cells.append(nbformat.v4.new_code_cell(take))
    client = client_of(notebook, out)
    try:
        with asyncio.Runner(loop_factory=_Loop) as runner:
            runner.run(_executed(client))
    except nbclient.exceptions.CellExecutionError as error:
        raise LensError(f"a cell of the tutorial failed:\n{error}") from error
    finally:
        notebook.cells.pop()
        nbformat.write(notebook, out / "demo.ipynb")
    _report(saved, time.perf_counter() - begun, out)


class _Loop(asyncio.SelectorEventLoop):
    """Leaves Ctrl-C to asyncio, which cancels what runs: nbclient's own handlers would take the kernel away meanwhile."""

    def add_signal_handler(self, *_: object) -> NoReturn:
        """Refuse, as outside the main thread, where nbclient does without."""
        raise RuntimeError("signals are not handled here")


async def _executed(client: Any) -> None:
    """Execute the client's notebook; cancelled, nbclient ends the kernel, and says that it has died."""
    try:
        await client.async_execute()
    except _notebook_packages()[1].exceptions.DeadKernelError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError from None
        raise LensError("the kernel ended while it executed the tutorial; `lens-magic doctor` says what is missing") from error


def client_of(notebook: Any, folder: Path, **options: Any) -> Any:
    """Return a client that executes a notebook on the Lens kernel in a folder; ``options`` go to nbclient's ``NotebookClient``.

    Raises:
        LensError: nbclient is missing.
    """
    _, nbclient = _notebook_packages()
    return nbclient.NotebookClient(
        notebook,
        kernel_name="lens",
        timeout=_TIMEOUT_S,
        coalesce_streams=True,  # else every token of an answer becomes a separate output on its own line
        resources={"metadata": {"path": str(folder.resolve())}},
        **options,
    )


def _report(saved: Path, seconds: float, out: Path) -> None:
    from .lens.run import open_run
    from .view.terminal import table_text
    from .view.text import running

    run = open_run(saved)
    saved.unlink()
    tokens = len(run.output_ids)
    rate = f" at {run.timings['tokens_per_s']:.0f} tokens/s" if tokens > 1 else ""
    print(f"{running(run.prompt + run.text)}\n")
    print(table_text(run))
    print(
        f"\n{counted(tokens, 'token')} on {counted(run.provenance['ranks'], 'rank')}{rate}; "
        f"{len(run.sites)} sites × {len(run.layers)} layers projected in {run.timings['project_s']:.2f} s; "
        f"the notebook took {seconds:.0f} s"
    )
    print(f"{out / 'demo.ipynb'} is the executed notebook, {out / 'demo.html'} the interactive page")


def _notebook_packages() -> tuple[Any, Any]:
    try:
        import nbclient
        import nbformat
    except ImportError as error:
        raise LensError("executing a notebook needs nbclient: pip install nbclient nbconvert") from error
    return nbformat, nbclient
