"""Numba's `njit` for a graph's loops. Loops elsewhere may call those here and in their own file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from supernet.graphs.code_cache import code_folder, kept


def compiled(function: Any, *, fastmath: bool = False) -> Any:
    """Return `function` as machine code that lets the interpreter go, from the cache if it can."""
    folder = code_folder("compiled-nodes", Path(__file__).parent)
    return kept(function, folder, nogil=True, fastmath=fastmath)
