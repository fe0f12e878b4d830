"""`supernet top`: figures out of readings, the frame, a server that is away, interruption."""

from __future__ import annotations

import asyncio
import io
import itertools
import math
from collections.abc import Callable

import httpx
import numpy as np
import pytest
import typer
from rich.console import Console

from serve.commands import top_command
from serve.commands.top_command import Top, top, watch
from serve.commands.top_figures import Grown, figures, read, refusals
from serve.engine.reply import Reply
from serve.observe.instruments import LATENCY_BUCKETS_S
from serve.observe.metrics import Metrics
from slackfit.query import Outcome
from subnetact.executor import CACHE_COUNTS

LOGITS = np.zeros(10, dtype=np.float32)
BATCHES = itertools.count()


def observe(
    metrics: Metrics,
    status: str,
    count: int = 1,
    *,
    subnet: str = "large",
    reason: str = "",
    tenant: str = "",
) -> None:
    """Let queries end that took 30 ms of 100, or 120 where they were late."""
    finish_s = 0.12 if status == "late" else 0.03
    is_run = status in ("on_time", "late")
    outcome = Outcome(
        0, status, reason, 0.0, 0.1, 0.01 if is_run else None, finish_s,
        subnet if is_run else None, 0.9 if is_run else 0.0, 2,
    )  # fmt: skip
    first = next(BATCHES) * 100
    for index in range(count):
        output = LOGITS if is_run else None
        reply = Reply(outcome, output, 0.02, first + index // 2, tenant=tenant)
        metrics.of("m").observe(reply)


@pytest.fixture
def metrics() -> Metrics:
    made = Metrics()
    observe(made, "on_time", 6)
    observe(made, "on_time", 2, subnet="small")
    observe(made, "late")
    observe(made, "dropped", reason="expired")
    return made


def reading(metrics: Metrics):
    return read(metrics.render().decode())


def test_figures_since_the_start(metrics: Metrics):
    (found,) = figures(reading(metrics), {}, None)
    assert (found.model, found.ended, found.qps) == ("m", 10, None)
    assert found.attainment == pytest.approx(0.8)
    assert found.accuracy == pytest.approx(0.9)
    assert found.subnets == {"large": 7, "small": 2}
    assert found.reasons == {"late": 1, "dropped expired": 1}
    assert 0.064 < found.slack_s[0] < found.slack_s[1] < 0.128, "the true slack is 70 ms"
    assert 0.016 < found.lateness_s <= 0.032, "20 ms late"
    assert math.isnan(found.decision_s)


def test_figures_of_a_span_are_of_what_came_in_it(metrics: Metrics):
    old = reading(metrics)
    observe(metrics, "on_time", 4, subnet="small")
    (found,) = figures(reading(metrics), old, 2.0)
    assert (found.ended, found.qps, found.attainment) == (4, 2.0, 1.0)
    assert found.subnets == {"small": 4}
    assert found.reasons == {}
    assert found.batch_size == pytest.approx(2.0)
    assert found.busy == pytest.approx(0.02), "two batches of 20 ms in two seconds"


def test_nothing_in_a_span_is_nan_and_not_zero(metrics: Metrics):
    (found,) = figures(reading(metrics), reading(metrics), 1.0)
    assert (found.ended, found.qps) == (0, 0.0)
    assert math.isnan(found.attainment)
    assert math.isnan(found.accuracy)
    assert math.isnan(found.slack_s[1])


def test_a_server_that_was_started_again_counts_from_zero(metrics: Metrics):
    fresh = Metrics()
    observe(fresh, "on_time", 3)
    (found,) = figures(reading(fresh), reading(metrics), 1.0)
    assert (found.ended, found.attainment) == (3, 1.0)


def test_replicas_in_rays_export_are_summed_up(metrics: Metrics):
    text = "".join(
        f'# TYPE ray_supernet_queries_total counter\nray_supernet_queries_total{{model="m",'
        f'reason="",replica="{replica}",status="on_time",Version="2"}} {count}\n'
        for replica, count in (("a", 5), ("b", 7))
    )
    (found,) = figures(read(text), {}, None)
    assert (found.ended, found.attainment) == (12, 1.0)


@pytest.mark.parametrize(
    ("values", "fraction"), [([0.0003, 0.003, 0.003, 0.9], 0.5), ([0.001], 0.99), ([5.0, 9.0], 0.5)]
)
def test_quantiles_fall_into_the_bucket_of_the_true_one(values: list[float], fraction: float):
    metrics = Metrics()
    for value in values:
        metrics.of("m")._latency.observe(value)
    found = Grown(reading(metrics)["m"], {}).quantile("supernet_latency_seconds", fraction)
    true = sorted(values)[math.ceil(fraction * len(values)) - 1]
    upper = next((b for b in LATENCY_BUCKETS_S if b >= true), LATENCY_BUCKETS_S[-1])
    lower = max((b for b in LATENCY_BUCKETS_S if b < upper), default=0.0)
    assert lower < found <= upper


def test_tenants_have_figures_of_their_own(metrics: Metrics):
    observe(metrics, "on_time", 3, tenant="shop")
    observe(metrics, "late", tenant="shop")
    old = reading(metrics)
    observe(metrics, "on_time", 5, tenant="research")
    observe(metrics, "dropped", 2, reason="expired", tenant="shop")
    metrics.refused("http", "rate_limited", "research")
    metrics.refused("grpc", "rate_limited", "research")
    new = reading(metrics)
    (found,) = figures(new, {}, None)
    assert list(found.tenants) == ["", "shop", "research"], "those with the most queries first"
    assert found.tenants["shop"] == pytest.approx((6, 0.5, 0.9))
    (found,) = figures(new, old, 1.0)
    assert list(found.tenants) == ["research", "shop"], "who asked nothing is left out"
    assert found.tenants["shop"][:2] == (2, 0.0)
    assert math.isnan(found.tenants["shop"].accuracy)
    assert refusals(new, old) == {("research", "rate_limited"): 2}
    assert refusals(new, new) == {}
    frame = printed(
        Top("x", client_of(lambda _: httpx.Response(200, content=metrics.render()))).totals()
    )
    for words in ("tenant", "shop", "(none)", "answered with an error", "research: rate_limited"):
        assert words in frame


def test_a_server_that_is_not_shared_shows_no_tenants(metrics: Metrics):
    answer = httpx.Response(200, content=metrics.render())
    frame = printed(Top("x", client_of(lambda _: answer)).totals())
    assert "tenant" not in frame
    assert "answered with an error" not in frame


def test_graphs_of_a_device_that_has_them_are_shown(metrics: Metrics):
    def frame() -> str:
        answer = httpx.Response(200, content=metrics.render())
        return printed(Top("x", client_of(lambda _: answer)).totals())

    assert "graphs" not in frame()
    counts = dict.fromkeys(CACHE_COUNTS, 0)
    metrics.of("m")._tell_device({**counts, "graphs_live": 12, "graphs_missing": 3})
    assert "graphs 12, 3 missing" in frame()


def printed(frame) -> str:
    console = Console(file=io.StringIO(), width=110)
    console.print(frame)
    return console.file.getvalue()  # type: ignore[attr-defined]


def client_of(answer: Callable[[httpx.Request], httpx.Response]) -> httpx.Client:
    return httpx.Client(transport=httpx.MockTransport(answer))


def test_frames_follow_the_server_and_survive_its_absence(metrics: Metrics):
    now_s = 0.0
    is_there = True

    def answer(request: httpx.Request) -> httpx.Response:
        if not is_there:
            raise httpx.ConnectError("connection refused")
        assert request.url.path == "/metrics"
        return httpx.Response(200, content=metrics.render())

    shown = Top("127.0.0.1:8000/", client_of(answer), clock=lambda: now_s)
    first = printed(shown.frame())
    assert "since its start" in first
    assert "attainment 80.00 %" in first
    assert "dropped expired" in first
    now_s = 2.0
    observe(metrics, "on_time", 10, subnet="small")
    second = printed(shown.frame())
    assert "last 2 s" in second
    assert "queries/s 5.0" in second
    assert "large" not in second
    is_there = False
    assert "connection refused" in printed(shown.frame())
    is_there = True
    assert "since its start" in printed(shown.frame())


def test_the_window_slides(metrics: Metrics):
    now_s = 0.0
    answer = lambda _: httpx.Response(200, content=metrics.render())  # noqa: E731
    shown = Top("http://x", client_of(answer), window_s=3.0, clock=lambda: now_s)
    for second in range(8):
        now_s = float(second)
        observe(metrics, "on_time", 5)
        frame = printed(shown.frame())
    assert "last 3 s" in frame
    assert "queries/s 5.0" in frame


@pytest.mark.parametrize(
    ("response", "why"),
    [
        (httpx.Response(404), "it says 404"),
        (httpx.Response(401), "a token in SUPERNET_TOKEN"),
        (httpx.Response(200, content=b"<html>{nonsense"), "no metrics"),
    ],
)
def test_what_is_no_server_of_ours_is_said(response: httpx.Response, why: str):
    assert why in printed(Top("x", client_of(lambda _: response)).frame())


def test_a_server_without_queries_is_shown(serving_door, timed_door):
    async def main() -> str:
        async with serving_door(timed_door()) as client:
            return (await client.get("/metrics")).text

    text = asyncio.run(main())
    frame = printed(Top("x", client_of(lambda _: httpx.Response(200, text=text))).frame())
    assert "tiny" in frame
    assert "attainment -" in frame


def test_interrupting_ends_with_130(monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(top_command, "watch", interrupted)
    with pytest.raises(typer.Exit) as ended:
        top("http://127.0.0.1:9", once=False, interval_s=1.0, window_s=10.0)
    assert ended.value.exit_code == 130


def test_watching_waits_between_frames_until_interrupted(metrics: Metrics):
    naps: list[float] = []

    def sleep(duration_s: float) -> None:
        naps.append(duration_s)
        if len(naps) == 3:
            raise KeyboardInterrupt

    console = Console(file=io.StringIO(), width=110)
    shown = Top("x", client_of(lambda _: httpx.Response(200, content=metrics.render())))
    with pytest.raises(KeyboardInterrupt):
        watch(shown, console, 0.5, sleep=sleep)
    assert naps == [0.5] * 3
    assert console.file.getvalue().count("supernet") == 0  # type: ignore[attr-defined]
    assert console.file.getvalue().count("m at http://x") == 3  # type: ignore[attr-defined]


def test_once_against_nobody_is_an_error(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        top("http://127.0.0.1:9", once=True, interval_s=1.0, window_s=10.0)
    assert ended.value.code == 2
    assert "http://127.0.0.1:9 does not answer" in capsys.readouterr().err
