"""Traffic: traces of arrivals, generators, loaders, the open-loop replayer and the report.

In scope: when queries arrive, how each one ended, and the page that shows it.
Out of scope: what model answers, and over which wire (`replay` drives a `Target`).
This import needs numpy alone; Parquet, plots and the command line import their libraries on use.
"""

from traces.files import read_trace, write_trace
from traces.generators.arrivals import bursty, gamma, poisson, ramp
from traces.generators.azure_shape import azure2019_shape
from traces.generators.patterns import diurnal, flash, mmpp, step
from traces.open_loop.payloads import Payloads, load_payloads
from traces.open_loop.replay import (
    ReplayOptions,
    ReplayReply,
    ReplayRequest,
    ReplayResult,
    Target,
    replay,
)
from traces.sources.azure import Choice, InvocationCounts, read_counts
from traces.sources.azure2019 import azure2019
from traces.sources.counts import counts_trace, squeeze
from traces.sources.request_logs import azure2021, azure_llm, mooncake, request_log
from traces.sources.servegen import servegen
from traces.spec.spec import SpecError, parse_spec
from traces.trace import Trace, TraceError

__all__ = [
    "Choice",
    "InvocationCounts",
    "Payloads",
    "ReplayOptions",
    "ReplayReply",
    "ReplayRequest",
    "ReplayResult",
    "SpecError",
    "Target",
    "Trace",
    "TraceError",
    "azure2019",
    "azure2019_shape",
    "azure2021",
    "azure_llm",
    "bursty",
    "counts_trace",
    "diurnal",
    "flash",
    "gamma",
    "load_payloads",
    "mmpp",
    "mooncake",
    "parse_spec",
    "poisson",
    "ramp",
    "read_counts",
    "read_trace",
    "replay",
    "request_log",
    "servegen",
    "squeeze",
    "step",
    "write_trace",
]
