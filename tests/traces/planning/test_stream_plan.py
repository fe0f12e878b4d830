"""Plans for readers of streams: against every fleet, the certificate, what is impossible."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from serve.cli import build_app
from slackfit.profile import LatencyProfile
from slackfit.simulation.simulate_streams import (
    STREAM_ROUTINGS,
    simulate_stream_replicas,
    simulate_streams,
)
from slackfit.streams.iteration_cost import IterationCosts
from traces.planning.catalog import Catalog, DeviceOffer
from traces.planning.streams.stream_alone import alone, impossible_streams
from traces.planning.streams.stream_certificate import certify_streams
from traces.planning.streams.stream_plan import make_stream_plan
from traces.planning.streams.stream_promise import StreamPromise, parse_stream_promise
from traces.planning.streams.stream_search import StreamPlanOptions, StreamSearch
from traces.planning.streams.stream_trial import StreamCandidate
from traces.simulation.stream_simulation import (
    StreamOptions,
    stream_queries,
    stream_scheduler,
)
from traces.trace import Trace, TraceError

DECODER = Path("profiles/smollm2_135m_example.json").resolve()
RESNET = DECODER.with_name("superserve_resnet_2080ti.json")
PROMISE = StreamPromise(1.5, 0.2, 0.9, 0.9, 0.6, 0.004)


@pytest.fixture(scope="module")
def decoder() -> LatencyProfile:
    return LatencyProfile.load(DECODER)


def trace_of(rate_qps: float, seed: int = 0, count: int = 60) -> Trace:
    rng = np.random.default_rng(seed)
    arrival_s = np.cumsum(rng.exponential(1 / rate_qps, count))
    return Trace(
        arrival_s=arrival_s, duration_s=float(arrival_s[-1]) + 1e-9,
        prompt_tokens=rng.integers(20, 300, count), output_tokens=rng.integers(5, 30, count),
    )  # fmt: skip


def options(**changes) -> StreamPlanOptions:
    given = {"served": StreamOptions(slo=PROMISE.slo), "confidence": 0.0, **changes}
    return StreamPlanOptions(**given)


def test_the_cheapest_fleet_is_that_of_trying_all(decoder: LatencyProfile):
    fast = DeviceOffer(name="fast", profile=decoder, price_per_hour=5.0, max_devices=4)
    slow_profile = IterationCosts.of(decoder).scaled(1.5).in_profile(decoder)
    slow = DeviceOffer(name="slow", profile=slow_profile, price_per_hour=2.0, max_devices=4)
    found: set[str] = set()
    for seed, rate_qps in enumerate((2.0, 6.0)):
        trace = trace_of(rate_qps, seed, 40)
        search = StreamSearch(trace, PROMISE, options())
        tried = [
            StreamCandidate(offer, policy, routing)
            for offer, policy, routing in itertools.product(
                (fast, slow), ("slackwidth", "fixed:smallest"), STREAM_ROUTINGS
            )
        ]
        kept = [
            c.cost(n)
            for c, n in itertools.product(tried, range(1, 5))
            if search.run(c, n, trace).keeps(PROMISE)
        ]
        made = make_stream_plan(
            trace, Catalog(offers=(fast, slow)), PROMISE,
            options(policies=("slackwidth", "fixed:smallest")),
        )  # fmt: skip
        assert made["cost_per_hour"] == min(kept)
        least = {o.name: search.certificate(o) for o in (fast, slow)}
        for candidate in tried:
            for count in range(1, least[candidate.offer.name]):
                assert not search.run(candidate, count, trace).keeps(PROMISE)
        assert made["certificate_workers"] == least[made["device"]] <= made["workers"]
        found.add(f"{made['workers']} {made['device']}")
    assert len(found) == 2


def test_the_certificate_counts_the_work_that_nobody_can_avoid(decoder: LatencyProfile):
    costs = IterationCosts.of(decoder)
    trace = trace_of(600.0, count=3000)
    few, many = (certify_streams(costs, trace, PROMISE._replace(attainment=a)) for a in (0.3, 0.99))
    assert 1 < few < many
    better = certify_streams(costs, trace, PROMISE._replace(attainment=0.99, accuracy=0.99))
    assert better > many


def test_in_turn_is_a_simulation_of_every_nth_stream(decoder: LatencyProfile):
    costs = IterationCosts.of(decoder)
    queries = stream_queries(trace_of(6.0), PROMISE.slo)
    served = StreamOptions(slo=PROMISE.slo)
    both = simulate_stream_replicas(
        queries, [stream_scheduler("slackwidth", costs, served) for _ in range(2)]
    )
    apart = [
        simulate_streams(queries[k::2], stream_scheduler("slackwidth", costs, served))
        for k in range(2)
    ]
    assert both[0::2] == apart[0]
    assert both[1::2] == apart[1]
    fewest = simulate_stream_replicas(
        queries, [stream_scheduler("slackwidth", costs, served) for _ in range(2)],
        "fewest-streams",
    )  # fmt: skip
    assert [o.query_id for o in fewest] == [q.query_id for q in queries]
    assert fewest != both
    with pytest.raises(ValueError, match="routing 'sticky' is unknown, allowed round-robin"):
        simulate_stream_replicas(queries, [], "sticky")


def test_due_times_that_no_device_keeps_say_the_nearest(decoder: LatencyProfile):
    costs, trace = IterationCosts.of(decoder), trace_of(2.0)
    short = StreamPromise(0.1, 0.02, 0.9)
    reached = alone(costs, trace, short)
    assert reached.attainment < 0.9
    # What a lone stream gets bounds every fleet.
    candidate = StreamCandidate(
        DeviceOffer(name="d", profile=decoder), "fixed:smallest", "round-robin"
    )
    figures = StreamSearch(trace, short, options()).run(candidate, len(trace), trace).figures
    assert figures[0] <= reached.attainment
    assert figures[1] <= reached.fluidity + 1e-12
    told = impossible_streams(costs, trace, short, "d")
    assert "attainment>=0.9 is impossible with device 'd'" in told
    factor = float(told.split()[-4])
    longer = short._replace(first_output_s=0.1 * factor, period_s=0.02 * factor)
    assert alone(costs, trace, longer).attainment >= 0.9
    assert "its best width has 1" in impossible_streams(
        costs, trace, PROMISE._replace(accuracy=1.5), "d"
    )
    assert not impossible_streams(costs, trace, PROMISE, "d")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("attainment>=0.9", "does not say when outputs are due: first_output<=TIME is lacking"),
        ("first_output<=1s,attainment>=0.9", "period<=TIME is lacking"),
        ("first_output<=1,period<=50ms,attainment>=0.9", "first_output<=1 is no time; give it in"),
        ("first_output<=1s,period<=50ms", "names no share of streams"),
        ("first_output>=1s,period<=50ms,attainment>=0.9", "'first_output>=1s' of streams is not"),
        ("first_output<=1s,period<=50ms,fluidity>=2", "fluidity>=2 is no fraction"),
        ("first_output<=1s,period<=50ms,floor>=0.5", "'floor>=0.5' of streams is not understood"),
    ],
)
def test_a_promise_of_streams_that_is_none_says_why(text: str, message: str):
    with pytest.raises(TraceError, match=message):
        parse_stream_promise(text)


def test_a_promise_of_streams_is_read():
    text = "first_output<=1.5s, period<=200ms, fluidity>=0.9, first_output_per_token<=4ms"
    assert parse_stream_promise(text) == StreamPromise(
        1.5, 0.2, fluidity=0.9, first_output_per_token_s=0.004
    )


def plan(*words: str) -> tuple[int, str, str]:
    arguments = ["plan", *words]
    result = CliRunner().invoke(build_app(arguments), arguments)
    return result.exit_code, result.stdout, result.stderr


def test_the_command_plans_streams_and_refuses_what_is_of_batches(tmp_path: Path):
    path, page = tmp_path / "trace.csv", tmp_path / "plan.html"
    rows = ["arrival_s,prompt_tokens,output_tokens"]
    trace = trace_of(4.0, count=25)
    assert trace.prompt_tokens is not None
    assert trace.output_tokens is not None
    columns = zip(trace.arrival_s, trace.prompt_tokens, trace.output_tokens, strict=True)
    rows += [f"{t:.6f},{p},{o}" for t, p, o in columns]
    path.write_text("\n".join(rows) + "\n")
    base = ("--profile", str(DECODER), "--trace", str(path), "--policies", "fixed:smallest")
    slo = ("--slo", "first_output<=1500ms,period<=200ms,fluidity>=0.8")
    code, out, err = plan(*base, *slo, "--confidence", "0", "--html", str(page), "--json", "-")
    assert code == 0, err
    made = json.loads(out)
    assert made["kind"] == "streams"
    assert made["fluidity"] >= 0.8
    assert made["promise"]["period_ms"] == 200
    assert made["first_output_ms"]["p50"] > 0
    assert made["routing"] in STREAM_ROUTINGS
    text = page.read_text()
    assert "fluidity" in text
    assert f"{made['workers']} x smollm2_135m_example" in text
    for words, message in (
        (("--slo-ms", "36"), "are planned for, without --slo-ms"),
        (("--routing", "client:2"), "routing 'client:2' of streams is unknown, allowed round-r"),
        (("--seeds", "2"), "is the same with every seed"),
    ):
        code, _, err = plan(*base, *slo, *words)
        assert (code, message in err) == (2, True), err
    batches = ("--trace", "poisson:rate=9,duration=1", "--slo", "attainment>=0.9")
    code, _, err = plan("--profile", str(RESNET), "--slo-ms", "36", *batches, "--thin", "0.5")
    assert (code, "are planned for, without --thin" in err) == (2, True), err
    code, _, err = plan("--profile", f"{RESNET},{DECODER}", *batches)
    assert (code, "plan for one kind at a time" in err) == (2, True), err


def test_a_saturated_plan_of_streams_gives_no_times(decoder: LatencyProfile):
    catalog = Catalog(offers=(DeviceOffer(name="d", profile=decoder),))
    trace = trace_of(600.0, count=600)
    made = make_stream_plan(trace, catalog, PROMISE, options(max_devices=1))
    assert made["saturated"]
    assert made["certificate_workers"] > 1
    assert made["why"].startswith("no policy keeps the promise with 1 devices: any needs ")
    assert not {"first_output_ms", "gap_ms", "workers"} & set(made)


def test_a_device_that_can_not_keep_the_promise_leaves_the_plan_to_the_others(
    decoder: LatencyProfile,
):
    """Certifying a device whose best width has too little quality ended in an OverflowError."""
    subnets = tuple(replace(subnet, accuracy=subnet.accuracy / 2) for subnet in decoder.subnets)
    worse = IterationCosts.of(decoder).in_profile(replace(decoder, subnets=subnets))
    good = DeviceOffer(name="good", profile=decoder, price_per_hour=5.0)
    poor = DeviceOffer(name="poor", profile=worse)
    made, alone_made = (
        make_stream_plan(
            trace_of(2.0, count=20), Catalog(offers=offers), PROMISE._replace(accuracy=0.8),
            options(policies=("slackwidth",), routings=("round-robin",)),
        )
        for offers in ((poor, good), (good,))
    )  # fmt: skip
    assert made["device"] == "good"
    assert set(made["certificates"]) == {"good"}
    assert made["certificate_cost"] == alone_made["certificate_cost"] == 5.0
    (dropped,) = made["dropped"]
    assert "accuracy>=0.8 is impossible with device 'poor'" in dropped["why"]
