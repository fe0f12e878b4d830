"""Logs with one row per request, so with real arrival times: published ones, and any other.

* Azure Functions 2021 (CC-BY 4.0; Zhang et al., SOSP 2021): app, func, end_timestamp, duration in
  seconds; a request starts at its end less its duration.
* Azure LLM inference 2023 and 2024 (CC-BY 4.0; Patel et al., ISCA 2024; Stojkovic et al., HPCA
  2025): TIMESTAMP, ContextTokens, GeneratedTokens.
* Mooncake (Apache-2.0; Qin et al., FAST 2025): JSON lines with `timestamp`, or CSV with
  `timestamp_ms`, both in milliseconds. Its times come in steps of seconds; inside a step they are
  unknown and are spread uniformly, which the metadata says.

Times count from the first request. `start_s` and `length_s` cut a part out of the log's own time;
`rate_qps` then stretches time to that mean rate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from traces.sources.columns import Texts, read_table
from traces.trace import FloatArray, IntArray, Trace, TraceError

UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "iso": 1.0}
AZURE_2021_LICENCE = "CC-BY 4.0, Microsoft Azure Functions 2021 (Zhang et al., SOSP 2021)"
AZURE_LLM_LICENCE = "CC-BY 4.0, Microsoft Azure LLM inference (Patel et al., ISCA 2024)"
MOONCAKE_LICENCE = "Apache-2.0, Mooncake (Qin et al., FAST 2025)"
_MIN_STEP_S = 0.5  # coarser time stamps than this are spread


def azure2021(
    path: Path | str,
    *,
    start_s: float = 0.0,
    length_s: float | None = None,
    rate_qps: float | None = None,
    classes: str | None = None,
    slo_scale: float | None = None,
    seed: int = 0,
) -> Trace:
    """Return the invocations of an Azure Functions 2021 file at their start times.

    `classes` (`func` or `app`) makes each one a class, in order of appearance; with `slo_scale` a
    query's SLO is its own duration x that, at least 1 ms.
    """
    kinds = {"app": "text", "func": "text", "end_timestamp": "number", "duration": "number"}
    table = read_table(path, kinds)
    took_s = table.numbers["duration"]
    _refuse(path, took_s < 0, took_s, "duration", "at least 0 s")
    slo_s = None if slo_scale is None else np.maximum(took_s * slo_scale, 1e-3)
    return _logged(
        path,
        table.numbers["end_timestamp"] - took_s,
        source="Azure Functions 2021",
        licence=AZURE_2021_LICENCE,
        loader="azure2021",
        slo_s=slo_s,
        classes=None if classes is None else table.texts[classes],
        is_sorted=False,  # the file is in order of app and end
        cut=(start_s, length_s, rate_qps),
    )


def azure_llm(
    path: Path | str,
    *,
    start_s: float = 0.0,
    length_s: float | None = None,
    rate_qps: float | None = None,
    seed: int = 0,
) -> Trace:
    """Return the requests of an Azure LLM inference file, of 2023 or 2024, at their times."""
    table = read_table(path, {"TIMESTAMP": "time"})
    return _logged(
        path,
        table.numbers["TIMESTAMP"],
        source="Azure LLM inference",
        licence=AZURE_LLM_LICENCE,
        loader="azure-llm",
        cut=(start_s, length_s, rate_qps),
    )


def mooncake(
    path: Path | str,
    *,
    start_s: float = 0.0,
    length_s: float | None = None,
    rate_qps: float | None = None,
    seed: int = 0,
) -> Trace:
    """Return the requests of a Mooncake trace, spread inside its coarse time steps."""
    is_json = Path(path).name.removesuffix(".gz").endswith((".jsonl", ".json"))
    column = "timestamp" if is_json else "timestamp_ms"
    times_s = read_table(path, {column: "number"}).numbers[column] * 1e-3
    return _logged(
        path,
        times_s,
        source="Mooncake",
        licence=MOONCAKE_LICENCE,
        loader="mooncake",
        spread=np.random.default_rng(seed),
        cut=(start_s, length_s, rate_qps),
    )


def request_log(
    path: Path | str,
    *,
    time: str = "timestamp",
    unit: str = "s",
    slo: str | None = None,
    slo_unit: str = "ms",
    query_class: str | None = None,
    delimiter: str = ",",
    order: str = "check",
    start_s: float = 0.0,
    length_s: float | None = None,
    rate_qps: float | None = None,
    seed: int = 0,
) -> Trace:
    """Return the requests of any CSV, JSON lines or Parquet file with a column of times.

    `time` and `slo` name columns in `unit` and `slo_unit` (`s, ms, us, ns`; times also `iso`);
    `query_class` names a column of texts, each of which becomes a class. `order` is `check` (rows
    out of order are an error) or `sort`.
    """
    kinds = {time: "time" if unit == "iso" else "number"}
    kinds |= {} if slo is None else {slo: "number"}
    kinds |= {} if query_class is None else {query_class: "text"}
    table = read_table(path, kinds, delimiter={"tab": "\t", "semicolon": ";"}.get(delimiter, ","))
    slo_s = None
    if slo is not None:
        slo_s = table.numbers[slo] * UNITS[slo_unit]
        _refuse(path, slo_s <= 0, table.numbers[slo], slo, "above 0")
    return _logged(
        path,
        table.numbers[time] * UNITS[unit],
        source=Path(path).name,
        licence="",
        loader="log",
        slo_s=slo_s,
        classes=None if query_class is None else table.texts[query_class],
        is_sorted=order == "check",
        cut=(start_s, length_s, rate_qps),
    )


def _logged(
    path: Path | str,
    times_s: FloatArray,
    *,
    source: str,
    licence: str,
    loader: str,
    cut: tuple[float, float | None, float | None],
    slo_s: FloatArray | None = None,
    classes: Texts | None = None,
    is_sorted: bool = True,
    spread: np.random.Generator | None = None,
) -> Trace:
    metadata: dict[str, Any] = {"synthetic": False, "loader": loader, "requests": times_s.size}
    if is_sorted:
        _check_sorted(path, times_s)
    if spread is not None and (step_s := _step_s(times_s)) >= _MIN_STEP_S:
        times_s = times_s + spread.random(times_s.size) * step_s
        metadata["synthetic_part"] = f"the times inside each time step of {step_s:g} s"
    order = np.argsort(times_s, kind="stable")
    arrival_s = times_s[order] - times_s[order[0]]
    if arrival_s[-1] == 0:
        raise TraceError(f"{path}: all {times_s.size} requests have the same time")
    query_class: IntArray | None = None
    if classes is not None:
        query_class = classes.codes[order]
        metadata["num_classes"] = len(classes.names)
        metadata["classes"] = _named(classes)
    trace = Trace(
        arrival_s=arrival_s,
        duration_s=float(arrival_s[-1]),
        slo_s=None if slo_s is None else slo_s[order],
        query_class=query_class,
        source=f"{source}, {Path(path).name}" if licence else source,
        licence=licence,
        metadata=metadata,
    )
    return _cut(path, trace, *cut)


def _cut(
    path: Path | str,
    trace: Trace,
    start_s: float,
    length_s: float | None,
    rate_qps: float | None,
) -> Trace:
    if start_s or length_s is not None:
        end_s = trace.duration_s if length_s is None else start_s + length_s
        trace = trace.window(start_s, min(end_s, trace.duration_s))
        if len(trace) == 0:
            raise TraceError(f"{path}: has no requests in [{start_s:g}, {end_s:g}) s")
    if rate_qps is None:
        return trace
    part = [trace.metadata[k] for k in ("synthetic_part",) if k in trace.metadata]
    scaled = trace.rescale_rate(rate_qps)
    noted = {**scaled.metadata, "synthetic_part": ", and ".join([*part, "the scale of time"])}
    return dataclasses.replace(scaled, metadata=noted)


def _named(classes: Texts) -> Mapping[str, str]:
    return {str(i): name[:16] for i, name in enumerate(classes.names[:32])}


def _step_s(times_s: FloatArray) -> float:
    """Return the smallest step between different times (s), 0 where there is none."""
    steps = np.diff(times_s)
    return float(steps[steps > 0].min()) if (steps > 0).any() else 0.0


def _check_sorted(path: Path | str, times_s: FloatArray) -> None:
    falls = np.flatnonzero(np.diff(times_s) < 0)
    if falls.size:
        raise TraceError(
            f"{path}, row {falls[0] + 2}: is earlier than the row before; expected ascending times "
            "(the log loader sorts them with order=sort)"
        )


def _refuse(path: Path | str, is_bad: Any, values: FloatArray, column: str, wanted: str) -> None:
    bad = np.flatnonzero(is_bad)
    if bad.size:
        raise TraceError(
            f"{path}, row {bad[0] + 1}, column {column}: {values[bad[0]]:g}, expected {wanted}"
        )
