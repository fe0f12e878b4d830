"""Which deadline a request has, and which are refused."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator

import pytest

from serve.models.deadline import resolve_deadline
from serve.models.limits import RefusedError


def resolve(parameters: dict[str, object] | None = None, **headers: str):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return resolve_deadline(
        parameters or {}, named, arrival_s=10.0, default_slo_s=0.1, unix_arrival_s=1000.0
    )


def test_default_holds_when_nothing_is_given_and_is_soft():
    assert resolve()[:2] == (pytest.approx(10.1), None)


def test_soft_deadline_replaces_the_default():
    assert resolve(x_slo_ms="250")[:2] == (pytest.approx(10.25), None)
    assert resolve({"slo_ms": 250})[:2] == (pytest.approx(10.25), None)


def test_timeout_parameter_is_hard_and_in_microseconds():
    assert resolve({"timeout": 50_000})[:2] == (pytest.approx(10.05), pytest.approx(10.05))


def test_earliest_wins_and_the_hard_one_is_kept():
    deadlines = resolve({"timeout": 90_000}, x_slo_ms="30", x_request_timeout_seconds="0.06")
    assert deadlines[:2] == (pytest.approx(10.03), pytest.approx(10.06))


def test_absolute_deadline_is_read_on_the_wall_clock():
    assert resolve({"deadline_unix_us": 1000.5e6}).hard_deadline_s == pytest.approx(10.5)


@pytest.mark.parametrize(("slo_ms", "scheduled_s"), [(250, 0.245), (20, 0.017), (1, 0.00085)])
def test_the_reply_allowance_comes_off_but_never_more_than_fifteen_percent(
    slo_ms: float, scheduled_s: float
):
    deadlines = resolve_deadline(
        {"slo_ms": slo_ms}, {}, arrival_s=10.0, default_slo_s=0.1, unix_arrival_s=0.0,
        reply_allowance_s=0.005,
    )  # fmt: skip
    assert deadlines[:2] == (pytest.approx(10.0 + scheduled_s), None)
    assert deadlines.given_deadline_s == pytest.approx(10.0 + slo_ms * 1e-3)


def test_a_hard_deadline_itself_is_not_moved_by_the_allowance():
    deadlines = resolve_deadline(
        {"timeout": 100_000}, {}, arrival_s=10.0, default_slo_s=0.1, unix_arrival_s=0.0,
        reply_allowance_s=0.005,
    )  # fmt: skip
    assert deadlines[:2] == (pytest.approx(10.095), pytest.approx(10.1))


def test_request_timeout_that_is_not_positive_means_no_limit_as_in_ray():
    assert resolve(x_request_timeout_seconds="-1") == resolve()


@pytest.mark.parametrize("carrier", ["timeout", "deadline_unix_us", "slo_ms"])
def test_zero_means_no_limit_in_every_parameter(carrier: str):
    """tritonclient's `timeout=0` had been a deadline that has passed."""
    assert resolve({carrier: 0}) == resolve()
    assert resolve({carrier: 0}, x_slo_ms="30") == resolve(x_slo_ms="30")


@pytest.mark.parametrize("carrier", ["x_slo_ms", "x_request_timeout_seconds"])
def test_zero_means_no_limit_in_every_header(carrier: str):
    assert resolve(**{carrier: "0"}) == resolve()


@pytest.mark.parametrize("text", ["50,500", "500,50", "500, 50, 0"])
def test_of_a_header_that_comes_several_times_the_earliest_counts(text: str):
    """The first had counted, though the earliest is documented."""
    assert resolve(x_slo_ms=text) == resolve(x_slo_ms="50")
    assert resolve(x_request_timeout_seconds=text).hard_deadline_s == pytest.approx(60.0)


@pytest.mark.parametrize(
    ("parameters", "headers"),
    [
        ({"timeout": "soon"}, {}),
        ({}, {"x_slo_ms": "50,"}),
        ({"timeout": True}, {}),
        ({"timeout": 10**400}, {}),
        ({"slo_ms": None}, {}),
        ({}, {"x_slo_ms": "fast"}),
        ({}, {"x_slo_ms": "nan"}),
        ({}, {"x_request_timeout_seconds": "inf"}),
    ],
)
def test_malformed_deadline_is_a_bad_request(parameters, headers):
    with pytest.raises(RefusedError, match="allowed a") as caught:
        resolve(parameters, **headers)
    assert (caught.value.reason, caught.value.http_status) == ("bad_deadline", 400)


@pytest.mark.parametrize(
    ("parameters", "headers"),
    [({"timeout": -1}, {}), ({"deadline_unix_us": 999e6}, {}), ({}, {"x_slo_ms": "-5"})],
)
def test_deadline_that_has_passed_is_expired(parameters, headers):
    with pytest.raises(RefusedError) as caught:
        resolve(parameters, **headers)
    assert (caught.value.reason, caught.value.http_status) == ("expired", 504)


def test_an_absolute_deadline_does_not_lose_the_time_that_the_body_took(timed_door, serving_door):
    """A deadline in 0.6 s whose body took 0.4 s had been taken for one in 0.2 s."""

    async def main() -> int:
        door = timed_door(scale_s=0.1)  # 0.1 s on the fastest subnet
        async with serving_door(door) as client:
            deadline_unix_us = int((time.time() + 0.6) * 1e6)
            tensor = {"name": "input", "datatype": "UINT8", "shape": [1, 1, 2, 2], "data": [0] * 4}
            body = {"inputs": [tensor], "parameters": {"deadline_unix_us": deadline_unix_us}}

            async def slowly() -> AsyncIterator[bytes]:
                text = json.dumps(body).encode()
                yield text[:10]
                await asyncio.sleep(0.4)
                yield text[10:]

            answer = await client.post("/v2/models/tiny/infer", content=slowly())
            return answer.status_code

    assert asyncio.run(main()) == 200
