"""When outputs are due, by every carrier."""

from __future__ import annotations

from math import inf

import pytest

from serve.models.limits import RefusedError
from serve.models.stream_terms import SloWishes, check_time_left, resolve_terms
from serve.models.tenant_limits import TenantLimits


def terms(headers: dict[str, str] | None = None, max_tokens: int = 11, **more):
    wishes = more.pop("wishes", SloWishes())
    return resolve_terms(
        headers or {},
        wishes,
        arrival_s=100.0,
        ttft_s=1.0,
        tpot_s=0.2,
        max_tokens=max_tokens,
        **more,
    )


def test_the_deployments_times_hold_where_nothing_is_said() -> None:
    assert terms() == (101.0, 0.2, inf)


def test_headers_and_body_say_the_same_and_the_earliest_counts() -> None:
    headers = {"x-slo-ttft-ms": "500,300", "x-slo-tpot-ms": "50"}
    assert terms(headers) == pytest.approx((100.3, 0.05, inf))
    wishes = SloWishes(ttft_ms=200, tpot_ms=80)
    assert terms(headers, wishes=wishes) == pytest.approx((100.2, 0.05, inf))
    assert terms({"x-slo-ttft-ms": "0"}) == (101.0, 0.2, inf)


def test_the_end_of_all_moves_first_output_and_pace_forward() -> None:
    first, period, _ = terms({"x-slo-ms": "2000"})
    assert first + 10 * period == pytest.approx(102.0)
    assert first == 101.0
    first, period, _ = terms({"x-slo-ms": "500"})
    assert first + 10 * period == pytest.approx(100.5)
    assert first < 100.5
    assert terms({"x-slo-ms": "500"}, max_tokens=1) == pytest.approx((100.5, 0.2, inf))


def test_a_time_limit_is_hard() -> None:
    assert terms({"x-request-timeout-seconds": "3,5"})[2] == 103.0


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"x-slo-ttft-ms": "soon"}, "bad_deadline"),
        ({"x-slo-tpot-ms": "nan"}, "bad_deadline"),
        ({"x-slo-ttft-ms": "-5"}, "expired"),
        ({"x-slo-tpot-ms": "-5"}, "expired"),
        ({"x-slo-ms": "-5"}, "expired"),
    ],
)
def test_what_is_no_time_or_past_is_refused(headers: dict[str, str], reason: str) -> None:
    with pytest.raises(RefusedError) as refused:
        terms(headers)
    assert refused.value.reason == reason


def test_a_tenant_names_no_longer_slo_than_it_may() -> None:
    tenant = TenantLimits("t", longest_slo_s=0.5)
    assert terms(tenant=tenant)[0] == 100.5
    with pytest.raises(RefusedError) as refused:
        terms({"x-slo-ttft-ms": "600"}, tenant=tenant)
    assert refused.value.reason == "forbidden"


def test_what_nobody_waits_for_is_refused_unread():
    limit = {"x-request-timeout-seconds": "0.5,2"}
    check_time_left(limit, 10.0, 10.4)
    check_time_left({"x-slo-ttft-ms": "1"}, 10.0, 99.0)  # late is not hopeless
    check_time_left({"x-request-timeout-seconds": "-1"}, 10.0, 99.0)
    with pytest.raises(RefusedError, match="the time limit had passed before") as refused:
        check_time_left(limit, 10.0, 10.5)
    assert refused.value.reason == "expired"
