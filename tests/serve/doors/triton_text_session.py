"""What a user of tritonclient does with a text model, run in its own environment by test_texts.py.

`python -m ... HTTP_ADDRESS GRPC_ADDRESS` reads a JSON list of texts (lists of token ids) and prints
one JSON object of what the two clients saw.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

MODEL = "texts"


def tensor_of(module: Any, ids: list[int]) -> Any:
    tensor = module.InferInput("input", [1, len(ids)], "INT64")
    tensor.set_data_from_numpy(np.array([ids], dtype=np.int64))
    return tensor


def see(module: Any, client: Any, texts: list[list[int]]) -> dict[str, Any]:
    """Ask for every text, all of them in flight at once."""
    if module is triton_http:
        pending = [client.async_infer(MODEL, [tensor_of(module, ids)]) for ids in texts]
        answers = [call.get_result() for call in pending]
        metadata = client.get_model_metadata(MODEL)
        datatype = metadata["inputs"][0]["datatype"]
    else:
        answers = [client.infer(MODEL, [tensor_of(module, ids)]) for ids in texts]
        datatype = client.get_model_metadata(MODEL).inputs[0].datatype
    try:
        client.infer(MODEL, [tensor_of(module, [5, 50_000])])
        refused = ""
    except Exception as error:
        refused = f"{error.status()}: {error.message()}"
    logits = [answer.as_numpy("logits")[0].tolist() for answer in answers]
    return {"logits": logits, "datatype": datatype, "refused": refused}


def main() -> None:
    http_address, grpc_address = sys.argv[1:]
    texts = json.load(sys.stdin)
    http = triton_http.InferenceServerClient(http_address, concurrency=8)
    grpc = triton_grpc.InferenceServerClient(grpc_address)
    print(
        json.dumps(
            {
                "http": see(triton_http, http, texts),
                "grpc": see(triton_grpc, grpc, texts),
            }
        )
    )


if __name__ == "__main__":
    main()
