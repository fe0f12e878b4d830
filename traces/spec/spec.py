"""Trace SPECs: one string that names a trace, a file or a generator with its parameters.

    spec      = part {"+" part}
    part      = file | generator [":" pair {"," pair}]
    pair      = key "=" value
    value     = '"' any characters but '"' '"' | characters up to the next ","

`parse_spec` parses and builds; its errors show the string with a caret under the character at
fault and list what is allowed there. `+` superposes its parts. The generators are the rows of
`kinds.GENERATORS`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from traces.files import SUFFIXES, has_trace_suffix, read_trace
from traces.spec.kinds import COMMON_KEYS, GENERATORS, Generator, SpecKey
from traces.texts import Texts
from traces.trace import Trace, TraceError

__all__ = [
    "GENERATORS",
    "SpecError",
    "SpecPart",
    "describe_generators",
    "parse_spec",
    "part_seed",
    "spec_parts",
]

_SEED_STEP = 1_000_003  # parts of a sum draw from seeds this far apart


class SpecError(TraceError):
    """A SPEC is malformed; the message has a caret under the character at fault."""

    def __init__(self, problem: str, spec: str, at: int, hint: str = "") -> None:
        line = f"bad trace spec: {problem}\n  {spec}\n  {' ' * at}^"
        super().__init__(f"{line}\n{hint}" if hint else line)
        self.at = at
        self.problem = problem
        self.hint = hint


def parse_spec(spec: str, *, seed: int = 0) -> Trace:
    """Build the trace that `spec` names; `seed` drives everything that a generator draws.

    Raises:
        SpecError: the string is malformed, with a caret under the character at fault.
        TraceError: the string is well formed but its file or parameters are not.

    >>> len(parse_spec("gamma:rate=100,cv2=0,duration=2"))
    200
    >>> len(parse_spec("gamma:rate=100,cv2=0,duration=2 + gamma:rate=5,cv2=0,duration=2"))
    210
    """
    traces: list[Trace] = []
    for i, (start, end) in enumerate(_parts(spec)):
        part = spec[start:end].rstrip()
        start += len(part) - len(part.lstrip())
        try:
            traces.append(_build(part.strip(), part_seed(seed, i)))
        except SpecError as error:
            if part == spec:
                raise
            raise SpecError(error.problem, spec, start + error.at, error.hint) from None
    whole = traces[0]
    for trace in traces[1:]:
        whole = whole.merge(trace)
    return replace(whole, metadata={**whole.metadata, "spec": spec})


def _parts(spec: str) -> Iterator[tuple[int, int]]:
    """Yield where the parts of a sum lie: `+` outside quotes joins whole specs.

    A plus inside a number (1e+3) or inside the name of a file is none: the part before a joining
    one names a generator with its keys, or ends like a trace file.
    """
    start = 0
    is_quoted = False
    for at, character in enumerate(spec):
        is_quoted ^= character == '"'
        if character != "+" or is_quoted:
            continue
        before = spec[start:at].strip()
        is_number = re.search(r"=[\d.]+[eE]$", spec[start:at]) is not None
        is_generator = re.match(r"[^:=,\s]*", before).group() in GENERATORS  # type: ignore[union-attr]
        if (is_generator and not is_number) or (before and has_trace_suffix(before)):
            yield start, at
            start = at + 1
    yield start, len(spec)


class SpecPart(NamedTuple):
    """A part of a sum: a generator, or else how the text begins, and what is given to it."""

    name: str
    arguments: dict[str, Any]


def spec_parts(spec: str) -> list[SpecPart]:
    """Return the parts of a SPEC, of generators with their arguments as their builders take them.

    What tags queries (`COMMON_KEYS`) is left out. Raises SpecError for a part that is malformed.
    """
    found: list[SpecPart] = []
    for start, end in _parts(spec):
        part = spec[start:end].strip()
        name = _name(part)
        arguments: dict[str, Any] = {}
        if name in GENERATORS:
            arguments = _arguments(part, name, GENERATORS[name])
            for key in COMMON_KEYS.values():
                arguments.pop(key.argument, None)
        found.append(SpecPart(name, arguments))
    return found


def part_seed(seed: int, place: int) -> int:
    """Return the seed of a part of a sum, by its place."""
    return seed + place * _SEED_STEP


def _name(part: str) -> str:
    return re.split(r"[:=,\s]", part, maxsplit=1)[0]


def _build(spec: str, seed: int) -> Trace:
    """Build one part of a sum."""
    name = _name(spec)
    if name in GENERATORS:
        generator = GENERATORS[name]
        arguments = _arguments(spec, name, generator)
        tags = {key.argument: arguments.pop(key.argument, None) for key in COMMON_KEYS.values()}
        try:
            return _tagged(generator.build(**arguments, seed=seed), **tags)
        except SpecError:
            raise
        except TraceError as error:
            raise TraceError(f"{error} (in trace spec {spec!r})") from None
    if has_trace_suffix(spec):
        return read_trace(spec)
    raise SpecError(
        f"{name!r} is neither a generator nor a trace file" if name else "no generator or file",
        spec,
        0,
        f"known generators: {', '.join(GENERATORS)}; trace files end in {', '.join(SUFFIXES)}",
    )


def _tagged(trace: Trace, **tags: Any) -> Trace:
    """Give every query the deadline, class and tenant that the common keys name."""
    slo_ms, query_class = tags["slo_ms"], tags["class"]
    if slo_ms is not None:
        trace = replace(trace, slo_s=np.full(len(trace), slo_ms * 1e-3))
    if query_class is not None:
        if query_class != int(query_class):
            raise TraceError(f"class is a whole number of at least 0, got {query_class:g}")
        trace = replace(trace, query_class=np.full(len(trace), int(query_class), dtype=np.int64))
    if tags["tenant"] is not None:
        tenants = Texts(np.zeros(len(trace), dtype=np.int64), (tags["tenant"],))
        trace = replace(trace, tenant=tenants)
    return trace


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
    known = {**generator.keys, **COMMON_KEYS}
    hint = "\n".join(
        [f"keys of {name}:"]
        + [
            f"  {k}: {key.meaning}{'' if key.is_required else ' (optional)'}"
            for k, key in known.items()
        ]
    )
    for pair in _pairs(spec, len(name), hint):
        key = known.get(pair.key)
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


class _KeyValue(NamedTuple):
    key: str
    key_at: int
    value: str
    value_at: int


def _pairs(spec: str, at: int, hint: str) -> list[_KeyValue]:
    """Read `:key=value,key=value` from position `at` to the end."""
    pairs: list[_KeyValue] = []
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
        pairs.append(_KeyValue(spec[key_at:key_end].strip(), key_at, value, value_at))
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


def _converted(pair: _KeyValue, key: SpecKey, spec: str) -> Any:
    if key.kind == "text":
        if key.choices and pair.value not in key.choices:
            allowed = " or ".join(key.choices)
            raise SpecError(f"{pair.key} must be {allowed}", spec, pair.value_at)
        return pair.value
    if key.kind == "cv2" and pair.value.split(":")[0] in GENERATORS:
        return _gap_cv2_of(pair.value)
    wanted = "a whole number above 0" if key.kind == "count" else "a finite number of at least 0"
    try:
        number = int(pair.value) if key.kind == "count" else float(pair.value)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= (1 if key.kind == "count" else 0)):
        raise SpecError(f"{pair.key} must be {wanted}, got {pair.value!r}", spec, pair.value_at)
    return number


def _gap_cv2_of(spec: str) -> float:
    from traces.burstiness import gap_cv2

    found = gap_cv2(parse_spec(spec).arrival_s)
    if found is None:
        raise TraceError(f"{spec}: has too few gaps to take a CV^2 from")
    return found
