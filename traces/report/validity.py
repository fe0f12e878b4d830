"""Which runs' figures may be believed, and how the others are marked wherever they are named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Report = Mapping[str, Any]


def is_valid(report: Report) -> bool:
    """Say whether the generator kept its times; a simulated run always did."""
    return not report.get("invalid_reason") and report.get("is_valid", True) is not False


def marked(name: str, report: Report) -> str:
    """Return a run's name, with what is wrong with it behind.

    >>> marked("slackfit", {"invalid_reason": "sent late", "is_partial": True})
    'slackfit (INVALID, partial)'
    """
    marks = [] if is_valid(report) else ["INVALID"]
    marks += ["partial"] if report.get("is_partial") else []
    return f"{name} ({', '.join(marks)})" if marks else name


def name_of(report: Report) -> str:
    """Return what a run is called: its label, else its policy, and which repeat it was."""
    name = str(report.get("label") or report["policy"])
    if report.get("routing"):
        name += f", {report['routing']}"
    return f"{name}, repeat {report['repeat']}" if report.get("repeat") else name


def valid_ones(reports: Sequence[Report]) -> list[int]:
    """Return the numbers of the runs that are valid."""
    return [i for i, report in enumerate(reports) if is_valid(report)]
