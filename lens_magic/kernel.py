"""The Lens kernel: an IPython kernel that is rank 0 of a group of MPI ranks.

``python -P -m lens_magic.kernel -f CONNECTION_FILE``. The kernel answers before anything heavy is imported; its ranks come up
in the background. Started by ``mpiexec -n N``, every rank runs this module, and the ranks above 0 serve rank 0.
"""

from __future__ import annotations

import atexit
import contextlib
import inspect
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp

from . import session as sessions
from .errors import LensError
from .options import default_ranks
from .ranks.environment import remove_for_good
from .ranks.start import launched_ranks


class LensKernel(IPythonKernel):
    """An IPython kernel whose interrupts stop all ranks at the same token, and which ends the ranks when it ends."""

    implementation = "lens_magic"
    shut_down = False

    def _send_interrupt_children(self) -> None:
        """Handle an interrupt message, in the control thread: ask busy ranks to stop, else interrupt the cell.

        Unlike ipykernel's, this never signals the process group: the user's own child processes are in it too.
        """
        group = sessions.current().running_group
        if group is None or group.interrupt():
            os.kill(os.getpid(), signal.SIGINT)

    def _process_children(self) -> list[Any]:
        """Return the children that ipykernel ends and waits for before the kernel exits: the user's own.

        MPI's daemon exits by itself after the kernel. If ended here, it would complain on the terminal and become a zombie,
        for which ipykernel would wait until Jupyter kills the kernel; the kernel could then not clean up.
        """
        import psutil

        children = []
        for child in super()._process_children():
            with contextlib.suppress(psutil.Error):
                if child.status() != psutil.STATUS_ZOMBIE and child.name() not in ("prte", "prted"):
                    children.append(child)
        return children

    async def do_shutdown(self, restart: bool) -> Any:
        """End the ranks, then shut down the kernel.

        Their folder goes first: Jupyter gives a kernel seconds, and a cell that runs, or imports torch, can take longer.
        """
        self.shut_down = True
        remove_for_good()
        sessions.current().close()
        reply = super().do_shutdown(restart)
        return await reply if inspect.isawaitable(reply) else reply


class LensKernelApp(IPKernelApp):
    """The kernel's process, in which notebooks import the modules beside them."""

    def init_path(self) -> None:
        """Have modules in the working folder found after Python's, as IPython does, though not where ``-P`` is given.

        The specification gives it for what is imported until now, whatever the folder holds.
        """
        if "" not in sys.path and not self.ignore_cwd and not os.environ.get("PYTHONSAFEPATH"):
            after = [n for n, folder in enumerate(sys.path) if Path(folder).name in ("site-packages", "dist-packages")]
            sys.path.insert(after[0] if after else 0, "")


def connection_file(arguments: list[str]) -> str | None:
    """Return the connection file from ``-f PATH``, or ``--f=PATH`` as VS Code appends it; ignore all other arguments."""
    found = None
    flags = ("-f", "--f", "--connection-file")
    for place, argument in enumerate(arguments):
        flag, given, value = argument.partition("=")
        if flag in flags and given:
            found = value
        elif argument in flags and place + 1 < len(arguments):
            found = arguments[place + 1]
    return found


def main(arguments: list[str] | None = None) -> None:
    """Run the kernel until it is shut down; ranks above 0 of a launched world serve rank 0 instead."""
    launched = launched_ranks()
    if launched > 1:
        from .ranks.worker import serve_unless_first

        serve_unless_first()
    path = connection_file(sys.argv[1:] if arguments is None else arguments)
    try:
        session = sessions.Session(launched, launched=True) if launched > 1 else sessions.Session(default_ranks())
    except LensError as error:  # a bad LENS_RANKS: the kernel starts, and reports it when ranks are needed
        session = sessions.Session(1)
        session.fail_with(error)
    sessions.use(session)
    app = LensKernelApp.instance(kernel_class=LensKernel, extra_extensions=["lens_magic"])
    app.initialize(["-f", path] if path else [])
    session.start_in_background()
    try:
        app.start()
        while not app.kernel.shut_down and _is_interrupted(app.io_loop.start):
            pass
    finally:
        session.close()
    if "mpi4py.MPI" in sys.modules:
        # With MPI and torch loaded a normal interpreter exit takes seconds, and after a rank has died it can crash.
        atexit._run_exitfuncs()
        os._exit(0)


def _is_interrupted(run: Callable[[], object]) -> bool:
    """Run an event loop; return whether a KeyboardInterrupt that escaped one of the user's tasks has ended it.

    An interrupted run in such a task raises one. ipykernel would exit, and all of the user's variables would be lost.
    """
    try:
        run()
    except KeyboardInterrupt:
        return True
    return False


if __name__ == "__main__":
    main()
