"""The local Ray host: a cluster of this process, Serve on a loopback port, our application on it.

Ray runs without dashboard and without usage reports, on as many cores as it is given, and
`RayHost.stop` ends what `start` began and nothing else. A process that is connected to a Ray
cluster already is refused: starting there would change, and stopping would end, what belongs to
somebody else.

The port that is asked for is the replica's own door (`door_port`); Ray's proxy listens too, on a
free port, with the same answers after a longer way (`proxy_url`). gRPC, where asked for, is spoken
at the replica only (`rpc_address`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import ssl
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import httpx

from serve.access.tls import tls_files
from serve.access.tokens import read_tokens
from serve.config import ServeConfig, ServeConfigError
from serve.hosts.check import check
from serve.hosts.load_decoder import count_workers
from serve.hosts.uvicorn_listener import bind, in_url
from serve.proto.names import REPLICAS

APP_NAME = "supernet"
_READY_TIMEOUT_S = 120.0
_READY_POLL_S = 0.1
_NAMED_TIMEOUT_S = 10.0
_OBJECT_STORE_BYTES = 100 * 2**20  # payloads do not travel through it
_RAY_SETTINGS = {
    # Ray starts workers at nice 15: beside anything else that runs, a replica then waits for cores.
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",  # default 10: a burst is over then
    # Ray kills a proxy that is not up within 5 s, and then fails the start: too soon on busy cores.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": f"{_READY_TIMEOUT_S / 2:.0f}",
}


class RayHost:
    """One local cluster that serves one configuration, at `url` and through `proxy_url`."""

    def __init__(self, config: ServeConfig, *, num_cpus: int | None = None) -> None:
        self._config = config
        self._num_cpus = num_cpus
        self._is_started = False
        self._environment = contextlib.ExitStack()
        self.url = ""
        self.rpc_address = ""
        self.proxy_url = ""

    def start(self) -> str:
        """Start Ray and Serve, wait until the model is ready, return the URL.

        Raises ServeConfigError or ProfileError before anything is started, RuntimeError when the
        application does not come up (Ray's message says why).
        """
        check(self._config)
        host, tls = self._config.host, tls_files(self._config)
        port, proxy_port = _free_port(host, self._config.port), _free_port(host, 0)
        ports: dict[str, int] = {"door_port": port}
        if self._config.grpc_port is not None:
            ports["grpc_port"] = _free_port(host, self._config.grpc_port)
            self.rpc_address = f"{in_url(host)}:{ports['grpc_port']}"
        import ray

        if ray.is_initialized():
            raise ServeConfigError(
                "this process is connected to a Ray cluster already: leave it first"
            )
        self._is_started = True
        self._environment.enter_context(_environment_of(_RAY_SETTINGS))
        from ray import serve as ray_serve

        from serve.hosts.ray_replica import build

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        ray.init(
            address="local",
            num_cpus=self._num_cpus or _cores(self._config),
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            log_to_driver=False,
            configure_logging=False,
        )
        ray_serve.start(
            proxy_location="HeadOnly",
            http_options={
                "host": host,
                "port": proxy_port,
                **(tls.proxy_options() if tls else {}),
            },
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )
        application = build(self._config.model_copy(update=ports))
        ray_serve.run(application, name=APP_NAME, route_prefix="/")
        scheme = "https" if tls else "http"
        name = in_url(host)
        self.url, self.proxy_url = (f"{scheme}://{name}:{p}" for p in (port, proxy_port))
        for url in (self.url, self.proxy_url):
            _wait_ready(url, _trust(self._config))
        return self.url

    def reconfigure(self, change: Mapping[str, object]) -> dict[str, Any]:
        """Switch live settings (policy, slo_ms, subnets) of every running replica.

        Returns the settings in force. Raises ServeConfigError. It asks the replicas themselves:
        `serve.run` with another `user_config` would restart it, which only a declarative deploy
        does not.
        """
        tokens = read_tokens(self._config.tokens_file)
        secret = None if tokens is None else tokens.secret_for("admin")
        headers = {} if secret is None else {"authorization": f"Bearer {secret}"}
        answer: dict[str, Any] = {}
        with httpx.Client(headers=headers, verify=_trust(self._config)) as client:
            for url in self._each_replica(client):
                response = client.post(
                    f"{url}/admin/config", json={**change, "only_this_replica": True}
                )
                answer = response.json()
                if response.status_code != 200:
                    raise ServeConfigError(answer["error"])
        return answer

    def _each_replica(self, client: httpx.Client) -> list[str]:
        """Return where each replica listens, once as many are named as were asked for."""
        if self._config.replicas == 1 and self._config.autoscaling is None:
            return [self.url]
        give_up_s = time.monotonic() + _NAMED_TIMEOUT_S
        while True:
            named = client.get(f"{self.url}/v2").json().get(REPLICAS, {}).get("http", [])
            if len(named) >= self._config.replicas or time.monotonic() > give_up_s:
                return named or [self.url]
            time.sleep(_READY_POLL_S)

    def stop(self) -> None:
        """Drain and end the application, then the cluster, if this host started them."""
        if not self._is_started:
            return
        self._is_started = False
        import ray
        from ray import serve as ray_serve

        with contextlib.suppress(Exception):  # a half-started Serve must not keep Ray alive
            ray_serve.delete(APP_NAME)
        ray.shutdown()
        self._environment.close()


def _cores(config: ServeConfig) -> int:
    """How many cores the replicas take when there are most of them, and Serve besides."""
    scaling = config.autoscaling
    num_replicas = config.replicas if scaling is None else scaling.max_replicas
    return num_replicas * config.threads * (1 + count_workers(config)) + 1


@contextlib.contextmanager
def on_ray(config: ServeConfig, *, num_cpus: int | None = None) -> Iterator[RayHost]:
    """Serve on a local Ray cluster for the length of a `with` block; yields the host."""
    host = RayHost(config, num_cpus=num_cpus)
    try:
        host.start()
        yield host
    finally:
        host.stop()


def serve_forever(config: ServeConfig) -> None:
    """Serve on a local Ray cluster until SIGINT or SIGTERM."""
    ended = threading.Event()
    with on_ray(config) as host:
        previous = {
            number: signal.signal(number, lambda *_: ended.set())
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        secure = "s" if config.tls_cert is not None else ""
        rpc = f" and grpc{secure}://{host.rpc_address}" if host.rpc_address else ""
        print(f"ready: serving on Ray at {host.url}{rpc} (Ctrl-C drains)", flush=True)
        ended.wait()
        print("draining", file=sys.stderr, flush=True)
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _environment_of(variables: Mapping[str, str]) -> Iterator[None]:
    """Set what Ray's processes inherit, and put it back."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _free_port(host: str, port: int) -> int:
    """Return `port` if it is free, or some free port for 0. Raises ServeConfigError."""
    with contextlib.closing(bind(host, port)) as sock:
        return sock.getsockname()[1]


def _trust(config: ServeConfig) -> ssl.SSLContext | bool:
    """Return what a client of our own server on this host verifies with."""
    tls = tls_files(config)
    return True if tls is None else tls.client_context()


def _wait_ready(url: str, verify: ssl.SSLContext | bool) -> None:
    give_up_s = time.monotonic() + _READY_TIMEOUT_S
    while True:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/v2/health/ready", timeout=5.0, verify=verify).status_code == 200:
                return
        if time.monotonic() > give_up_s:
            raise RuntimeError(f"{url} is not ready after {_READY_TIMEOUT_S:.0f} s")
        time.sleep(_READY_POLL_S)
