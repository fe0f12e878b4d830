"""Trace SPECs: one string that names a trace, a file or a generator with its parameters.

    spec      = file | generator [":" pair {"," pair}]
    pair      = key "=" value
    value     = '"' any characters but '"' '"' | characters up to the next ","

`parse_spec` parses and builds; its errors show the string with a caret under the character at
fault and list what is allowed there. A new generator is one row of `GENERATORS`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from traces.arrivals import bursty, gamma, poisson, ramp
from traces.azure import PLACEMENTS, azure2019
from traces.azure_shape import azure2019_shape
from traces.files import SUFFIXES, has_trace_suffix, read_trace
from traces.trace import Trace, TraceError


class SpecError(TraceError):
    """A SPEC is malformed; the message has a caret under the character at fault."""

    def __init__(self, problem: str, spec: str, at: int, hint: str = "") -> None:
        line = f"bad trace spec: {problem}\n  {spec}\n  {' ' * at}^"
        super().__init__(f"{line}\n{hint}" if hint else line)
        self.at = at


class Key(NamedTuple):
    """A parameter of a generator: what it is called in Python, its kind, and what it means.

    `kind` is `number`, `count` (a whole number above 0) or `text`; `choices` closes a text.
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
    keys: Mapping[str, Key]


_DURATION = Key("duration_s", "number", "length of the trace (s)")
_CV2 = Key("cv2", "number", "squared coefficient of variation of the gaps")
_QPS = Key("rate_qps", "number", "mean rate after the squeeze (queries/s)")
_PLACED = "arrivals in a minute's bin: an exact count (uniform) or a drawn one (poisson)"
_PLACEMENT = Key("placement", "text", _PLACED, False, PLACEMENTS)

GENERATORS: dict[str, Generator] = {
    "poisson": Generator(
        poisson,
        "Poisson arrivals",
        {"rate": Key("rate_qps", "number", "mean rate (queries/s)"), "duration": _DURATION},
    ),
    "gamma": Generator(
        gamma,
        "renewals with gamma gaps",
        {
            "rate": Key("rate_qps", "number", "mean rate (queries/s)"),
            "cv2": _CV2,
            "duration": _DURATION,
        },
    ),
    "bursty": Generator(
        bursty,
        "an even base stream plus a gamma stream (SuperServe 6.1)",
        {
            "base": Key("base_qps", "number", "rate of the even stream (queries/s)"),
            "variant": Key("variant_qps", "number", "mean rate of the gamma stream (queries/s)"),
            "cv2": _CV2,
            "duration": _DURATION,
        },
    ),
    "ramp": Generator(
        ramp,
        "a rate that accelerates, then stays (SuperServe 6.1)",
        {
            "start": Key("start_qps", "number", "rate at the start (queries/s)"),
            "end": Key("end_qps", "number", "rate in the end (queries/s)"),
            "accel": Key("accel_qps2", "number", "acceleration (queries/s per second)"),
            "cv2": _CV2,
            "duration": _DURATION,
        },
    ),
    "azure2019": Generator(
        azure2019,
        "Azure Functions 2019 counts of a file, squeezed",
        {
            "path": Key("path", "text", "counts file (.csv or .csv.gz)"),
            "qps": _QPS,
            "duration": _DURATION,
            "top": Key("top", "count", "only the busiest functions", False),
            "placement": _PLACEMENT,
        },
    ),
    "azure2019-shape": Generator(
        azure2019_shape,
        "synthetic, with the published shape of an Azure Functions 2019 sample; no file",
        {"qps": _QPS, "duration": _DURATION, "placement": _PLACEMENT},
    ),
}


def parse_spec(spec: str, *, seed: int = 0) -> Trace:
    """Build the trace that `spec` names; `seed` drives everything that a generator draws.

    Raises:
        SpecError: the string is malformed, with a caret under the character at fault.
        TraceError: the string is well formed but its file or parameters are not.

    >>> len(parse_spec("gamma:rate=100,cv2=0,duration=2"))
    200
    """
    name = re.match(r"[^:=,\s]*", spec).group()  # type: ignore[union-attr] # matches always
    if name in GENERATORS:
        generator = GENERATORS[name]
        arguments = _arguments(spec, name, generator)
        try:
            trace = generator.build(**arguments, seed=seed)
        except TraceError as error:
            raise TraceError(f"{error} (in trace spec {spec!r})") from None
        return _with_spec(trace, spec)
    if has_trace_suffix(spec):
        return _with_spec(read_trace(spec), spec)
    raise SpecError(
        f"{name!r} is neither a generator nor a trace file" if name else "no generator or file",
        spec,
        0,
        f"known generators: {', '.join(GENERATORS)}; trace files end in {', '.join(SUFFIXES)}",
    )


