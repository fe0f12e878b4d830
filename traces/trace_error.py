"""`TraceError`: what a user of traces got wrong, in words that say what was expected."""

from __future__ import annotations


class TraceError(ValueError):
    """A trace, a trace file or what is asked of one is malformed.

    `index` is the query (0-based) whose value is at fault, where there is one: a reader of files
    turns it into a line.
    """

    def __init__(self, message: str, *, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index
