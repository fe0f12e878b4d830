"""Azure Functions 2019 as a trace: chosen functions, squeezed, with tenants and deadlines.

Counts are real; the times inside a bin are not, and the metadata says so. Which function an arrival
belongs to is drawn inside its bin in proportion to the functions' counts there, so that the total
keeps its exact shape while each tenant keeps its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from traces.sources.azure import Choice, InvocationCounts, read_counts, read_totals
from traces.sources.columns import read_table
from traces.sources.counts import squeeze
from traces.sources.tenants import about, check_priorities, priorities_of, slos_of
from traces.texts import Texts
from traces.trace import FloatArray, IntArray, Trace, TraceError

LICENCE = "CC-BY 4.0, Microsoft Azure Functions 2019 (Shahrad et al., USENIX ATC 2020)"
CLASSES = ("function", "app", "owner", "trigger")
_FIELD = {"owner": 0, "app": 1, "function": 2, "trigger": 3}
_MIN_SLO_S = 1e-3  # durations are whole milliseconds, many of them 0
_MINUTE_S = 60.0


def azure2019(
    path: Path | str,
    rate_qps: float | None = None,
    duration_s: float | None = None,
    *,
    function: str | None = None,
    trigger: str | None = None,
    top: int | None = None,
    share: float | None = None,
    placement: str = "uniform",
    cv2: float | None = None,
    classes: str | None = None,
    priorities: str | None = None,
    slos: str | None = None,
    durations: Path | str | None = None,
    slo_scale: float = 1.0,
    seed: int = 0,
) -> Trace:
    """Return the genuine counts of `path` squeezed into `duration_s` at mean `rate_qps`.

    Without them the length and the rate are the trace's own: a minute is 60 s. `classes` makes each
    function, app, owner or trigger a tenant; `priorities` gives tenants a class by name
    (`http:1/*:0`), without which all have the same. Deadlines: `slos` gives milliseconds by name
    (`http:50/timer:1000/*:200`), or `durations` is the
    trace's file of execution times, and a function's SLO is its average x `slo_scale`, at least
    1 ms (functions that it lacks take the median).

    Raises:
        TraceError: names file and line, or the choice that does not fit.
    """
    check_priorities(classes, priorities)
    if slos is not None and (classes is None or durations is not None):
        raise TraceError("slos needs classes, and does not go together with durations")
    choice = Choice(function=function, trigger=trigger, top=top, share=share)
    needs_functions = classes is not None or durations is not None
    counts = (read_counts if needs_functions else read_totals)(path, choice)
    metadata: dict[str, Any] = {
        "synthetic": False,
        "synthetic_part": "the arrival times inside each minute, and the scale",
        "loader": "azure2019",
        "functions": len(counts.functions),
        "minutes": int(counts.counts.shape[1]),
        "first_minute": counts.first_minute,
        "files": list(counts.files),
        "invocations": int(counts.per_minute.sum()),
    }
    per_minute = counts.per_minute
    duration_s = _MINUTE_S * per_minute.size if duration_s is None else duration_s
    rate_qps = float(per_minute.sum()) / duration_s if rate_qps is None else rate_qps
    if not per_minute.any():
        raise TraceError(f"{path}: the functions chosen were never called")
    trace = squeeze(
        per_minute,
        rate_qps=rate_qps,
        duration_s=duration_s,
        placement=placement,
        cv2=cv2,
        seed=seed,
        source=f"Azure Functions 2019, {counts.source}",
        licence=LICENCE,
        metadata=metadata,
    )
    if not needs_functions:
        return trace
    rows = _functions_of(trace, counts, np.random.default_rng([seed, 1]))
    return _with_tenants(trace, counts, rows, classes, priorities, slos, durations, slo_scale)


def _functions_of(trace: Trace, counts: InvocationCounts, rng: np.random.Generator) -> IntArray:
    """Return the row of the function that each arrival belongs to."""
    num_bins = counts.counts.shape[1]
    bins = np.minimum((trace.arrival_s * (num_bins / trace.duration_s)).astype(int), num_bins - 1)
    first = np.searchsorted(bins, np.arange(num_bins + 1))
    rows = np.zeros(len(trace), dtype=np.int64)
    for k in np.flatnonzero(np.diff(first)):
        below = np.cumsum(counts.counts[:, k], dtype=np.int64)
        # Rounding may put an arrival on the edge of a silent bin: it goes to the first function.
        picks = rng.random(first[k + 1] - first[k]) * max(below[-1], 1)
        rows[first[k] : first[k + 1]] = np.searchsorted(below, picks, side="right") % below.size
    return rows


def _with_tenants(
    trace: Trace,
    counts: InvocationCounts,
    rows: IntArray,
    classes: str | None,
    priorities: str | None,
    slos: str | None,
    durations: Path | str | None,
    slo_scale: float,
) -> Trace:
    import dataclasses

    metadata = dict(trace.metadata)
    metadata["synthetic_part"] += ", and which function an arrival inside a minute belongs to"
    query_class: IntArray | None = None
    slo_s: FloatArray | None = None
    tenant: Texts | None = None
    if classes is not None:
        tenant = Texts.of(f[_FIELD[classes]] for f in counts.functions)[rows]
        metadata |= {"tenant_is": classes, **about(tenant)}
        if priorities is not None:
            query_class = priorities_of(tenant, priorities)
            metadata["priorities"] = priorities
        if slos is not None:
            slo_s = slos_of(tenant, slos)
            metadata["slos_ms"] = slos
    if durations is not None:
        per_function, num_missing = _slo_by_duration(durations, counts, slo_scale)
        slo_s = per_function[rows]
        metadata |= {"slo_from": f"average duration x {slo_scale:g}", "slo_missing": num_missing}
    return dataclasses.replace(
        trace, slo_s=slo_s, query_class=query_class, tenant=tenant, metadata=metadata
    )


def _slo_by_duration(
    path: Path | str, counts: InvocationCounts, scale: float
) -> tuple[FloatArray, int]:
    """Return the SLO of each function (s) and how many functions the file lacks."""
    kinds = {"HashFunction": "text", "Average": "number"}
    table = read_table(path, kinds)
    names = table.texts["HashFunction"]
    average_ms = dict(
        zip(names.tolist(), (table.seconds("Average", 1e-3) * 1e3).tolist(), strict=True)
    )
    known = [average_ms.get(f[2]) for f in counts.functions]
    there = [a for a in known if a is not None]
    if not there:
        raise TraceError(f"{path}: has none of the chosen functions; is it of the same day?")
    median = float(np.median(there))
    slo_s = np.array([median if a is None else a for a in known]) * 1e-3 * scale
    return np.maximum(slo_s, _MIN_SLO_S), len(known) - len(there)
