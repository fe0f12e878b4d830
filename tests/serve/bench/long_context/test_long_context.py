"""The benchmark of long contexts: its bars where they are no matter of speed, and its labels."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve.bench.long_context.bench import LongContextBench
from serve.bench.long_context.exact import exact_rows
from serve.bench.long_context.failure import kill_under_load
from serve.bench.long_context.simulated import SHAPE, alone_rows, mixed_rows
from serve.bench.long_context.two_workers import kvp_rows
from slackfit.streams.hardware import HardwareProfile
from subnetact.parallel.worker_device import backend_for
from subnetact.parallel.worker_grid import WorkerGrid

FOLDER = Path("profiles/hardware")


@pytest.fixture(scope="module")
def h100() -> HardwareProfile:
    return HardwareProfile.load(FOLDER / "h100_sxm.toml")


def test_a_killed_worker_fails_its_streams_and_no_others_and_comes_back() -> None:
    seen = kill_under_load()
    assert seen.reasons == {"device_failed"}
    assert seen.others == {"on_time"}
    assert seen.failed_s < 2.0
    assert seen.back_s < 15.0


def test_logits_of_a_grid_are_judged_in_double_precision() -> None:
    (found,) = exact_rows("cpu", (WorkerGrid(shards=2),), num_texts=2)
    assert found["figure"] == "long-context/exact/kvp2_spp1"
    assert 0.0 < found["value"] <= 1.0  # in millionths of the largest logit
    assert f"on cpu over {backend_for('cpu', 2)}" in found["detail"]
    with pytest.raises(ValueError, match="device is 'tpu', allowed cpu, cuda"):
        exact_rows("tpu")


@pytest.mark.gpu
def test_grids_on_gpus_give_the_plain_logits() -> None:
    for found in exact_rows("cuda", num_texts=2):
        assert found["value"] <= 1.0, found


def test_two_workers_are_measured_against_one() -> None:
    rows = kvp_rows(1024, 1)
    assert [row["figure"] for row in rows] == [
        "long-context/kvp2/attention_1024_speedup",
        "long-context/kvp2/token_speedup_at_80_percent_attention",
    ]
    assert all("one process" in row["detail"] for row in rows)


def test_stages_shorten_a_prompt_and_shards_the_time_between_outputs(h100) -> None:
    values = {row["figure"].split("128k/")[1]: row["value"] for row in alone_rows(h100, "128k")}
    one, shards, stages = "kvp1_spp1", "kvp8_spp1", "kvp1_spp8"
    assert values[f"{stages}/first_output"] < 0.25 * values[f"{one}/first_output"]
    assert values[f"{shards}/first_output"] < 0.6 * values[f"{one}/first_output"]
    assert values[f"{shards}/between_outputs"] < 0.7 * values[f"{one}/between_outputs"]
    assert values[f"{stages}/between_outputs"] > values[f"{one}/between_outputs"]  # hops


def test_a_context_that_fits_nowhere_is_said_to(h100) -> None:
    rows = list(alone_rows(h100, "10m"))
    assert h100.capacity_tokens(SHAPE) < 10_000_000
    assert all(row["detail"]["room_tokens"] >= 10_485_760 for row in rows if row["unit"] == "s")
    small = HardwareProfile(
        **{name: getattr(h100, name) for name in h100.__slots__ if name != "memory_bytes"},
        memory_bytes=40e9,
    )
    assert [row["unit"] for row in alone_rows(small, "10m")][:2] == ["bool", "bool"]


def test_lars_spares_the_short_ones_and_every_row_says_that_it_is_simulated(h100) -> None:
    rows = list(mixed_rows(h100, "128k"))
    assert all(row["detail"]["simulated"] is True for row in rows)
    assert all("H100" in row["detail"]["hardware"] for row in rows)
    p99 = {
        row["figure"].split("/")[-2]: row["value"]
        for row in rows
        if row["figure"].endswith("short_first_output_p99")
    }
    assert p99["lars"] < 0.2 * p99["fcfs"]
    assert p99["lars"] < 0.2 * p99["sarathi_512"]


def test_a_part_or_folder_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="part 'tp' is unknown, allowed exact, kvp, spp, break"):
        LongContextBench(FOLDER).run(["tp"])
    with pytest.raises(ValueError, match="no hardware profile"):
        LongContextBench(tmp_path).run(["simulated"])
