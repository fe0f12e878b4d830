"""Live settings of one of several replicas: they reach all, or are refused with the way to all."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses

import httpx
import pytest

from serve.config import LiveConfig, parse_config
from serve.doors.rest import RestDoor
from serve.hosts.assemble import build_server


def test_settings_for_one_of_several_replicas_are_refused_with_the_way_to_all(timed_door):
    """One of two had changed, and nothing said so."""
    door = timed_door()
    note = "send it to each of http://a:1, http://b:1"
    door = RestDoor(dataclasses.replace(door.server, others_note=note))

    async def main() -> tuple[httpx.Response, httpx.Response, httpx.Response]:
        transport = httpx.ASGITransport(door)
        async with (
            door.running(),
            httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
        ):
            refused = await client.post("/admin/config", json={"slo_ms": 7})
            taken = await client.post(
                "/admin/config", json={"slo_ms": 8, "only_this_replica": True}
            )
            return refused, taken, await client.get("/admin/config")

    refused, taken, after = asyncio.run(main())
    assert (refused.status_code, refused.json()["reason"]) == (409, "several_replicas")
    assert note in refused.json()["error"]
    assert taken.status_code == 200
    assert after.json()["tiny"]["slo_ms"] == 8


def test_no_subnets_means_all_of_them(serve_timed):
    async def main() -> list[list[str]]:
        async with serve_timed() as client:
            answers = [
                await client.post("/admin/config", json={"subnets": subnets})
                for subnets in (["small"], [])
            ]
            return [answer.json()["tiny"]["subnets"] for answer in answers]

    one, every = asyncio.run(main())
    assert one == ["small"]
    assert every == ["small", "middle", "large"]


def test_a_user_config_is_all_there_is_to_say(timed_door):
    """What one leaves out had stayed as the one before said; replicas started later differed."""
    models = timed_door(slo_ms=100, policy="slackfit").server.models
    first = LiveConfig(policy="fixed:smallest", slo_ms=50, subnets=("small",), max_batch_size=1)
    kept = ("policy", "slo_ms", "subnets", "max_batch_size")

    def settings() -> tuple[object, ...]:
        return tuple(models.find("tiny").live_settings()[key] for key in kept)

    start = settings()
    models.reconfigure(first, from_start=True)
    assert settings() == ("fixed:small", 50, ["small"], 1)
    models.reconfigure(LiveConfig(slo_ms=70), from_start=True)
    assert settings() == ("slackfit", 70, ["small", "middle", "large"], 4)
    models.reconfigure(LiveConfig(), from_start=True)
    assert settings() == start
    models.reconfigure(LiveConfig(slo_ms=60))
    models.reconfigure(LiveConfig(policy="fixed:smallest"))
    assert settings()[:2] == ("fixed:small", 60), "a change alone leaves the rest"


@pytest.mark.parametrize(
    ("given", "note"),
    [
        ({}, ""),
        ({"replicas": 2}, "deploy again with another user_config"),
        ({"autoscaling": {"max_replicas": 3}}, "deploy again with another user_config"),
        (
            {"replica_urls": ("http://a:1", "http://b:1")},
            "send it to each of http://a:1, http://b:1",
        ),
        ({"replica_urls": ("http://a:1", "grpc://a:2")}, ""),
    ],
)
def test_a_server_knows_whether_it_is_one_of_several(timed_config, given, note):
    config = parse_config(timed_config.model_dump() | given)
    with contextlib.ExitStack() as resources:
        server = build_server(config, resources)
        assert note in server.others_note
        assert bool(server.others_note) == bool(note)
        assert bool(server.replicas.tag) == (len(given.get("replica_urls", ())) == 2 and bool(note))
