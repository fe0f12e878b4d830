"""When the outputs of a stream are due, by what its client says.

carrier                                       meaning                                        kind
--------------------------------------------  ---------------------------------------------  ----
header `x-slo-ttft-ms`, body `slo.ttft_ms`    the first output, from arrival                 soft
header `x-slo-tpot-ms`, body `slo.tpot_ms`    each later one, after the one before           soft
header `x-slo-ms`, body `slo.e2e_ms`          the last of all that may come, from arrival    soft
header `x-request-timeout-seconds`            the last one that came, from arrival           hard
the deployment's `ttft_ms` and `tpot_ms`      what is not said                               soft

A soft one is what fluidity is judged by; a stream that is late goes on. After a hard one nobody
listens: the stream ends there. The earliest counts of what is said several times; zero says
nothing. What the whole text is given moves the first output and the pace forward, so that the last
of `max_tokens` is due in time.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import NamedTuple

from serve.models.deadline import sent_numbers
from serve.models.limits import RefusedError
from serve.models.tenant_limits import NO_LIMITS, TenantLimits
from serve.proto.names import SLO_HEADER, TIMEOUT_HEADER

TTFT_HEADER = "x-slo-ttft-ms"
TPOT_HEADER = "x-slo-tpot-ms"


class SloWishes(NamedTuple):
    """What the body of a request says of its deadlines, in milliseconds; None: nothing."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2e_ms: float | None = None


NO_WISHES = SloWishes()


class StreamTerms(NamedTuple):
    """When outputs are due: times on the engine's clock, the period in seconds."""

    first_deadline_s: float
    period_s: float
    deadline_s: float


def resolve_terms(
    headers: Mapping[str, str],
    wishes: SloWishes,
    *,
    arrival_s: float,
    ttft_s: float,
    tpot_s: float,
    max_tokens: int,
    tenant: TenantLimits = NO_LIMITS,
) -> StreamTerms:
    """Return when outputs are due; `ttft_s` and `tpot_s` are what holds where nothing is said.

    Raises RefusedError: `bad_deadline`, `expired`, or `forbidden` for a longer SLO than the tenant
    may name.
    """
    asked_ttft_s = _earliest_s(headers, TTFT_HEADER, wishes.ttft_ms)
    period_s = _earliest_s(headers, TPOT_HEADER, wishes.tpot_ms) or tpot_s
    whole_s = _earliest_s(headers, SLO_HEADER, wishes.e2e_ms)
    tenant.check_slo(asked_ttft_s)
    first_s = asked_ttft_s or min(ttft_s, tenant.longest_slo_s)
    if whole_s is not None:
        first_s = min(first_s, whole_s)
        if max_tokens > 1:
            left_s = max(whole_s - first_s, 0.1 * whole_s)
            period_s = min(period_s, left_s / (max_tokens - 1))
            first_s = min(first_s, whole_s - left_s)
    timeouts_s = [given for given in sent_numbers(TIMEOUT_HEADER, headers) if given > 0]
    if first_s <= 0 or period_s <= 0:
        raise RefusedError("expired", "the deadline had passed when the request arrived")
    deadline_s = arrival_s + min(timeouts_s, default=inf)
    return StreamTerms(arrival_s + first_s, period_s, deadline_s)


def _earliest_s(headers: Mapping[str, str], name: str, wish_ms: float | None) -> float | None:
    given = [*sent_numbers(name, headers), *([wish_ms] if wish_ms else [])]
    return min(given) * 1e-3 if given else None


def check_time_left(headers: Mapping[str, str], arrival_s: float, now_s: float) -> None:
    """Refuse, unread, what nobody waits for any more. Raises RefusedError: `expired`.

    As `ServedModel.check_waited` for hard limits; what is late by a soft one is served all the
    same. Raises `bad_deadline` too.
    """
    if TIMEOUT_HEADER not in headers:
        return
    timeouts_s = [given for given in sent_numbers(TIMEOUT_HEADER, headers) if given > 0]
    if arrival_s + min(timeouts_s, default=inf) <= now_s:
        raise RefusedError("expired", "the time limit had passed before the request was read")
