"""From a `ServeConfig` to a served model: scheduler, policy, engine and observers around a device.

Both hosts (uvicorn and the Ray replica) come through here.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

from serve.access.build_guard import build_guard
from serve.config import LiveConfig, ServeConfig
from serve.doors.body_budget import BodyBudget
from serve.doors.server import Server
from serve.doors.shared_memory import SharedMemory
from serve.engine.device_turn import DeviceTurn
from serve.engine.engine import Engine
from serve.engine.guarded import Guarded
from serve.engine.reply import Reply
from serve.hosts.assemble_decoder import build_decoder
from serve.hosts.load_decoder import load_decoder, serves_streams
from serve.hosts.load_device import LoadedDevice, load, offer
from serve.hosts.several_models import each_model
from serve.models.image_decoder import ImageDecoder
from serve.models.models import Models
from serve.models.replica_set import ReplicaSet
from serve.models.request import ModelSpec
from serve.models.served_decoder import ServedDecoder
from serve.models.served_model import ServedModel
from serve.observe.demand import Demand
from serve.observe.metrics import Metrics
from serve.observe.record_file import RecordFile
from serve.observe.request_observers import build_request_observers
from serve.observe.statistics import Statistics
from slackfit.policy import Policy
from slackfit.profile import LatencyProfile
from slackfit.scheduling.record import RecordingScheduler
from slackfit.scheduling.scheduler import Scheduler


def build_server(config: ServeConfig, resources: contextlib.ExitStack) -> Server:
    """Load what `config` names and return what doors serve; `resources` closes what was opened.

    Raises ServeConfigError or ProfileError, a text of one line.
    """
    guard = build_guard(config, time.monotonic)
    metrics = Metrics()
    turn = DeviceTurn()
    models: list[ServedModel] = []
    decoders: list[ServedDecoder] = []
    for own in each_model(config):
        if serves_streams(own):
            decoders.append(build_decoder(own, load_decoder(own), metrics, resources))
            continue
        loaded = load(own)
        resources.callback(loaded.executor.close)
        models.append(build_model(own, loaded, metrics, resources, turn))
    return Server(
        models=Models(models, decoders),
        metrics=metrics,
        guard=guard,
        max_body_bytes=config.max_body_bytes,
        max_json_bytes=config.max_json_bytes,
        budget=BodyBudget(config.max_inflight_bytes),
        memory=SharedMemory(_why_no_memory(config)),
        drain_timeout_s=config.drain_timeout_s,
        replicas=ReplicaSet(config.replica_urls),
        others_note=_others_note(config),
    )


def _others_note(config: ServeConfig) -> str:
    """Say how live settings reach all replicas; empty for a server that is alone."""
    if config.replicas > 1 or config.autoscaling is not None:
        way = "deploy again with another user_config, which also reaches those that start later"
    elif ReplicaSet(config.replica_urls).tag:
        way = f"send it to each of {', '.join(ReplicaSet(config.replica_urls).named()['http'])}"
    else:
        return ""
    return (
        f"this is one of several replicas, the others would keep their settings: {way}; "
        "for one of them alone give only_this_replica=true"
    )


def _why_no_memory(config: ServeConfig) -> str:
    """Say why clients can't share memory with a server of these settings; empty if they can."""
    if not config.shared_memory:
        return "this server has it switched off (shared_memory)"
    if config.replicas > 1 or config.autoscaling is not None:
        return "of several replicas each would know its own regions only: send the tensor"
    return ""


def build_model(
    config: ServeConfig,
    loaded: LoadedDevice,
    metrics: Metrics,
    resources: contextlib.ExitStack,
    turn: DeviceTurn | None = None,
) -> ServedModel:
    """Put scheduler, policy, engine and settings around a device; the models share `turn`."""
    executor, profile, name = loaded
    offered, policy = offer(config, profile)
    statistics = Statistics(time.time)
    demand = Demand(offered, config.slo_ms * 1e-3)
    model_metrics = metrics.of(name)

    observers = [Guarded(o.observe) for o in (model_metrics, statistics, demand)]

    def observe(reply: Reply) -> None:
        for observer in observers:
            observer(reply)

    engine = Engine(
        _build_scheduler(config, offered, policy, resources),
        executor,
        observer=observe,
        on_decision=model_metrics.decided,
        hung_after_s=config.hung_after_s,
        turn=turn,
    )
    spec = ModelSpec(
        name=name,
        sample=executor.sample,
        num_classes=executor.num_classes,
        max_batch_size=offered.max_batch_size,
        subnet_ids=offered.subnet_ids,
        profile=profile.name,
        device=profile.device,
        output_kind=profile.output_kind or "logits",
    )
    live = LiveConfig(policy=config.policy, slo_ms=config.slo_ms, subnets=config.subnets)
    decoder = ImageDecoder(
        max_pixels=config.max_image_pixels, max_waiting=config.max_queue, clock=engine.clock
    )
    resources.callback(decoder.close)
    allowance_s = config.reply_allowance_ms * 1e-3
    return ServedModel(
        spec,
        engine,
        profile,
        live,
        statistics=statistics,
        decoder=decoder,
        demand=demand,
        request_observers=build_request_observers(config, engine.clock, resources),
        reply_allowance_s=allowance_s,
    )


def _build_scheduler(
    config: ServeConfig, offered: LatencyProfile, policy: Policy, resources: contextlib.ExitStack
) -> Scheduler:
    settings: dict[str, Any] = {
        "max_queue": config.max_queue,
        "drop_hopeless": config.drop_hopeless,
        "correct_latency": config.correct_latency,
        "triage": True,
        "tenant_shares": config.tenant_shares,
    }
    if config.record is None:
        return Scheduler(offered, policy, **settings)
    log = resources.enter_context(contextlib.closing(RecordFile(config.record)))
    return RecordingScheduler(offered, policy, sink=log, **settings)
