"""`Cluster`: ours and its peer side by side on one local Ray cluster, one of them under load."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import httpx

from serve.config import ServeConfig
from serve.hosts.ray_host import on_ray
from serve.hosts.uvicorn_listener import bind

_LOGICAL_CPUS = 4  # two replicas and room: only one of them ever has something to do
_READY_S = 120.0


class Cluster:
    """Where to send: `url` is ours, `peer_url` the peer's own listener, `*_proxy_url` Ray's."""

    def __init__(self, url: str, rpc_url: str, proxy_url: str, peer_url: str) -> None:
        self.url = url
        self.rpc_url = rpc_url
        self.proxy_url = proxy_url
        self.peer_url = peer_url
        self.peer_proxy_url = f"{proxy_url}/fixed"
        self.no_op_url = f"{proxy_url}/no_op"

    def use_policy(self, policy: str) -> None:
        """Have ours decide by another policy from now on."""
        httpx.post(f"{self.url}/admin/config", json={"policy": policy}).raise_for_status()

    def tune(self, tuning: tuple[Any, ...]) -> None:
        """Have the peer serve another subnet in another way (`bench_serving_peer.Tuning`)."""
        from ray import serve as ray_serve

        from serve.bench.serving.ray_peer import PEER_APP

        ray_serve.get_app_handle(PEER_APP).tune.remote(tuple(tuning)).result()


@contextlib.contextmanager
def running(
    config: ServeConfig, max_batch_size: int, peer_subnet_ids: Sequence[str] | None = None
) -> Iterator[Cluster]:
    """Serve ours, the peer and a no-op for the length of a `with` block.

    The peer holds the named subnets; None: all, in fp32 and int8.
    """
    with on_ray(config, num_cpus=_LOGICAL_CPUS) as host:
        from ray import serve as ray_serve

        from serve.bench.serving.ray_peer import PEER_APP, PEER_PREFIX, FixedPeer, NoOp

        with contextlib.closing(bind(config.host, 0)) as sock:
            port = sock.getsockname()[1]
        peer = FixedPeer.bind(
            config.checkpoint, config.threads, max_batch_size, port, peer_subnet_ids
        )
        ray_serve.run(peer, name=PEER_APP, route_prefix=PEER_PREFIX)
        ray_serve.run(NoOp.bind(), name="no_op", route_prefix="/no_op")
        rpc_url = f"grpc://{host.rpc_address}" if host.rpc_address else ""
        cluster = Cluster(host.url, rpc_url, host.proxy_url, f"http://{config.host}:{port}")
        for url in (cluster.peer_url, cluster.peer_proxy_url):
            _wait_for(f"{url}/v2")
        _wait_for(cluster.no_op_url)
        yield cluster


def _wait_for(url: str) -> None:
    give_up_s = time.monotonic() + _READY_S
    while True:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url, timeout=5.0).status_code == 200:
                return
        if time.monotonic() > give_up_s:
            raise RuntimeError(f"{url} does not answer after {_READY_S:.0f} s")
        time.sleep(0.1)
