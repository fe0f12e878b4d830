"""A process and those that it has started: which these are, and what memory all hold (Linux)."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def children(pid: int) -> list[int]:
    """Return the processes that a process has started and not yet ended. Raises OSError: gone."""
    found: list[int] = []
    for task in os.listdir(f"/proc/{pid}/task"):
        text = Path(f"/proc/{pid}/task/{task}/children").read_text(encoding="ascii")
        found += map(int, text.split())
    return found


def tree_bytes(pid: int) -> int:
    """Return what a process and all below it have resident; pages they share count for each."""
    total = 0
    with contextlib.suppress(OSError):  # it has ended
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
        total = int(pages) * os.sysconf("SC_PAGE_SIZE")
        total += sum(tree_bytes(child) for child in children(pid))
    return total
