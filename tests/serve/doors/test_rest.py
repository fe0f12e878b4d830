"""The HTTP door in this process: the protocol and every refusal."""

from __future__ import annotations

import asyncio
import json

import httpx
import numpy as np
import pytest

from tests.serve.doors.conftest import URL, body, post, tensor

pytestmark = pytest.mark.alone


def test_answer_has_logits_id_and_how_it_was_served(ask):
    response = ask(post(body()))
    answer = response.json()
    assert response.status_code == 200
    assert answer["id"] == "q1"
    assert answer["model_name"] == "tiny"
    (output,) = answer["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("logits", "FP32", [1, 10])
    assert int(np.argmax(output["data"])) == 3
    about = answer["parameters"]
    assert about["status"] == "on_time"
    assert (about["policy"], about["subnet"], about["accuracy"]) == ("slackfit", "large", 0.9)
    assert about["batch_size"] == 1
    assert about["execution_s"] >= 0.004
    assert about["queue_s"] >= 0
    assert 0 < about["slack_s"] < 0.1


def test_nested_data_and_several_samples_are_answered_together(ask):
    data = [[[[1, 0], [0, 0]]], [[[2, 0], [0, 0]]], [[[7, 0], [0, 0]]]]
    response = ask(post(body(inputs=[tensor(data, (3, 1, 2, 2))])))
    (output,) = response.json()["outputs"]
    logits = np.reshape(output["data"], output["shape"])
    assert logits.argmax(axis=1).tolist() == [1, 2, 7]


def test_binary_tensors_go_both_ways(ask):
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "input",
                    "datatype": "UINT8",
                    "shape": [1, 1, 2, 2],
                    "parameters": {"binary_data_size": 4},
                }
            ],
            "outputs": [{"name": "logits", "parameters": {"binary_data": True}}],
        }
    ).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    response = ask(
        lambda client: client.post(URL, content=head + bytes([4, 0, 0, 0]), headers=headers)
    )
    length = int(response.headers["Inference-Header-Content-Length"])
    answer = json.loads(response.content[:length])
    logits = np.frombuffer(response.content, dtype="<f4", offset=length)
    assert answer["outputs"][0]["parameters"] == {"binary_data_size": 40}
    assert int(np.argmax(logits)) == 4


