"""A profile measured on a grid of workers has a server start them; one of elsewhere does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serve.bench.decoder.bench import random_checkpoint
from serve.config import ServeConfig, ServeConfigError, parse_config
from serve.hosts import load_decoder
from serve.hosts.load_decoder import count_workers
from serve.hosts.ray_host import _cores
from slackfit.profile import LatencyProfile
from slackfit.streams.iteration_cost import IterationCosts
from slackfit.streams.parallel_cost import ParallelCost
from subnetact.decoding.stream_executor import StreamExecutor
from subnetact.device import device_name
from subnetact.parallel.parallel_executor import ParallelExecutor
from supernet import define_supernet

EXAMPLE = LatencyProfile.load("profiles/smollm2_135m_example.json")


def on_grid(shards: int, stages: int) -> LatencyProfile:
    grid = ParallelCost(shards=shards, stages=stages, break_even_tokens=2048)
    return IterationCosts.of(EXAMPLE).on_workers(grid).in_profile(EXAMPLE)


def config_of(path: Path, profile: LatencyProfile, **more: Any) -> ServeConfig:
    profile.save(path / "profile.json")
    fields = {"checkpoint": "lm", "profile": str(path / "profile.json"), "threads": 2}
    return parse_config({**fields, **more})


def test_cores_are_counted_for_workers_too(tmp_path: Path) -> None:
    config = config_of(tmp_path, on_grid(3, 2), replicas=2)
    assert count_workers(config) == 6
    assert _cores(config) == 2 * 2 * (1 + 6) + 1
    assert count_workers(config_of(tmp_path, EXAMPLE)) == 0
    assert count_workers(config_of(tmp_path, on_grid(2, 1), device="timed", checkpoint=None)) == 0
    several = {"a": {"checkpoint": "a"}, "b": {"checkpoint": "b", "profile": config.profile}}
    on_grid(2, 1).save(tmp_path / "profile.json")
    assert count_workers(parse_config({"models": several})) == 2


def test_workers_are_started_as_the_profile_of_this_device_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = random_checkpoint(define_supernet("decoder_tiny"))
    started: list[dict[str, Any]] = []

    def for_costs(_checkpoint: object, costs: IterationCosts, **settings: Any) -> str:
        assert costs.parallel is not None
        started.append({"break_even": costs.parallel.break_even_tokens, **settings})
        return "workers"

    monkeypatch.setattr(ParallelExecutor, "for_costs", for_costs)
    here = replace(on_grid(3, 1), device=device_name("cpu"), packing="packed")
    config = config_of(tmp_path, here, kv_tokens=1000, hung_after_s=8.0)
    assert load_decoder._load_executor(config, checkpoint, here) == "workers"
    assert started == [
        {
            "break_even": 2048,
            "folder": "lm",
            "capacity_tokens": 384,  # a third, in whole blocks
            "block_tokens": 64,
            "threads": 2,
            "packing": "packed",
            "hung_after_s": 4.0,
        }
    ]
    elsewhere = replace(here, device="another processor", packing="views")
    found = load_decoder._load_executor(config, checkpoint, elsewhere)
    assert isinstance(found, StreamExecutor)
    assert "is of workers elsewhere: served on one" in caplog.text
    assert count_workers(config) == 3


def test_room_for_less_than_a_block_is_refused_in_a_line(tmp_path: Path) -> None:
    """Before the server starts, and by the driver that has replicas load it."""
    config = config_of(tmp_path, EXAMPLE, device="timed", checkpoint=None, kv_tokens=63)
    for start in (load_decoder.load_decoder, load_decoder.check_decoder):
        with pytest.raises(
            ServeConfigError, match="kv_tokens is 63, allowed a block of 64 or more"
        ):
            start(config)
    enough = config.model_copy(update={"kv_tokens": 64})
    load_decoder.check_decoder(enough)
    assert load_decoder.load_decoder(enough).kv_tokens == 64
