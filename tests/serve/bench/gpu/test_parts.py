"""Parts of the GPU benchmark where a CPU can't show them: an allocator, a compiler that fails."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from serve.bench.gpu import compiled as compiled_part
from serve.bench.gpu.__main__ import main, run_part
from serve.bench.gpu.cases import GpuBench, six
from serve.bench.gpu.compiled import compiled
from serve.bench.gpu.decoding import _NO_GRAPH, decoding
from serve.bench.gpu.engine_overhead import engine_overhead
from serve.bench.gpu.engine_target import EngineTarget
from serve.bench.gpu.latency import capture_static, equality, latency, switching
from serve.bench.gpu.loading_table import loading
from serve.bench.gpu.memory_table import memory
from serve.bench.gpu.settings import TINY, TrafficSettings
from serve.bench.gpu.smoke import smoke
from serve.bench.gpu.trace import against_fixed, fixed_and_others, made_traffic, trace
from serve.engine.reply import Reply
from slackfit.profile import LatencyProfile, SubnetProfile
from slackfit.query import Outcome
from subnetact.cuda.accelerator import HostAccelerator
from subnetact.cuda.cuda_graphs import CaptureError, GraphKey
from subnetact.cuda.cuda_stream_executor import CudaStreamExecutor
from subnetact.cuda.cuda_supernet import CudaSupernet
from subnetact.cuda.device_bytes import DeviceBytes, SupernetShapes
from subnetact.cuda.pair_capturer import PairCapturer
from supernet import define_supernet
from traces.open_loop.target import ReplayRequest


def tiny_bench(*, budget_s: float = 60.0, **also: Any) -> GpuBench:
    settings = replace(TINY, rounds=1, random_counts=(2, 4))
    return GpuBench("cpu", settings, budget_s, lambda text: None, **also)


def figures(bench: GpuBench) -> dict[str, dict[str, Any]]:
    return {row["figure"]: row for row in bench.rows}


def test_memory_is_what_the_allocator_gained_over_what_was_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An allocator that begins at 1 MB and gains 0.5 MB between two readings of a supernet."""
    readings: Iterator[int] = iter(range(1_000_000, 100_000_000, 500_000))
    monkeypatch.setattr(GpuBench, "allocated_bytes", lambda bench: next(readings))
    bench = tiny_bench()
    memory(bench)
    rows = figures(bench)
    assert rows["gpu/memory/resnet_tiny/six/n4/extracted"]["value"] == 0.5
    assert rows["gpu/memory/resnet_tiny/six/n4/folded"]["value"] == 0.5
    assert rows["gpu/memory/resnet_tiny/random/n2/one_copy"]["value"] == 0.5
    assert rows["gpu/memory/resnet_tiny/random/n4/one_copy"]["value"] == 1.0
    assert rows["gpu/memory/resnet_tiny/random/n4/over_six_extracted"]["value"] == 2.0
    for name, row in rows.items():
        if name.endswith("_held_over_counted"):
            assert row["value"] == 1.0, name
    shapes = SupernetShapes(define_supernet("resnet_tiny"))
    counted = DeviceBytes(shapes, "folded", torch.bfloat16)
    for arch in six("resnet_tiny").values():
        counted.add(shapes.of(arch))
    over = rows["gpu/memory/resnet_tiny/six/n4/folded_allocated_over_counted"]["value"]
    assert over == pytest.approx(0.5e6 / counted.parts.total)


def test_memory_that_there_was_no_time_for_is_a_row_without_a_value() -> None:
    ten_seconds_a_look = itertools.count(0, 10).__next__
    bench = tiny_bench(budget_s=220.0, clock=ten_seconds_a_look)
    memory(bench)
    rows = figures(bench)
    assert "gpu/memory/resnet_tiny/random/n2/one_copy_held_over_counted" in rows
    row = rows["gpu/memory/resnet_tiny/random/n4/one_copy"]
    assert (row["value"], row["detail"]) == (None, "the time for it ended before")


def test_slices_that_found_no_memory_are_not_counted_as_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(CudaSupernet, "load", lambda net, slices: len(tuple(slices)) - 1)
    with pytest.raises(RuntimeError, match="subnet 1 in folded: no memory for all of its slices"):
        memory(tiny_bench())