def test_metadata_and_health_follow_the_protocol(ask):
    async def use(client: httpx.AsyncClient) -> list[httpx.Response]:
        paths = ["", "/health/live", "/health/ready", "/models/tiny", "/models/tiny/ready"]
        return [await client.get(f"/v2{path}") for path in paths]

    server, live, ready, model, model_ready = ask(use)
    assert {r.status_code for r in (server, live, ready, model, model_ready)} == {200}
    assert server.json()["models"] == ["tiny"]
    assert "binary_tensor_data" in server.json()["extensions"]
    assert model.json()["versions"] == ["small", "middle", "large"]
    assert model.json()["inputs"] == [
        {"name": "input", "datatype": "UINT8", "shape": [-1, 1, 2, 2]}
    ]
    assert model.json()["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}]
    assert model_ready.json() == {"name": "tiny", "ready": True}


def test_subnet_can_be_pinned_by_parameter_and_by_version(ask):
    by_parameter = ask(post(body(parameters={"subnet": "small"})))
    by_version = ask(post(body(), "/v2/models/tiny/versions/middle/infer"))
    assert by_parameter.json()["parameters"]["subnet"] == "small"
    assert by_version.json()["parameters"]["subnet"] == "middle"


def test_accuracy_floor_is_respected(ask):
    async def use(client: httpx.AsyncClient) -> httpx.Response:
        await client.post("/admin/config", json={"policy": "fixed:smallest"})
        return await client.post(URL, json=body(parameters={"min_accuracy": 0.85}))

    assert ask(use).json()["parameters"]["subnet"] == "large"


@pytest.mark.parametrize(
    ("content", "reason", "text"),
    [
        (body(inputs=[tensor(shape=(1, 1, 3, 3))]), "bad_tensor", "shape is [1, 1, 3, 3]"),
        (body(inputs=[tensor(shape=(5, 1, 2, 2))]), "bad_tensor", "with B from 1 to 4"),
        (body(inputs=[tensor(shape=(0, 1, 2, 2))]), "bad_tensor", "with B from 1 to 4"),
        (body(inputs=[tensor(shape="big")]), "bad_tensor", "shape is"),
        (body(inputs=[tensor(datatype="FP32")]), "bad_tensor", "'FP32', allowed 'UINT8'"),
        (body(inputs=[tensor(name="image")]), "bad_tensor", "'image', allowed 'input'"),
        (body(inputs=[tensor([1, 2, 3])]), "bad_tensor", "length of data is 3, allowed 4"),
        (body(inputs=[tensor([1, 2, 3, 256])]), "bad_tensor", "whole numbers 0 to 255"),
        (body(inputs=[tensor([1, 2, 3, 0.5])]), "bad_tensor", "whole numbers 0 to 255"),
        (body(inputs=[tensor([[1, 2], [3]])]), "bad_tensor", "whole numbers 0 to 255"),
        (body(inputs=[tensor("abcd")]), "bad_tensor", "a list of whole numbers"),
        (body(inputs=[tensor(parameters={"binary_data_size": 4})]), "bad_tensor", "both data"),
        (body(inputs=[]), "bad_request", "a list of one tensor"),
        (body(inputs=[tensor(), tensor()]), "bad_request", "a list of one tensor"),
        (body(outputs=[{"name": "boxes"}]), "bad_tensor", "'boxes', allowed 'logits'"),
        (body(id=7), "bad_request", "id is 7"),
        (body(parameters=[1]), "bad_request", "a JSON object"),
        (body(parameters={"min_accuracy": 90}), "bad_request", "a fraction 0 to 1"),
        (body(parameters={"subnet": "huge"}), "unknown_subnet", "not offered"),
        (body(parameters={"timeout": "soon"}), "bad_deadline", "allowed a finite number"),
        ([], "bad_request", "a JSON object"),
    ],
)
def test_bad_input_gets_400_with_the_protocols_error_object(ask, content, reason, text):
    response = ask(post(content))
    error = response.json()
    assert (response.status_code, error["reason"]) == (400, reason)
    assert text in error["error"]


def test_broken_json_and_broken_binary_headers_get_400(ask):
    async def use(client: httpx.AsyncClient) -> list[httpx.Response]:
        header = "Inference-Header-Content-Length"
        return [
            await client.post(URL, content=b"{"),
            await client.post(URL, content=b"[" * 1000),
            await client.post(URL, content=b"{}", headers={header: "-1"}),
            await client.post(URL, content=b"{}", headers={header: "99"}),
            await client.post(
                URL, content=json.dumps(body()).encode() + b"!!", headers={header: "1"}
            ),
        ]

    assert [response.status_code for response in ask(use)] == [400] * 5


@pytest.mark.parametrize(
    "path", ["/v2/models/nobody", "/v2/models/nobody/ready", "/v2/models/tiny/versions/huge"]
)
def test_unknown_model_or_version_gets_404_that_lists_the_known(ask, path):
    response = ask(lambda client: client.get(path))
    assert (response.status_code, response.json()["reason"]) == (404, "unknown_model")
    assert "tiny" in response.json()["error"]


def test_unknown_model_gets_404_on_infer(ask):
    assert ask(post(body(), "/v2/models/nobody/infer")).status_code == 404


def test_body_over_the_limit_gets_413_declared_or_streamed(ask):
    async def chunks():
        for _ in range(10):
            yield b" " * 1000

    async def use(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [
            await client.post(URL, content=b" " * 5000),
            await client.post(URL, content=chunks()),
        ]

    for response in ask(use):
        assert (response.status_code, response.json()["reason"]) == (413, "too_large")
        assert "allowed 4096" in response.json()["error"]


def test_deadline_in_the_past_gets_504(ask):
    for options in ({"headers": {"x-slo-ms": "-1"}}, {}):
        content = body() if options else body(parameters={"deadline_unix_us": 1})
        response = ask(post(content, **options))
        assert (response.status_code, response.json()["reason"]) == (504, "expired")


def test_deadline_that_no_subnet_can_meet_gets_504(ask):
    response = ask(post(body(), headers={"x-slo-ms": "0.5"}))
    error = response.json()
    assert (response.status_code, error["reason"]) == (504, "infeasible")
    assert (error["status"], error["id"]) == ("rejected", "q1")


def test_late_answer_is_sent_after_a_soft_deadline_and_not_after_a_hard_one(ask):
    async def use(client: httpx.AsyncClient) -> list[httpx.Response]:
        late = {"policy": "fixed:largest"}
        await client.post("/admin/config", json=late)
        return [
            await client.post(URL, json=body(), headers={"x-slo-ms": "60"}),
            await client.post(URL, json=body(parameters={"timeout": 60_000})),
        ]

    soft, hard = ask(use, scale_s=0.03, drop_hopeless=False)  # 120 ms on the largest
    assert (soft.status_code, soft.json()["parameters"]["status"]) == (200, "late")
    assert soft.json()["parameters"]["slack_s"] < 0
    assert (hard.status_code, hard.json()["reason"]) == (504, "expired")
    assert hard.json()["status"] == "dropped", "told at the deadline, not when the batch ends"


def test_full_queue_gets_429_with_retry_after(ask):
    async def use(client: httpx.AsyncClient) -> list[httpx.Response]:
        asks = [client.post(URL, json=body(), headers={"x-slo-ms": "5000"}) for _ in range(12)]
        return await asyncio.gather(*asks)

    responses = ask(use, scale_s=0.01, max_queue=2)
    refused = [response for response in responses if response.status_code != 200]
    assert refused
    for response in refused:
        assert (response.status_code, response.json()["reason"]) == (429, "queue_full")
        assert int(response.headers["retry-after"]) >= 1


def test_client_that_goes_away_is_dropped_from_the_queue(ask):
    async def use(client: httpx.AsyncClient) -> dict[str, int]:
        running = asyncio.ensure_future(client.post(URL, json=body()))
        await asyncio.sleep(0.01)
        gone = asyncio.ensure_future(client.post(URL, json=body(), headers={"x-slo-ms": "9000"}))
        await asyncio.sleep(0.01)
        gone.cancel()
        await asyncio.gather(running, gone, return_exceptions=True)
        return (await client.get("/admin/config")).json()["tiny"]["ended"]

    assert ask(use, scale_s=0.02)["dropped"] == 1


@pytest.mark.parametrize(
    ("method", "path", "code", "reason"),
    [
        ("GET", "/", 404, "unknown_path"),
        ("GET", "/v2/trace/setting", 404, "unknown_path"),
        ("POST", "/v2/repository/models/tiny/load", 404, "unknown_path"),
        ("POST", "/v2/cudasharedmemory/region/x/register", 404, "unknown_path"),
        ("GET", "/v2/models/tiny/infer", 405, "method_not_allowed"),
        ("PUT", "/v2/models/tiny/infer", 405, "method_not_allowed"),
        ("DELETE", "/v2/models/tiny", 405, "method_not_allowed"),
        ("OPTIONS", "/v2", 405, "method_not_allowed"),
        ("POST", "/v2/health/live", 405, "method_not_allowed"),
        ("PATCH", "/admin/config", 405, "method_not_allowed"),
        ("BREW", "/metrics", 405, "method_not_allowed"),
    ],
)
def test_what_is_not_served_is_refused_in_the_protocols_form(ask, method, path, code, reason):
    """It had been plain text, of which tritonclient said: Parse error at offset 1."""
    response = ask(lambda client: client.request(method, path, content=b"{}"))
    assert (response.status_code, response.json()["reason"]) == (code, reason)
    assert path in response.json()["error"]
    assert response.headers["x-request-id"]
    if code == 405:
        assert response.headers["allow"] in response.json()["error"]


def test_of_several_methods_all_are_named(ask):
    response = ask(lambda client: client.put("/admin/config"))
    assert response.headers["allow"] == "GET, HEAD, POST"


@pytest.mark.parametrize("path", ["/v2/models/tiny/infer", "/admin/config", "/v2/repository/index"])
def test_encoded_bodies_are_refused_on_every_route(ask, path: str):
    headers = {"content-encoding": "gzip"}
    response = ask(lambda client: client.post(path, content=b"\x1f\x8b", headers=headers))
    assert (response.status_code, response.json()["reason"]) == (415, "unsupported_encoding")
    assert response.headers["accept-encoding"] == "identity"


def test_identity_is_no_encoding(ask):
    assert ask(post(body(), headers={"content-encoding": "identity"})).status_code == 200


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (body(parameters={"min_acuracy": 0.8}), "min_acuracy"),
        (body(parameters={"sequence_id": 7, "sequence_start": True}), "sequence_id"),
        (body(inputs=[tensor(parameters={"codec": "np"})]), "codec"),
        (body(outputs=[{"name": "logits", "parameters": {"top_k": 3}}]), "top_k"),
    ],
)
def test_a_parameter_that_is_not_served_is_refused_by_its_name(ask, content, name: str):
    response = ask(post(content))
    assert (response.status_code, response.json()["reason"]) == (400, "bad_request")
    assert f"parameter {name}" in response.json()["error"]
    assert "allowed" in response.json()["error"]


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "3"])
def test_a_count_of_classes_is_a_whole_number_from_1(ask, count):
    outputs = [{"name": "logits", "parameters": {"classification": count}}]
    assert "classification" in ask(post(body(outputs=outputs))).json()["error"]


