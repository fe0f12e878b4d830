"""Why a stream ended whose keys and values were with a worker that is gone, or nothing runs."""

from __future__ import annotations


class WorkerFailedError(RuntimeError):
    """A worker ended or did not answer; the streams that it held anything of are lost."""


class WorkersLostError(WorkerFailedError):
    """Workers can't be started or can't meet any more: whoever serves on them is to be replaced."""
