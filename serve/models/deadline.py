"""The one place where the deadlines that a client may give become one.

carrier                                meaning                                 kind
-------------------------------------  --------------------------------------  ----
request parameter `timeout`            microseconds from arrival (Triton's)    hard
request parameter `deadline_unix_us`   absolute, on the server's wall clock    hard
header `x-request-timeout-seconds`     seconds from arrival (Ray Serve's)      hard
the call's own deadline (gRPC)         seconds from arrival                    hard
header `x-slo-ms`, parameter `slo_ms`  milliseconds from arrival               soft
the deployment's default (`slo_ms`)    when nothing else is given              soft

The scheduler works for the earliest, less a reply allowance: what the answer needs to get back to
the client, at most 15 % of the time given. Whether the answer is on time is judged by the deadline
as given. After a hard deadline nobody wants the answer: the query ends at the deadline, queued or
running, and a late answer is not sent; after a soft one it is.

A zero in any carrier says nothing: it means no limit, in Triton as in Ray Serve, where nothing
below zero is one either. Of a header that comes several times, or that a proxy has joined by
commas, every value counts. What is no number is refused as `bad_deadline`, what is already past as
`expired`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

from serve.models.limits import RefusedError
from serve.models.tenant_limits import NO_LIMITS, TenantLimits
from serve.proto.names import SLO_HEADER, TIMEOUT_HEADER

_SHORT_TEXT = 64
MAX_ALLOWANCE = 0.15  # of the time given


class Deadlines(NamedTuple):
    """The deadline to schedule for, the hard one if any, and the deadline that was given.

    The reply allowance is off the first only: the end is judged by what was given.
    """

    deadline_s: float
    hard_deadline_s: float | None
    given_deadline_s: float


def resolve_deadline(
    parameters: Mapping[str, object],
    headers: Mapping[str, str],
    *,
    arrival_s: float,
    default_slo_s: float,
    unix_arrival_s: float,
    reply_allowance_s: float = 0.0,
    call_timeout_s: float | None = None,
    tenant: TenantLimits = NO_LIMITS,
) -> Deadlines:
    """Return the earliest deadline given. Raises RefusedError: `bad_deadline` or `expired`.

    `headers`, gRPC's metadata at that door, hold what came several times joined by commas;
    `call_timeout_s` is what a gRPC call brings itself.
    What only has time-outs, or nothing, has the tenant's longest SLO besides. `unix_arrival_s` is
    the arrival on the wall clock: by when the request is parsed, its body may have taken a part of
    an absolute deadline.
    """
    hard_s: list[float] = [] if call_timeout_s is None else [call_timeout_s]
    soft_s: list[float] = []
    for given in _given("timeout", parameters):
        hard_s.append(given * 1e-6)
    for given in _given("deadline_unix_us", parameters):
        hard_s.append(given * 1e-6 - unix_arrival_s)
    for given in sent_numbers(TIMEOUT_HEADER, headers):
        if given > 0:
            hard_s.append(given)
    for given in (*sent_numbers(SLO_HEADER, headers), *_given("slo_ms", parameters)):
        soft_s.append(given * 1e-3)
    asked_s = min(soft_s, default=None)
    tenant.check_slo(asked_s)
    if asked_s is None and tenant.longest_slo_s < math.inf:
        soft_s.append(min(tenant.longest_slo_s, math.inf if hard_s else default_slo_s))
    earliest_s = min(hard_s + soft_s, default=default_slo_s)
    if earliest_s <= 0:
        raise RefusedError("expired", "the deadline had passed when the request arrived")
    return Deadlines(
        arrival_s + usable(earliest_s, reply_allowance_s),
        arrival_s + min(hard_s) if hard_s else None,
        arrival_s + earliest_s,
    )


def earliest_sent_s(headers: Mapping[str, str]) -> float | None:
    """Return the earliest time that headers give, in seconds from arrival; None for none.

    What the body adds can only be earlier. Raises RefusedError, `bad_deadline`.
    """
    if SLO_HEADER not in headers and TIMEOUT_HEADER not in headers:
        return None
    timeouts_s = [given for given in sent_numbers(TIMEOUT_HEADER, headers) if given > 0]
    soft_s = [given * 1e-3 for given in sent_numbers(SLO_HEADER, headers)]
    return min(soft_s + timeouts_s, default=None)


def usable(given_s: float, reply_allowance_s: float) -> float:
    """Return what the device may use of the time given: less the way back, at most 15 % of it."""
    return given_s - min(reply_allowance_s, MAX_ALLOWANCE * given_s)


def _given(name: str, parameters: Mapping[str, object]) -> tuple[float, ...]:
    """Return what a parameter says, if it is there and says something."""
    if name not in parameters:
        return ()
    number = _number(f"parameter {name}", parameters[name])
    return (number,) if number else ()


def sent_numbers(name: str, headers: Mapping[str, str]) -> tuple[float, ...]:
    """Return what a header says, every time that it is sent; zeros say nothing.

    Raises RefusedError, `bad_deadline`.
    """
    sent = headers.get(name)
    if sent is None:
        return ()
    return _known_numbers(name, sent) if len(sent) <= _SHORT_TEXT else _numbers(name, sent)


def _numbers(name: str, sent: str) -> tuple[float, ...]:
    numbers: list[float] = []
    for text in sent.split(","):
        try:
            numbers.append(_number(f"header {name}", float(text)))
        except ValueError:
            given = f"header {name} is {text.strip()!r:.80}"
            raise RefusedError("bad_deadline", f"{given}, allowed a number") from None
    return tuple(number for number in numbers if number)


# A client has one or two limits, and sends them all the time.
_known_numbers = functools.lru_cache(maxsize=256)(_numbers)


def _number(name: str, value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    raise RefusedError("bad_deadline", f"{name} is {value!r:.80}, allowed a finite number")
