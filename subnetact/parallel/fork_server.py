"""What the server that forks workers loads first: it stays when a service is asked to end.

A service manager sends SIGTERM to all processes of a service. Python's server would end of it, and
with it the pipes that tell of workers: all that live would be taken to be dead, and no stream could
be ended well. This one ignores it, and ends when nobody is left that has processes forked. What it
forks acts on SIGTERM as any process does, until it says otherwise (`worker.py`).
"""

from __future__ import annotations

import os
import signal
import sys


def is_server(command: bytes) -> bool:
    """Whether a process of this command line (its arguments, with zeros between) forks workers."""
    return b"multiprocessing.forkserver" in command and __name__.encode() in command


def _ignore_sigterm() -> None:
    """Ignore it here and not in what is forked, which is not deaf to it for a moment either."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.register_at_fork(
        before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]),
        after_in_parent=_hear_sigterm,
        after_in_child=lambda: (signal.signal(signal.SIGTERM, signal.SIG_DFL), _hear_sigterm()),
    )


def _hear_sigterm() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])


if is_server("\0".join(sys.orig_argv).encode()):  # elsewhere loading this changes nothing
    _ignore_sigterm()
