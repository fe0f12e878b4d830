"""The OWASP AISVS list, C11.5 (model extraction), line by line, with the evidence that was seen.

A line passes on what an audit observed, never on what is configured. What could not be tried is
`None`: neither. C11.5.1 to C11.5.4 are the standard's lines; reduced outputs it leaves to
supplemental guidance, and for the identity of the model that serves it has none.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple


class Evidence(NamedTuple):
    """What an audit saw of a server; None where it could not look."""

    refused_after: int | None = None
    """Queries of one principal until it was `rate_limited`; 0: it never was, of those tried."""
    tried: int = 0
    alerts: Collection[str] | None = None
    alert_fields: Collection[str] = ()
    answers_name_subnets: bool | None = None
    output_is_reduced: bool | None = None
    has_watermark: bool | None = None
    """Whether copies made of the answers could be told to be copies."""
    copy_needs: int | None = None
    """The budget at which the best copy was within a point of the victim by its name."""


def checklist(evidence: Evidence) -> list[dict[str, Any]]:
    """Return a row for each line: `line`, `requirement`, `passed` (or None), `evidence`."""
    lines = (_rate_limits, _alerts, _patterns, _watermark, _informativeness, _identity)
    return [line(evidence) for line in lines]


def _row(line: str, requirement: str, passed: bool | None, evidence: str) -> dict[str, Any]:
    return {"line": line, "requirement": requirement, "passed": passed, "evidence": evidence}


def _rate_limits(seen: Evidence) -> dict[str, Any]:
    requirement = "rate limits per principal, sized to what an extraction needs"
    if seen.refused_after is None:
        return _row("C11.5.1", requirement, None, "not tried")
    if not seen.refused_after:
        text = f"{seen.tried} queries of one principal were all served"
        return _row("C11.5.1", requirement, False, text)
    needs = "unknown" if seen.copy_needs is None else str(seen.copy_needs)
    is_small = seen.copy_needs is None or seen.refused_after <= seen.copy_needs
    text = f"refused after {seen.refused_after} queries; a copy needed {needs}"
    return _row("C11.5.1", requirement, is_small, text)


def _alerts(seen: Evidence) -> dict[str, Any]:
    requirement = "alerts with principal and metadata of the queries"
    if seen.alerts is None:
        return _row("C11.5.2", requirement, None, "the server's alerts are not readable here")
    missing = {"principal", "pattern"} - set(seen.alert_fields)
    passed = bool(seen.alerts) and not missing
    text = f"alerts {', '.join(sorted(seen.alerts)) or 'none'}"
    lacking = f"; they lack {', '.join(sorted(missing))}" if missing else ""
    return _row("C11.5.2", requirement, passed, text + lacking)


def _patterns(seen: Evidence) -> dict[str, Any]:
    requirement = "analysis of query patterns: scans, repetition, perturbation"
    if seen.alerts is None:
        return _row("C11.5.3", requirement, None, "the server's alerts are not readable here")
    wanted = {"specification_scan", "repetition", "perturbed_repetition"}
    missing = sorted(wanted - set(seen.alerts))
    text = f"not told: {', '.join(missing)}" if missing else "each was told when it was done"
    return _row("C11.5.3", requirement, not missing, text)


def _informativeness(seen: Evidence) -> dict[str, Any]:
    requirement = "outputs reduced to what the use needs (supplemental guidance)"
    if seen.output_is_reduced is None:
        return _row("outputs", requirement, None, "not looked at")
    text = "rounded or top-1 in a tier" if seen.output_is_reduced else "full logits in every tier"
    return _row("outputs", requirement, seen.output_is_reduced, text)


def _identity(seen: Evidence) -> dict[str, Any]:
    requirement = "answers do not tell which model served (ours; the standard has no line for it)"
    if seen.answers_name_subnets is None:
        return _row("identity", requirement, None, "not looked at")
    text = "answers name the subnet" if seen.answers_name_subnets else "answers name none"
    return _row("identity", requirement, not seen.answers_name_subnets, text)


def _watermark(seen: Evidence) -> dict[str, Any]:
    requirement = "watermarks in outputs, by which a copy is known"
    if seen.has_watermark is None:
        return _row("C11.5.4", requirement, None, "not looked for")
    text = "an owner knows a copy by them" if seen.has_watermark else "there are none"
    return _row("C11.5.4", requirement, seen.has_watermark, text)
