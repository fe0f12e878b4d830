"""The Ray Serve application: one replica per device, with the whole engine inside the replica.

`serve run serve.app:build checkpoint=DIR profile=FILE policy=slackfit` starts it; `user_config`
(`policy`, `slo_ms`, `subnets`, `max_batch_size`) reconfigures it without a restart. Ray Serve
places, routes, checks and replaces replicas; queueing, ordering and refusing are the engine's
alone, so `max_ongoing_requests` stays above what the engine queues and Ray's router never holds a
request.

A request through Ray's proxy costs milliseconds, of latency and of CPU. So with `door_port` each
replica also listens itself, with the same app: the same answers, without the hop; and with
`grpc_port` it speaks gRPC there. (Ray's own direct ingress does likewise, but binds without
SO_REUSEADDR: after a crash under load, its fixed port stays unusable for a minute and the
replacement fails to start. A call's gRPC deadline does not reach it through Ray's proxy.)
"""

# NOTE: no `from __future__ import annotations` here: Ray reads the class of `build`'s argument from
# the signature, and a string there would silently switch its validation off.

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from ray import serve as ray_serve

from serve.assemble import build_door, check
from serve.config import ServeConfig, parse_config, parse_live_config
from serve.listeners import Listeners
from serve.logs import configure_logs
from serve.process import tuned_process
from serve.ray_metrics import telling_ray
from serve.rest import Door

_ROUTER_HEADROOM = 1000  # requests beyond a full queue, so that ours is the one that refuses


@ray_serve.deployment(name="supernet", health_check_period_s=2, health_check_timeout_s=10)
@ray_serve.ingress()
class SupernetReplica:
    """One device of one supernet. Ray calls the methods by their names.

    The constructor loads and, without a fitting profile, measures one; Ray then starts the door's
    lifespan (warm-up), and only then counts the replica as running.
    """

    async def __init__(self, settings: dict[str, Any]) -> None:
        self._resources = contextlib.ExitStack()
        config = parse_config(settings)
        configure_logs(config.log_format)
        self._door = await asyncio.to_thread(build_door, config, self._resources)
        self._listeners = Listeners(config, self._door, is_replica=True)
        self._door.while_ready = self._while_ready
        self._resources.enter_context(tuned_process())

    @contextlib.asynccontextmanager
    async def _while_ready(self) -> AsyncIterator[None]:
        door = self._door
        telling = telling_ray(door.metrics.registry, lambda: door.metrics.refresh(door.models))
        async with self._listeners.opened(), telling:
            yield

    def __serve_build_asgi_app__(self) -> Door:
        return self._door

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Apply live settings to every model, between two batches."""
        self._door.models.reconfigure(parse_live_config(user_config))

    async def check_health(self) -> None:
        """Raise when a device thread has ended, so that Ray replaces this replica."""
        fault = self._door.models.fault()
        if fault:
            raise RuntimeError(fault)

    def __del__(self) -> None:
        self._resources.close()


def build(args: ServeConfig) -> ray_serve.Application:
    """Return the application; `args` are the settings of `serve.config.ServeConfig`.

    Raises ConfigError or ProfileError here, where it is read, for what would fail in a replica.
    """
    check(args)
    deployment = SupernetReplica.options(
        num_replicas=args.replicas,
        max_ongoing_requests=args.max_queue + _ROUTER_HEADROOM,
        graceful_shutdown_timeout_s=args.drain_timeout_s,
        ray_actor_options={
            "num_cpus": args.threads,
            "num_gpus": 1 if args.device == "cuda" else 0,
        },
    )
    return deployment.bind(args.model_dump())
