"""The local Ray host: a cluster of this process, Serve on a loopback port, our application on it.

Ray runs without dashboard and without usage reports, on the cores it is told, and `RayHost.stop`
ends what `start` began and nothing else. A process that is connected to a Ray cluster already is
refused: starting there would change, and stopping would end, what belongs to somebody else.

Direct ingress, the default: the replica itself listens on the port that was asked for, and requests
skip Ray's proxy process, which costs milliseconds of latency and of CPU per request; the proxy
listens too, on a port nobody needs. It is a switch that Ray reads when `ray.serve` is first
imported. With `direct_ingress=False` the proxy listens on the port that was asked for.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping

import httpx

from serve.assemble import check
from serve.config import ConfigError, ServeConfig
from serve.uvicorn_host import bind

APP_NAME = "supernet"
_READY_TIMEOUT_S = 120.0
_READY_POLL_S = 0.1
_OBJECT_STORE_BYTES = 100 * 2**20  # payloads do not travel through it


class RayHost:
    """One local cluster that serves one configuration; `url` is where its door listens."""

    def __init__(
        self, config: ServeConfig, *, num_cpus: int | None = None, direct_ingress: bool = True
    ) -> None:
        self._config = config
        self._num_cpus = num_cpus or config.threads + 1
        self._direct_ingress = direct_ingress
        self._is_started = False
        self.url = ""

    def start(self) -> str:
        """Start Ray and Serve, wait until the model is ready, return the URL.

        Raises ConfigError or ProfileError before anything is started, RuntimeError when the
        application does not come up (Ray's message says why).
        """
        config = self._config
        check(config)
        port = proxy_port = _free_port(config.host, config.port)
        set_environment(_environment(port, direct_ingress=self._direct_ingress))
        if self._direct_ingress:
            proxy_port = _free_port(config.host, 0)
        import ray
        from ray import serve as ray_serve

        from serve.app import build

        if ray.is_initialized():
            raise ConfigError("this process is connected to a Ray cluster already: leave it first")
        self._is_started = True
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        ray.init(
            address="local",
            num_cpus=self._num_cpus,
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            log_to_driver=False,
            configure_logging=False,
        )
        ray_serve.start(
            proxy_location="HeadOnly",
            http_options={"host": config.host, "port": proxy_port},
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )
        ray_serve.run(build(config), name=APP_NAME, route_prefix="/")
        self.url = f"http://{config.host}:{port}"
        _wait_ready(self.url)
        return self.url

    def reconfigure(self, user_config: Mapping[str, object]) -> None:
        """Deploy the same application with this `user_config` (policy, slo_ms, subnets)."""
        from ray import serve as ray_serve

        from serve.app import build

        app = build(self._config)
        app._bound_deployment = app._bound_deployment.options(user_config=dict(user_config))  # type: ignore[attr-defined]
        ray_serve.run(app, name=APP_NAME, route_prefix="/")

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


@contextlib.contextmanager
def on_ray(
    config: ServeConfig, *, num_cpus: int | None = None, direct_ingress: bool = True
) -> Iterator[str]:
    """Serve on a local Ray cluster for the length of a `with` block; yields the URL."""
    host = RayHost(config, num_cpus=num_cpus, direct_ingress=direct_ingress)
    try:
        yield host.start()
    finally:
        host.stop()


def serve_forever(config: ServeConfig) -> None:
    """Serve on a local Ray cluster until SIGINT or SIGTERM."""
    ended = threading.Event()
    with on_ray(config) as url:
        previous = {
            number: signal.signal(number, lambda *_: ended.set())
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        print(f"ready: serving on Ray at {url} (Ctrl-C drains)", flush=True)
        ended.wait()
        print("draining", file=sys.stderr, flush=True)
        for number, handler in previous.items():
            signal.signal(number, handler)


def set_environment(variables: Mapping[str, str]) -> None:
    """Set what Ray reads from the environment; it must come before the first import of Serve."""
    if "ray.serve" in sys.modules:
        changed = {key for key, value in variables.items() if os.environ.get(key) != value}
        if any(key.startswith("RAY_SERVE_") for key in changed):
            raise ConfigError("ray.serve is imported already: its mode can't be switched any more")
    os.environ.update(variables)


def _environment(port: int, *, direct_ingress: bool) -> dict[str, str]:
    variables = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    if direct_ingress:
        variables |= {
            "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
            "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(port),
            "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(port + 1),  # exclusive
            # No load balancer has to notice that this only replica goes away, and its successor
            # takes its port at once.
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
            "RAY_SERVE_PORT_QUARANTINE_S": "0",
        }
    return variables


def _free_port(host: str, port: int) -> int:
    """Return `port` if it is free, or some free port for 0. Raises ConfigError."""
    with contextlib.closing(bind(host, port)) as sock:
        return sock.getsockname()[1]


def _wait_ready(url: str) -> None:
    give_up_s = time.monotonic() + _READY_TIMEOUT_S
    while True:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/v2/health/ready", timeout=5.0).status_code == 200:
                return
        if time.monotonic() > give_up_s:
            raise RuntimeError(f"{url} is not ready after {_READY_TIMEOUT_S:.0f} s")
        time.sleep(_READY_POLL_S)
