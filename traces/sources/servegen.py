"""ServeGen's client rates (Apache-2.0; Xiang et al., arXiv 2505.09999): bursty clients, superposed.

A table with one row per client and ten-minute window: category, model, client, window_start_s,
rate_rps, cv, dist (Gamma or Weibull), shape, scale (s). Gaps are drawn from each window's own
distribution, scaled to the window's own rate (the fitted gaps' mean is not quite its inverse), so
rate and burstiness are the clients', and single arrival times are synthetic.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from traces.memory import check_arrivals
from traces.sources.columns import Table, read_table
from traces.sources.tenants import about, check_priorities, priorities_of
from traces.texts import Texts
from traces.trace import FloatArray, Trace, TraceError

LICENCE = "Apache-2.0, ServeGen (Xiang et al., arXiv 2505.09999)"
WINDOW_S = 600.0
_SHAPES = {"Gamma": (1e-4, 1e9), "Weibull": (1e-2, 1e9)}
"""Beyond these a window's gaps are all alike, or nothing but one gap: no fit gives that."""
_SCALES_S = (1e-100, 1e100)
_KINDS = {
    **dict.fromkeys(("model", "client", "dist"), "text"),
    **dict.fromkeys(("window_start_s", "rate_rps", "shape", "scale"), "number"),
}


def servegen(
    path: Path | str,
    model: str,
    *,
    start_s: float = 0.0,
    length_s: float = WINDOW_S,
    clients: int | None = None,
    rate_qps: float | None = None,
    classes: str | None = None,
    priorities: str | None = None,
    seed: int = 0,
) -> Trace:
    """Return the traffic of one model's clients from `start_s` on for `length_s` seconds.

    `clients` keeps those with the most requests in that time; `rate_qps` rescales time to that mean
    rate; `classes` `client` makes each client a tenant, and `priorities` gives them classes.

    Raises:
        TraceError: names the file and row, or what is asked for and not there.
    """
    check_priorities(classes, priorities)
    table = read_table(path, _KINDS)
    _check(path, table)
    rows = _rows(path, table, model, start_s, length_s, clients)
    arrival_s, codes = _arrivals(table, rows, start_s, length_s, np.random.default_rng(seed))
    if not arrival_s.size:
        raise TraceError(
            f"{path}: {model} has no request in [{start_s:g}, {start_s + length_s:g}) s"
        )
    names, tenant = table.texts["client"].names, None
    if classes is not None:
        tenant = Texts.of(names[code] for code in codes.tolist())
    trace = Trace(
        arrival_s=arrival_s,
        duration_s=length_s,
        tenant=tenant,
        query_class=None
        if priorities is None or tenant is None
        else priorities_of(tenant, priorities),
        source=f"ServeGen, {Path(path).name}, {model}",
        licence=LICENCE,
        metadata={
            "synthetic": False,
            "synthetic_part": "single arrival times, drawn from each client's fitted gaps",
            "loader": "servegen",
            "model": model,
            "clients": int(np.unique(table.texts["client"].codes[rows]).size),
            "windows": int(rows.size),
            "start_s": start_s,
            "seed": seed,
            **({} if tenant is None else about(tenant)),
        },
    )
    return trace if rate_qps is None else trace.rescale_rate(rate_qps)


def _check(path: Path | str, table: Table) -> None:
    for name in ("rate_rps", "shape", "scale"):
        table.refuse(path, table.numbers[name] <= 0, name, "above 0")
    dist = table.texts["dist"]
    is_unknown = np.array([name not in ("Gamma", "Weibull") for name in dist.names])
    table.refuse(path, is_unknown[dist.codes], "dist", "Gamma or Weibull")
    shape, scale_s = table.numbers["shape"], table.numbers["scale"]
    for name, (low, high) in _SHAPES.items():
        is_of_it = np.array([known == name for known in dist.names], dtype=np.bool_)[dist.codes]
        is_odd = is_of_it & ((shape < low) | (shape > high))
        table.refuse(path, is_odd, "shape", f"{low:g} to {high:g} of a {name} distribution")
    low_s, high_s = _SCALES_S
    is_odd = (scale_s < low_s) | (scale_s > high_s)
    table.refuse(path, is_odd, "scale", f"{low_s:g} to {high_s:g} s")


