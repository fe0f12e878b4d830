"""From a `ServeConfig` to a served decoder: scheduler, policy, engine and observers around it."""

from __future__ import annotations

import contextlib
from typing import Any

from serve.config import LiveConfig, ServeConfig
from serve.engine.streams.prefix_cache import PrefixCache
from serve.engine.streams.stream_device import StreamDevice
from serve.engine.streams.stream_engine import StreamEngine
from serve.hosts.load_decoder import LoadedDecoder, offered_costs
from serve.models.served_decoder import ServedDecoder
from serve.observe.metrics import Metrics
from serve.observe.record_file import RecordFile
from serve.observe.request_observers import build_request_observers
from slackfit.scheduling.streams.stream_record import RecordingStreamScheduler
from slackfit.scheduling.streams.stream_scheduler import StreamScheduler


def build_decoder(
    config: ServeConfig,
    loaded: LoadedDecoder,
    metrics: Metrics,
    resources: contextlib.ExitStack,
) -> ServedDecoder:
    """Put scheduler, policy and engine around a decoder.

    The scheduler counts memory in the blocks of the decoder's own cache, so that what it admits
    always fits. `resources` ends what the decoder runs on.
    """
    resources.callback(loaded.executor.close)
    costs, policy, name = offered_costs(config, loaded.costs)
    settings: dict[str, Any] = {
        "kv_tokens": loaded.kv_tokens,
        "extent_tokens": loaded.block_tokens,
        "max_running": config.max_running,
        "max_waiting": config.max_queue,
        "correct_costs": config.correct_latency,
        "tenant_shares": config.tenant_shares,
    }
    if config.record is None:
        scheduler = StreamScheduler(costs, policy, **settings)
    else:
        log = resources.enter_context(contextlib.closing(RecordFile(config.record)))
        scheduler = RecordingStreamScheduler(costs, policy, sink=log, **settings)
    prefixes = None
    if config.prefix_cache:
        qualities = {rung.subnet_id: rung.quality for rung in costs.rungs}
        prefixes = PrefixCache(loaded.block_tokens, qualities)
    stream_metrics = metrics.of_streams(loaded.spec.name)
    engine = StreamEngine(
        scheduler,
        StreamDevice(loaded.executor, prefixes),
        observer=stream_metrics.observe,
        on_step=stream_metrics.stepped,
        hung_after_s=config.hung_after_s,
    )
    live = LiveConfig(policy=name, ttft_ms=config.ttft_ms, tpot_ms=config.tpot_ms)
    # Torch now, on a timed device too: the first request that draws would wait seconds for it.
    from subnetact.decoding.token_sampler import TokenSampler

    observers = build_request_observers(config, engine.clock, resources)
    return ServedDecoder(loaded.spec, engine, loaded.coder, live, TokenSampler, observers)
