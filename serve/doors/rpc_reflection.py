"""Server reflection: what grpcurl and the like ask to know the services without their proto files.

Both versions of the service have the same messages; only their package differs.
"""

from __future__ import annotations

from typing import Any

from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest

from serve.doors.rpc_health import HEALTH
from serve.proto import open_inference_pb2 as pb

_VERSIONS = ("grpc.reflection.v1.ServerReflection", reflection.SERVICE_NAME)
_SERVICES = (pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name, HEALTH)


def reflection_methods() -> list[tuple[str, tuple[Any, Any]]]:
    """Return path, handler of a stream, and message of each method."""
    servicer = reflection.aio.ReflectionServicer((*_SERVICES, reflection.SERVICE_NAME))

    def told(messages: Any) -> Any:
        return servicer.ServerReflectionInfo(messages, None)

    return [
        (f"/{version}/ServerReflectionInfo", (told, ServerReflectionRequest))
        for version in _VERSIONS
    ]