def _rows(
    path: Path | str,
    table: Table,
    model: str,
    start_s: float,
    length_s: float,
    clients: int | None,
) -> np.ndarray:
    models = table.texts["model"]
    if model not in models.names:
        raise TraceError(f"{path}: no model {model!r}; there are {', '.join(models.names)}")
    is_model = models.codes == models.names.index(model)
    window_s = table.numbers["window_start_s"]
    if length_s <= 0:
        raise TraceError(f"length must be above 0 s, got {length_s:g}")
    rows = np.flatnonzero(
        is_model & (window_s + WINDOW_S > start_s) & (window_s < start_s + length_s)
    )
    if not rows.size:
        first, last = window_s[is_model].min(), window_s[is_model].max() + WINDOW_S
        raise TraceError(
            f"{path}: {model} has no traffic in [{start_s:g}, {start_s + length_s:g}) s; it spans "
            f"{first:g} to {last:g} s"
        )
    if clients is None:
        return rows
    codes = table.texts["client"].codes[rows]
    rates = np.bincount(codes, weights=table.numbers["rate_rps"][rows])
    kept = np.argsort(-rates, kind="stable")[:clients]
    return rows[np.isin(codes, kept)]


def _arrivals(
    table: Table, rows: np.ndarray, start_s: float, length_s: float, rng: np.random.Generator
) -> tuple[FloatArray, np.ndarray]:
    """Draw the requests of the windows in `rows` for `length_s`, in order.

    Returns when each comes (s, from `start_s` on) and the code of its client.
    """
    expected = float(table.numbers["rate_rps"][rows].sum()) * WINDOW_S
    check_arrivals(expected, "take a shorter part (length=SECONDS), or fewer clients (clients=N)")
    codes = table.texts["client"].codes
    times: list[FloatArray] = []
    owners: list[np.ndarray] = []
    for row in rows.tolist():
        window_s = float(table.numbers["window_start_s"][row])
        arrival_s = window_s + _renewals(table, row, rng) - start_s
        arrival_s = arrival_s[(arrival_s >= 0) & (arrival_s < length_s)]
        times.append(arrival_s)
        owners.append(np.full(arrival_s.size, codes[row]))
    arrival_s = np.concatenate(times)
    order = np.argsort(arrival_s, kind="stable")
    return arrival_s[order], np.concatenate(owners)[order]


def _renewals(table: Table, row: int, rng: np.random.Generator) -> FloatArray:
    """Return the arrivals inside one window, with gaps of the window's distribution and rate.

    They start in equilibrium, since windows start at no client's arrival: the gap that covers a
    window's start is drawn in proportion to its length, and the start lies uniformly inside it
    (Cox 1962, "Renewal Theory"). A gamma gap drawn so has one more in its shape; of a Weibull gap
    (X/scale)^shape is then gamma with shape 1 + 1/shape.
    """
    shape, scale = (float(table.numbers[name][row]) for name in ("shape", "scale"))
    dist = table.texts["dist"]
    is_gamma = dist.names[dist.codes[row]] == "Gamma"
    mean_s = 1.0 / float(table.numbers["rate_rps"][row])
    scale *= mean_s / (shape * scale if is_gamma else scale * math.gamma(1 + 1 / shape))
    covering_s = (
        rng.gamma(shape + 1, scale) if is_gamma else scale * rng.gamma(1 + 1 / shape) ** (1 / shape)
    )
    reached = rng.random() * covering_s
    parts: list[FloatArray] = [np.array([reached])]
    while reached < WINDOW_S:
        size = int(1.5 * (WINDOW_S - reached) / mean_s) + 16
        gaps = rng.gamma(shape, scale, size) if is_gamma else scale * rng.weibull(shape, size)
        parts.append(reached + np.cumsum(gaps))
        reached = float(parts[-1][-1])
    times_s = np.concatenate(parts)
    return times_s[(times_s >= 0) & (times_s < WINDOW_S)]
