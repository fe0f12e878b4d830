"""`SupernetReplica`, one device as a Ray Serve replica; `build`, the application of replicas."""

# NOTE: no `from __future__ import annotations` here: Ray reads the class of `build`'s argument from
# the signature, and a string there would silently switch its validation off.

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from ray import serve as ray_serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.util import get_node_ip_address
from starlette.types import ASGIApp

from serve.config import ServeConfig, ServeConfigError, parse_config, parse_live_config
from serve.hosts.assemble import build_server
from serve.hosts.autoscale import reported
from serve.hosts.check import check
from serve.hosts.front import build_door
from serve.hosts.listeners import Listeners
from serve.hosts.load_decoder import count_workers
from serve.hosts.ray_metrics import exporting_to_ray
from serve.hosts.ray_registry import RayStore, Registry, announced
from serve.hosts.tuned_process import tuned_process
from serve.observe.logs import configure_logs

_END_S = 3.0  # beyond a drain: last answers, ports, threads
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
        self._server = await asyncio.to_thread(build_server, config, self._resources)
        self._listeners = Listeners(
            config, self._server, is_replica=True, reached_at=get_node_ip_address()
        )
        self._door = build_door(self._server, self._while_ready)
        self._resources.enter_context(tuned_process())

    @contextlib.asynccontextmanager
    async def _while_ready(self) -> AsyncIterator[None]:
        server = self._server
        telling = exporting_to_ray(server.metrics.registry, server.refresh_metrics)
        async with self._listeners.opened(self._door), telling:
            store = RayStore(ray_serve.get_replica_context().app_name)
            registry = Registry(store, self._listeners.own_urls)
            async with announced(registry, server.replicas, server.models.takes_queries):
                yield

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return self._door

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Put live settings in force for every model, between two batches.

        `user_config` is all there is to say: what it leaves out is as the replica was started, so
        that running replicas and those that start later have the same settings.
        """
        self._server.models.reconfigure(parse_live_config(user_config), from_start=True)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Return what `serve.hosts.autoscale` decides the number of replicas by."""
        return reported(self._server.models.signals())

    async def check_health(self) -> None:
        """Raise when a device thread has ended, so that Ray replaces this replica."""
        fault = self._server.models.fault()
        if fault:
            raise RuntimeError(fault)

    def __del__(self) -> None:
        self._resources.close()


def _scaling(config: ServeConfig) -> dict[str, Any]:
    """Return the deployment options that say how many replicas there are."""
    scaling = config.autoscaling
    if scaling is None:
        return {"num_replicas": config.replicas}
    tolerances = scaling.model_dump(include={"max_missed", "max_given_up", "utilisation"})
    policy = AutoscalingPolicy(
        policy_function="serve.hosts.autoscale:MissPolicy", policy_kwargs=tolerances
    )
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=scaling.min_replicas,
            max_replicas=scaling.max_replicas,
            upscale_delay_s=scaling.upscale_delay_s,
            downscale_delay_s=scaling.downscale_delay_s,
            look_back_period_s=scaling.look_back_s,
            policy=policy,
        )
    }


def _placement(config: ServeConfig) -> dict[str, Any]:
    """Return the deployment options that reserve cores for a decoder's workers, if there are any.

    They are processes of the replica, in its first bundle; the others keep cores of the same node
    for them.
    """
    num_workers = count_workers(config)
    if not num_workers:
        return {}
    return {
        "placement_group_bundles": [{"CPU": config.threads}] * (1 + num_workers),
        "placement_group_strategy": "STRICT_PACK",
    }


def build(args: ServeConfig) -> ray_serve.Application:
    """Return the application; `args` are the settings of `serve.config.ServeConfig`.

    Raises ServeConfigError or ProfileError here, where it is read, for what would fail in a
    replica.
    """
    check(args)
    if args.doors > 1:
        text = (
            f"doors is {args.doors}, allowed 1 on Ray: give replicas, or serve without (--no-ray)"
        )
        raise ServeConfigError(text)
    deployment = SupernetReplica.options(
        **_scaling(args),
        **_placement(args),
        max_ongoing_requests=args.max_queue + _ROUTER_HEADROOM,
        graceful_shutdown_timeout_s=args.drain_timeout_s + _END_S,
        ray_actor_options={
            "num_cpus": args.threads,
            "num_gpus": 1 if args.device == "cuda" else 0,
        },
    )
    return deployment.bind(args.model_dump())
