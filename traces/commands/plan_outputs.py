"""`PlanOutputs`: where a plan is written and told, once made and as its verification goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import typer

from slackfit.output_files import check_outputs, write_each, write_text
from traces.planning.page import plan_page, undercut
from traces.planning.verification import verification_lines


class PlanOutputs(NamedTuple):
    """The files that `--json` and `--html` name; lines go to stdout unless the JSON does."""

    json_out: str | None
    html_out: Path | None

    def check(self) -> None:
        """Refuse what can't be written, before a plan is made. Raises OSError."""
        check_outputs(self.json_out, self.html_out)

    def write(self, plan: dict[str, Any]) -> None:
        """Write every output."""
        self._write_files(plan, self.json_out)

    def write_unverified(self, plan: dict[str, Any]) -> None:
        """Write what need not wait: to stdout goes one JSON, at the end."""
        self._write_files(plan, None if self.json_out == "-" else self.json_out)

    def note(self, plan: dict[str, Any], verification: dict[str, Any]) -> None:
        """Write a verification so far to the plan's file; what is foretold on stderr, too."""
        plan["verification"] = verification
        if self.json_out not in (None, "-"):
            write_text(self.json_out, _text(plan))
        if not any("live" in level for level in verification["levels"]):
            typer.echo("\n".join(["foretold:", *verification_lines(verification)]), err=True)

    def tell(self, lines: list[str]) -> None:
        """Print lines, where stdout carries no JSON."""
        if self.json_out != "-":
            typer.echo("\n".join(lines))

    def _write_files(self, plan: dict[str, Any], json_out: str | None) -> None:
        html_out = self.html_out
        write_each(
            lambda: None if json_out is None else write_text(json_out, _text(plan)),
            lambda: None if html_out is None else write_text(str(html_out), plan_page(plan)),
        )


def summary_lines(plan: dict[str, Any]) -> list[str]:
    """Return the plan in a few lines."""
    if plan["saturated"]:
        return [f"saturated: {plan['why']}"]
    headroom = plan["headroom"]
    lines = [
        f"{plan['fleet']} with {plan['policy']}: "
        f"{plan['cost_per_hour']:g} {plan['prices']['currency']} an hour",
        f"attainment {plan['attainment']:.5f}, accuracy {plan['accuracy']:.5f}; {undercut(plan)}",
        f"the promise holds up to {headroom['factor']:.2f} times the load "
        f"({headroom['low']:.2f} surely)",
    ]
    if plan.get("kind") == "streams":
        first, gap = plan["first_output_ms"]["p95"], plan["gap_ms"]["p95"]
        lines.insert(
            2,
            f"fluidity {plan['fluidity']:.5f}; 95 of 100 first outputs within {first or 0:.0f} ms, "
            f"95 of 100 gaps within {gap or 0:.0f} ms",
        )
    if plan["answers_of"] != "the whole trace":
        lines[-1] += f", of {plan['answers_of']}"
    if plan["simulated_by"] != "compiled":
        lines.append(f"simulated in Python: {plan['simulated_by']}")
    return lines


def _text(plan: dict[str, Any]) -> str:
    return json.dumps(plan, indent=1, allow_nan=False) + "\n"
