"""A defended server, over HTTP and gRPC: no path tells a principal which subnet served."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import numpy as np
import pytest

from serve.audit.overhead import overhead_us
from serve.config import ServeConfigError, parse_config
from serve.doors.rpc import RpcDoor, rpc_listening
from serve.hosts.check import check
from serve.observe.logs import configure_logs
from serve.proto import open_inference_pb2 as pb
from serve.proto import open_inference_pb2_grpc as pb_grpc

SECRETS = re.compile(r"secretnet|secret-device|ten-secret-profile|drainfit", re.IGNORECASE)
URL = "/v2/models/ten/infer"
pytestmark = pytest.mark.alone


def body(value: int = 0, count: int = 1, **parameters: object) -> dict[str, Any]:
    tensor = {"name": "input", "datatype": "UINT8", "shape": [count, 1, 2, 2]}
    return {"inputs": [{**tensor, "data": [value] * 4 * count}], "parameters": parameters}


def everything(answer: httpx.Response) -> str:
    return f"{answer.status_code} {dict(answer.headers)} {answer.content!r}"


GETS = (
    "/v2", "/v2/models/stats", "/v2/models/ten", "/v2/models/ten/ready", "/v2/models/ten/config",
    "/v2/models/ten/stats", "/v2/health/ready", "/v2/health/live", "/metrics", "/admin/config",
    "/admin/audit", "/v2/nowhere", "/v2/models/absent", "/v2/models/ten/versions/absent",
    "/v2/models/ten/versions/absent/config", "/v2/models/ten/versions/absent/ready",
    "/v2/systemsharedmemory/status",
)  # fmt: skip
REQUESTS: tuple[tuple[dict[str, Any], dict[str, str]], ...] = (
    (body(), {}),
    (body(1, 3), {}),
    (body(2, min_accuracy=0.745), {}),
    (body(3, min_accuracy=0.99), {}),
    (body(4, min_accuracy=-1), {}),
    (body(5, subnet="d1-w1"), {}),
    (body(6, priority=1), {"x-slo-ms": "100"}),
    (body(7), {"x-slo-ms": "0.5"}),
    (body(8), {"x-slo-ms": "19"}),
    (body(9), {"x-slo-ms": "x"}),
    (body(10), {"x-request-timeout-seconds": "0.1"}),
    (body(11, epsilon=0.1), {}),
    (body(12, security="off"), {"x-security": "off", "x-epsilon": "1000"}),
    ({"inputs": []}, {}),
    (body(13, classification=3), {}),
    ({**body(14), "outputs": [{"name": "logits", "parameters": {"classification": 2}}]}, {}),
    (body(15, timeout=1), {}),
)


async def walked(client: httpx.AsyncClient, headers: Mapping[str, str]) -> dict[str, str]:
    """Everything that one principal gets to read."""
    seen: dict[str, str] = {}
    for number, (asked, more) in enumerate(REQUESTS):
        answer = await client.post(URL, json=asked, headers={**headers, **more})
        seen[f"infer {number}"] = everything(answer)
    answer = await client.post(f"{URL[:-6]}/versions/d1/infer", json=body(), headers=headers)
    seen["version"] = everything(answer)
    answer = await client.post("/v2/repository/index", json={}, headers=headers)
    seen["index"] = everything(answer)
    for path in GETS:
        seen[path] = everything(await client.get(path, headers=headers))
    return seen


@pytest.mark.parametrize("principal", ["mallory", "looker", "edge"])
def test_no_path_over_http_names_a_subnet(defended, as_principal, principal, over_http):
    config = defended(server={"rate_limit_qps": 1000.0})
    seen = over_http(config, lambda client: walked(client, as_principal(principal)))
    told = {name: text for name, text in seen.items() if SECRETS.search(text)}
    assert told == {}
    assert seen["infer 0"].startswith("200")
    assert seen["infer 1"].startswith("200")


def test_an_undefended_server_and_an_auditor_are_told(defended, as_principal, over_http):
    """The walk would find what is there."""
    config = defended()
    seen = over_http(config, lambda client: walked(client, as_principal("auditor")))
    told = {name for name, text in seen.items() if SECRETS.search(text)}
    assert {"infer 0", "/v2/models/ten", "/v2/models/ten/stats", "infer 5"} - told == {"infer 5"}
    open_config = config.model_copy(update={"security": None})
    seen = over_http(open_config, lambda client: walked(client, as_principal("looker")))
    told = {name for name, text in seen.items() if SECRETS.search(text)}
    assert {"infer 0", "infer 3", "version", "/metrics", "/v2/models/ten/config"} <= told


def test_answers_have_the_same_length_whichever_subnet_served(defended, as_principal, over_http):
    async def use(client: httpx.AsyncClient) -> list[tuple[int, str]]:
        heads: list[tuple[int, str]] = []
        for value in range(30):
            asked = body(value * 10 % 250, binary_data_output=True)
            answer = await client.post(URL, json=asked, headers=as_principal("mallory"))
            assert answer.status_code == 200, answer.text
            length = int(answer.headers["inference-header-content-length"])
            heads.append((len(answer.content), answer.content[:length].decode()))
        return heads

    config = defended(scale_s=5e-4, grid_ms=20.0)
    heads = over_http(config, use)
    assert len({size for size, _ in heads}) == 1
    assert len({head for _, head in heads}) == 1


def test_the_predicted_finish_is_for_balancers(defended, as_principal, over_http):
    async def use(client: httpx.AsyncClient) -> dict[str, Any]:
        told: dict[str, Any] = {}
        for name in ("mallory", "edge"):
            answer = await client.post(URL, json=body(), headers=as_principal(name))
            told[name] = answer.json()["parameters"]
        return told

    told = over_http(defended(), use)
    assert "earliest_finish_s" in told["edge"]
    assert "earliest_finish_s" not in told["mallory"]
    assert "capacity_qps" not in told["mallory"]


def test_statistics_and_metrics_read_before_and_after_tell_no_time(
    defended, as_principal, over_http
):
    async def use(client: httpx.AsyncClient) -> list[str]:
        headers = as_principal("looker")
        seen = []
        for value in range(4):
            await client.post(URL, json=body(value * 60), headers=headers)
            rows = (await client.get("/v2/models/ten/stats", headers=headers)).json()
            (row,) = rows["model_stats"]
            assert row["inference_count"] == value + 1
            assert {kind["ns"] for kind in row["inference_stats"].values()} == {0}
            assert row["batch_stats"] == []
            seen.append((await client.get("/metrics", headers=headers)).text)
        return seen

    for text in over_http(defended(), use):
        names = {line.split("{")[0].split(" ")[0] for line in text.splitlines() if line[0] != "#"}
        assert names <= {
            "supernet_released_samples_total", "supernet_ready",
            "supernet_refused_requests_total",
        }  # fmt: skip
    prometheus = over_http(
        defended(), lambda client: client.get("/metrics", headers=as_principal("prometheus"))
    )
    assert "supernet_execution_seconds" in prometheus.text


def test_nobody_learns_whether_a_subnet_exists(defended, as_principal, over_http):
    async def use(client: httpx.AsyncClient) -> list[httpx.Response]:
        headers = as_principal("mallory")
        asked = [body(subnet=name) for name in ("secretnet3", "absent")]
        return [await client.post(URL, json=one, headers=headers) for one in asked]

    exists, absent = over_http(defended(), use)
    assert exists.status_code == absent.status_code == 403
    assert exists.json() == absent.json()


def test_logs_and_spans_of_queries_tell_no_subnet(defended, as_principal, over_http):
    stream = io.StringIO()
    root, level = logging.getLogger(), logging.getLogger("serve.queries").level
    configure_logs("json", stream)
    try:
        config = defended(server={"log_queries": "all", "log_lines_per_s": 1000.0})
        over_http(config, lambda client: walked(client, as_principal("mallory")))
    finally:
        root.removeHandler(root.handlers[-1])
        logging.getLogger("serve.queries").setLevel(level)
    lines = [line for line in stream.getvalue().splitlines() if "serve.queries" in line]
    assert lines
    assert [line for line in lines if SECRETS.search(line)] == []
    facts = json.loads(lines[0])
    assert facts["latency_ms"] == pytest.approx(80.0, abs=0.01)  # by when any would be ready
    assert "execution_ms" not in facts


@pytest.mark.parametrize("principal", ["mallory", "edge"])
def test_no_call_over_grpc_names_a_subnet(defended, as_principal, principal, door_of):
    metadata = tuple(as_principal(principal).items())

    def request(value: int, **more: Any) -> pb.ModelInferRequest:
        tensor = pb.ModelInferRequest.InferInputTensor(
            name="input", datatype="UINT8", shape=[1, 1, 2, 2]
        )
        raw = [bytes([value] * 4)]
        return pb.ModelInferRequest(
            model_name="ten", inputs=[tensor], raw_input_contents=raw, **more
        )

    async def main() -> dict[str, str]:
        seen: dict[str, str] = {}

        async def note(name: str, call: Any) -> None:
            try:
                answer = str(await call)
            except grpc.aio.AioRpcError as error:
                answer = f"{error.code()} {error.details()}"
            told = (await call.initial_metadata(), await call.trailing_metadata())
            seen[name] = f"{answer} {told}"

        async with (
            door_of(defended()) as (door, _),
            rpc_listening(RpcDoor(door.server), "127.0.0.1", 0) as rpc,
            grpc.aio.insecure_channel(f"127.0.0.1:{rpc.port}") as channel,
        ):
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            number = pb.InferParameter(double_param=0.99)
            pin = pb.InferParameter(string_param="d1")
            calls: dict[str, tuple[Any, Any]] = {
                "infer": (stub.ModelInfer, request(1)),
                "floor": (stub.ModelInfer, request(2, parameters={"min_accuracy": number})),
                "pin": (stub.ModelInfer, request(3, parameters={"subnet": pin})),
                "version": (stub.ModelInfer, request(4, model_version="d1")),
                "metadata": (stub.ModelMetadata, pb.ModelMetadataRequest(name="ten")),
                "config": (stub.ModelConfig, pb.ModelConfigRequest(name="ten")),
                "stats": (stub.ModelStatistics, pb.ModelStatisticsRequest(name="ten")),
                "all": (stub.ModelStatistics, pb.ModelStatisticsRequest()),
                "index": (stub.RepositoryIndex, pb.RepositoryIndexRequest()),
                "ready": (stub.ModelReady, pb.ModelReadyRequest(name="ten", version="d1")),
                "absent": (stub.ModelMetadata, pb.ModelMetadataRequest(name="absent")),
                "server": (stub.ServerMetadata, pb.ServerMetadataRequest()),
            }
            for name, (method, message) in calls.items():
                await note(name, method(message, metadata=metadata))
            await note("late", stub.ModelInfer(request(5), metadata=metadata, timeout=0.004))
        return seen

    seen = asyncio.run(main())
    assert {name: text for name, text in seen.items() if SECRETS.search(text)} == {}
    assert "logits" in seen["infer"]


# --- routing -------------------------------------------------------------------------------------


async def subnets_of(client: httpx.AsyncClient, headers: Mapping[str, str], asked: Any) -> str:
    answer = await client.post(URL, json=asked, headers=headers)
    return answer.json()["parameters"]["subnet"]


def test_the_same_input_gets_the_same_subnet_and_others_spread(defended, as_principal, over_http):
    async def use(client: httpx.AsyncClient) -> tuple[set[str], set[str]]:
        headers = as_principal("auditor")
        same = {await subnets_of(client, headers, body(7)) for _ in range(8)}
        others = {await subnets_of(client, headers, body(value)) for value in range(24)}
        return same, others

    same, others = over_http(defended(scale_s=5e-4, grid_ms=20.0), use)
    assert len(same) == 1
    assert len(others) >= 4


def test_samples_of_one_request_are_drawn_apart_and_come_back_in_order(
    defended, as_principal, over_http
):
    async def use(client: httpx.AsyncClient) -> dict[str, Any]:
        asked = body(count=8)
        asked["inputs"][0]["data"] = [n for n in range(8) for _ in range(4)]
        asked["parameters"] = {"binary_data_output": False}
        return (await client.post(URL, json=asked, headers=as_principal("auditor"))).json()

    answer = over_http(defended(), use)
    assert "," in answer["parameters"]["subnet"]
    logits = np.array(answer["outputs"][0]["data"]).reshape(8, 10)
    assert logits.argmax(axis=1).tolist() == [4 * n % 10 for n in range(8)]


def test_answers_leave_on_the_grid_and_never_after_the_deadline(defended, as_principal, over_http):
    async def use(client: httpx.AsyncClient) -> list[tuple[float, str]]:
        took: list[tuple[float, str]] = []
        for value in range(6):
            began_s = time.monotonic()
            answer = await client.post(
                URL, json=body(value), headers={**as_principal("mallory"), "x-slo-ms": "600"}
            )
            took.append((time.monotonic() - began_s, answer.json()["parameters"]["status"]))
        return took

    for took_s, status in over_http(defended(grid_ms=200.0), use):
        assert 0.1 <= took_s < 0.6  # less than the grid where the loop was late to stamp it
        assert status == "on_time"


def test_outputs_are_reduced_by_tier(defended, as_principal, over_http):
    async def use(client: httpx.AsyncClient) -> list[list[float]]:
        floors = (0.7, 0.74, 0.78)
        asked = [body(3, min_accuracy=floor) for floor in floors]
        answers = [
            await client.post(URL, json=one, headers=as_principal("mallory")) for one in asked
        ]
        return [answer.json()["outputs"][0]["data"] for answer in answers]

    security = {"outputs": {"bronze": "top1", "silver": "rounded"}, "decimals": 1}
    bronze, silver, gold = over_http(defended(**security), use)
    assert sorted(bronze)[-2:] == [0.0, 1.0]
    assert sorted(set(silver)) == pytest.approx([0.1, 0.2])
    assert sorted(set(gold)) == [0.0, 1.0]  # the timed device's own logits


def test_alerts_budget_and_audit_log(defended, as_principal, tmp_path, caplog, over_http):
    path = tmp_path / "audit.jsonl"

    async def use(client: httpx.AsyncClient) -> tuple[list[int], str]:
        headers = as_principal("mallory")
        codes = [
            (await client.post(URL, json=body(value), headers=headers)).status_code
            for value in range(4)
        ]
        await client.post(URL, json=body(subnet="d1"), headers=headers)
        await client.post(URL, json=body(9), headers=as_principal("honest"))
        metrics = await client.get("/metrics", headers=as_principal("prometheus"))
        return codes, metrics.text

    config = defended(audit_log=str(path), budget_epsilon=3.0)
    codes, metrics = over_http(config, use)
    assert codes == [200, 200, 200, 429]
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    patterns = {e["pattern"] for e in entries if e.get("alert")}
    assert patterns == {"budget_spent", "pin_attempt"}
    served = [e for e in entries if not e.get("alert")]
    assert [e["principal"] for e in served] == ["token mallory"] * 3 + ["token honest"]
    assert [e["epsilon_spent"] for e in served] == [1.0, 2.0, 3.0, 1.0]
    assert all(SECRETS.search(e["served"][0]) and e["digest"] for e in served)
    assert 'pattern="pin_attempt",principal="token mallory"} 1.0' in metrics
    assert "token honest" not in metrics
    assert caplog.text.count("alert pin_attempt") == 1


# --- configuration -------------------------------------------------------------------------------


def test_a_defence_needs_tokens_and_enough_subnets(defended):
    config = defended()
    with pytest.raises(ServeConfigError, match="security without tokens"):
        check(config.model_copy(update={"tokens_file": None}))
    few = config.model_copy(update={"subnets": ("secretnet1", "secretnet2", "secretnet3")})
    with pytest.raises(ServeConfigError, match="has 3 subnets, allowed 4 or more"):
        check(few)


def test_live_settings_leave_enough_to_hide_among(defended, as_principal, over_http):
    async def use(client: httpx.AsyncClient) -> list[tuple[int, str]]:
        headers = as_principal("root")
        few = ["secretnet1", "secretnet2"]
        enough = [f"secretnet{n}" for n in range(5)]
        answers = [
            await client.post("/admin/config", json={"subnets": ids}, headers=headers)
            for ids in (few, enough)
        ]
        answer = await client.post(URL, json=body(), headers=as_principal("mallory"))
        return [(a.status_code, a.text) for a in (*answers, answer)]

    (refused, why), (changed, _), (served, _) = over_http(defended(), use)
    assert refused == 400
    assert "allowed 4 or more" in why
    assert changed == served == 200


def test_without_a_defence_none_of_its_code_is_imported(defended, tmp_path: Path):
    config = defended().model_dump(mode="json", exclude_none=True)
    del config["security"]
    path = tmp_path / "serve.json"
    path.write_text(json.dumps(config))
    code = f"""
