"""Asks any server of the Open Inference Protocol; imports the protocol, nothing of the server."""

from serve.client.client import (
    AsyncClient,
    Client,
    ClientError,
    InferError,
    InferResult,
    ModelInfo,
)

__all__ = ["AsyncClient", "Client", "ClientError", "InferError", "InferResult", "ModelInfo"]
