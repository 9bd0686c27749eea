"""Workers of pytest-xdist that are forked from one server, which has imported torch and all that the tests import.

A new Python for each worker would import, and in a fresh clone compile, the same thousands of modules at the same time.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection

import execnet.gateway_io
from execnet.gateway_base import ExecModel, Popen2IO

from tests.processes import SERVER

__all__ = ["fork_workers"]


class _Forked(Popen2IO):
    """A worker and the pipes to it, in the place of execnet's `Popen2IOMaster`."""

    def __init__(self, args: list[str], execmodel: ExecModel) -> None:
        from_worker, to_controller = SERVER.Pipe(duplex=False)
        from_controller, to_worker = SERVER.Pipe(duplex=False)
        self._process = SERVER.Process(target=_serve, args=(from_controller, to_controller))
        self._process.start()
        for end in (from_controller, to_controller):
            end.close()
        out, back = (os.fdopen(os.dup(end.fileno()), mode) for end, mode in ((to_worker, "wb"), (from_worker, "rb")))
        for end in (to_worker, from_worker):
            end.close()
        super().__init__(out, back, execmodel)

    def wait(self) -> int | None:
        self._process.join()
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()


def _serve(from_controller: Connection, to_controller: Connection) -> None:
    """In the new process: what `python -c` of execnet does there, with the pipes as standard input and output."""
    gc.freeze()
    for end, descriptor in ((from_controller, 0), (to_controller, 1)):
        os.dup2(end.fileno(), descriptor)
        end.close()
    # Processes that a test starts are forked from the same server; Python meant this, and would start another.
    forkserver._forkserver.ensure_running = resource_tracker.ensure_running  # type: ignore[method-assign]
    sys.stdin, sys.stdout = os.fdopen(0, "r", 1, closefd=False), os.fdopen(1, "w", 1, closefd=False)
    try:
        exec(eval(sys.stdin.readline()), {"__name__": "__main__"})
    finally:
        atexit._run_exitfuncs()


def fork_workers() -> None:
    """Let workers that are started from now on be forked."""
    execnet.gateway_io.Popen2IOMaster = _Forked  # type: ignore[misc, assignment]
