"""A graph's checkpoint, served: node ids over both doors, refused where there is no such node."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from serve.cli import build_app
from serve.client import Client, InferError
from slackfit.profile import LatencyProfile
from subnetact import load_executor, measure_profile
from supernet import (
    Checkpoint,
    InputSpec,
    ServedSubnet,
    cost,
    define_supernet,
    load_checkpoint,
    save_checkpoint,
)
from supernet.graphs.generated import power_law
from supernet.graphs.graph_folder import GraphFolder
from supernet.spec import parse_arch

NUM_NODES = 3000
HIGHEST = NUM_NODES - 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights on a skewed graph, with payloads to replay."""
    path = tmp_path_factory.mktemp("nodes") / "checkpoint"
    graph = power_law(num_nodes=NUM_NODES, num_edges=24_000, num_features=16).save(path / "graph")
    definition = define_supernet("graph_sage", num_features=16, num_classes=8, width=16)
    torch.manual_seed(0)
    archs = [parse_arch(text, definition.space) for text in ("d=0", "d=1,f=10", "d=2,f=all")]
    checkpoint = Checkpoint(
        name="scorer",
        definition=definition,
        input=InputSpec(channels=1, height=1, width=1, mean=(0.0,), std=(1.0,), kind="nodes"),
        state=definition.build().state_dict(),
        norm_statistics={},
        subnets=tuple(
            ServedSubnet(arch=a, accuracy=acc, ci95=(0, 1), **cost(definition, a)._asdict())
            for a, acc in zip(archs, (0.6, 0.7, 0.8), strict=True)
        ),
        graph=GraphFolder(folder=path / "graph", num_nodes=graph.num_nodes, digest=graph.digest()),
    )
    save_checkpoint(checkpoint, path)
    nodes = np.arange(0, NUM_NODES, 7)
    (path / "replay").mkdir()
    np.save(path / "replay" / "images.npy", nodes[:, None])
    executor = load_executor(path, max_batch_size=len(nodes))
    largest = executor.run(archs[-1].subnet_id, nodes[:, None])
    np.save(path / "replay" / "labels.npy", largest.argmax(1).astype(np.int64))
    return path


@pytest.fixture(scope="module")
def profile(folder: Path) -> LatencyProfile:
    executor = load_executor(folder, max_batch_size=8)
    return measure_profile(executor, load_checkpoint(folder), batch_sizes=(1, 2, 4, 8), repeats=3)


def test_a_profile_of_nodes_knows_their_work(folder: Path, profile: LatencyProfile) -> None:
    assert profile.work is not None
    assert len(profile.work.bounds) >= 3
    described = json.loads(Path("docs/schemas/profile.schema.json").read_text())
    jsonschema.validate(profile.to_json(), described)
    whole = json.loads(Path("docs/schemas/checkpoint.schema.json").read_text())
    for name in ("supernet.json", "accuracy.json"):
        part = {"$defs": whole["$defs"], "$ref": f"#/$defs/{name}"}
        jsonschema.validate(json.loads((folder / name).read_text()), part)
    largest = profile.subnet_ids[-1]
    light, heavy = profile.for_bucket(0), profile.for_bucket(profile.work.num_buckets - 1)
    assert heavy.latency_s(largest, 8) > light.latency_s(largest, 8)


def test_nodes_are_served_over_both_doors_and_replayed(
    folder: Path, profile: LatencyProfile, tmp_path: Path, running_any: Callable[..., Any]
) -> None:
    profile.save(tmp_path / "p.json")
    options = ("--checkpoint", str(folder), "--profile", str(tmp_path / "p.json"), "--no-ray",
               "--threads", "1", "--slo-ms", "10000")  # fmt: skip
    executor = load_executor(folder, max_batch_size=8)
    nodes = np.array([5, HIGHEST, 0, 5])
    whole = executor.subnet_ids[-1]
    expected = executor.run(whole, nodes[:, None])
    with running_any(*options) as server:
        for url in (server.url, server.rpc_url):
            with Client(url, model="scorer") as client:
                reply = client.infer(nodes[:, None], min_accuracy=0.75)
                assert reply.subnet_id == whole
                np.testing.assert_allclose(reply.logits, expected, rtol=1e-4, atol=1e-5)
                with pytest.raises(InferError, match=f"3000.*allowed 0 to {HIGHEST}"):
                    client.infer(np.array([NUM_NODES]))
                with pytest.raises(InferError, match=f"-1.*allowed 0 to {HIGHEST}"):
                    client.infer(np.array([[-1]]))
        _check_json(server.url, expected)
        out = tmp_path / "replay"
        command = ["replay", "--trace", "poisson:rate=40,duration=1", "--url", server.url, "--out",
                   str(out), "--slo-ms", "5000", "--data", str(folder / "replay")]  # fmt: skip
        run = CliRunner().invoke(build_app(["replay"]), command)
        assert run.exit_code == 0, run.output
        (report,) = json.loads((out / "report.json").read_text())
        assert report["slo_attainment"] > 0.9
        assert 0.0 < report["measured_accuracy"] <= 1.0


def _check_json(url: str, expected: np.ndarray) -> None:
    infer = f"{url}/v2/models/scorer/infer"

    def body(shape: list[int], data: list[Any], datatype: str = "INT64") -> dict[str, Any]:
        tensor = {"name": "input", "datatype": datatype, "shape": shape, "data": data}
        return {"inputs": [tensor], "parameters": {"min_accuracy": 0.75}}

    nodes = [5, HIGHEST, 0, 5]
    for request in (body([4], nodes), body([4, 1], nodes), body([4, 1], [[n] for n in nodes])):
        reply = httpx.post(infer, json=request)
        assert reply.status_code == 200, reply.text
        logits = np.array(reply.json()["outputs"][0]["data"]).reshape(4, -1)
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    for wrong in (
        body([1], [NUM_NODES]),
        body([1], [-3]),
        body([1], [0.5]),
        body([1, 2], [1, 2]),
        body([1], [1], "UINT8"),
    ):
        reply = httpx.post(infer, json=wrong)
        assert reply.status_code == 400, reply.text
    assert f"whole numbers 0 to {HIGHEST}" in httpx.post(infer, json=body([1], [NUM_NODES])).text
    metadata = httpx.get(f"{url}/v2/models/scorer").json()
    assert metadata["inputs"][0]["datatype"] == "INT64"
    assert metadata["inputs"][0]["shape"] == [-1, 1]
