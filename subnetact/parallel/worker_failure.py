"""`WorkerFailedError`: why a stream ended whose keys and values were with a worker that is gone."""

from __future__ import annotations


class WorkerFailedError(RuntimeError):
    """A worker ended or did not answer; the streams that it held anything of are lost."""
