"""`check_keys`: unknown settings are refused with a list of the known ones, at every level."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def check_keys(data: Mapping[Any, Any], known: Mapping[str, Any], what: str) -> None:
    """Raise ValueError naming the unknown keys of `data` and listing the known ones."""
    unknown = [str(key) for key in data if key not in known]
    if unknown:
        raise ValueError(f"unknown {what} {', '.join(unknown)}; known: {', '.join(known)}")