def describe_generators() -> str:
    """Return one line per generator with its keys, for help texts."""
    return "\n".join(f"{name}:{_usage(g)}  {g.summary}" for name, g in GENERATORS.items())


def _usage(generator: Generator) -> str:
    pairs = (
        text if key.is_required else f"[{text}]"
        for name, key in generator.keys.items()
        for text in [f"{name}={'|'.join(key.choices) or name.upper()}"]
    )
    return ",".join(pairs)


def _arguments(spec: str, name: str, generator: Generator) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    hint = "\n".join(
        [f"keys of {name}:"]
        + [
            f"  {k}: {key.meaning}{'' if key.is_required else ' (optional)'}"
            for k, key in generator.keys.items()
        ]
    )
    for pair in _pairs(spec, len(name), hint):
        key = generator.keys.get(pair.key)
        if key is None:
            raise SpecError(f"{name} has no key {pair.key!r}", spec, pair.key_at, hint)
        if key.argument in arguments:
            raise SpecError(f"{pair.key} is given twice", spec, pair.key_at, hint)
        arguments[key.argument] = _converted(pair, key, spec)
    missing = [
        k for k, key in generator.keys.items() if key.is_required and key.argument not in arguments
    ]
    if missing:
        raise SpecError(f"{name} still needs {', '.join(missing)}", spec, len(spec), hint)
    return arguments


class _Pair(NamedTuple):
    key: str
    key_at: int
    value: str
    value_at: int


def _pairs(spec: str, at: int, hint: str) -> list[_Pair]:
    """Read `:key=value,key=value` from position `at` to the end."""
    pairs: list[_Pair] = []
    separator = ":"
    while at < len(spec):
        if spec[at] != separator:
            raise SpecError(f"expected {separator!r} here, got {spec[at]!r}", spec, at, hint)
        key_at = at + 1
        key_end = _scan(spec, key_at, "=,:")
        if key_end == key_at or key_end == len(spec) or spec[key_end] != "=":
            at = key_at if key_end == key_at else key_end
            raise SpecError("expected key=value here", spec, at, hint)
        value_at = key_end + 1
        value, at = _value(spec, value_at)
        if not value:
            raise SpecError(f"{spec[key_at:key_end]} has no value", spec, value_at, hint)
        pairs.append(_Pair(spec[key_at:key_end].strip(), key_at, value, value_at))
        separator = ","
    return pairs


def _value(spec: str, at: int) -> tuple[str, int]:
    """Return the value that starts at `at`, and the position after it."""
    if spec[at : at + 1] != '"':
        end = _scan(spec, at, ",")
        return spec[at:end].strip(), end
    end = spec.find('"', at + 1)
    if end < 0:
        raise SpecError("this quote is never closed", spec, at)
    return spec[at + 1 : end], end + 1


def _scan(spec: str, at: int, stops: str) -> int:
    while at < len(spec) and spec[at] not in stops:
        at += 1
    return at


def _converted(pair: _Pair, key: Key, spec: str) -> Any:
    if key.kind == "text":
        if key.choices and pair.value not in key.choices:
            allowed = " or ".join(key.choices)
            raise SpecError(f"{pair.key} must be {allowed}", spec, pair.value_at)
        return pair.value
    wanted = "a whole number above 0" if key.kind == "count" else "a finite number of at least 0"
    try:
        number = int(pair.value) if key.kind == "count" else float(pair.value)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= (1 if key.kind == "count" else 0)):
        raise SpecError(f"{pair.key} must be {wanted}, got {pair.value!r}", spec, pair.value_at)
    return number


def _with_spec(trace: Trace, spec: str) -> Trace:
    return replace(trace, metadata={**trace.metadata, "spec": spec})