def test_of_more_classes_than_there_are_all_come(ask):
    outputs = [{"name": "logits", "parameters": {"classification": 99}}]
    (output,) = ask(post(body(outputs=outputs))).json()["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [1, 10])
    assert output["data"][0] == "1.000000:3"


@pytest.mark.parametrize("order", [("1", "9999"), ("9999", "1")])
def test_of_a_deadline_that_comes_twice_the_earliest_counts(ask, order):
    headers = [("x-slo-ms", text) for text in order]
    response = ask(post(body(), headers=headers))
    answer = response.json()
    slack_s = answer["parameters"]["slack_s"] if response.status_code == 200 else 0.0
    assert slack_s < 0.001


@pytest.mark.parametrize("headers", [{}, {"x-forwarded-for": "127.0.0.1"}])
def test_shared_memory_is_for_clients_on_this_host(timed_door, headers):
    door, peer = timed_door(), "127.0.0.1" if headers else "10.1.2.3"

    async def main() -> list[httpx.Response]:
        transport = httpx.ASGITransport(door, client=(peer, 1))
        async with (
            door.running(),
            httpx.AsyncClient(transport=transport, base_url="http://x", headers=headers) as client,
        ):
            register = {"key": "/x", "offset": 0, "byte_size": 4}
            parameters = {"shared_memory_region": "x", "shared_memory_byte_size": 4}
            shared = {**tensor(parameters=parameters)}
            del shared["data"]
            return [
                await client.post("/v2/systemsharedmemory/region/x/register", json=register),
                await client.get("/v2/systemsharedmemory/status"),
                await client.post(URL, json=body(inputs=[shared])),
            ]

    for response in asyncio.run(main()):
        assert (response.status_code, response.json()["reason"]) == (403, "forbidden")


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"min_accuracy": 0.99}, "min_accuracy is 0.99, allowed 0.9 or less: what large has"),
        ({"min_accuracy": 0.85, "subnet": "small"}, "the pinned subnet small has 0.7"),
    ],
)
def test_a_floor_that_no_subnet_reaches_is_no_missed_deadline(ask, parameters, text: str):
    """It had been 504, "no subnet can answer before the deadline", with a time to try again."""
    response = ask(post(body(parameters=parameters)))
    told = response.json()
    assert (response.status_code, told["reason"]) == (400, "accuracy_floor")
    assert text in told["error"]
    assert "retry_after_s" not in told
    assert "retry-after" not in response.headers


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({}, "no subnet can answer"),
        ({"min_accuracy": 0.85}, "no subnet of accuracy 0.85 or more can answer"),
        ({"subnet": "large"}, "the pinned subnet large can not answer"),
    ],
)
def test_what_can_not_be_in_time_says_of_which_subnets(ask, parameters, text: str):
    response = ask(post(body(parameters={**parameters, "slo_ms": 0.5})))
    assert (response.status_code, response.json()["reason"]) == (504, "infeasible")
    assert response.json()["error"].startswith(text)


@pytest.mark.parametrize("is_binary", [True, False])
def test_an_output_that_is_not_finite_is_no_answer(timed_door, serving_door, is_binary: bool):
    async def main() -> httpx.Response:
        door = timed_door()
        (model,) = door.server.models
        executor = model.engine._runner.executor
        finite = executor.result
        executor.result = lambda launched: finite(launched) * np.nan
        async with serving_door(door) as client:
            return await client.post(URL, json=body(parameters={"binary_data_output": is_binary}))

    response = asyncio.run(main())
    told = response.json()
    assert (response.status_code, told["reason"]) == (500, "execution_failed")
    assert "NaN or infinity" in told["error"]
