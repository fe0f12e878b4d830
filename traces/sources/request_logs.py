"""Logs with one row per request, so with real arrival times: published ones, and any other.

* Azure Functions 2021 (CC-BY 4.0; Zhang et al., SOSP 2021): app, func, end_timestamp, duration in
  seconds; a request starts at its end less its duration.
* Azure LLM inference 2023 and 2024 (CC-BY 4.0; Patel et al., ISCA 2024; Stojkovic et al., HPCA
  2025): TIMESTAMP, ContextTokens, GeneratedTokens.
* Mooncake (Apache-2.0; Qin et al., FAST 2025): JSON lines with `timestamp`, or CSV with
  `timestamp_ms`, both in milliseconds, and input_length, output_length. Its times come in steps of
  seconds; inside a step they are unknown and are spread uniformly, which the metadata says.

Times count from the first request. `start_s` and `length_s` cut a part out of the log's own time;
`rate_qps` then stretches time to that mean rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from traces.sources.columns import JSON_SUFFIXES, read_table
from traces.sources.log_columns import LogColumns, check_choice
from traces.sources.logged import Cut, LoggedRows, logged_trace
from traces.sources.tenants import check_priorities, priorities_of
from traces.sources.where import rows_where
from traces.trace import Trace

AZURE_2021_LICENCE = "CC-BY 4.0, Microsoft Azure Functions 2021 (Zhang et al., SOSP 2021)"
AZURE_LLM_LICENCE = "CC-BY 4.0, Microsoft Azure LLM inference (Patel et al., ISCA 2024)"
MOONCAKE_LICENCE = "Apache-2.0, Mooncake (Qin et al., FAST 2025)"
_DELIMITERS = {"comma": ",", "tab": "\t", "semicolon": ";"}


def azure2021(
    path: Path | str,
    *,
    start_s: float = 0.0,
    length_s: float | None = None,
    rate_qps: float | None = None,
    classes: str | None = None,
    priorities: str | None = None,
    slo_scale: float | None = None,
    seed: int = 0,
) -> Trace:
    """Return the invocations of an Azure Functions 2021 file at their start times.

    `classes` (`func` or `app`) makes each one a tenant, and `priorities` gives them classes by
    name; with `slo_scale` a query's SLO is its own duration x that, at least 1 ms.
    """
    check_priorities(classes, priorities)
    kinds = {"app": "text", "func": "text", "end_timestamp": "number", "duration": "number"}
    table = read_table(path, kinds)
    took_s = table.numbers["duration"]
    table.refuse(path, took_s < 0, "duration", "at least 0 s")
    columns: dict[str, Any] = {} if classes is None else {"tenant": table.texts[classes]}
    if slo_scale is not None:
        columns["slo_s"] = np.maximum(took_s * slo_scale, 1e-3)
    rows = LoggedRows(
        path=path,
        times_s=table.numbers["end_timestamp"] - took_s,
        columns=_with_classes(columns, priorities),
        places=table.places,
        time="end_timestamp",
        is_sorted=False,  # the file is in order of app and end
    )
    return logged_trace(
        rows,
        source="Azure Functions 2021",
        licence=AZURE_2021_LICENCE,
        loader="azure2021",
        cut=Cut(start_s, length_s, rate_qps),
    )


def azure_llm(
    path: Path | str,
    *,
    start_s: float = 0.0,
    length_s: float | None = None,
    rate_qps: float | None = None,
    seed: int = 0,
) -> Trace:
    """Return the requests of an Azure LLM inference file, of 2023 or 2024, at their times.

    ContextTokens and GeneratedTokens become `prompt_tokens` and `output_tokens`.
    """
    lengths = {"ContextTokens": "prompt_tokens", "GeneratedTokens": "output_tokens"}
    table = read_table(path, {"TIMESTAMP": "time"}, optional=dict.fromkeys(lengths, "count"))
    rows = LoggedRows(
        path=path,
        times_s=table.numbers["TIMESTAMP"],
        columns={ours: table.counts(name) for name, ours in lengths.items() if table.has(name)},
        places=table.places,
        time="TIMESTAMP",
    )
    return logged_trace(
        rows,
        source="Azure LLM inference",
        licence=AZURE_LLM_LICENCE,
        loader="azure-llm",
        cut=Cut(start_s, length_s, rate_qps),
    )


def mooncake(
    path: Path | str,
    *,
    start_s: float = 0.0,
    length_s: float | None = None,
    rate_qps: float | None = None,
    seed: int = 0,
) -> Trace:
    """Return the requests of a Mooncake trace, spread inside its coarse time steps.

    input_length and output_length become `prompt_tokens` and `output_tokens`.
    """
    is_json = Path(path).name.lower().removesuffix(".gz").endswith(JSON_SUFFIXES)
    column = "timestamp" if is_json else "timestamp_ms"
    lengths = {"input_length": "prompt_tokens", "output_length": "output_tokens"}
    table = read_table(path, {column: "number"}, optional=dict.fromkeys(lengths, "count"))
    rows = LoggedRows(
        path=path,
        times_s=table.seconds(column, 1e-3),
        columns={ours: table.counts(name) for name, ours in lengths.items() if table.has(name)},
        places=table.places,
        time=column,
        unit="ms",
    )
    return logged_trace(
        rows.spread("coarse", np.random.default_rng(seed)),
        source="Mooncake",
        licence=MOONCAKE_LICENCE,
        loader="mooncake",
        cut=Cut(start_s, length_s, rate_qps),
    )


def request_log(
    path: Path | str,
    *,
    time: str = "timestamp",
    unit: str = "s",
    slo: str | None = None,
    slo_unit: str = "ms",
    slo_min_ms: float | None = None,
    classes: str | None = None,
    priorities: str | None = None,
    session: str | None = None,
    prompt_tokens: str | None = None,
    output_tokens: str | None = None,
    size: str | None = None,
    where: str | None = None,
    spread: str | None = None,
    delimiter: str = "comma",
    order: str = "check",
    start_s: float = 0.0,
    length_s: float | None = None,
    rate_qps: float | None = None,
    seed: int = 0,
) -> Trace:
    """Return the requests of any CSV, JSON lines or Parquet file with a column of times.

    `time` and `slo` name columns in `unit` and `slo_unit` (`s, ms, us, ns`; times also `iso`); a
    column whose type has a unit, such as Parquet's timestamps, keeps its own. `slo_min_ms` lifts
    shorter deadlines to that. `classes` names a column of tenants, `priorities` gives them classes;
    `session`, `prompt_tokens`, `output_tokens` and `size` name columns that are kept as they are.
    `where` keeps rows (`COLUMN=VALUE|VALUE & COLUMN!=VALUE`); `spread` draws times inside the steps
    of a coarse clock: `step` for the log's own step, or its length in seconds. `order` is `check`
    (rows out of order are an error) or `sort`.
    """
    check_priorities(classes, priorities)
    check_choice("delimiter", delimiter, _DELIMITERS)
    check_choice("order", order, ("check", "sort"))
    kept = {"session": session, "prompt_tokens": prompt_tokens, "output_tokens": output_tokens}
    kept |= {"size": size, "tenant": classes}
    asked = LogColumns(
        time=time, unit=unit, slo=slo, slo_unit=slo_unit, slo_min_ms=slo_min_ms, where=where,
        kept={ours: name for ours, name in kept.items() if name is not None},
    )  # fmt: skip
    table = read_table(path, asked.kinds(), delimiter=_DELIMITERS[delimiter])
    rows = LoggedRows(
        path=path,
        times_s=asked.times_s(table),
        columns=asked.of_trace(path, table),
        places=table.places,
        time=time,
        unit=unit,
        is_sorted=order == "check",
    ).kept(rows_where(path, table, where), where)
    # Of the rows that are kept: tenants that a `where` leaves out need no priority.
    rows = replace(rows, columns=_with_classes(rows.columns, priorities))
    return logged_trace(
        rows.spread(spread, np.random.default_rng(seed)),
        source=Path(path).name,
        licence="",
        loader="log",
        cut=Cut(start_s, length_s, rate_qps),
    )


def _with_classes(columns: Mapping[str, Any], priorities: str | None) -> Mapping[str, Any]:
    if priorities is None:
        return columns
    return {**columns, "query_class": priorities_of(columns["tenant"], priorities)}
