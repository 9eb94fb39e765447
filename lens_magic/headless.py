"""A run without a notebook: the ranks it uses and the files it writes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from . import session as sessions
from .errors import LensError
from .options import check_ranks, default_ranks
from .outputs import write
from .ranks.start import launched_ranks

if TYPE_CHECKING:
    from .lens.run import LensRun


def write_all(run: LensRun, paths: list[Path]) -> None:
    """Write a run to each path, in the format of its ending. If one fails, the others are still written.

    Raises:
        LensError: a file could not be written; names all of them, and why.
    """
    failed = []
    for path in paths:
        try:
            write(run, path)
        except LensError as error:
            failed.append(str(error))
    if failed:
        raise LensError("; ".join(failed))


def open_session(ranks: str | None) -> sessions.Session:
    """Open a session whose ranks are spawned here, or were launched (``mpiexec -n N lens-magic run …``).

    In a launched world only rank 0 returns; the others serve it until it ends.
    """
    launched = launched_ranks()
    if launched > 1:
        from .ranks.worker import serve_unless_first

        serve_unless_first()
        session = sessions.Session(launched, launched=True)
        session.start_in_background()
    else:
        session = sessions.Session(check_ranks(ranks) if ranks is not None else default_ranks())
    sessions.use(session)
    return session
