"""Streams on a Ray cluster: at the replica's own door, through Ray's proxy, past a kill -9."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.config import parse_config
from serve.hosts.ray_host import RayHost
from slackfit.profile import LatencyProfile
from slackfit.streams.iteration_cost import IterationCosts
from tests.serve.ray_cluster import ON_RAY, on_ray

pytestmark = [*ON_RAY, pytest.mark.slow]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHost]:
    example = LatencyProfile.load("profiles/smollm2_135m_example.json")
    path: Path = tmp_path_factory.mktemp("ray") / "profile.json"
    IterationCosts.of(example).scaled(0.3).in_profile(example).save(path)
    fields = {"device": "timed", "profile": str(path), "model_name": "lm", "port": 0}
    with on_ray(parse_config(fields)) as host:
        yield host


def own_processes(title: str) -> list[int]:
    """Return the descendants of this process whose command line begins with `title`."""
    parents: dict[int, int] = {}
    found: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
            parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
            if (folder / "cmdline").read_bytes().startswith(title.encode()):
                found.append(int(folder.name))
        except OSError:
            continue  # it has ended meanwhile

    def is_ours(pid: int) -> bool:
        while pid in parents and pid != os.getpid():
            pid = parents[pid]
        return pid == os.getpid()

    return sorted(filter(is_ours, found))


def events(url: str, max_tokens: int, seen: list[Any] | None = None) -> list[Any]:
    """The events of one stream, as they come, with their times."""
    seen = [] if seen is None else seen
    body = {"model": "lm", "prompt": "Hi", "max_tokens": max_tokens, "temperature": 0}
    body |= {"stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=30.0) as response:
        assert response.status_code == 200, response.read()
        for line in response.iter_lines():
            if line.startswith("data: "):
                seen.append((time.monotonic(), line[6:]))
    return seen


def text_of(seen: list[Any]) -> str:
    return "".join(
        json.loads(data)["choices"][0]["text"] for _, data in seen if data.startswith("{")
    )


def test_both_ways_give_the_same_stream_token_by_token(host: RayHost) -> None:
    direct, proxied = events(host.url, 30), events(host.proxy_url, 30)
    assert text_of(direct) == text_of(proxied)
    assert len(text_of(direct)) == 30
    for seen in (direct, proxied):
        assert seen[-1][1] == "[DONE]"
        assert seen[-1][0] - seen[0][0] > 0.1  # as it came, not all at the end


def test_a_killed_replica_ends_its_streams_and_the_next_one_serves(host: RayHost) -> None:
    (replica,) = own_processes("ray::ServeReplica")
    seen: list[Any] = []
    broken: list[Exception] = []

    def read() -> None:
        try:
            events(host.url, 2000, seen)
        except httpx.TransportError as error:
            broken.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    while len(seen) < 5:
        time.sleep(0.01)
    os.kill(replica, signal.SIGKILL)
    reader.join(timeout=10)
    assert not reader.is_alive()
    assert broken, "the stream's end was told as if it were whole"
    assert seen[-1][1] != "[DONE]"
    give_up_s = time.monotonic() + 60
    while True:
        try:
            assert len(text_of(events(host.url, 5))) == 5
            break
        except (httpx.TransportError, AssertionError):
            assert time.monotonic() < give_up_s, "no replica serves again"
            time.sleep(0.3)
