"""Two supernets in one server: settings of each, requests to both, one device between them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import threading
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import numpy as np
import pytest

from serve.config import ServeConfigError, parse_config
from serve.doors.rest import RestDoor
from serve.doors.rpc import RpcDoor, rpc_listening
from serve.hosts.assemble import build_server
from serve.hosts.check import check
from serve.hosts.several_models import each_model, model_settings
from serve.proto import open_inference_pb2 as pb
from serve.proto import open_inference_pb2_grpc as pb_grpc
from slackfit.profile import LatencyProfile
from subnetact import load_executor
from supernet import Checkpoint, load_checkpoint, save_checkpoint

pytestmark = pytest.mark.alone

SHAPES = {"fast": [1, 1, 2, 2], "slow": [1, 3, 4, 4]}


def body(model: str) -> dict[str, Any]:
    shape = SHAPES[model]
    data = [0] * int(np.prod(shape))
    return {"inputs": [{"name": "input", "datatype": "UINT8", "shape": shape, "data": data}]}


@pytest.fixture
def two(tmp_path: Path, profile: LatencyProfile) -> dict[str, Any]:
    """Settings of two timed models, one four times slower than the other."""
    models: dict[str, Any] = {}
    for name, factor in (("fast", 1.0), ("slow", 4.0)):
        path = tmp_path / f"{name}.json"
        profile.scaled(factor).save(path)
        shape = SHAPES[name][1:]
        models[name] = {"profile": str(path), "input_shape": shape, "num_classes": 10}
    models["slow"]["slo_ms"] = 400
    return {"device": "timed", "slo_ms": 100, "port": 0, "models": models}


@contextlib.asynccontextmanager
async def serving(settings: dict[str, Any]):
    with contextlib.ExitStack() as resources:
        door: RestDoor = RestDoor(build_server(parse_config(settings), resources))
        transport = httpx.ASGITransport(door)
        client = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")
        async with door._lifespan(door._app), client:
            yield client, door


def test_each_model_has_its_own_settings_before_those_in_common(two):
    config = parse_config({**two, "record": "runs/log.jsonl"})
    fast, slow = each_model(parse_config(config.model_dump()))
    assert (fast.model_name, fast.slo_ms, fast.record) == ("fast", 100, "runs/log.fast.jsonl")
    assert (slow.model_name, slow.slo_ms, slow.record) == ("slow", 400, "runs/log.slow.jsonl")
    assert slow.input_shape == (3, 4, 4)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"models": {}}, "models is empty"),
        ({"checkpoint": "x"}, "checkpoint and models exclude each other"),
        ({"models": {"a": {"polcy": "x"}}}, "unknown setting of a model polcy; known: checkpoint"),
        ({"models": {"a": {}}}, "model a: .*give a profile"),
        ({"models": {"a/b": {}}}, "a/b"),
    ],
)
def test_mistakes_name_the_model(two, change, text):
    with pytest.raises(ServeConfigError, match=text):
        check(parse_config({**two, **change}))


@pytest.mark.parametrize(
    ("checkpoints", "profiles", "settings"),
    [
        (["DIR"], [], {"checkpoint": "DIR"}),
        (["DIR"], ["FILE"], {"checkpoint": "DIR", "profile": "FILE"}),
        (["a=DIR"], [], {"models": {"a": {"checkpoint": "DIR"}}}),
        (
            ["a=DIR", "b=E"],
            ["b=FILE"],
            {"models": {"a": {"checkpoint": "DIR"}, "b": {"checkpoint": "E", "profile": "FILE"}}},
        ),
        ([], ["a=F", "b=G"], {"models": {"a": {"profile": "F"}, "b": {"profile": "G"}}}),
        ([], [], {}),
    ],
)
def test_options_name_the_models(checkpoints, profiles, settings):
    assert model_settings(checkpoints, profiles) == settings


def test_options_without_a_name_or_with_one_twice_are_refused(tmp_path):
    with pytest.raises(ServeConfigError, match="--checkpoint DIR among several has no name"):
        model_settings(["a=DIR", "DIR"], [])
    with pytest.raises(ServeConfigError, match="--checkpoint names a twice"):
        model_settings(["a=DIR", "a=E"], [])
    folder = tmp_path / "a=b"
    folder.mkdir()
    assert model_settings([str(folder)], []) == {"checkpoint": str(folder)}


def test_both_doors_serve_both_models_by_name(two):
    async def main() -> None:
        async with serving(two) as (client, door):
            for name, shape in SHAPES.items():
                answer = await client.post(f"/v2/models/{name}/infer", json=body(name))
                assert (answer.status_code, answer.json()["model_name"]) == (200, name)
                about = (await client.get(f"/v2/models/{name}")).json()
                assert about["inputs"][0]["shape"][1:] == shape[1:]
            wrong = await client.post("/v2/models/fast/infer", json=body("slow"))
            assert wrong.json()["reason"] == "bad_tensor"
            assert (await client.get("/v2")).json()["models"] == ["fast", "slow"]
            index = (await client.post("/v2/repository/index")).json()
            assert [(row["name"], row["state"]) for row in index] == [
                ("fast", "READY"),
                ("slow", "READY"),
            ]
            rpc = rpc_listening(RpcDoor(door.server), "127.0.0.1", 0)
            async with (
                rpc as opened,
                grpc.aio.insecure_channel(f"127.0.0.1:{opened.port}") as channel,
            ):
                stub = pb_grpc.GRPCInferenceServiceStub(channel)
                for name, shape in SHAPES.items():
                    message = pb.ModelInferRequest(model_name=name)
                    message.inputs.add(name="input", datatype="UINT8", shape=shape)
                    message.raw_input_contents.append(bytes(int(np.prod(shape))))
                    assert (await stub.ModelInfer(message)).model_name == name
                index = await stub.RepositoryIndex(pb.RepositoryIndexRequest())
                assert [row.name for row in index.models] == ["fast", "slow"]
            text = (await client.get("/metrics")).text
            assert 'supernet_queries_total{model="fast"' in text
            assert 'supernet_queries_total{model="slow"' in text

    asyncio.run(main())


def test_settings_change_for_all_or_for_one(two):
    async def main() -> None:
        async with serving(two) as (client, _):
            change = {"policy": "fixed:smallest", "models": {"slow": {"slo_ms": 250}}}
            settings = (await client.post("/admin/config", json=change)).json()
            assert {s["policy"] for s in settings.values()} == {"fixed:small"}
            assert [settings[name]["slo_ms"] for name in SHAPES] == [100, 250]
            one = await client.post("/admin/config", json={"model": "slow", "policy": "maxacc"})
            assert one.json()["slow"]["policy"] == "maxacc"
            settings = (await client.get("/admin/config")).json()
            assert [settings[name]["policy"] for name in SHAPES] == ["fixed:small", "maxacc"]
            wrong = await client.post("/admin/config", json={"models": {"none": {}}})
            assert wrong.status_code == 400
            assert "none is not served; served: fast, slow" in wrong.json()["error"]

    asyncio.run(main())


def test_batches_of_two_models_never_overlap_on_the_device(two):
    running: list[str] = []
    overlaps: list[list[str]] = []

    def watched(name: str, result):
        def watch(launched: Any) -> np.ndarray:
            running.append(name)
            if len(running) > 1:
                overlaps.append(list(running))
            try:
                return result(launched)
            finally:
                running.remove(name)

        return watch

    async def main() -> list[int]:
        async with serving(two) as (client, door):
            for model in door.server.models:
                executor: Any = model.engine._runner.executor
                executor.result = watched(model.spec.name, executor.result)
            headers = {"x-slo-ms": "5000"}
            asks = [
                client.post(f"/v2/models/{name}/infer", json=body(name), headers=headers)
                for _ in range(10)
                for name in SHAPES
            ]
            return [answer.status_code for answer in await asyncio.gather(*asks)]

    assert asyncio.run(main()) == [200] * 20
    assert not overlaps


def test_two_checkpoints_answer_with_their_own_logits(
    checkpoint_folder: Path, checkpoint: Checkpoint, tmp_path: Path, profile: LatencyProfile, rng
):
    """The second one is the first with other weights; each is measured for itself."""
    other = tmp_path / "other"
    other.mkdir()
    state = {
        name: tensor * 1.5 if tensor.is_floating_point() else tensor
        for name, tensor in checkpoint.state.items()
    }
    save_checkpoint(dataclasses.replace(checkpoint, state=state), other)
    settings = {
        "max_batch_size": 1,
        "slo_ms": 60_000,
        "policy": "fixed:largest",
        "models": {
            "one": {"checkpoint": str(checkpoint_folder)},
            "two": {"checkpoint": str(other)},
        },
    }
    sample = rng.integers(0, 256, size=(1, *checkpoint.input.shape), dtype=np.uint8)
    tensor = {"name": "input", "datatype": "UINT8", "shape": list(sample.shape)}
    request = {"inputs": [{**tensor, "data": sample.ravel().tolist()}]}

    async def main() -> list[Any]:
        async with serving(settings) as (client, _):
            answers = [
                await client.post(f"/v2/models/{name}/infer", json=request)
                for name in ("one", "two")
            ]
            return [json.loads(answer.text)["outputs"][0]["data"] for answer in answers]

    largest = checkpoint.subnet_ids[-1]
    for logits, folder in zip(asyncio.run(main()), (checkpoint_folder, other), strict=True):
        expected = load_executor(load_checkpoint(folder), max_batch_size=1).run(largest, sample)[0]
        np.testing.assert_allclose(logits, expected, rtol=1e-4)


def test_hanging_batch_of_one_model_fails_the_other_one_too(two):
    """They share the device: who waits for it would wait for ever."""
    released = threading.Event()

    def hang(subnet_id: str, slots: object) -> None:
        released.wait(30)

    async def main() -> list[tuple[int, str]]:
        async with serving({**two, "hung_after_s": 0.2}) as (client, door):
            slow = door.server.models.find("slow")
            slow.engine._runner.executor.launch = hang  # type: ignore[method-assign]
            headers = {"x-slo-ms": "60000"}
            asks = []
            for name in ("slow", "fast"):
                ask = client.post(f"/v2/models/{name}/infer", json=body(name), headers=headers)
                asks.append(asyncio.ensure_future(ask))
                while not slow.engine.status().num_running:
                    await asyncio.sleep(0.001)  # the slow one has the device
            try:
                answers = [*await asyncio.gather(*asks), await client.get("/v2/health/live")]
            finally:
                released.set()
            return [(answer.status_code, answer.json().get("reason", "")) for answer in answers]

    slow, fast, live = asyncio.run(main())
    assert slow == fast == (503, "device_failed")
    assert live == (503, "")
