"""The kinds of trace SPEC: what each builds, from which keys. A new kind is one row here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from traces.generators.arrivals import bursty, gamma, poisson, ramp
from traces.generators.azure_shape import azure2019_shape
from traces.generators.cascade import fitted
from traces.generators.patterns import diurnal, flash, mmpp, step
from traces.sources.azure2019 import CLASSES, azure2019
from traces.sources.counts import PLACEMENTS, counts_trace
from traces.sources.request_logs import azure2021, azure_llm, mooncake, request_log
from traces.sources.servegen import servegen
from traces.sources.units import UNITS
from traces.trace import Trace


class SpecKey(NamedTuple):
    """A parameter of a generator: what it is called in Python, its kind, and what it means.

    `kind` is `number`, `count` (a whole number above 0), `text`, or `cv2` (a number, or a quoted
    SPEC whose gaps have it); `choices` closes a text.
    """

    argument: str
    kind: str
    meaning: str
    is_required: bool = True
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Generator:
    """One kind of SPEC: its builder (called with the keys' arguments and `seed`) and its keys."""

    build: Callable[..., Trace]
    summary: str
    keys: Mapping[str, SpecKey]


def _optional(argument: str, kind: str, meaning: str, choices: tuple[str, ...] = ()) -> SpecKey:
    return SpecKey(argument, kind, meaning, False, choices)


_DURATION = SpecKey("duration_s", "number", "length of the trace (s)")
_RATE = SpecKey("rate_qps", "number", "mean rate (queries/s)")
_CV2 = SpecKey("cv2", "number", "squared coefficient of variation of the gaps")
_ANY_CV2 = _optional("cv2", "number", "squared coefficient of variation of the gaps, 1 if left out")
_QPS = SpecKey("rate_qps", "number", "mean rate after the squeeze (queries/s)")
_PLACED = "arrivals in a bin: an exact count (uniform), a drawn one (poisson), or gamma gaps"
_PLACEMENT = {
    "placement": _optional("placement", "text", _PLACED, PLACEMENTS),
    "cv2": _optional("cv2", "cv2", 'with gamma: the gaps\' CV^2, or "SPEC" to take it from'),
}
_CUT = {
    "start": _optional("start_s", "number", "leave out the log's first seconds"),
    "length": _optional("length_s", "number", "take this much of the log's own time (s)"),
    "qps": _optional("rate_qps", "number", "rescale time to this mean rate (queries/s)"),
}
_PRIORITIES = _optional("priorities", "text", "class by tenant, as in http:1/*:0")
COMMON_KEYS = {
    "slo_ms": _optional("slo_ms", "number", "deadline of every query (ms)"),
    "class": _optional("class", "number", "priority class of every query"),
    "tenant": _optional("tenant", "text", "who sends every query"),
}
"""Keys that every kind takes: they tag its queries, and `+` adds tenants and classes up."""

_MADE: dict[str, Generator] = {
    "poisson": Generator(poisson, "Poisson arrivals", {"rate": _RATE, "duration": _DURATION}),
    "gamma": Generator(
        gamma, "renewals with gamma gaps", {"rate": _RATE, "cv2": _CV2, "duration": _DURATION}
    ),
    "bursty": Generator(
        bursty,
        "an even base stream plus a gamma stream (SuperServe 6.1)",
        {
            "base": SpecKey("base_qps", "number", "rate of the even stream (queries/s)"),
            "variant": SpecKey(
                "variant_qps", "number", "mean rate of the gamma stream (queries/s)"
            ),
            "cv2": _CV2,
            "duration": _DURATION,
        },
    ),
    "ramp": Generator(
        ramp,
        "a rate that accelerates, then stays (SuperServe 6.1)",
        {
            "start": SpecKey("start_qps", "number", "rate at the start (queries/s)"),
            "end": SpecKey("end_qps", "number", "rate in the end (queries/s)"),
            "accel": SpecKey("accel_qps2", "number", "acceleration (queries/s per second)"),
            "cv2": _CV2,
            "duration": _DURATION,
        },
    ),
    "mmpp": Generator(
        mmpp,
        "a Poisson process that switches between two rates",
        {
            "low": SpecKey("low_qps", "number", "rate in the low state (queries/s)"),
            "high": SpecKey("high_qps", "number", "rate in the high state (queries/s)"),
            "low_s": SpecKey("low_s", "number", "mean stay in the low state (s)"),
            "high_s": SpecKey("high_s", "number", "mean stay in the high state (s)"),
            "duration": _DURATION,
        },
    ),
    "diurnal": Generator(
        diurnal,
        "a rate that follows the day, lowest at the start",
        {
            "rate": _RATE,
            "peak": SpecKey("peak_to_mean", "number", "highest rate over the mean, 1 to 2"),
            "duration": _DURATION,
            "period": _optional("period_s", "number", "length of a day (s), the duration if not"),
            "cv2": _ANY_CV2,
        },
    ),
    "step": Generator(
        step,
        "a rate that jumps once",
        {
            "before": SpecKey("before_qps", "number", "rate before the step (queries/s)"),
            "after": SpecKey("after_qps", "number", "rate after the step (queries/s)"),
            "at": SpecKey("at_s", "number", "when the rate jumps (s)"),
            "duration": _DURATION,
            "cv2": _ANY_CV2,
        },
    ),
    "flash": Generator(
        flash,
        "a flash crowd: a fast climb, an exponential way back",
        {
            "rate": SpecKey("rate_qps", "number", "rate before and long after (queries/s)"),
            "peak": SpecKey("peak_qps", "number", "highest rate (queries/s)"),
            "at": SpecKey("at_s", "number", "when the climb starts (s)"),
            "rise": SpecKey("rise_s", "number", "length of the climb (s)"),
            "decay": SpecKey("decay_s", "number", "time constant of the way back (s)"),
            "duration": _DURATION,
            "cv2": _ANY_CV2,
        },
    ),
    "fitted": Generator(
        fitted,
        "a generator that `trace fit` wrote",
        {
            "path": SpecKey("path", "text", "what trace fit --out wrote (.json)"),
            "duration": _optional("duration_s", "number", "length (s), that of the fitted trace"),
            "rate": _optional("rate_qps", "number", "mean rate (queries/s), the fitted one"),
        },
    ),
    "azure2019-shape": Generator(
        azure2019_shape,
        "synthetic, with the published shape of an Azure Functions 2019 sample; no file",
        {"qps": _QPS, "duration": _DURATION, **_PLACEMENT},
    ),
}

_READ: dict[str, Generator] = {
    "azure2019": Generator(
        azure2019,
        "Azure Functions 2019 counts of a file or a folder of days",
        {
            "path": SpecKey("path", "text", "counts file (.csv or .csv.gz), or a folder of them"),
            "qps": _optional("rate_qps", "number", "mean rate (queries/s), the trace's own"),
            "duration": _optional("duration_s", "number", "length (s), the trace's own"),
            "function": _optional("function", "text", "only this function (start of its hash)"),
            "trigger": _optional("trigger", "text", "only this trigger (http, timer, queue ...)"),
            "top": _optional("top", "count", "only the busiest functions"),
            "share": _optional("share", "number", "the busiest that make up this fraction"),
            **_PLACEMENT,
            "classes": _optional("classes", "text", "what makes a tenant", CLASSES),
            "priorities": _PRIORITIES,
            "slos": _optional("slos", "text", "SLO by tenant (ms), as in http:50/*:200"),
            "durations": _optional("durations", "text", "durations file: SLO per function"),
            "slo_scale": _optional("slo_scale", "number", "SLO over average duration, 1"),
        },
    ),
    "azure2021": Generator(
        azure2021,
        "Azure Functions 2021 invocations",
        {
            "path": SpecKey("path", "text", "file: app,func,end_timestamp,duration"),
            **_CUT,
            "classes": _optional("classes", "text", "what makes a tenant", ("func", "app")),
            "priorities": _PRIORITIES,
            "slo_scale": _optional("slo_scale", "number", "SLO over the query's own duration"),
        },
    ),
    "azure-llm": Generator(
        azure_llm,
        "Azure LLM inference requests, 2023 or 2024",
        {
            "path": SpecKey("path", "text", "file: TIMESTAMP,ContextTokens,GeneratedTokens"),
            **_CUT,
        },
    ),
    "mooncake": Generator(
        mooncake,
        "Mooncake requests, spread inside their time steps",
        {"path": SpecKey("path", "text", "JSON lines, or CSV with timestamp_ms"), **_CUT},
    ),
    "servegen": Generator(
        servegen,
        "ServeGen clients, gaps drawn from each client's fit",
        {
            "path": SpecKey("path", "text", "client windows (.csv or .csv.gz)"),
            "model": SpecKey("model", "text", "whose clients, such as m-large"),
            "start": _optional("start_s", "number", "from this second of the table on"),
            "length": _optional("length_s", "number", "length (s), 600 if left out"),
            "clients": _optional("clients", "count", "only the busiest clients"),
            "qps": _CUT["qps"],
            "classes": _optional("classes", "text", "what makes a tenant", ("client",)),
            "priorities": _PRIORITIES,
        },
    ),
    "counts": Generator(
        counts_trace,
        "counts per second, minute or other bin of any log, one row a bin",
        {
            "path": SpecKey("path", "text", "CSV, JSON lines or Parquet"),
            "bin": SpecKey("bin_s", "number", "length of a bin (s): 1, 60 ..."),
            "column": _optional("column", "text", "column of counts, `count` if left out"),
            "time": _optional("time", "text", "column of the bins' times: any order, gaps, series"),
            "unit": _optional("unit", "text", "unit of the times", tuple(UNITS)),
            "start": _CUT["start"],
            "length": _CUT["length"],
            "qps": _optional("rate_qps", "number", "mean rate (queries/s), the log's own"),
            "duration": _optional("duration_s", "number", "length (s), the log's own"),
            **_PLACEMENT,
        },
    ),
    "log": Generator(
        request_log,
        "any log with one row per request",
        {
            "path": SpecKey("path", "text", "CSV, JSON lines or Parquet, plain or .gz"),
            "time": _optional("time", "text", "column of times, `timestamp` if left out"),
            "unit": _optional("unit", "text", "unit of the times", tuple(UNITS)),
            "slo": _optional("slo", "text", "column of relative deadlines"),
            "slo_unit": _optional("slo_unit", "text", "their unit", tuple(UNITS)[:-1]),
            "slo_min": _optional(
                "slo_min_ms", "number", "least deadline (ms); shorter ones are lifted"
            ),
            "classes": _optional("classes", "text", "column whose texts are tenants"),
            "priorities": _PRIORITIES,
            "session": _optional("session", "text", "column of sessions, kept"),
            "prompt_tokens": _optional("prompt_tokens", "text", "column of counts, kept"),
            "output_tokens": _optional("output_tokens", "text", "column of counts, kept"),
            "size": _optional("size", "text", "column of sizes, kept"),
            "where": _optional("where", "text", "rows kept: COLUMN=VALUE|VALUE & COLUMN!=VALUE"),
            "spread": _optional("spread", "text", "draw times inside a clock's steps: step, or s"),
            "delimiter": _optional(
                "delimiter", "text", "between CSV values", ("comma", "tab", "semicolon")
            ),
            "order": _optional("order", "text", "of rows out of order", ("check", "sort")),
            **_CUT,
        },
    ),
}

GENERATORS: dict[str, Generator] = {**_MADE, **_READ}