def test_what_ran_without_a_graph_is_no_figure_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where captures fail everything runs eagerly: slower, right, and not what was asked."""

    def refused(capturer: object, key: GraphKey) -> object:
        raise CaptureError("no graphs here")

    monkeypatch.setattr(PairCapturer, "capture", refused)
    bench = tiny_bench(budget_s=1e6)
    bench.settings = replace(bench.settings, batch_sizes=(1,))
    with torch.inference_mode():
        for part in (latency, switching, loading, engine_overhead):
            part(bench)
        assert not bench.failures
        smoke(bench)
    rows = figures(bench)
    for figure in (
        "gpu/resnet_tiny/mid/b1/folded_graph_over_static_graph",
        "gpu/resnet_tiny/mid/b1/one_copy_graph_over_static_eager",
        "gpu/resnet_tiny/switch_p99",
        "gpu/loading/resnet_tiny/actuation_p99",
        "gpu/loading/resnet_tiny/actuation_over_least_loading",
        "gpu/engine/resnet_tiny/max/b1/engine_less_run",
        "gpu/engine/resnet_tiny/max/b1/device_busy",
    ):
        assert rows[figure]["value"] is None, figure
        assert "no graph" in rows[figure]["detail"] or "actuation_p99" in rows[figure]["detail"]
    assert rows["gpu/loading/resnet_tiny/0/page_locked"]["value"] > 0
    assert bench.failures == [
        f"smoke/{dtype}/graph: graph_replays did not go up; no graphs here"
        for dtype in ("float32", "bfloat16")
    ]


def test_a_decoder_s_nan_is_a_disagreement_and_its_eager_runs_no_graphs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """NaN is neither above a bound nor below it."""
    logits = CudaStreamExecutor._logits

    def refused(executor: object, key: GraphKey) -> object:
        raise CaptureError("no graphs here")

    monkeypatch.setattr(CudaStreamExecutor, "_logits", lambda self, x: logits(self, x) * np.nan)
    monkeypatch.setattr(CudaStreamExecutor, "capture", refused)
    bench = tiny_bench()
    bench.settings = replace(bench.settings, decode_counts=(2,))
    with torch.inference_mode():
        decoding(bench)
    name = "decoding/decoder_tiny/float32"
    assert bench.failures[:3] == [
        f"{name}/graph: nan above 0.001",
        f"{name}/eager: nan above 0.001",
        f"{name}/graph: nothing was replayed",
    ]
    rows = figures(bench)
    for figure in ("half_over_full", "graph_over_eager", "tokens_per_s"):
        row = rows[f"gpu/{name}/c64/n2/{figure}"]
        assert (row["value"], row["detail"]) == (None, _NO_GRAPH)
    assert rows[f"gpu/{name}/c64/n2/prompt_half_over_full"]["value"] > 0


class SearchingAccelerator(HostAccelerator):
    """Says whether algorithms may be searched for, and whether the compute lane is current."""

    is_searching = is_computing = False

    def __init__(self) -> None:
        self.poisoned = 0

    @contextmanager
    def searching(self) -> Iterator[None]:
        self.is_searching = True
        yield
        self.is_searching = False

    @contextmanager
    def computing(self) -> Iterator[None]:
        before, self.is_computing = self.is_computing, True
        yield
        self.is_computing = before


def test_the_memory_of_every_smoke_run_is_poisoned_on_the_lane_that_computes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What an allocator was given back on one lane it hands out on that one alone."""
    made: list[SearchingAccelerator] = []
    full = torch.full

    def new_accelerator(bench: GpuBench) -> SearchingAccelerator:
        made.append(SearchingAccelerator())
        return made[-1]

    def watched(size: tuple[int, ...], value: float, **options: Any) -> torch.Tensor:
        if math.isnan(value):
            (current,) = (each for each in made if each.is_computing)
            current.poisoned += 1
        return full(size, value, **options)

    monkeypatch.setattr(GpuBench, "new_accelerator", new_accelerator)
    monkeypatch.setattr(torch, "full", watched)
    bench = tiny_bench()
    with torch.inference_mode():
        smoke(bench)
    assert not bench.failures
    _, *of_runs = made  # the first is the bench's own
    assert [accelerator.poisoned for accelerator in of_runs] == [2, 2, 2, 2]


def test_libraries_search_for_a_static_network_as_for_ours() -> None:
    """Without that they guess, and the peer is slower than who deploys it would have it."""
    bench = tiny_bench()
    bench.accelerator = accelerator = SearchingAccelerator()
    ran: list[bool] = []
    capture_static(bench, lambda: ran.append(accelerator.is_searching))
    assert ran[0]
    assert not accelerator.is_searching


