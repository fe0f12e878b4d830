"""When a defended server says things: nothing rises, is refused or logged as a batch ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from serve.client import AsyncClient
from serve.config import ServeConfig, ServeConfigError, parse_config
from serve.doors.rest import RestDoor
from serve.hosts.assemble import build_server
from serve.hosts.check import check
from serve.hosts.uvicorn_listener import bind, listening
from serve.security.redaction import release_s
from subnetact.timed_executor import TimedExecutor

URL = "/v2/models/ten/infer"
GRID_S = 0.3
QUICK = {"scale_s": 5e-4, "grid_ms": GRID_S * 1e3}  # answers are ready in 5 ms, and leave at 300
DECODER = "profiles/smollm2_135m_example.json"
pytestmark = pytest.mark.alone


def body(value: int = 0, count: int = 1, **parameters: object) -> dict[str, Any]:
    """Return a request of samples that differ."""
    tensor = {"name": "input", "datatype": "UINT8", "shape": [count, 1, 2, 2]}
    data = [value + n for n in range(count) for _ in range(4)]
    return {"inputs": [{**tensor, "data": data}], "parameters": {"slo_ms": 900.0, **parameters}}


def test_counts_rise_as_answers_leave_and_not_as_batches_end(defended, as_principal, door_of):
    async def main() -> list[tuple[int, str]]:
        headers, seen = as_principal("looker"), []
        async with door_of(defended(**QUICK)) as (door, client):
            engine = next(iter(door.server.models)).engine
            asked = asyncio.ensure_future(client.post(URL, json=body(), headers=headers))
            while not engine.status().ended.get("on_time"):
                await asyncio.sleep(0.005)
            for is_left in (False, True):
                if is_left:
                    assert (await asked).status_code == 200
                assert asked.done() is is_left
                rows = (await client.get("/v2/models/ten/stats", headers=headers)).json()
                text = (await client.get("/metrics", headers=headers)).text
                (row,) = rows["model_stats"]
                figures = [line for line in text.splitlines() if "released_samples_total{" in line]
                answered = next(line for line in figures if "answered" in line)
                seen.append((row["inference_count"], answered.rpartition(" ")[2]))
        return seen

    assert asyncio.run(main()) == [(0, "0.0"), (1, "1.0")]


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    """The lines of the query log, as they are written."""
    found: list[logging.LogRecord] = []
    log = logging.getLogger("serve.queries")
    level = log.level
    log.setLevel(logging.INFO)  # what other tests asked of it is cached until it is set
    handler = logging.Handler()
    handler.emit = found.append
    log.addHandler(handler)
    yield found
    log.removeHandler(handler)
    log.setLevel(level)


def test_a_request_has_one_line_when_its_answer_leaves(defended, as_principal, over_http, records):
    """However many subnets were drawn for its samples, and whenever their batches ended."""
    times: list[tuple[float, float]] = []

    async def use(client: httpx.AsyncClient) -> None:
        for count in (1, 8):
            began = time.time()
            answer = await client.post(URL, json=body(3, count), headers=as_principal("mallory"))
            assert answer.status_code == 200
            times.append((began, time.time()))

    over_http(defended(**QUICK, server={"log_queries": "all", "log_lines_per_s": 1e3}), use)
    assert len(records) == 2
    for record, (began, ended) in zip(records, times, strict=True):
        assert began + 0.9 * GRID_S <= record.created <= ended + 0.05
        assert record.facts["query_id"] == 0
        assert record.facts["latency_ms"] == pytest.approx(GRID_S * 1e3, abs=0.01)


def test_spans_have_the_same_phases_however_many_subnets_were_drawn(defended, as_principal):
    """As many, and none that ends before the answer leaves."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from serve.hosts import assemble
    from serve.observe.spans import Spans

    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    async def main(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[str, float]]]:
        def observers(config: object, clock: Any, resources: object) -> list[Any]:
            return [Spans(provider, clock, time.time)]

        monkeypatch.setattr(assemble, "build_request_observers", observers)
        told: list[list[tuple[str, float]]] = []
        with contextlib.ExitStack() as resources:
            door = RestDoor(build_server(defended(**QUICK), resources))
            transport = httpx.ASGITransport(door)
            async with (
                door.running(),
                httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
            ):
                for count in (1, 2, 8):
                    asked = body(5, count)
                    await client.post(URL, json=asked, headers=as_principal("mallory"))
                    spans = exporter.get_finished_spans()
                    exporter.clear()
                    took = [(s.name, (s.end_time - s.start_time) / 1e9) for s in spans]
                    told.append(sorted(took))
        return told

    with pytest.MonkeyPatch.context() as monkeypatch:
        told = asyncio.run(main(monkeypatch))
    for spans in told:
        assert [name for name, _ in spans] == ["door", "infer ten", "queue"]
        assert [took_s for _, took_s in spans] == pytest.approx([0.0, GRID_S, GRID_S], abs=1e-5)


