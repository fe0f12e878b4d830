"""A text checkpoint, served: token ids over both doors, by our clients and by tritonclient."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from serve.cli import build_app
from serve.client import AsyncClient, Client, InferError
from supernet import (
    Checkpoint,
    InputSpec,
    ServedSubnet,
    define_supernet,
    extract,
    load_checkpoint,
    save_checkpoint,
)

VOCABULARY, LONGEST, PAD = 30522, 128, 0
SESSION = Path(__file__).with_name("triton_text_session.py")
RANGE = f"allowed 0 to {VOCABULARY - 1}"
OPTIONS = ("--threads", "1", "--slo-ms", "10000", "--policy", "fixed:largest")
HOSTS = [
    pytest.param(("--no-ray",), id="without-ray"),
    pytest.param((), id="on-ray", marks=[pytest.mark.ray, pytest.mark.slow]),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT of random weights that serves its smallest and its largest subnet."""
    torch.manual_seed(0)
    definition = define_supernet("bert_tiny")
    archs = (definition.space.smallest, definition.space.largest)
    checkpoint = Checkpoint(
        name="texts",
        definition=definition,
        input=InputSpec(
            channels=1, height=1, width=LONGEST, mean=(0.0,), std=(1.0,), kind="tokens"
        ),
        state=definition.build().state_dict(),
        norm_statistics={arch.subnet_id: {} for arch in archs},
        subnets=tuple(
            ServedSubnet(arch=arch, accuracy=accuracy, ci95=(0.0, 1.0), macs=macs, params=1)
            for arch, accuracy, macs in zip(archs, (0.6, 0.8), (1, 2), strict=True)
        ),
    )
    path = tmp_path_factory.mktemp("texts") / "checkpoint"
    save_checkpoint(checkpoint, path)
    return path


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """`oracle(ids)` is the plain forward of one text, int64 (N,), alone: (num_classes,) logits."""
    checkpoint = load_checkpoint(folder)
    arch = checkpoint.subnets[-1].arch
    net = extract(checkpoint.state, checkpoint.definition, arch, {})

    @torch.inference_mode()
    def forward(ids: np.ndarray) -> np.ndarray:
        return net(torch.from_numpy(ids[np.newaxis]))[0].numpy()

    return forward


def texts(rng: np.random.Generator) -> list[np.ndarray]:
    """Texts of many lengths whose ids come from the whole vocabulary; the pad is never one."""
    ids = [rng.integers(1, VOCABULARY, size) for size in (1, 3, 17, 64, LONGEST, 5, 5, 90)]
    ids[0][0] = VOCABULARY - 1
    assert all(text.max() > 255 for text in ids)
    return ids


@pytest.mark.parametrize("options", HOSTS)
def test_a_text_checkpoint_is_served_to_every_client(
    running_any,
    wire_python: str,
    folder: Path,
    oracle,
    rng,
    tmp_path: Path,
    options: tuple[str, ...],
) -> None:
    ids = texts(rng)
    expected = np.stack([oracle(text) for text in ids])
    with running_any("--checkpoint", str(folder), *OPTIONS, *options) as server:
        for url in (server.url, server.rpc_url):
            check_shared_batches(url, ids, expected)
            check_one_request(url, ids, expected)
            report = replay(url, tmp_path)
            assert report["outcomes"]["on_time"] == report["num_queries"] > 0, "of noise"
        check_json(server.url, ids, expected)
        check_metadata(server.url)
        done = subprocess.run(
            [wire_python, str(SESSION), server.address, server.rpc_address],
            input=json.dumps([text.tolist() for text in ids]),
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for seen in json.loads(done.stdout).values():
        np.testing.assert_allclose(seen["logits"], expected, rtol=1e-4, atol=1e-5)
        assert seen["datatype"] == "INT64"
        assert RANGE in seen["refused"]
        assert seen["refused"].startswith(("400", "StatusCode.INVALID_ARGUMENT"))


def check_shared_batches(url: str, ids: list[np.ndarray], expected: np.ndarray) -> None:
    """Texts that come together share a batch; a server that outruns its client has one at a time.

    So they are asked until it happens.
    """
    sizes: list[int] = []
    for _ in range(50):
        results = asyncio.run(ask_all_at_once(url, ids))
        logits = np.concatenate([result.logits for result in results])
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
        sizes += [result.batch_size for result in results]
        if max(sizes) > 1:
            return
    raise AssertionError(f"{len(sizes)} texts, asked eight at a time, shared no batch")


async def ask_all_at_once(url: str, ids: list[np.ndarray]) -> list[Any]:
    async with AsyncClient(url, model="texts") as client:
        return await asyncio.gather(*(client.infer(text) for text in ids))


def check_one_request(url: str, ids: list[np.ndarray], expected: np.ndarray) -> None:
    """One request of many texts, filled up by the client; and ids that are refused."""
    padded = np.full((len(ids), LONGEST), PAD, dtype=np.int32)
    for row, text in enumerate(ids):
        padded[row, : len(text)] = text
    with Client(url, model="texts") as client:
        logits = client.infer(padded).logits
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
        for wrong in (50_000, VOCABULARY, -1):
            with pytest.raises(InferError, match=RANGE) as caught:
                client.infer(np.array([5, wrong, 7]))
            assert caught.value.reason == "bad_tensor"
        with pytest.raises(InferError, match=f"N from 1 to {LONGEST}"):
            client.infer(np.ones(LONGEST + 1, dtype=np.int64))
        with pytest.raises(InferError, match="allowed 'INT64' or 'INT32'"):
            client.infer(np.zeros((3, 4, 4), dtype=np.uint8))


def replay(url: str, folder: Path) -> dict[str, Any]:
    command = [
        "replay", "--url", url, "--model", "texts",
        "--trace", "poisson:rate=20,duration=1", "--slo-ms", "5000", "--out", str(folder),
    ]  # fmt: skip
    done = CliRunner().invoke(build_app(command), command)
    assert done.exit_code == 0, done.output
    return json.loads((folder / "report.json").read_text())[0]


def check_json(url: str, ids: list[np.ndarray], expected: np.ndarray) -> None:
    infer = f"{url}/v2/models/texts/infer"

    def post(data: list[Any], datatype: str = "INT64") -> httpx.Response:
        shape = [1, len(data[0])] if isinstance(data[0], list) else [1, len(data)]
        tensor = {"name": "input", "datatype": datatype, "shape": shape, "data": data}
        return httpx.post(infer, json={"inputs": [tensor]}, timeout=30)

    text = ids[2].tolist()
    for data in (text, [text]):
        for datatype in ("INT32", "INT64"):
            (output,) = post(data, datatype).json()["outputs"]
            np.testing.assert_allclose(output["data"], expected[2], rtol=1e-4, atol=1e-5)
    for wrong in (50_000, -1, 2**70, 1.5, "7"):
        answer = post([5, wrong])
        assert answer.status_code == 400
        assert f"whole numbers 0 to {VOCABULARY - 1}" in answer.json()["error"]
    image = httpx.post(infer, content=b"x", headers={"content-type": "image/png"}, timeout=30)
    assert image.status_code == 400
    assert "token ids" in image.json()["error"]


def check_metadata(url: str) -> None:
    with Client(url, model="texts") as client:
        info = client.model_info("texts")
    assert (info.datatype, info.input_shape) == ("INT64", (-1,))
    assert info.parameters["input_range"] == [0, VOCABULARY - 1]
    assert (info.parameters["max_tokens"], info.parameters["pad_id"]) == (LONGEST, PAD)
