"""The Lens kernel: an IPython kernel that is rank 0 of a group of MPI ranks.

``python -m lens_magic.kernel -f CONNECTION_FILE``. The kernel answers before anything heavy is imported; its ranks come up
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
from typing import Any

from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp

from . import session as sessions
from .errors import LensError
from .options import default_ranks
from .ranks.start import launched_ranks


class LensKernel(IPythonKernel):
    """An IPython kernel whose interrupts stop all ranks at the same token, and whose end is theirs."""

    implementation = "lens_magic"
    shut_down = False

    def _send_interrupt_children(self) -> None:
        """On an interrupt message, in the control thread: ask ranks that are working to stop, else interrupt the cell.

        Never a signal to the process group, as ipykernel would send: the user's own child processes are in it too.
        """
        group = sessions.current().running_group
        if group is None or not group.busy or group.interrupt():
            os.kill(os.getpid(), signal.SIGINT)

    def _process_children(self) -> list[Any]:
        """The children that ipykernel ends, and waits for, before the kernel goes: the user's own.

        MPI's daemon goes by itself when the kernel has gone. Told to, it protests on the terminal and then, a zombie,
        would be waited for until Jupyter kills the kernel, which could not clean up after itself any more.
        """
        import psutil

        children = []
        for child in super()._process_children():
            with contextlib.suppress(psutil.Error):
                if child.status() != psutil.STATUS_ZOMBIE and child.name() not in ("prte", "prted"):
                    children.append(child)
        return children

    async def do_shutdown(self, restart: bool) -> Any:
        """End the ranks before the kernel goes."""
        self.shut_down = True
        sessions.current().close()
        reply = super().do_shutdown(restart)
        return await reply if inspect.isawaitable(reply) else reply


def connection_file(arguments: list[str]) -> str | None:
    """The connection file among the arguments; ``-f PATH``, and ``--f=PATH`` as VS Code appends it. The rest is ignored."""
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
    """Run the kernel until it is shut down; on ranks above 0 of a launched world, serve it."""
    launched = launched_ranks() > 1
    if launched and _serve_if_not_first():
        return
    path = connection_file(sys.argv[1:] if arguments is None else arguments)
    try:
        session = sessions.Session(default_ranks())
    except LensError as error:  # a bad LENS_RANKS: the kernel starts, and says so when ranks are needed
        session = sessions.Session(1)
        session.fail_with(error)
    sessions.use(session)
    app = IPKernelApp.instance(kernel_class=LensKernel, extra_extensions=["lens_magic"])
    app.initialize(["-f", path] if path else [])
    session.start_in_background(joined=launched)
    try:
        app.start()
        while not app.kernel.shut_down and _is_interrupted(app.io_loop.start):
            pass
    finally:
        session.close()
    if "mpi4py.MPI" in sys.modules:
        # With MPI and torch loaded the interpreter's own end takes seconds, and after a rank has died it can crash.
        atexit._run_exitfuncs()
        os._exit(0)


def _is_interrupted(run: Callable[[], object]) -> bool:
    """Run an event loop; whether a task of the user's has ended it by a KeyboardInterrupt, as one does that asks for a run.

    (ipykernel would end, and all of the user's variables with it.)
    """
    try:
        run()
    except KeyboardInterrupt:
        return True
    return False


def _serve_if_not_first() -> bool:
    """In a launched world: ranks above 0 serve rank 0, and never come back."""
    from .ranks import start, worker

    world = start.load_mpi().COMM_WORLD
    if world.rank == 0:
        return False
    worker.serve(start.joined_world())
    return True


if __name__ == "__main__":
    main()
