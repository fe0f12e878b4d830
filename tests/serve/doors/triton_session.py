"""What a user of tritonclient does, run in its own environment by test_clients_of_others.py.

`python -m ... HTTP_ADDRESS GRPC_ADDRESS` prints one JSON object of what the two clients saw.
"""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from PIL import Image

MODEL = "tiny"
BAD_SHAPE = (1, 1, 3, 3)


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (2, 2), value).save(file, "PNG")
    return file.getvalue()


def see(module: Any, client: Any) -> dict[str, Any]:
    """Use one client the way its documentation does."""
    tensor = module.InferInput("input", [2, 1, 2, 2], "UINT8")
    tensor.set_data_from_numpy(np.array([[[[1, 2], [0, 0]]], [[[7, 0], [0, 0]]]], dtype=np.uint8))
    images = module.InferInput("input", [2], "BYTES")
    images.set_data_from_numpy(np.array([png(1), png(2)], dtype=object))
    wanted = [module.InferRequestedOutput("logits")]
    answer = client.infer(MODEL, [tensor], request_id="q7", outputs=wanted)
    pinned = client.infer(MODEL, [tensor], model_version="small")
    decoded = client.infer(MODEL, [images])
    seen = {
        "is_live": client.is_server_live(),
        "is_ready": client.is_server_ready() and client.is_model_ready(MODEL, "small"),
        "labels": answer.as_numpy("logits").argmax(axis=1).tolist(),
        "image_labels": decoded.as_numpy("logits").argmax(axis=1).tolist(),
    }
    for name, options in {
        "timeout": {"timeout": 100},  # microseconds
        "unknown_model": {"model_name": "nobody"},
    }.items():
        seen[name] = refusal(module, client, [tensor], options)
    wrong = module.InferInput("input", list(BAD_SHAPE), "UINT8")
    wrong.set_data_from_numpy(np.zeros(BAD_SHAPE, dtype=np.uint8))
    seen["bad_tensor"] = refusal(module, client, [wrong], {})
    return {**seen, **described(module, client, answer, pinned)}


def described(module: Any, client: Any, answer: Any, pinned: Any) -> dict[str, Any]:
    """Return what differs in form between the two clients."""
    if module is triton_http:
        first, second = answer.get_response(), pinned.get_response()
        return {
            "id": first["id"],
            "parameters": first["parameters"],
            "pinned": second["model_version"],
            "versions": client.get_model_metadata(MODEL)["versions"],
            "max_batch_size": client.get_model_config(MODEL)["max_batch_size"],
            "served": served(client.get_inference_statistics(MODEL)["model_stats"]),
        }
    first, second = answer.get_response(as_json=False), pinned.get_response(as_json=False)
    statistics = client.get_inference_statistics(MODEL, as_json=True)["model_stats"]
    return {
        "id": first.id,
        "parameters": {
            k: getattr(v, v.WhichOneof("parameter_choice")) for k, v in first.parameters.items()
        },
        "pinned": second.model_version,
        "versions": list(client.get_model_metadata(MODEL).versions),
        "max_batch_size": client.get_model_config(MODEL).config.max_batch_size,
        "served": served(statistics),
    }


def served(rows: list[dict[str, Any]]) -> dict[str, int]:
    return {row.get("version", ""): int(row.get("inference_count", 0)) for row in rows}


def refusal(module: Any, client: Any, inputs: list[Any], options: dict[str, Any]) -> str:
    """Return what the client says of a request that must be refused."""
    try:
        client.infer(**{"model_name": MODEL, "inputs": inputs, **options})
    except module.InferenceServerException as error:
        return f"{error.status()}: {error.message()}"
    return "answered"


def main() -> None:
    http_address, grpc_address = sys.argv[1:]
    with triton_http.InferenceServerClient(http_address) as http:
        seen = {"http": see(triton_http, http)}
    with triton_grpc.InferenceServerClient(grpc_address) as grpc:
        seen["grpc"] = see(triton_grpc, grpc)
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
