"""Azure Functions 2019: the per-minute counts file, and the paper's squeeze of it.

File (CC-BY 4.0, Microsoft; Shahrad et al., "Serverless in the Wild", ATC 2020): columns HashOwner,
HashApp, HashFunction, Trigger, then one column per minute, named by its number (the first need not
be 1). SuperServe (NSDI'25, 6.2) squeezes 24 hours into 120 s "by shape-preserving transformations";
how arrivals are placed inside a minute's bin is not stated, so it is a choice here and recorded.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from traces.files import open_text
from traces.trace import IntArray, Trace, TraceError

LICENCE = "CC-BY 4.0, Microsoft Azure Functions 2019 (Shahrad et al., USENIX ATC 2020)"
COLUMNS = ("HashOwner", "HashApp", "HashFunction", "Trigger")
PLACEMENTS = ("uniform", "poisson")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InvocationCounts:
    """Invocations per (function, minute): `counts` is int32 (functions, minutes).

    `functions` holds (owner, app, function, trigger) per row; `first_minute` is the number of the
    first minute column (minute of the day, 1-based in the original files).
    """

    functions: tuple[tuple[str, ...], ...]
    counts: npt.NDArray[np.int32]
    first_minute: int
    source: str

    @property
    def per_minute(self) -> IntArray:
        """Invocations of all functions per minute."""
        return self.counts.sum(axis=0, dtype=np.int64)

    def busiest(self, top: int) -> InvocationCounts:
        """Return the `top` functions with the most invocations (ties: first in the file)."""
        if not 1 <= top <= len(self.functions):
            raise TraceError(
                f"top must be 1 to {len(self.functions)} (the functions in the file), got {top}"
            )
        totals = self.counts.sum(axis=1, dtype=np.int64)
        rows = np.sort(np.argsort(-totals, kind="stable")[:top])
        return InvocationCounts(
            functions=tuple(self.functions[i] for i in rows),
            counts=self.counts[rows],
            first_minute=self.first_minute,
            source=self.source,
        )


def read_counts(path: Path | str) -> InvocationCounts:
    """Read a counts file, plain or `.gz`.

    Raises:
        TraceError: names the file and line, and says what is expected there.
    """
    path = Path(path)
    functions: list[tuple[str, ...]] = []
    rows: list[npt.NDArray[np.int32]] = []
    try:
        with open_text(path) as stream:
            reader = csv.reader(stream)
            minutes = _minutes(next(reader, []), f"{path}, line 1")
            for row in reader:
                rows.append(_counts(row, len(minutes), f"{path}, line {reader.line_num}"))
                functions.append(tuple(row[: len(COLUMNS)]))
    except FileNotFoundError:
        raise TraceError(f"{path}: no such file") from None
    except (OSError, csv.Error) as error:
        raise TraceError(f"{path}: cannot be read ({error})") from None
    if not rows:
        raise TraceError(f"{path}: holds no functions; expected one row per function")
    return InvocationCounts(
        functions=tuple(functions),
        counts=np.stack(rows),
        first_minute=minutes[0],
        source=path.name,
    )


def _minutes(header: Sequence[str], where: str) -> list[int]:
    """Return the numbers of the minute columns: at least one, consecutive."""
    names, minutes = tuple(header[: len(COLUMNS)]), header[len(COLUMNS) :]
    if names == COLUMNS and minutes and all(m.isascii() and m.isdigit() for m in minutes):
        numbers = [int(m) for m in minutes]
        if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
            return numbers
    raise TraceError(
        f"{where}: header {','.join(header)[:80]!r} is not that of a counts file; expected "
        f"{','.join(COLUMNS)}, then consecutive minute numbers"
    )


def _counts(row: Sequence[str], num_minutes: int, where: str) -> npt.NDArray[np.int32]:
    wanted = len(COLUMNS) + num_minutes
    if len(row) != wanted:
        raise TraceError(
            f"{where}: {len(row)} columns, expected {wanted} "
            f"({len(COLUMNS)} names and {num_minutes} minutes)"
        )
    texts = row[len(COLUMNS) :]
    joined = "".join(texts)
    if not (joined.isascii() and joined.isdigit() and all(texts)) or max(map(len, texts)) > 9:
        column, text = next(
            (i, t) for i, t in enumerate(texts, start=len(COLUMNS) + 1) if not _is_count(t)
        )
        raise TraceError(
            f"{where}, column {column}: {text[:40]!r} is not a count; expected a whole number of "
            "at most 9 digits"
        )
    return np.array(texts, dtype=np.int32)


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9


def squeeze(
    weights: npt.ArrayLike,
    *,
    rate_qps: float,
    duration_s: float,
    placement: str = "uniform",
    seed: int = 0,
    source: str = "",
    licence: str = "",
    metadata: dict[str, Any] | None = None,
) -> Trace:
    """Turn counts per bin into arrivals: the same shape within `duration_s` at mean `rate_qps`.

    Bin k gets the share weights[k]/sum of rate x duration arrivals. With `uniform` placement the
    counts are those shares, rounded so that every prefix is within half an arrival; with `poisson`
    each count is drawn. Either way arrivals lie uniformly inside their bin.

    Raises:
        TraceError: weights that are not finite, non-negative and somewhere above 0; a bad rate,
            duration or placement.
    """
    shares = np.asarray(weights, dtype=np.float64)
    if shares.ndim != 1 or not np.isfinite(shares).all() or (shares < 0).any() or not shares.any():
        raise TraceError("counts per bin must be finite, non-negative and not all 0")
    for name, value in (("qps", rate_qps), ("duration", duration_s)):
        if not (np.isfinite(value) and value > 0):
            raise TraceError(f"{name} must be a finite number above 0, got {value:g}")
    if placement not in PLACEMENTS:
        raise TraceError(f"placement must be {' or '.join(PLACEMENTS)}, got {placement!r}")
    rng = np.random.default_rng(seed)
    edges = np.concatenate([[0.0], np.cumsum(shares)]) * (rate_qps * duration_s / shares.sum())
    counts = np.diff(np.rint(edges)).astype(np.int64)
    if placement == "poisson":
        counts = rng.poisson(np.diff(edges))
    bins = np.repeat(np.arange(shares.size), counts)
    arrival_s = np.sort((bins + rng.random(bins.size)) * (duration_s / shares.size))
    return Trace(
        arrival_s=np.minimum(arrival_s, duration_s),
        duration_s=duration_s,
        source=source,
        licence=licence,
        metadata={
            **(metadata or {}),
            "rate_qps": rate_qps,
            "duration_s": duration_s,
            "num_bins": int(shares.size),
            "placement": placement,
            "seed": seed,
        },
    )


def azure2019(
    path: Path | str,
    rate_qps: float,
    duration_s: float,
    *,
    top: int | None = None,
    placement: str = "uniform",
    seed: int = 0,
) -> Trace:
    """Return the genuine counts of `path` squeezed into `duration_s` at mean `rate_qps`.

    `top` keeps the busiest functions only. Counts are real; the times inside a bin are not, and
    the metadata says so.
    """
    counts = read_counts(path)
    chosen = counts if top is None else counts.busiest(top)
    return squeeze(
        chosen.per_minute,
        rate_qps=rate_qps,
        duration_s=duration_s,
        placement=placement,
        seed=seed,
        source=f"Azure Functions 2019, {counts.source}",
        licence=LICENCE,
        metadata={
            "synthetic": False,
            "synthetic_part": "the arrival times inside each minute, and the scale",
            "loader": "azure2019",
            "functions": len(chosen.functions),
            "minutes": int(chosen.counts.shape[1]),
            "first_minute": chosen.first_minute,
            "invocations": int(chosen.per_minute.sum()),
        },
    )