import asyncio, contextlib, json, sys
from serve.config import parse_config
from serve.doors.rest import RestDoor
from serve.hosts.assemble import build_server
import httpx

async def main():
    with contextlib.ExitStack() as resources:
        server = build_server(parse_config(json.load(open({str(path)!r}))), resources)
        assert server.security is None
        door = RestDoor(server)
        transport = httpx.ASGITransport(door)
        headers = {{"authorization": "Bearer {"h" * 16}"}}
        async with door.running(), httpx.AsyncClient(
            transport=transport, base_url="http://127.0.0.1"
        ) as client:
            answer = await client.post({URL!r}, json={body()!r}, headers=headers)
            assert answer.status_code == 200, answer.text
            await client.get("/v2/models/ten/stats", headers=headers)
    print([name for name in sys.modules if name.startswith("serve.security.")])
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_clients_can_not_choose_the_protection(defended, as_principal, over_http):
    asked = ("epsilon", "security", "tier", "spread", "grid_ms", "window_s")

    async def use(client: httpx.AsyncClient) -> list[int]:
        headers = as_principal("mallory")
        answers = [
            await client.post(URL, json=body(**{name: 1}), headers=headers) for name in asked
        ]
        changes = [
            await client.post("/admin/config", json={"security": None}, headers=as_principal(who))
            for who in ("mallory", "auditor", "root")
        ]
        return [answer.status_code for answer in (*answers, *changes)]

    assert over_http(defended(), use) == [400] * len(asked) + [403, 403, 400]


def test_the_defence_costs_at_most_50_microseconds(ten):
    """What is done for a query around the engine beside an open server, the median of 10,000.

    On a machine that is slower just now: at most four times what the open server costs there.
    """
    cost = overhead_us(ten, {"grid_ms": 40.0}, (3, 32, 32))
    assert cost["on"] == pytest.approx(cost["defended"] - cost["undefended"])
    assert 0 < cost["on"] <= max(50.0, 4 * cost["undefended"]), cost


def test_settings_survive_the_way_to_ray(defended):
    config = defended(tiers={"basic": 0.7, "pro": 0.76})
    again = parse_config(config.model_dump())
    assert again.security is not None
    assert again.security.tier_names == ("basic", "pro")
