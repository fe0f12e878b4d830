"""`RpcHealth`: `grpc.health.v1.Health`, what Kubernetes, Envoy and gRPC clients ask.

The service with the empty name is the server, as is the protocol's own; every model is one by its
name. A server that drains, or whose device has failed, is NOT_SERVING. Nobody needs a token.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from grpc_health.v1.health_pb2 import (
    HealthCheckRequest,
    HealthCheckResponse,
    HealthListResponse,
)

from serve.models.limits import RefusedError
from serve.models.models import Models
from serve.proto.names import SERVICE

HEALTH = "grpc.health.v1.Health"
_POLL_S = 0.25
_MOST_WATCHERS = 256
_UNKNOWN, _SERVING, _NOT_SERVING = (
    HealthCheckResponse.SERVICE_UNKNOWN,
    HealthCheckResponse.SERVING,
    HealthCheckResponse.NOT_SERVING,
)


class RpcHealth:
    """The health of the served models."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._num_watchers = 0

    def status(self, service: str) -> int:
        """Return the status of a service, SERVICE_UNKNOWN for one that is not here."""
        try:
            if service in ("", SERVICE):
                self._models.check_ready()
            else:
                self._models.check_model_ready(service)
        except RefusedError as error:
            return _UNKNOWN if error.reason == "unknown_model" else _NOT_SERVING
        return _SERVING

    async def check(self, call: Any) -> HealthCheckResponse:
        """Answer `Check`. Raises RefusedError: NOT_FOUND, for a service that is not here."""
        service = call.message.service
        status = self.status(service)
        if status == _UNKNOWN:
            self._models.check_model_ready(service)
        return _response(status)

    async def list(self, _: Any) -> HealthListResponse:
        """Answer `List`: the server and every model."""
        services = ("", SERVICE, *self._models.names)
        return HealthListResponse(
            statuses={service: _response(self.status(service)) for service in services}
        )

    async def watch(self, messages: AsyncGenerator[Any]) -> AsyncIterator[Any]:
        """Answer `Watch`: the status now, and whenever it changes.

        A server that drains says so and ends the stream, so that it can end itself. Raises
        RefusedError, `queue_full`, when too many watch.
        """
        if self._num_watchers >= _MOST_WATCHERS:
            raise RefusedError("queue_full", f"{_MOST_WATCHERS} watch already, which is the most")
        self._num_watchers += 1
        try:
            async with contextlib.aclosing(messages):
                request = await anext(messages, HealthCheckRequest())
            told = None
            while True:
                status = self.status(request.service)
                if status != told:
                    told = status
                    yield _response(status)
                if not self._models.takes_queries():
                    return
                await asyncio.sleep(_POLL_S)
        finally:
            self._num_watchers -= 1


def _response(status: int) -> HealthCheckResponse:
    return HealthCheckResponse(status=HealthCheckResponse.ServingStatus.Name(status))