def test_a_part_that_ended_early_and_ran_out_of_time_says_so_in_two_rows() -> None:
    """Rows of one name are not compared with the bars."""
    late = itertools.chain(itertools.repeat(0.0, 3), itertools.repeat(1e9)).__next__
    bench = tiny_bench(clock=late)
    assert run_part(bench, "equality", equality)
    names = [row["figure"] for row in bench.rows]
    assert {"gpu/equality/ended_early", "gpu/equality/cut"} <= set(names)
    assert len(set(names)) == len(names)


def fake_compile(result: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
    return lambda call, **options: lambda samples: result(call(samples))


def test_a_compiler_that_fails_is_a_row_that_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(call: object, **options: object) -> object:
        def compile_now(samples: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no C++ compiler\nat line 3")

        return compile_now

    monkeypatch.setattr(torch, "compile", broken)
    bench = tiny_bench()
    with torch.inference_mode():
        compiled(bench)
    rows = figures(bench)
    row = rows["gpu/compiled/resnet_tiny/mid/b1/default/replay_over_compiled"]
    assert (row["value"], row["detail"]) == (None, "RuntimeError: no C++ compiler")
    assert not bench.failures
    best = rows["gpu/compiled/resnet_tiny/mid/b1/replay_over_best"]
    assert best["value"] is None


def test_a_compiled_network_that_computes_something_else_is_a_disagreement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "compile", fake_compile(lambda logits: logits.flip(1)))
    bench = tiny_bench()
    with torch.inference_mode():
        compiled(bench)
    assert len(bench.failures) == 3
    assert "compiled/resnet_tiny/mid/b1/default" in bench.failures[0]


def test_cuda_graphs_that_were_skipped_are_not_taken_for_captured_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Inductor runs on without them, counts it, and raises nothing."""
    from torch._dynamo.utils import counters  # takes a second

    def skipping(logits: torch.Tensor) -> torch.Tensor:
        counters["inductor"]["cudagraph_skips"] += 1
        return logits

    monkeypatch.setattr(torch, "compile", fake_compile(skipping))
    accelerator = SearchingAccelerator()
    bench: Any = SimpleNamespace(
        device="cuda", settings=TINY, sync=lambda: None, accelerator=accelerator
    )
    samples = torch.zeros(1)
    with pytest.raises(compiled_part.NotCompiledError, match="captured no CUDA graph, 6 were"):
        compiled_part.warm_compiled(bench, "reduce-overhead", lambda x: x, samples)
    searched: list[bool] = []

    def compiled_call(logits: torch.Tensor) -> torch.Tensor:
        searched.append(accelerator.is_searching)
        return logits

    monkeypatch.setattr(torch, "compile", fake_compile(compiled_call))
    captured = compiled_part.warm_compiled(bench, "reduce-overhead", lambda x: x, samples)
    assert all(searched), "as for ours"
    assert captured.call(samples) is samples


def profile_of(*milliseconds: float) -> LatencyProfile:
    """Subnets whose batch of 1 takes so long, one of 64 twenty times that."""
    return LatencyProfile(
        name="made up",
        device="none",
        dtype="float32",
        batch_sizes=(1, 64),
        subnets=tuple(
            SubnetProfile(
                subnet_id=f"s{n}",
                accuracy=0.7 + 0.01 * n,
                macs=n,
                latency_s={"p50": (1e-3 * ms, 20e-3 * ms)},
            )
            for n, ms in enumerate(milliseconds)
        ),
    )


def test_traffic_is_more_than_the_largest_subnet_and_less_than_the_fastest_can_do() -> None:
    settings = TrafficSettings(duration_s=4.0, most_qps=10_000.0)
    traffic = made_traffic(profile_of(1.0, 4.0), settings)
    rate = len(traffic.trace) * traffic.samples / 4.0
    assert traffic.samples == 1
    assert rate == pytest.approx(1.5 * 64 / 80e-3, rel=0.05)  # the largest does 800 a second
    assert traffic.slo_s == pytest.approx(80e-3 * 36 / 30.7)
    close = made_traffic(profile_of(1.0, 1.1), settings)
    assert len(close.trace) / 4.0 == pytest.approx(0.6 * 64 / 20e-3, rel=0.05)
    assert made_traffic(profile_of(0.1, 0.2), settings).slo_s == 0.036  # the paper's


def test_ours_is_held_to_every_subnet_by_itself_or_to_none() -> None:
    profile = profile_of(1.0, 2.0, 3.0, 4.0)
    policies = fixed_and_others(profile)
    assert policies[:5] == [
        "drainfit", "fixed:smallest", "fixed:middle", "fixed:largest", "fixed:s1",
    ]  # fmt: skip
    utility = dict.fromkeys(policies[:4], 0.5) | {"drainfit": 0.75}
    bench = tiny_bench()
    against_fixed(bench, utility, policies)
    against_fixed(bench, utility | {"fixed:s1": 0.7}, policies)
    absent, held = bench.rows
    assert absent["value"] is None
    assert "every fixed subnet had run: 3 had" in absent["detail"]
    assert held["value"] == pytest.approx(0.05)


def test_a_trace_that_was_never_sent_has_no_runs_that_are_valid() -> None:
    bench = tiny_bench(budget_s=0.0)
    with torch.inference_mode():
        trace(bench)
    row = figures(bench)["gpu/trace/azure/invalid_runs"]
    assert (row["value"], row["detail"]) == (None, "the time ended before the first run")


def test_requests_hold_more_samples_where_one_process_could_not_send_them() -> None:
    fast = profile_of(0.1, 0.4)  # 8,000 and 32,000 samples a second
    traffic = made_traffic(fast, TrafficSettings(duration_s=2.0, most_qps=1600.0))
    assert traffic.samples == 8
    assert len(traffic.trace) / 2.0 == pytest.approx(1500, rel=0.05)
    slow_sender = made_traffic(fast, TrafficSettings(duration_s=2.0, most_qps=100.0))
    assert slow_sender.samples == 16  # four requests make a batch
    assert len(slow_sender.trace) / 2.0 == pytest.approx(100, rel=0.15)
    assert "0.20 of what the largest subnet can do" in slow_sender.told


@pytest.mark.parametrize(
    ("status", "output", "told"),
    [("on_time", True, "ok"), ("late", True, "ok"), ("dropped", False, "dropped")],
)
def test_an_engine_answers_as_a_server_does(status: Any, output: bool, told: str) -> None:
    asked: list[tuple[np.ndarray, float, float]] = []

    class OneAnswer:
        def clock(self) -> float:
            return 5.0

        async def infer(self, samples: np.ndarray, *, arrival_s: float, options: Any) -> Any:
            asked.append((samples, arrival_s, options.deadline_s))
            outcome = Outcome(
                0, status, "" if output else "expired", 5.0, 5.04, 5.01 if output else None, 5.03,
                "s1" if output else None, 0.7 if output else 0.0, 8 if output else 0,
            )  # fmt: skip
            return [Reply(outcome, np.zeros((2, 3)) if output else None, 0.02, 4)]

    engine: Any = OneAnswer()
    payload = np.zeros((2, 3, 4, 4), np.uint8)
    request = ReplayRequest(query_id=0, payload=payload, slo_s=0.04)
    reply = asyncio.run(EngineTarget(engine).infer(request))
    assert asked[0][0] is payload
    assert asked[0][1:] == (5.0, pytest.approx(5.04))
    assert (reply.status, reply.batch_id) == (told, "4")
    assert reply.subnet_id == ("s1" if output else None)
    assert (reply.output is not None) == output


def test_loading_and_the_engine_s_overhead_name_every_row(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    assert main(["--device", "cpu", "--parts", "loading,engine", "--json", str(out)]) == 0
    rows = {row["figure"]: row["value"] for row in json.loads(out.read_text())}
    for figure in (
        "gpu/loading/resnet_tiny/actuation_p99",
        "gpu/loading/resnet_tiny/3/pageable",
        "gpu/loading/resnet_tiny/3/page_locked",
        "gpu/loading/resnet_tiny/actuation_over_least_loading",
        "gpu/engine/resnet_tiny/max/b2/device_busy",
    ):
        assert rows[figure] > 0
    assert "gpu/engine/resnet_tiny/min/b1/run_less_replay" in rows
    assert "gpu/engine/resnet_tiny/min/b1/engine_less_run" in rows
    assert rows["gpu/failed_parts"] == rows["gpu/disagreements"] == 0
