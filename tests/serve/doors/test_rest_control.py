"""Control of a served model over HTTP: its settings while it serves, and what it counts."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from serve.engine.engine import Engine
from slackfit.profile import LatencyProfile
from tests.serve.doors.conftest import URL, body, tensor

pytestmark = pytest.mark.alone


def test_the_metadata_say_how_the_model_is_scheduled(ask):
    async def use(client: httpx.AsyncClient) -> list[Any]:
        before = await client.get("/v2/models/tiny")
        await client.post("/admin/config", json={"policy": "slackfit@num_buckets=3", "slo_ms": 50})
        after = await client.get("/v2/models/tiny")
        return [answer.json()["parameters"]["settings"] for answer in (before, after)]

    settings = {"policy": "drainfit", "max_queue": 7, "drop_hopeless": False}
    before, after = ask(use, correct_latency=False, reply_allowance_ms=2.0, **settings)
    assert before == {
        **settings,
        "slo_ms": 100.0,
        "max_batch_size": 4,
        "reply_allowance_ms": 2.0,
        "triage": False,  # only where what is hopeless is dropped
        "correct_latency": False,
    }
    assert after == before | {"policy": "slackfit@num_buckets=3", "slo_ms": 50}


def test_policy_slo_and_subnets_switch_while_serving(ask):
    async def use(client: httpx.AsyncClient) -> tuple[Any, Any]:
        change = {"policy": "fixed:largest", "subnets": ["small", "middle"], "slo_ms": 50}
        settings = await client.post("/admin/config", json=change)
        return settings.json()["tiny"], (await client.post(URL, json=body())).json()

    settings, answer = ask(use)
    assert settings["policy"] == "fixed:middle"
    assert settings["subnets"] == ["small", "middle"]
    assert settings["slo_ms"] == 50
    assert answer["parameters"]["subnet"] == "middle"
    assert answer["parameters"]["slack_s"] < 0.05


def test_another_policy_keeps_what_was_learned_of_the_device(ask, monkeypatch):
    profiles: list[object] = []
    reconfigure = Engine.reconfigure

    def spy(self: Engine, *, policy: Any = None, profile: Any = None) -> None:
        profiles.append(profile)
        reconfigure(self, policy=policy, profile=profile)

    async def use(client: httpx.AsyncClient) -> None:
        for change in ({"policy": "fixed:large"}, {"subnets": ["large"]}):
            await client.post("/admin/config", json=change)

    monkeypatch.setattr(Engine, "reconfigure", spy)
    ask(use)
    same, other = profiles
    assert same is None, "a profile, even the same, would begin the correction anew"
    assert isinstance(other, LatencyProfile)


def test_batch_cap_switches_while_serving_and_requests_may_be_larger(ask):
    async def use(client: httpx.AsyncClient) -> tuple[Any, Any]:
        settings = await client.post("/admin/config", json={"max_batch_size": 3})
        content = body(inputs=[tensor([0] * 16, (4, 1, 2, 2))])
        return settings.json()["tiny"], (await client.post(URL, json=content)).json()

    settings, answer = ask(use)
    assert settings["max_batch_size"] == 3
    assert answer["outputs"][0]["shape"] == [4, 10]
    assert answer["parameters"]["batch_size"] == 3


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"polcy": "slackfit"},
            "unknown live setting polcy; known: policy, slo_ms, ttft_ms, tpot_ms, subnets,",
        ),
        ({"policy": "best"}, "'best' is unknown, allowed slackfit"),
        ({"subnets": ["huge"]}, "it has small, middle, large"),
        ({"slo_ms": -1}, "slo_ms"),
        ({"max_batch_size": 9}, "batch size 9 is not profiled in 'tiny'; allowed 1 to 4"),
        ({"policy": "best", "slo_ms": 7}, "'best' is unknown"),
        ([], "valid"),
    ],
)
def test_bad_change_of_settings_gets_400_and_changes_nothing(ask, change, text):
    async def use(client: httpx.AsyncClient) -> tuple[Any, Any, httpx.Response]:
        before = (await client.get("/admin/config")).json()
        response = await client.post("/admin/config", json=change)
        return before, (await client.get("/admin/config")).json(), response

    before, after, response = ask(use)
    assert response.status_code == 400
    assert text in response.json()["error"]
    assert before == after


def test_settings_refuse_a_browser_page(ask):
    headers = {"origin": "http://elsewhere.example"}
    response = ask(lambda client: client.get("/admin/config", headers=headers))
    assert response.status_code == 403


def test_metrics_count_how_queries_end(ask):
    async def use(client: httpx.AsyncClient) -> str:
        await client.post(URL, json=body())
        await client.post(URL, json=body(), headers={"x-slo-ms": "0.5"})
        return (await client.get("/metrics")).text

    text = ask(use)
    assert 'supernet_queries_total{model="tiny",reason="",status="on_time"} 1.0' in text
    assert 'reason="infeasible",status="rejected"} 1.0' in text
    assert 'supernet_subnet_queries_total{model="tiny",subnet="large"} 1.0' in text
    assert 'supernet_latency_seconds_bucket{le="0.00025",model="tiny"}' in text
    assert 'supernet_queue_depth{model="tiny"} 0.0' in text
    assert 'supernet_refused_requests_total{door="http",reason="infeasible",tenant=""} 1.0' in text
    assert 'supernet_recent_attainment{model="tiny"} 0.5' in text
    assert 'supernet_decision_seconds_count{model="tiny"} 1.0' in text
