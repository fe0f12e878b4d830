"""How open files are shared out between the doors."""

from __future__ import annotations

import resource

import pytest

from serve.hosts.connections.connection_limits import most_connections


@pytest.mark.parametrize(
    ("files", "settings", "expected"),
    [
        (256, {}, (192, 8)),
        (256, {"grpc_port": 1}, (168, 24)),
        (256, {"grpc_port": 1, "max_connections": 50}, (50, 24)),
        (256, {"max_connections": 5000}, (192, 8)),
        (20_064, {"grpc_port": 1}, (17_500, 2500)),
        (40, {"grpc_port": 1}, (8, 8)),
        (resource.RLIM_INFINITY, {}, (2**16 - 64, 8)),
    ],
)
def test_files_are_shared_out(monkeypatch, timed_config, files, settings, expected):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    assert most_connections(timed_config.model_copy(update=settings)) == expected
