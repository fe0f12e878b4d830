"""A peer of the static comparison: LitServe around one exported network.

`python -m serve.bench.static.litserve_server JSON` runs in an environment of its own, which has
litserve, numpy and onnxruntime and nothing of ours. The network is given what it can be given: one
session with our number of threads, binary tensors, responses that are made in the worker, the
library's fast queue, batch size, wait and timeout as tuned.
"""

# NOTE: no `from __future__ import annotations` here: LitServe reads signatures.

import json
import sys
from importlib import import_module
from typing import Annotated, Any

import numpy as np
from starlette.responses import Response

from serve.proto.names import BINARY_HEADER

litserve: Any = import_module("litserve")
fastapi: Any = import_module("fastapi")
_HOST = "127.0.0.1"


class LitServePeer(litserve.LitAPI):
    """Binary requests of the Open Inference Protocol, one sample each; first in, first out."""

    def __init__(self, order: dict[str, Any]) -> None:
        super().__init__(
            max_batch_size=order["max_batch_size"],
            batch_timeout=order["wait_s"],
            api_path=f"/v2/models/{order['model']}/infer",
        )
        self._graph, self._threads = order["graph"], order["threads"]
        self._shape = tuple(order["shape"])
        self._num_bytes = int(np.prod(self._shape))
        self._about = {"subnet": order["subnet"], "accuracy": order["accuracy"]}

    def setup(self, device: str) -> None:
        """Open the session, in the worker, and run it once at the largest batch."""
        runtime: Any = import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = self._threads
        self._session = runtime.InferenceSession(
            self._graph, options, providers=["CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0].name
        self.predict(np.zeros((self.max_batch_size, *self._shape), np.uint8))

    def decode_request(self, request: Annotated[bytes, fastapi.Body()]) -> np.ndarray:
        """Return the sample (C, H, W): the body ends with it."""
        return np.frombuffer(request[-self._num_bytes :], np.uint8).reshape(self._shape)

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        """Return (B, C, H, W)."""
        return np.stack(inputs)

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return (B, num_classes) logits; without batching x is one sample."""
        samples = x if x.ndim == len(self._shape) + 1 else x[None]
        return self._session.run(None, {self._input: samples})[0]

    def unbatch(self, output: np.ndarray) -> list[np.ndarray]:
        """Return the rows."""
        return list(output)

    def encode_response(self, output: np.ndarray) -> Response:
        """Return an answer in the protocol's binary form."""
        logits = np.ascontiguousarray(output, "<f4").tobytes()
        tensor = {
            "name": "logits", "datatype": "FP32", "shape": [1, output.size],
            "parameters": {"binary_data_size": len(logits)},
        }  # fmt: skip
        head = json.dumps({"outputs": [tensor], "parameters": self._about}).encode()
        return Response(head + logits, headers={BINARY_HEADER: str(len(head))})


def main() -> None:
    """Serve until a signal."""
    order = json.loads(sys.argv[1])
    timeout_s = order["timeout_s"]
    server = litserve.LitServer(
        LitServePeer(order),
        accelerator="cpu",
        timeout=False if timeout_s is None else timeout_s,
        fast_queue=True,
    )
    tensor = {"name": "input", "datatype": "UINT8", "shape": [-1, *order["shape"]]}
    model = {"name": order["model"], "inputs": [tensor]}
    about = {"name": "litserve", "extensions": ["binary_tensor_data"], "models": [order["model"]]}
    server.app.add_api_route("/v2", lambda: about)
    server.app.add_api_route(f"/v2/models/{order['model']}", lambda: model)
    server.run(host=_HOST, port=order["port"], generate_client_file=False, log_level="error")


if __name__ == "__main__":
    main()
