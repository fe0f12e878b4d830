"""A shared server: who is which tenant, what each may ask for, and what is counted of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from serve.access.build_guard import build_guard
from serve.access.tenants import Tenants, build_tenants
from serve.config import ServeConfig, ServeConfigError, parse_config
from serve.doors.rest import RestDoor
from serve.doors.rpc import RpcDoor, rpc_listening
from serve.models.limits import RefusedError
from serve.models.tenant_limits import TenantLimits
from serve.proto import open_inference_pb2 as pb
from serve.proto import open_inference_pb2_grpc as pb_grpc

GOLD, FREE, OPS = ("g" * 16, "f" * 16, "o" * 16)
URL = "/v2/models/tiny/infer"
TENSOR = {"name": "input", "datatype": "UINT8", "shape": [1, 1, 2, 2], "data": [0] * 4}
TENANTS: dict[str, Any] = {
    "gold": {"share": 0.7},
    "free": {
        "share": 0.1,
        "rate_limit_qps": 1,
        "rate_limit_burst": 3,
        "highest_priority": 0,
        "may_pin": False,
        "longest_slo_ms": 500,
    },
}


def body(**parameters: object) -> dict[str, Any]:
    return {"inputs": [TENSOR], "parameters": parameters}


def bearer(secret: str, **more: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}", **more}


@pytest.fixture
def tokens_file(tmp_path: Path) -> str:
    path = tmp_path / "tokens"
    path.write_text(f"a infer {GOLD} gold\nb infer {FREE} free\nops admin {OPS}\n")
    return str(path)


@pytest.fixture
def shared(timed_config: ServeConfig, timed_door: Callable[..., RestDoor], tokens_file: str):
    """`shared(**settings)` is a door to a server with two tenants."""

    def make(**settings: Any) -> RestDoor:
        fields = {**timed_config.model_dump(), "tokens_file": tokens_file, "tenants": TENANTS}
        config = parse_config({**fields, **settings})
        return timed_door(**{name: getattr(config, name) for name in type(config).model_fields})

    return make


def asked(door: RestDoor, serving_door: Any, *asks: tuple[dict[str, Any], dict[str, str]]):
    async def main() -> list[tuple[int, dict[str, Any]]]:
        answers = []
        async with serving_door(door) as client:
            for content, headers in asks:
                answer = await client.post(URL, json=content, headers=headers)
                answers.append((answer.status_code, answer.json()))
        return answers

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"priority": 1}, "parameter priority is 1, allowed tenant 'free': 0"),
        ({"subnet": "small"}, "the pinned subnet is small, allowed tenant 'free': none"),
        ({"slo_ms": 501}, "the SLO in milliseconds is 501, allowed tenant 'free': 500 or less"),
    ],
)
def test_wishes_at_the_others_expense_are_limited(shared, serving_door, parameters, text):
    (refused, allowed, operator) = asked(
        shared(),
        serving_door,
        (body(**parameters), bearer(FREE)),
        (body(**parameters), bearer(GOLD)),
        (body(**parameters), bearer(OPS)),
    )
    assert refused[0] == 403
    assert refused[1]["reason"] == "forbidden"
    assert text in refused[1]["error"]
    assert (allowed[0], operator[0]) == (200, 200)


def test_a_version_pins_too(shared, serving_door):
    async def main() -> int:
        async with serving_door(shared()) as client:
            url = "/v2/models/tiny/versions/small/infer"
            return (await client.post(url, json=body(), headers=bearer(FREE))).status_code

    assert asyncio.run(main()) == 403


def test_a_time_out_is_no_slo_and_the_default_is_cut_to_the_longest():
    from serve.models.deadline import resolve_deadline

    limits = TenantLimits("t", longest_slo_s=0.5)

    def resolved(parameters: dict[str, object], default_slo_s: float = 0.1):
        return resolve_deadline(
            parameters, {}, arrival_s=10.0, default_slo_s=default_slo_s, unix_arrival_s=0.0,
            tenant=limits,
        )  # fmt: skip

    assert resolved({"timeout": 5_000_000})[:2] == (pytest.approx(10.5), pytest.approx(15.0))
    assert resolved({}, default_slo_s=2.0)[:2] == (pytest.approx(10.5), None)
    assert resolved({})[:2] == (pytest.approx(10.1), None)
    assert resolved({"slo_ms": 500})[:2] == (pytest.approx(10.5), None)


def test_priorities_between_the_highest_and_the_default_are_allowed():
    limits = TenantLimits("t", highest_priority=2)
    for priority in (0, 2, 3, 99):
        limits.check_wishes(priority, None)
    with pytest.raises(RefusedError, match=r"0, or 2 and lower"):
        limits.check_wishes(1, None)


def test_a_tenants_rate_is_shared_by_its_tokens_and_leaves_the_others_alone(shared, serving_door):
    answers = asked(
        shared(),
        serving_door,
        *[(body(), bearer(FREE))] * 4,
        *[(body(), bearer(GOLD))] * 4,
    )
    assert [code for code, _ in answers] == [200] * 3 + [429] + [200] * 4
    assert "of tenant 'free'" in answers[3][1]["error"]


def test_a_header_names_the_tenant_of_tokens_without_one(shared, serving_door):
    pinned = body(subnet="small")
    answers = asked(
        shared(tenant_header="x-tenant"),
        serving_door,
        (pinned, bearer(OPS, **{"x-tenant": "free"})),
        (pinned, bearer(OPS, **{"x-tenant": "gold"})),
        (pinned, bearer(OPS, **{"x-tenant": "nobody"})),
        (pinned, bearer(GOLD, **{"x-tenant": "free"})),
        (pinned, bearer(OPS)),
    )
    assert [code for code, _ in answers] == [403, 200, 403, 403, 200]
    assert "tenant 'nobody' is not known here" in answers[2][1]["error"]
    assert "the token is of another tenant" in answers[3][1]["error"]


def test_without_the_setting_the_header_means_nothing(shared, serving_door):
    ((code, _),) = asked(
        shared(), serving_door, (body(subnet="small"), bearer(OPS, **{"x-tenant": "free"}))
    )
    assert code == 200


def test_metrics_and_logs_tell_tenants_apart(shared, serving_door, caplog):
    door = shared(log_queries="all")
    caplog.set_level(logging.INFO, "serve.queries")

    asked(
        door,
        serving_door,
        (body(slo_ms=60_000), bearer(GOLD)),
        (body(slo_ms=0.1), bearer(FREE)),
        (body(priority=1), bearer(FREE)),
    )
    sample = door.server.metrics.registry.get_sample_value
    of = {"model": "tiny"}
    queries = "supernet_tenant_queries_total"
    assert sample(queries, {**of, "tenant": "gold", "status": "on_time"}) == 1
    assert sample(queries, {**of, "tenant": "free", "status": "rejected"}) == 1
    accuracy = "supernet_tenant_on_time_accuracy_total"
    assert sample(accuracy, {**of, "tenant": "gold"}) == pytest.approx(0.9)
    refused = "supernet_refused_requests_total"
    for reason in ("infeasible", "forbidden"):
        assert sample(refused, {"door": "http", "reason": reason, "tenant": "free"}) == 1
    tenants = [record.facts["tenant"] for record in caplog.records if hasattr(record, "facts")]
    assert tenants == ["gold", "free"]


def test_the_grpc_door_has_the_same_tenants(shared):
    door = shared(tenant_header="x-tenant")
    message = pb.ModelInferRequest(model_name="tiny", raw_input_contents=[bytes(4)])
    message.inputs.add(name="input", datatype="UINT8", shape=[1, 1, 2, 2])
    message.parameters["priority"].int64_param = 1

    async def main() -> list[str]:
        codes = []
        async with (
            door._lifespan(door._app),
            rpc_listening(RpcDoor(door.server), "127.0.0.1", 0) as rpc,
            grpc.aio.insecure_channel(f"127.0.0.1:{rpc.port}") as channel,
        ):
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            for headers in (bearer(GOLD), bearer(FREE), bearer(OPS, **{"x-tenant": "free"})):
                call = stub.ModelInfer(message, metadata=tuple(headers.items()))
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await call
                codes.append((await call.code()).name)
        return codes

    assert asyncio.run(main()) == ["OK", "PERMISSION_DENIED", "PERMISSION_DENIED"]


def test_the_engine_is_told_the_tenant(shared, serving_door):
    door = shared()
    (model,) = door.server.models
    seen: list[str] = []
    submit = model.engine._scheduler.submit

    def noting(query: Any, now_s: float) -> Any:
        seen.append(query.tenant)
        return submit(query, now_s)

    model.engine._scheduler.submit = noting  # type: ignore[method-assign]
    asked(door, serving_door, (body(), bearer(GOLD)), (body(), bearer(OPS)))
    assert seen == ["gold", ""]


def test_a_default_tenant_limits_whoever_names_none(shared, serving_door):
    door = shared(tenants={**TENANTS, "default": {"may_pin": False}})
    answers = asked(door, serving_door, (body(subnet="small"), bearer(OPS)), (body(), bearer(OPS)))
    assert [code for code, _ in answers] == [403, 200]


@pytest.mark.parametrize(
    ("tenants", "text"),
    [
        ({"a": {"share": 0.6}, "b": {"share": 0.5}}, "the shares add up to 1.1, allowed 1 or less"),
        ({"a": {"shares": 0.6}}, "unknown setting of a tenant shares; known: rate_limit_qps"),
        ({"a": {"rate_limit_burst": 5}}, "rate_limit_burst without rate_limit_qps"),
        ({"a": {"share": 0}}, "share"),
    ],
)
def test_tenants_that_make_no_sense_are_refused(timed_config, tenants, text):
    with pytest.raises(ServeConfigError, match=text):
        build_tenants(parse_config({**timed_config.model_dump(), "tenants": tenants}), lambda: 0.0)


def test_a_token_of_an_unknown_tenant_is_refused_at_the_start(timed_config, tokens_file):
    tenants = {"gold": {}}
    fields = {**timed_config.model_dump(), "tokens_file": tokens_file, "tenants": tenants}
    with pytest.raises(ServeConfigError, match=r"a token names tenant free, .* \(it has: gold\)"):
        build_guard(parse_config(fields), lambda: 0.0)


def test_limits_are_plain_values_by_name(timed_config):
    config = parse_config({**timed_config.model_dump(), "tenants": TENANTS})
    limits = build_tenants(config, lambda: 0.0).limits
    assert limits["gold"] == TenantLimits("gold", share=0.7)
    assert limits["free"].longest_slo_s == 0.5
    assert json.dumps(limits["gold"]._asdict())  # goes over a wire as it is
    assert Tenants((), lambda: 0.0).limits == {}
