"""What users of tritonclient do with extensions, run in its own environment by test_extensions.py.

`python -m ... HTTP_ADDRESS GRPC_ADDRESS` prints one JSON object of what the two clients saw.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
import tritonclient.utils.shared_memory as shm

MODEL = "tiny"
SAMPLES = np.array([[[[1, 2], [0, 0]]], [[[7, 0], [0, 0]]]], dtype=np.uint8)  # (2, 1, 2, 2)
OUTPUT_BYTES = 2 * 10 * 4
OFFSET = 64


def tensor_of(module: Any, samples: np.ndarray = SAMPLES) -> Any:
    tensor = module.InferInput("input", list(samples.shape), "UINT8")
    tensor.set_data_from_numpy(samples)
    return tensor


def refused(call: Any, *arguments: Any, **options: Any) -> str:
    try:
        call(*arguments, **options)
    except Exception as error:  # of the client's: its status and text
        return f"{error.status()}: {error.message()}"
    return "answered"


def see_memory(module: Any, client: Any, kind: str) -> dict[str, Any]:
    """Share an input and an output, each at an offset of its own, as the documentation does."""
    client.unregister_system_shared_memory()
    client.unregister_cuda_shared_memory()
    key = f"/supernet_test_{os.getpid()}_{kind}"
    handle = shm.create_shared_memory_region("both", key, OFFSET + OUTPUT_BYTES)
    shm.set_shared_memory_region(handle, [SAMPLES])
    client.register_system_shared_memory("both", key, OFFSET + OUTPUT_BYTES)
    tensor = module.InferInput("input", list(SAMPLES.shape), "UINT8")
    tensor.set_shared_memory("both", SAMPLES.nbytes)
    wanted = module.InferRequestedOutput("logits")
    wanted.set_shared_memory("both", OUTPUT_BYTES, offset=OFFSET)
    answer = client.infer(MODEL, [tensor], outputs=[wanted])
    logits = shm.get_contents_as_numpy(handle, np.float32, [2, 10], offset=OFFSET)
    seen: dict[str, Any] = {
        "labels": logits.argmax(axis=1).tolist(),
        "sent": sent(answer),
        "input_only": client.infer(MODEL, [tensor]).as_numpy("logits").argmax(axis=1).tolist(),
        "status": status_of(client.get_system_shared_memory_status()),
        "twice": refused(client.register_system_shared_memory, "both", key, 8),
    }
    small = module.InferRequestedOutput("logits")
    small.set_shared_memory("both", 4)
    seen["small_output"] = refused(client.infer, MODEL, [tensor], outputs=[small])
    beyond = module.InferInput("input", list(SAMPLES.shape), "UINT8")
    beyond.set_shared_memory("both", SAMPLES.nbytes, offset=OFFSET + OUTPUT_BYTES)
    seen["beyond"] = refused(client.infer, MODEL, [beyond])
    seen["too_large"] = refused(client.register_system_shared_memory, "large", key, 1 << 20)
    seen["no_key"] = refused(client.register_system_shared_memory, "none", "/supernet_none", 8)
    seen["path"] = refused(client.register_system_shared_memory, "path", "../../etc/passwd", 8)
    shm.destroy_shared_memory_region(handle)
    seen["unlinked"] = refused(client.infer, MODEL, [tensor])
    client.unregister_system_shared_memory("both")
    seen["unregistered"] = refused(client.infer, MODEL, [tensor])
    seen["left"] = status_of(client.get_system_shared_memory_status())
    return seen


def sent(answer: Any) -> bool:
    """Whether an answer holds the output's bytes besides."""
    response = answer.get_response()
    if isinstance(response, dict):
        return "data" in response["outputs"][0]
    return bool(response.raw_output_contents)


def status_of(status: Any) -> list[Any]:
    if isinstance(status, list):
        return [[r["name"], r["offset"], r["byte_size"]] for r in status]
    return [[r.name, r.offset, r.byte_size] for r in status.regions.values()]


def see(module: Any, client: Any, kind: str) -> dict[str, Any]:
    tensor = tensor_of(module)
    classes = module.InferRequestedOutput("logits", class_count=3)
    answer = client.infer(MODEL, [tensor], outputs=[classes])
    seen = {
        "memory": see_memory(module, client, kind),
        "classes": [[text.decode() for text in row] for row in answer.as_numpy("logits")],
        "no_timeout": refused(client.infer, MODEL, [tensor], timeout=0),
        "sequence": refused(
            client.infer, MODEL, [tensor], sequence_id=7, sequence_start=True, sequence_end=True
        ),
        "load": refused(client.load_model, MODEL),
    }
    if module is triton_http:
        typed = module.InferRequestedOutput("logits", binary_data=False, class_count=2)
        texts = client.infer(MODEL, [tensor], outputs=[typed]).get_response()["outputs"][0]["data"]
        seen["typed_classes"] = texts
        for coding in ("gzip", "deflate"):
            option = {"request_compression_algorithm": coding}
            seen[coding] = refused(client.infer, MODEL, [tensor], **option)
        seen["trace"] = refused(client.get_trace_settings)
    return seen


def main() -> None:
    http_address, grpc_address = sys.argv[1:]
    with triton_http.InferenceServerClient(http_address) as http:
        seen = {"http": see(triton_http, http, "http")}
    with triton_grpc.InferenceServerClient(grpc_address) as grpc:
        seen["grpc"] = see(triton_grpc, grpc, "grpc")
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
