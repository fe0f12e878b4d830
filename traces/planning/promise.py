"""`Promise`: what a fleet must reach on a trace."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from slackfit.metrics import as_good
from traces.trace import TraceError

STREAMED = ("first_output", "first_output_per_token", "period", "fluidity")
"""Figures that only streams have."""
_NAMES = ("attainment", "accuracy", "floor")
_PART = re.compile(r"\s*(?:([^:,<>=]+):)?(\w+)\s*>=\s*([0-9.]+)\s*")


class PartPromise(NamedTuple):
    """What is promised to a group apart: a tenant, or a priority class by its number."""

    group: str
    attainment: float = 0.0
    accuracy: float = 0.0
    floor: float = 0.0

    def is_kept(self, attainment: float, accuracy: float) -> bool:
        """Whether a run in which the group had these keeps it."""
        return attainment >= as_good(self.attainment) and accuracy >= as_good(self.accuracy)


class Promise(NamedTuple):
    """At least so many of all queries on time, at such a mean accuracy of those: fractions.

    `floor` is the least accuracy that any answer may have. `parts` are promises to groups apart,
    beside those to all; a group's floor stands above the common one.
    """

    attainment: float
    accuracy: float = 0.0
    floor: float = 0.0
    parts: tuple[PartPromise, ...] = ()

    def is_kept(self, attainment: float, accuracy: float) -> bool:
        """Whether a run with these keeps what is promised to all."""
        return attainment >= as_good(self.attainment) and accuracy >= as_good(self.accuracy)

    def spared(self, count: float) -> float:
        """Return how many of so many queries may miss."""
        return (1 - as_good(self.attainment)) * count

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "attainment": self.attainment,
            "accuracy": self.accuracy,
            "floor": self.floor,
            "groups": {part.group: _figures(part) for part in self.parts},
        }

    def __str__(self) -> str:
        whole = [f"{name}>={value:g}" for name, value in _figures(self).items()]
        parts = [f"{p.group}:{name}>={v:g}" for p in self.parts for name, v in _figures(p).items()]
        return ",".join(whole + parts)


def parse_promise(text: str) -> Promise:
    """Return the promise of `attainment>=0.999,accuracy>=0.775`. Raises TraceError otherwise.

    `floor>=0.7` is a least accuracy of every answer; `NAME:` before a figure is of one group.

    >>> parse_promise("attainment>=0.99")
    Promise(attainment=0.99, accuracy=0.0, floor=0.0, parts=())
    >>> parse_promise("attainment>=0.9,gold:attainment>=0.99").parts
    (PartPromise(group='gold', attainment=0.99, accuracy=0.0, floor=0.0),)
    """
    found: dict[str, dict[str, float]] = {}
    for part in text.split(","):
        match = _PART.fullmatch(part)
        group, name, value = ("", "", "") if match is None else match.groups(default="")
        streamed = name or (re.match(r"\s*(\w+)\s*<=", part) or [part, ""])[1]
        if streamed in STREAMED:
            raise TraceError(
                f"a promise on {streamed} is one of streams, which need a profile with the cost of "
                "iterations; allowed here are attainment, accuracy and floor"
            )
        figures = found.setdefault(group.strip(), {})
        if match is None or name not in _NAMES or name in figures:
            raise TraceError(
                f"promise {part!r} is not understood; give attainment>=FRACTION, and "
                "accuracy>=FRACTION or floor>=FRACTION if need be, of a group as in "
                "gold:attainment>=0.9999, once each"
            )
        figures[name] = parse_fraction(name, value)
    whole = found.pop("", {})
    if not whole.get("attainment", 0.0) > 0:
        raise TraceError(f"promise {text!r} names no attainment above 0, as in attainment>=0.999")
    return Promise(**whole, parts=tuple(PartPromise(g, **figures) for g, figures in found.items()))


def rounded_down(value: float, slack: float = 0.0) -> float:
    """Return the largest number of six decimals that is not above `value` by more than `slack`.

    >>> rounded_down(0.79435678), rounded_down(0.7944)
    (0.794356, 0.7944)
    """
    near = round(value, 6)
    return near if near <= value + slack else round(near - 1e-6, 6)


def parse_fraction(name: str, text: str) -> float:
    """Return a number from 0 to 1. Raises TraceError that names the figure for any other."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise TraceError(f"{name}>={text} is no fraction, allowed 0 to 1")
    return value


def _figures(promise: Promise | PartPromise) -> dict[str, float]:
    values = {name: getattr(promise, name) for name in _NAMES}
    return {name: value for name, value in values.items() if value}
