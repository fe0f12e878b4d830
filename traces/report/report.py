"""Reports of runs, written down: a JSON list for programs and one HTML page for people.

Input are the plain dicts of `slackfit.metrics.summarize`, with whatever extra keys a run adds
(`trace`, `command`, `config`, `measured_accuracy`, `generator_lag_ms` ...). The page is one file
that needs nothing else: styles and pictures are inside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slackfit.output_files import write_text
from traces.trace import TraceError

Report = Mapping[str, Any]

REQUIRED_KEYS = (
    "policy",
    "slo_attainment",
    "mean_serving_accuracy",
    "utility",
    "goodput_qps",
    "num_queries",
    "outcomes",
    "latency_ms",
    "subnets",
    "slo_ms",
    "duration_s",
    "series",
    "latency_cdf",
)


def report_json(reports: Sequence[Report]) -> str:
    """Return the reports as a JSON list; the same reports give the same text.

    Raises:
        ValueError: a value is not finite or not plain data.
    """
    return json.dumps(list(reports), indent=1, allow_nan=False) + "\n"


def write_report_json(path: Path | str, reports: Sequence[Report]) -> None:
    """Write the reports as a JSON list; the file appears whole or not at all."""
    _write(Path(path), report_json(reports))


def write_report_html(
    path: Path | str, reports: Sequence[Report], *, title: str = "Replay report"
) -> None:
    """Write the reports as one self-contained page; the file appears whole or not at all."""
    from traces.report.page import render_page

    _write(Path(path), render_page(reports, title=title))


def read_reports(path: Path | str) -> list[dict[str, Any]]:
    """Read the reports of a run: a JSON file, or a folder that holds `report.json`.

    Raises:
        TraceError: names the file and what is wrong with it.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "report.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TraceError(f"{path}: no such file; expected a report.json or its folder") from None
    except (OSError, ValueError) as error:
        raise TraceError(f"{path}: not readable as JSON ({error})") from None
    reports = data if isinstance(data, list) else [data]
    if not reports:
        raise TraceError(f"{path}: holds no reports")
    for i, report in enumerate(reports):
        if not isinstance(report, dict):
            raise TraceError(f"{path}: entry {i} is a {type(report).__name__}, expected an object")
        missing = [key for key in REQUIRED_KEYS if key not in report]
        if missing:
            raise TraceError(f"{path}: entry {i} is not a report, it lacks {', '.join(missing)}")
    return reports


def _write(path: Path, text: str) -> None:
    write_text(path, text)
