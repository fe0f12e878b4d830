"""`Lifeline`: ends a worker when the process that started it is gone, whatever the worker does.

Also in the middle of an exchange with one that hangs; and those that hang, or are stopped, with it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from subnetact.parallel.fork_server import is_server

_PROCESSES = Path("/proc")
# A process that is killed closes one file after the other, and is gone a moment later.
_LETS_GO_S = 0.05
_IS_GONE_WITHIN_S = 1.0


class Lifeline:
    """A thread of a worker that waits for the end of its parent."""

    def __init__(self, meeting_place: str) -> None:
        """Watch from now on; `meeting_place` is a folder that the parent would clear away."""
        self._parent: Any = multiprocessing.parent_process()
        assert self._parent is not None, "a worker is started by its executor"
        self._server = os.getppid()  # that forked us, or whoever takes in what a dead one leaves
        self._place = meeting_place
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def let_go(self) -> None:
        """Return when the parent has let go of us; does not return where it is gone."""
        self._parent.join(_LETS_GO_S)
        if not self._parent.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        self._parent.join()
        give_up_s = time.monotonic() + _IS_GONE_WITHIN_S
        while not _is_gone(self._parent.pid) and time.monotonic() < give_up_s:
            time.sleep(0.01)
        with contextlib.suppress(OSError):  # one of the workers is the first, and sees to all
            mine = f"{self._place}-{os.getpid()}"
            os.rename(self._place, mine)
            if _is_gone(self._parent.pid):
                _kill_family(self._server)
            shutil.rmtree(mine, ignore_errors=True)
        os._exit(1)


def _kill_family(server: int) -> None:
    """Kill the process that forked us and whatever else it forked, if it is still there; on Linux.

    It forks for one process alone. Where it was gone before we asked who it is, `server` is a
    process that has others in its care, init above all, which is left alone with all of them.
    """
    with contextlib.suppress(OSError):
        process = _PROCESSES / str(server)
        family = (process / f"task/{server}/children").read_text(encoding="ascii").split()
        if str(os.getpid()) in family and is_server((process / "cmdline").read_bytes()):
            for process_id in (server, *map(int, family)):
                if process_id != os.getpid():
                    os.kill(process_id, signal.SIGKILL)


def _is_gone(process_id: int) -> bool:
    """Whether a process has ended, maybe with nobody having waited for it; of Linux."""
    try:
        stat = (_PROCESSES / f"{process_id}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return sys.platform == "linux"
    return stat.rpartition(")")[2].split()[0] in "ZX"
