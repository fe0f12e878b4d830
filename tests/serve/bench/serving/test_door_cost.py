"""What a door costs: the rows of what was measured, and a short run of it."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import numpy as np
import pytest

from serve.bench.journal import Journal
from serve.bench.serving.closed_loop import TimedRequest, http_request
from serve.bench.serving.door_cost import CostScale, DoorCostBench
from serve.bench.serving.door_processes import DoorProcessesBench, paced
from serve.bench.serving.load import Load
from serve.bench.serving.paced_load import paced_load
from serve.bench.serving.setting import Setting
from slackfit.profile import LatencyProfile, SubnetProfile

SIZES = (1, 2, 4, 8, 16)
SCALE = CostScale(rounds=1, loop_s=0.3, overload_s=2.0, exchanges=4)
SCORE = [300, 500, 0.8, 0.001, {"200": 300, "504": 200}]


@pytest.fixture
def bench(tmp_path: Path) -> DoorCostBench:
    subnets = [
        SubnetProfile(
            subnet_id=name, accuracy=accuracy, macs=0,
            latency_s={"p50": tuple(1e-4 * cost * (1 + 0.1 * size) for size in SIZES)},
        )
        for name, accuracy, cost in (("small", 0.7, 1.0), ("large", 0.9, 4.0))
    ]  # fmt: skip
    profile = LatencyProfile(
        name="tiny", device="nowhere", dtype="float32", batch_sizes=SIZES, subnets=tuple(subnets)
    )
    profile.save(tmp_path / "profile.json")
    load = Load(model="tiny", slo_s=0.1, data=None)
    setting = Setting(tmp_path, tmp_path / "profile.json", profile, load, 1, (1, 2, 2))
    journal = Journal(tmp_path / "doors.jsonl", {})
    return DoorCostBench(setting, journal, scale=SCALE, tell=print)


def test_rows_are_ratios_of_what_was_measured_in_one_run(bench: DoorCostBench) -> None:
    assert bench.rows() == []
    kinds = {"http": 150.0, "bare_http": 50.0, "http_batch": 480.0, "grpc": 400, "bare_grpc": 200}
    cells = {
        "cost/processor": {name: [us, us, 9 * us] for name, us in kinds.items()},
        "cost/overload": {
            "capacity_qps": 250.0,
            "scores": {"50": SCORE, "10": SCORE, "50/in_body": SCORE},
        },
        "cost/memory": {
            "shared": [0.001, 0.002, 0.003],
            "binary": [0.008, 0.008, 0.009],
            "shared_one": [0.001, 0.001, 0.002],
        },
    }
    for name, cell in cells.items():
        bench._journal.once(name, lambda cell=cell: cell)
    values = {row["figure"].removeprefix("serving/doors/"): row["value"] for row in bench.rows()}
    assert values == {
        "http_cpu_over_bare_server": 3.0,
        "grpc_cpu_over_bare_server": 2.0,
        "cpu_per_sample_in_batch16_us": 30.0,
        "slo50/goodput_at_1.25x_over_capacity": 0.6,
        "slo50/utility_at_1.25x": 0.48,
        "slo10/goodput_at_1.25x_over_capacity": 0.6,
        "slo10/utility_at_1.25x": 0.48,
        "slo50/in_body/goodput_at_1.25x_over_capacity": 0.6,
        "slo50/in_body/utility_at_1.25x": 0.48,
        "shared_memory_over_binary": 0.25,
        "shared_memory_over_binary/beyond_one": 0.143,
    }


@pytest.mark.slow
def test_a_short_run_measures_every_door(bench: DoorCostBench) -> None:
    processor = bench._processor()
    assert set(processor) == {"http", "bare_http", "http_batch", "grpc", "bare_grpc"}
    assert all(us > 1 for row in processor.values() for us in row)
    memory = bench._memory()
    assert [len(memory[name]) for name in ("binary", "shared", "shared_one")] == [4] * 3


def test_rows_of_door_processes_are_medians_of_the_rounds(bench: DoorCostBench) -> None:
    processes = DoorProcessesBench(
        bench._setting, bench._journal, rounds=3, duration_s=1.0, tell=print
    )
    assert processes.rows() == []
    keys = ("answered_qps", "device_cores", "door_cores", "forward", "p50_s", "p99_s")
    for count, number in itertools.product((1, 2), range(3)):
        cell = dict.fromkeys(keys, float(count * (1 + number)))
        bench._journal.once(f"cost/door_processes/{count}/{number}", lambda cell=cell: cell)
    values = {
        row["figure"].removeprefix("serving/doors/"): row["value"] for row in processes.rows()
    }
    assert values["1_at_2000/device_process_cores"] == 2.0
    assert values["2_at_2000/forward_over_profiled"] == 4.0
    assert len(values) == 10


def test_a_paced_client_sends_at_its_times_and_reads_who_ran_with_whom(
    running, profile_file: Path
) -> None:
    with running(profile_file, "--no-ray", "--slo-ms", "20000") as server:
        request = http_request(server.url, "tiny", np.zeros((1, 1, 2, 2), np.uint8), "small")
        answers = asyncio.run(paced(server.url, request, 200.0, 0.5))
    assert len(answers) == 100
    due_s = sorted(answer.due_s for answer in answers)
    assert due_s[-1] - due_s[0] == pytest.approx(0.495)
    assert all(answer.ended_s > answer.due_s for answer in answers)
    sizes = {answer.batch_id: answer.batch_size for answer in answers}
    assert sum(sizes.values()) == 100


def test_a_paced_load_counts_every_end(running, profile_file: Path) -> None:
    with running(profile_file, "--no-ray", "--slo-ms", "20000") as server:
        sample = np.zeros((1, 1, 2, 2), np.uint8)
        easy = TimedRequest(http_request(server.url, "tiny", sample, None))
        late = TimedRequest(http_request(server.url, "tiny", sample, None, has_slo_header=True))
        about = {"rate_qps": 200.0, "duration_s": 0.5, "connections": 8}
        served = asyncio.run(paced_load(server.url, easy, slo_s=20.0, **about))
        refused = asyncio.run(paced_load(server.url, lambda _: late(1e-4), slo_s=20.0, **about))
        unsent = asyncio.run(paced_load(server.url, easy, slo_s=0.0, **about))
    assert (served.on_time, served.due, served.ends) == (100, 100, {"200": 100})
    assert 0 < served.accuracy <= 1
    assert (refused.on_time, refused.ends) == (0, {"504": 100})
    assert (unsent.on_time, unsent.ends) == (0, {"unsent": 100})
