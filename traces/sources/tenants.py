"""Tenants and what goes by their names: deadlines, and priorities where they are asked for.

Who sent a query says nothing about how important it is: tenants are names, and the scheduler's
classes come from `priorities` alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from traces.texts import Texts
from traces.trace import FloatArray, IntArray, TraceError

_NAMED = 32


def slos_of(tenants: Texts, slos: str) -> FloatArray:
    """Return each query's deadline (s) from `slos`, milliseconds by name."""
    return _per_query(tenants, slos, "slos", "SLO", "MILLISECONDS") * 1e-3


def check_priorities(classes: str | None, priorities: str | None) -> None:
    """Refuse priorities of tenants that nothing names. Raises TraceError."""
    if priorities is not None and classes is None:
        raise TraceError("priorities needs classes, which names the tenants that have them")


def priorities_of(tenants: Texts, priorities: str) -> IntArray:
    """Return each query's class from `priorities`, whole numbers by name, such as http:1/*:0."""
    found = _per_query(tenants, priorities, "priorities", "priority", "CLASS")
    if (found != np.rint(found)).any():
        raise TraceError(f"priorities are whole numbers, as in http:1/*:0, got {priorities!r}")
    return found.astype(np.int64)


def about(tenants: Texts) -> dict[str, Any]:
    """Return what a trace's metadata says of its tenants."""
    return {
        "num_tenants": len(tenants.names),
        "tenants": {str(i): name[:16] for i, name in enumerate(tenants.names[:_NAMED])},
    }


def by_name(names: tuple[str, ...], text: str, key: str, what: str, unit: str) -> list[float]:
    """Read `name:number/name:number/*:number`; a name may be the start of a longer one.

    >>> by_name(("http", "timer"), "http:50/*:200", "slos", "SLO", "MILLISECONDS")
    [50.0, 200.0]

    Raises:
        TraceError: a pair is malformed, or a name has no number.
    """
    given = _pairs(text, key, unit)
    found: list[float] = []
    for name in names:
        fits = [k for k in given if k and k != "*" and name.startswith(k)]
        best = max(fits, key=len) if fits else "*"
        if best not in given:
            raise TraceError(
                f"{key} names no {what} for tenant {name[:16]!r}; add it, or *:{unit} for the rest"
            )
        found.append(given[best])
    return found


def _per_query(tenants: Texts, text: str, key: str, what: str, unit: str) -> FloatArray:
    return np.array(by_name(tenants.names, text, key, what, unit))[tenants.codes]


def _pairs(text: str, key: str, unit: str) -> Mapping[str, float]:
    given: dict[str, float] = {}
    for pair in text.split("/"):
        name, _, number = pair.rpartition(":")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise TraceError(f"{key}: {pair!r} is not NAME:{unit}, as in http:50/*:200")
        given[name] = value
    return given
