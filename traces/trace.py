"""`Trace`: when queries arrive, and what is known about each of them.

A trace is immutable and holds SI seconds counted from its own start. Transforms return new traces
and note themselves in `metadata["transforms"]`, so that a report can say what was done to the
traffic. Everything is linear in the number of arrivals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from traces.texts import Texts
from traces.trace_columns import OPTIONAL_COLUMNS, checked_column, joined_columns
from traces.trace_error import TraceError

__all__ = ["FloatArray", "IntArray", "Texts", "Trace", "TraceError"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
MAX_DURATION_S = 10 * 366 * 86400.0
"""Longer than any log of requests: more is a wrong unit, or a time that is none."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trace:
    """Sorted arrival times, in seconds from the trace's start, within `[0, duration_s]`.

    The other columns are per query or absent: `slo_s` (relative deadline, seconds), `query_class`
    (priority class), `tenant` and `session` (names), `prompt_tokens`, `output_tokens` and `size`;
    see `trace_columns` for what an unknown value is. `metadata` says what was synthetic
    (`synthetic`, `generator`, its parameters, the seed) and which transforms were applied. The
    arrays are read only.

    Raises:
        TraceError: times not sorted, negative, not finite or past `duration_s` (names the index),
            more than ten years, or a per-query array of another length.
    """

    arrival_s: FloatArray
    duration_s: float
    slo_s: FloatArray | None = None
    query_class: IntArray | None = None
    tenant: Texts | None = None
    session: Texts | None = None
    prompt_tokens: IntArray | None = None
    output_tokens: IntArray | None = None
    size: FloatArray | None = None
    source: str = ""
    licence: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        arrival_s = _frozen_floats(self.arrival_s, "arrival_s")
        object.__setattr__(self, "arrival_s", arrival_s)
        object.__setattr__(self, "duration_s", float(self.duration_s))
        _check_arrivals(arrival_s, self.duration_s)
        for name, values in self.columns().items():
            object.__setattr__(self, name, checked_column(name, values, arrival_s.size))

    def columns(self) -> dict[str, Any]:
        """Return the optional columns that this trace has, by name."""
        every = {name: getattr(self, name) for name in OPTIONAL_COLUMNS}
        return {name: column for name, column in every.items() if column is not None}

    def __len__(self) -> int:
        return int(self.arrival_s.size)

    @property
    def rate_qps(self) -> float:
        """Mean arrivals per second over the whole duration."""
        return len(self) / self.duration_s

    def rescale_time(self, duration_s: float) -> Trace:
        """Return the same arrivals squeezed or stretched into `duration_s` seconds.

        The mean rate changes inversely; deadlines stay as they are.
        """
        _check_positive(duration_s, "duration_s")
        factor = duration_s / self.duration_s
        arrival_s = np.minimum(self.arrival_s * factor, duration_s)
        return self._derive(
            f"rescale_time(duration_s={duration_s:g})", arrival_s=arrival_s, duration_s=duration_s
        )

    def rescale_rate(self, rate_qps: float) -> Trace:
        """Return the same arrivals at a mean of exactly `rate_qps`, by rescaling time.

        The duration changes inversely; to lower the rate within the same duration, `thin`.
        """
        _check_positive(rate_qps, "rate_qps")
        if len(self) == 0:
            raise TraceError("an empty trace has no rate to rescale; give one with arrivals")
        scaled = self.rescale_time(len(self) / rate_qps)
        return replace(scaled, metadata=_noted(self.metadata, f"rescale_rate({rate_qps:g} qps)"))

    def window(self, start_s: float, end_s: float) -> Trace:
        """Return the arrivals in `[start_s, end_s)`, counted from `start_s`."""
        if not 0 <= start_s < end_s <= self.duration_s:
            raise TraceError(
                f"window [{start_s:g}, {end_s:g}) s is not inside the trace: "
                f"need 0 <= start < end <= {self.duration_s:g} s"
            )
        first, last = np.searchsorted(self.arrival_s, [start_s, end_s], side="left")
        if end_s == self.duration_s:
            last = len(self)  # an arrival on the very end belongs to the last window
        return self._derive(
            f"window({start_s:g}, {end_s:g})",
            arrival_s=np.clip(self.arrival_s[first:last] - start_s, 0.0, end_s - start_s),
            duration_s=end_s - start_s,
            picked=slice(first, last),
        )

    def thin(self, keep: float, rng: np.random.Generator) -> Trace:
        """Return a random part: each arrival is kept with probability `keep`, independently."""
        if not 0 < keep <= 1:
            raise TraceError(f"keep is a probability above 0 and at most 1, got {keep:g}")
        kept = rng.random(len(self)) < keep
        return self._derive(f"thin({keep:g})", arrival_s=self.arrival_s[kept], picked=kept)

    def with_lengths(
        self, prompt_tokens: npt.ArrayLike, output_tokens: npt.ArrayLike, *, note: str
    ) -> Trace:
        """Return the same arrivals with other token counts; `note` says where from."""
        return replace(
            self,
            prompt_tokens=np.asarray(prompt_tokens, dtype=np.int64),
            output_tokens=np.asarray(output_tokens, dtype=np.int64),
            metadata=_noted(self.metadata, note),
        )

    def scale_lengths(self, factor: float) -> Trace:
        """Return the trace with its token counts times `factor`, rounded, 1 at the least.

        Unknown and zero counts stay. Raises TraceError where it has none.
        """
        _check_positive(factor, "factor")
        if self.prompt_tokens is None or self.output_tokens is None:
            raise TraceError("the trace has no token counts to scale")
        scaled = [
            np.where(tokens < 1, tokens, np.maximum(np.rint(tokens * factor), 1)).astype(np.int64)
            for tokens in (self.prompt_tokens, self.output_tokens)
        ]
        return self.with_lengths(*scaled, note=f"scale_lengths({factor:g})")

    def splice(self, after: Trace) -> Trace:
        """Return this trace followed by another; every arrival of both is kept."""
        arrival_s = np.concatenate([self.arrival_s, after.arrival_s + self.duration_s])
        return self._join(after, "splice", arrival_s, self.duration_s + after.duration_s)

    def merge(self, other: Trace) -> Trace:
        """Return both traces superposed from a common start; every arrival of both is kept."""
        arrival_s = np.concatenate([self.arrival_s, other.arrival_s])
        return self._join(other, "merge", arrival_s, max(self.duration_s, other.duration_s))

    def _join(self, other: Trace, verb: str, arrival_s: FloatArray, duration_s: float) -> Trace:
        order = np.argsort(arrival_s, kind="stable")
        columns: dict[str, Any] = {}
        for name in OPTIONAL_COLUMNS:
            pair = (getattr(self, name), getattr(other, name))
            try:
                both = joined_columns(name, *pair, (len(self), len(other)))
            except TraceError as error:
                raise TraceError(f"{verb}: {error}") from None
            if both is not None:
                columns[name] = both[order]
        return Trace(
            arrival_s=np.minimum(arrival_s[order], duration_s),
            duration_s=duration_s,
            **columns,
            source=" + ".join(dict.fromkeys(s for s in (self.source, other.source) if s)),
            licence=" + ".join(dict.fromkeys(s for s in (self.licence, other.licence) if s)),
            metadata={verb: [dict(self.metadata), dict(other.metadata)]},
        )

    def _derive(
        self,
        note: str,
        *,
        arrival_s: FloatArray,
        duration_s: float | None = None,
        picked: slice | npt.NDArray[np.bool_] | None = None,
    ) -> Trace:
        """Return a trace with new times; `picked` selects the per-query values that stay."""
        keep = slice(None) if picked is None else picked
        return replace(
            self,
            arrival_s=arrival_s,
            duration_s=self.duration_s if duration_s is None else duration_s,
            **{name: column[keep] for name, column in self.columns().items()},
            metadata=_noted(self.metadata, note),
        )


