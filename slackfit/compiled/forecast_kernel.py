"""What DrainFit remembers of the traffic; the machine code of `slackfit.policies.forecast`."""

from __future__ import annotations

from math import sqrt

import numpy as np

from slackfit.compiled.forms import DrainForm, Floats
from slackfit.compiled.jit import compiled
from slackfit.compiled.state import (
    BEGIN,
    CREDIT,
    FANO,
    FIRST,
    HAS_MEMO,
    MEAN,
    MEMO_SLO,
    NUM_WINDOWS,
    RATE,
    TIGHTEST,
    UNTIL,
    WINDOW,
    State,
)
from slackfit.compiled.triage_kernel import arrivals_within
from slackfit.policies.drainfit import BEYOND_SLOS, PACE_SIGMAS, WINDOW_RATIO, WINDOWS_PER_SLO
from slackfit.policies.forecast import (
    FANO_OVER,
    FANO_PRIOR,
    MEAN_OVER,
    PARTS_OF_FIRST,
    PRIOR_WINDOWS,
)

_BEYOND = np.array(BEYOND_SLOS)


@compiled
def _update(state: State, arrival_s: Floats, now_s: float) -> None:
    """Take in the window that ends now, or the part of the first one that has passed."""
    f, i = state.f, state.i
    length_s = now_s - f[BEGIN]
    if i[NUM_WINDOWS] == 0 and length_s < f[WINDOW]:
        length_s = max(length_s, f[WINDOW] / PARTS_OF_FIRST)
        count = arrivals_within(state, arrival_s, now_s, 2 * length_s)
        rate_qps = (count + sqrt(f[FANO] * count)) / length_s
        f[UNTIL] = now_s + f[WINDOW] / PARTS_OF_FIRST
        f[RATE] = rate_qps
        f[MEAN] = rate_qps
        return
    if length_s <= 0.0:
        return
    rate_qps = arrivals_within(state, arrival_s, now_s, length_s) / length_s
    known = i[NUM_WINDOWS] + 1
    mean_qps = f[MEAN] + (rate_qps - f[MEAN]) / min(known, MEAN_OVER)
    about_qps = f[MEAN] if i[NUM_WINDOWS] else mean_qps
    deviation = (rate_qps - about_qps) ** 2
    seen = deviation * length_s / mean_qps if mean_qps > 0 else f[FANO]
    fano = f[FANO] + (seen - f[FANO]) / min(known + PRIOR_WINDOWS, FANO_OVER)
    fano = max(fano, 1.0)
    margin_qps = 0.0
    if known < MEAN_OVER:
        margin_qps = sqrt(fano * mean_qps / (known * f[WINDOW])) * (1 - known / MEAN_OVER)
    f[BEGIN] = now_s
    f[UNTIL] = now_s + f[WINDOW]
    i[NUM_WINDOWS] = known
    f[RATE] = mean_qps + margin_qps
    f[FANO] = fano
    f[MEAN] = mean_qps


@compiled
def remember(form: DrainForm, state: State, arrival_s: Floats, now_s: float) -> None:
    """Bring the memo up to date when a window is over or another SLO is tightest."""
    f, i = state.f, state.i
    slo_s = min(f[TIGHTEST], form.longest_slo_s)
    if i[HAS_MEMO] and f[MEMO_SLO] == slo_s and now_s < f[UNTIL]:
        return
    window_s = slo_s / WINDOWS_PER_SLO
    if not i[HAS_MEMO]:
        i[HAS_MEMO] = 1
        i[NUM_WINDOWS] = 0
        f[WINDOW] = window_s
        f[BEGIN] = min(state.queue.arrival_s[i[FIRST]], now_s)
        f[UNTIL] = now_s
        f[RATE] = 0.0
        f[FANO] = FANO_PRIOR
        f[MEAN] = 0.0
        f[CREDIT] = 0.0
        _update(state, arrival_s, now_s)
    else:
        if not (window_s / WINDOW_RATIO < f[WINDOW] < window_s * WINDOW_RATIO):
            f[WINDOW] = window_s
            f[UNTIL] = min(f[UNTIL], now_s)
        if now_s >= f[UNTIL]:
            _update(state, arrival_s, now_s)
    f[MEMO_SLO] = slo_s
    expect = form.expect
    for k in range(len(_BEYOND)):
        slos = _BEYOND[k]
        rate_qps = f[RATE] if expect >= 1 else f[MEAN]
        mean = expect * rate_qps * (slo_s * (slos - 1))
        sigma = sqrt(f[FANO] * mean)
        state.memo_arrivals[k, 0] = slo_s * slos
        state.memo_arrivals[k, 1] = mean + PACE_SIGMAS * expect * sigma
        state.memo_arrivals[k, 2] = mean
        state.memo_arrivals[k, 3] = sigma
