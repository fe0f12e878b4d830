"""From settings to a served checkpoint: which profiles fit, what is measured, what is refused."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from serve.config import ServeConfig, ServeConfigError, parse_config
from serve.doors.rest import RestDoor
from serve.engine.reply import RequestOptions
from serve.hosts.assemble import build_server
from serve.hosts.check import check
from serve.hosts.load_device import load
from slackfit.policies import policy_names
from slackfit.profile import LatencyProfile, ProfileError
from subnetact import load_executor
from subnetact.cpu.graph_executor import GraphExecutor
from subnetact.cuda.accelerator import HostAccelerator
from subnetact.cuda.cuda_executor import CudaExecutor
from subnetact.profiling.profiler import measure_profile
from supernet import Checkpoint


@pytest.fixture(scope="module")
def measured(checkpoint: Checkpoint) -> LatencyProfile:
    executor = load_executor(checkpoint, max_batch_size=4)
    return measure_profile(executor, checkpoint, batch_sizes=(1, 2, 4), repeats=2, name="here")


@pytest.fixture
def configure(checkpoint_folder: Path, tmp_path: Path):
    """`configure(profile, **settings)`: settings that serve the tiny checkpoint."""

    def make(profile: LatencyProfile | None = None, **settings: object) -> ServeConfig:
        fields = {"checkpoint": str(checkpoint_folder), "max_batch_size": 2, **settings}
        if profile is not None:
            profile.save(tmp_path / "profile.json")
            fields["profile"] = str(tmp_path / "profile.json")
        return parse_config(fields)

    return make


def test_answers_are_the_logits_of_the_subnet_that_is_named(configure, checkpoint, measured, rng):
    payload = checkpoint.sample.noise(1, rng)

    async def main(door) -> None:
        (model,) = door.server.models
        assert (model.spec.name, model.spec.max_batch_size) == ("tiny", 4)
        async with door._lifespan(door._app):
            engine = model.engine
            for subnet_id in checkpoint.subnet_ids:
                options = RequestOptions(engine.clock() + 60, subnet_id=subnet_id)
                (reply,) = await engine.infer(payload, arrival_s=engine.clock(), options=options)
                expected = load_executor(checkpoint).run(subnet_id, payload)[0]
                np.testing.assert_allclose(reply.output, [expected], rtol=1e-5)
                assert reply.outcome.subnet_id == subnet_id
                assert reply.outcome.accuracy == checkpoint.subnet(subnet_id).accuracy

    with contextlib.ExitStack() as resources:
        asyncio.run(main(RestDoor(build_server(configure(measured), resources))))


def test_the_scheduler_is_told_the_tenants_shares(configure, measured, tmp_path):
    """Tenants without one share what is left, so they are no shares of zero."""
    tokens = tmp_path / "tokens"
    tokens.write_text("a infer gold-secret-token gold\n")
    tenants = {"gold": {"share": 0.6}, "free": {"rate_limit_qps": 5}}
    config = configure(measured, tokens_file=str(tokens), tenants=tenants)
    with contextlib.ExitStack() as resources:
        (model,) = build_server(config, resources).models
        scheduler = model.engine._scheduler
        assert dict(scheduler.tenant_settings["tenant_shares"]) == {"gold": 0.6}


def test_a_profile_is_checked_against_a_warm_device(configure, measured, monkeypatch):
    """On CUDA a cold one runs eagerly, several times slower than the graphs that were profiled."""
    calls: list[str] = []

    class Watched(GraphExecutor):
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options)
            calls.append("loaded")

        def warm_up(self) -> None:
            super().warm_up()
            calls.append("warm")

    def recheck(executor: object, profile: LatencyProfile) -> LatencyProfile:
        calls.append("checked")
        return profile

    monkeypatch.setattr("subnetact.cpu.graph_executor.GraphExecutor", Watched)
    monkeypatch.setattr("subnetact.profiling.revalidation.revalidated", recheck)
    load(configure(measured)).executor.close()
    assert calls == ["loaded", "warm", "checked"]


def test_without_a_profile_a_short_one_is_measured(configure, checkpoint, caplog):
    loaded = load(configure())
    assert loaded.profile.checkpoint == checkpoint.fingerprint
    assert loaded.profile.batch_sizes == (1, 2)
    assert "measuring a short one" in caplog.text


def test_profile_of_another_device_is_a_warning_and_replaced(configure, measured, caplog):
    other = dataclasses.replace(measured, device="NVIDIA H100")
    with caplog.at_level(logging.WARNING):
        loaded = load(configure(other))
    assert loaded.profile.device == measured.device
    assert "was measured on 'NVIDIA H100', this device is" in caplog.text


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"checkpoint": "0123"}, "was measured on checkpoint 0123, but the checkpoint to serve is"),
        ({"threads": 7}, "was measured with 7 threads, the engine runs 1"),
    ],
)
def test_profile_of_something_else_is_refused_before_anything_is_loaded(
    configure, measured, changes, text
):
    config = configure(dataclasses.replace(measured, **changes))
    for refuse in (check, load):
        with pytest.raises(ProfileError, match=text):
            refuse(config)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"subnets": ["huge"]}, "subnet 'huge' is not in profile 'here'; it has"),
        ({"policy": "best"}, "policy 'best' is unknown, allowed slackfit"),
        ({"policy": "fixed:huge"}, "fixed:huge"),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(configure, measured, settings, text):
    with pytest.raises(ServeConfigError, match=text):
        check(configure(measured, **settings))


def test_unknown_names_are_refused_before_a_profile_is_measured(configure, monkeypatch):
    def measure(*_: object, **__: object) -> None:
        raise AssertionError("it measured first")

    monkeypatch.setattr("serve.hosts.load_device._measure_quickly", measure)
    for name in policy_names():
        check(configure(policy=name.replace("<subnet_id>", "smallest")))
    for refuse in (check, load):
        with pytest.raises(ServeConfigError, match="policy 'best' is unknown, allowed slackfit"):
            refuse(configure(policy="best"))
        with pytest.raises(ServeConfigError, match="subnet 'huge' is not in profile"):
            refuse(configure(subnets=["huge"]))


def test_log_that_cannot_be_written_is_refused(configure, measured, tmp_path):
    config = configure(measured, record=str(tmp_path / "no" / "log"))
    with (
        contextlib.ExitStack() as resources,
        pytest.raises(ServeConfigError, match="can't be written"),
    ):
        build_server(config, resources)


def test_folder_that_is_no_checkpoint_is_refused(tmp_path):
    config = parse_config({"checkpoint": str(tmp_path)})
    for refuse in (check, load):
        with pytest.raises(ServeConfigError, match="supernet.json"):
            refuse(config)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_device_that_is_not_there_is_refused(configure):
    with pytest.raises(ServeConfigError, match="no CUDA device is available; use cpu"):
        load(configure(device="cuda"))


@pytest.mark.parametrize("is_given", [True, False])
def test_a_cuda_server_has_graphs_of_what_it_launches_not_of_all(
    configure, checkpoint, monkeypatch, is_given
):
    """With a profile of both forms two pairs are captured; measuring one has captured all."""

    def on_a_stand_in(*_: object) -> CudaExecutor:
        return CudaExecutor(
            checkpoint, HostAccelerator(), dtype=torch.float32, max_batch_size=2, batch_sizes=(1, 2)
        )

    monkeypatch.setattr("serve.hosts.load_device._load_executor", on_a_stand_in)
    monkeypatch.setattr("serve.hosts.load_device._is_readable", lambda *_: True)
    profile = measure_profile(on_a_stand_in(), checkpoint, batch_sizes=(1, 2), repeats=2)
    config = configure(profile) if is_given else configure()
    with contextlib.ExitStack() as resources:
        (model,) = build_server(config, resources).models
        counts = model.engine.device_counts()
        assert (counts["graphs_live"], counts["graphs_missing"]) == (2 if is_given else 6, 0)
        assert model.engine.profile.padded