def _noted(metadata: Mapping[str, Any], note: str) -> dict[str, Any]:
    before = metadata.get("transforms", ())
    noted = cast(Sequence[Any], before) if isinstance(before, list | tuple) else [before]
    return {**metadata, "transforms": [*noted, note]}


def _frozen_floats(values: npt.ArrayLike, name: str) -> FloatArray:
    """Return the values read only; an array that already is stays itself, however large."""
    array: FloatArray = np.asarray(values, dtype=np.float64)
    if array.flags.writeable:
        array = array.copy()
    if array.ndim != 1:
        raise TraceError(f"{name} must be one-dimensional, got shape {array.shape}")
    array.flags.writeable = False
    return array


def _check_arrivals(arrival_s: FloatArray, duration_s: float) -> None:
    _check_positive(duration_s, "duration_s")
    if duration_s > MAX_DURATION_S:
        far = np.flatnonzero(arrival_s > MAX_DURATION_S)
        raise TraceError(
            f"duration_s is {duration_s:.9g}, more than ten years; expected seconds from the "
            "trace's start (the log loader reads times since 1970, in any unit)",
            index=int(far[0]) if far.size else None,
        )
    _check_all(np.isfinite(arrival_s), arrival_s, "arrival_s", "finite")
    _check_all(arrival_s >= 0, arrival_s, "arrival_s", "non-negative seconds from the start")
    falls = np.flatnonzero(arrival_s[1:] < arrival_s[:-1])
    if falls.size:
        i = int(falls[0]) + 1
        raise TraceError(
            f"arrival_s[{i}] = {arrival_s[i]:.9g} is before arrival_s[{i - 1}] = "
            f"{arrival_s[i - 1]:.9g}; arrivals must be sorted",
            index=i,
        )
    _check_all(arrival_s <= duration_s, arrival_s, "arrival_s", f"at most duration_s {duration_s}")


def _check_all(is_good: npt.NDArray[np.bool_], values: FloatArray, name: str, wanted: str) -> None:
    bad = np.flatnonzero(~is_good)
    if bad.size:
        i = int(bad[0])
        raise TraceError(f"{name}[{i}] = {values[i]:.9g} must be {wanted}", index=i)


def _check_positive(value: float, name: str) -> None:
    if not (math.isfinite(value) and value > 0):
        raise TraceError(f"{name} must be a finite number above 0, got {value}")