def test_what_fails_in_one_subnet_is_refused_on_the_grid(
    defended, as_principal, over_http, monkeypatch
):
    """A failure that left at once would tell how long the subnet had run."""

    def launch(self: TimedExecutor, subnet_id: str, slots: object) -> Any:
        raise RuntimeError(f"{subnet_id} is broken")

    monkeypatch.setattr(TimedExecutor, "launch", launch)

    async def use(client: httpx.AsyncClient) -> tuple[float, httpx.Response]:
        began_s = time.monotonic()
        answer = await client.post(URL, json=body(), headers=as_principal("mallory"))
        return time.monotonic() - began_s, answer

    took_s, answer = over_http(defended(**QUICK), use)
    assert answer.status_code == 500
    assert answer.json()["reason"] == "execution_failed"
    assert "secretnet" not in answer.text
    assert took_s >= 0.9 * GRID_S


def test_what_is_refused_before_it_is_queued_is_refused_at_once(defended, as_principal, over_http):
    async def use(client: httpx.AsyncClient) -> list[tuple[float, str, str]]:
        told: list[tuple[float, str, str]] = []
        for parameters in ({"subnet": "d1"}, {"min_accuracy": 0.99}, {"slo_ms": 290.0}):
            began_s = time.monotonic()
            asked = body(**parameters)
            answer = await client.post(URL, json=asked, headers=as_principal("mallory"))
            fields = answer.json()
            told.append((time.monotonic() - began_s, fields["reason"], fields["error"]))
        return told

    told = over_http(defended(**QUICK), use)
    assert [reason for _, reason, _ in told] == ["forbidden", "accuracy_floor", "infeasible"]
    assert all(took_s < 0.5 * GRID_S for took_s, _, _ in told)
    texts = [text for _, _, text in told]
    assert "allowed 0.7 (bronze), 0.74 (silver), 0.78 (gold), or less" in texts[1]
    assert "the shortest deadline of tier bronze is 300 ms" in texts[2]


def test_answers_to_several_samples_say_the_same_whichever_subnets_served(
    defended, as_principal, over_http
):
    async def use(client: httpx.AsyncClient) -> set[str]:
        told: set[str] = set()
        for value in range(0, 200, 10):
            asked = body(value, 3)
            asked["parameters"]["binary_data_output"] = True
            answer = await client.post(URL, json=asked, headers=as_principal("mallory"))
            length = int(answer.headers["inference-header-content-length"])
            head = json.loads(answer.content[:length])
            told.add(json.dumps(head) + str(len(answer.content)))
        return told

    assert len(over_http(defended(scale_s=5e-4, grid_ms=40.0), use)) == 1


