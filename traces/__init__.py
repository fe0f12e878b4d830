"""Traffic: traces of arrivals, generators, loaders, the open-loop replayer and the report.

In scope: when queries arrive, how each one ended, and the page that shows it.
Out of scope: what model answers, and over which wire (`replay` drives a `Target`).
This import needs numpy alone; Parquet, plots and the command line import their libraries on use.
"""

from traces.arrivals import bursty, gamma, poisson, ramp
from traces.azure import InvocationCounts, azure2019, read_counts, squeeze
from traces.azure_shape import azure2019_shape
from traces.files import read_trace, write_trace
from traces.payloads import Payloads, load_payloads
from traces.replay import ReplayReply, ReplayRequest, ReplayResult, Target, replay
from traces.spec import SpecError, parse_spec
from traces.trace import Trace, TraceError

__all__ = [
    "InvocationCounts",
    "Payloads",
    "ReplayReply",
    "ReplayRequest",
    "ReplayResult",
    "SpecError",
    "Target",
    "Trace",
    "TraceError",
    "azure2019",
    "azure2019_shape",
    "bursty",
    "gamma",
    "load_payloads",
    "parse_spec",
    "poisson",
    "ramp",
    "read_counts",
    "read_trace",
    "replay",
    "squeeze",
    "write_trace",
]
