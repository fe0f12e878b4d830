"""A server on a Ray cluster of a test's own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve.config import ServeConfig
from serve.hosts.ray_host import RayHost

ON_RAY = [
    pytest.mark.ray,
    # Ray's own: deprecated calls inside it, and sockets of its processes that it leaves to exit.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:.*RAY_ACCEL.*:FutureWarning"),
]


@contextlib.contextmanager
def on_ray(config: ServeConfig) -> Iterator[RayHost]:
    """Serve on a cluster that is started, and ends with the context."""
    host = RayHost(config)
    with pytest.MonkeyPatch.context() as patch:
        # A declarative deploy imports the application in a process that does not have our path.
        patch.setenv("PYTHONPATH", str(Path.cwd()))
        try:
            host.start()
            yield host
        finally:
            host.stop()