@pytest.mark.parametrize("grid_ms", [5.0, 40.0, 200.0])
def test_an_answer_leaves_when_any_candidate_would_have_been_ready(ten, grid_ms):
    """With a small grid, too: whichever was drawn, it is the same point."""
    from serve.security.lattice import Lattice
    from serve.security_config import SecurityConfig

    lattice, grid_s = Lattice(ten, SecurityConfig(grid_ms=grid_ms)), grid_ms * 1e-3
    for tier in lattice.tiers:
        shortest = lattice.shortest_steps(tier)
        for steps in (shortest, shortest + 3, 10 * shortest):
            found = lattice.specification(tier, steps)
            assert found is not None
            end_s = steps * grid_s
            leaves = {
                release_s(0.0, ten.latency_s(i, 1), end_s, end_s, grid_s, found.ready_steps)
                for i in found.subnet_ids
            }
            assert leaves == {found.ready_steps * grid_s}
            assert found.ready_steps <= max(1, steps // 2)


def test_a_deadline_with_the_same_candidates_is_the_same_question(
    defended, as_principal, over_http
):
    async def use(client: httpx.AsyncClient) -> list[set[str]]:
        headers, told = as_principal("auditor"), []
        for value in range(4):
            slos = [200.0 + 40 * n for n in range(6)]
            asked = [body(value * 50, slo_ms=slo_ms) for slo_ms in slos]
            answers = [await client.post(URL, json=one, headers=headers) for one in asked]
            told.append({answer.json()["parameters"]["subnet"] for answer in answers})
        return told

    served = over_http(defended(scale_s=5e-4, grid_ms=40.0), use)
    assert [len(subnets) for subnets in served] == [1] * 4


# --- the short path, and what a defence is not served with -----------------------------------


@contextlib.asynccontextmanager
async def listened(config: ServeConfig) -> AsyncIterator[tuple[RestDoor, httpx.AsyncClient]]:
    """A server at a port, behind the listener that offers whole requests to the short path."""
    with contextlib.ExitStack() as resources:
        door = RestDoor(build_server(config, resources))
        own = bind("127.0.0.1", 0)
        url = f"http://127.0.0.1:{own.getsockname()[1]}"
        listener = listening(
            door, "127.0.0.1", 0, drain_left_s=lambda: 1.0, own=own, max_connections=100
        )
        async with door.running(), listener, httpx.AsyncClient(base_url=url) as client:
            yield door, client


def test_a_client_of_ours_that_asks_for_a_multiple_of_the_grid_gets_it(defended):
    """It sends what is left of its deadline, microseconds less: a step less was another set."""

    async def main() -> list[int]:
        async with (
            listened(defended(grid_ms=100.0)) as (door, http),
            AsyncClient(str(http.base_url), token="u" * 16, spread=False) as client,
        ):
            assert door.server.security is not None
            lattice = door.server.security._shields["ten"].lattice
            gold = lattice.tiers[-1]
            slo_ms = lattice.shortest_steps(gold) * 100.0
            sample = np.zeros((1, 1, 2, 2), dtype=np.uint8)
            asked = [
                await client.infer(sample, slo_ms=slo_ms, min_accuracy=gold.floor) for _ in range(3)
            ]
            return [len(result.logits) for result in asked]

    assert asyncio.run(main()) == [1] * 3


ASKED: tuple[tuple[str, dict[str, Any], dict[str, str]], ...] = (
    (URL, body(), {}),
    (URL, body(1, 3), {}),
    (URL, body(2, subnet="secretnet1"), {}),
    ("/v2/models/ten/versions/secretnet1/infer", body(3), {}),
    ("/v2/models/absent/infer", body(4), {}),
    (URL, body(5, min_accuracy=0.99), {}),
    (URL, {"inputs": []}, {}),
    (URL, body(6), {"x-slo-ms": "x"}),
    (URL, body(7), {"authorization": "Bearer nobody"}),
    *(((URL, body(8), {}),) * 3),  # on one connection: a head that is known
)


@pytest.mark.parametrize("is_defended", [True, False])
def test_a_defended_server_answers_nothing_at_once(
    defended, as_principal, over_http, monkeypatch, is_defended
):
    """The short path is an open server's; the listener's other one refuses with the same words."""
    taken: list[bool] = []
    plain = RestDoor.answer_at_once

    def answer_at_once(self: RestDoor, *args: Any) -> bool:
        taken.append(plain(self, *args))
        return taken[-1]

    monkeypatch.setattr(RestDoor, "answer_at_once", answer_at_once)
    config = defended(scale_s=5e-4, grid_ms=40.0)
    if not is_defended:
        config = config.model_copy(update={"security": None})
    headers = as_principal("mallory")

    async def ask(client: httpx.AsyncClient) -> list[tuple[int, Any, Any]]:
        told: list[tuple[int, Any, Any]] = []
        for path, asked, more in ASKED:
            answer = await client.post(path, json=asked, headers={**headers, **more})
            told.append((answer.status_code, answer.json().get("reason"), answer.text))
        return told

    async def main() -> list[tuple[int, Any, Any]]:
        async with listened(config) as (_, client):
            return await ask(client)

    at_port = asyncio.run(main())
    assert taken == [not is_defended] * len(ASKED)
    by_the_app = over_http(config, ask)
    assert [one[:2] for one in at_port] == [one[:2] for one in by_the_app]
    named = [bool(re.search("secretnet|drainfit|secret-device", text)) for *_, text in at_port]
    assert any(named) is not is_defended
    assert [code for code, *_ in at_port[:2]] == [200, 200]


@pytest.mark.parametrize("value", [2, 9])
def test_several_doors_are_refused(defended, value):
    config = defended().model_dump(mode="json", exclude_none=True)
    with pytest.raises(ServeConfigError, match="security is served by one door only: give doors=1"):
        parse_config({**config, "doors": value})


def test_a_decoder_is_refused_before_anything_is_loaded(defended, tmp_path):
    config = defended().model_dump(mode="json", exclude_none=True)
    for key in ("input_shape", "num_classes", "model_name", "policy"):
        del config[key]
    one = parse_config({**config, "profile": DECODER})
    beside = {key: value for key, value in config.items() if key != "profile"}
    several = parse_config(
        {**beside, "models": {"ten": {"profile": config["profile"]}, "lm": {"profile": DECODER}}}
    )
    for settings in (one, several):
        with pytest.raises(ServeConfigError, match="security hides no decoder's choice of widths"):
            check(settings)
        refused = pytest.raises(ServeConfigError, match="or serve no decoder")
        with contextlib.ExitStack() as resources, refused:
            build_server(settings, resources)
