"""A model without classes says so at every door, and is not asked for classes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from serve.config import parse_config
from serve.doors import rest_messages, rpc_messages
from serve.doors.rest_messages import BodyForm, parse_infer
from serve.hosts.load_device import load
from serve.link.wire import unpack_spec
from serve.models.limits import RefusedError
from serve.models.request import ModelSpec
from serve.proto import open_inference_pb2 as pb
from slackfit.profile import LatencyProfile, ProfileError
from subnetact import load_executor
from subnetact.profiling.profiler import measure_profile
from supernet import define_supernet, load_checkpoint, save_checkpoint
from supernet.sample import SampleSpec
from supernet.weights.import_network import imported_checkpoint
from tests.serve.conftest import make_profile

SPEC = ModelSpec("tower", SampleSpec(shape=(1, 2, 2)), 12, 4, ("small",), output_kind="embedding")
CLASSES = SPEC._replace(output_kind="logits")


def http_body(count: int) -> tuple[bytes, BodyForm]:
    fields = {
        "inputs": [{"name": "input", "datatype": "UINT8", "shape": [1, 1, 2, 2], "data": [0] * 4}],
        "outputs": [{"name": "logits", "parameters": {"classification": count}}],
    }
    return json.dumps(fields).encode(), BodyForm("application/json", None)


def grpc_message(count: int) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="tower", raw_input_contents=[bytes(4)])
    message.inputs.add(name="input", datatype="UINT8", shape=[1, 1, 2, 2])
    output = message.outputs.add(name="logits")
    output.parameters["classification"].int64_param = count
    return message


def test_metadata_and_configuration_say_what_the_numbers_are() -> None:
    for spec, kind in ((SPEC, "embedding"), (CLASSES, "logits")):
        told = rest_messages.model_metadata(spec, "slackfit")
        assert told["parameters"]["output_kind"] == kind
        assert told["outputs"][0]["shape"] == [-1, 12]
        config = rest_messages.model_config(spec, "slackfit")
        assert config["parameters"]["output_kind"] == {"string_value": kind}
        parameters = rpc_messages.model_config(spec, "slackfit").config.parameters
        assert parameters["output_kind"].string_value == kind


def test_classes_of_an_embedding_are_refused() -> None:
    body, form = http_body(3)
    assert parse_infer(body, form, CLASSES, max_json_bytes=1000).output.class_count == 3
    said = "classification: tower has no classes, it gives embeddings of 12 numbers"
    with pytest.raises(RefusedError, match=said) as refused:
        parse_infer(body, form, SPEC, max_json_bytes=1000)
    assert refused.value.reason == "bad_request"
    message = grpc_message(3)
    assert rpc_messages.parse_infer(message, CLASSES, max_json_bytes=1000).output.class_count == 3
    with pytest.raises(RefusedError, match=said):
        rpc_messages.parse_infer(message, SPEC, max_json_bytes=1000)


def test_a_door_in_a_process_of_its_own_knows_it_too() -> None:
    fields = {**SPEC._asdict(), "sample": {"shape": [1, 2, 2]}}
    assert unpack_spec(json.loads(json.dumps(fields))) == SPEC


def test_a_profile_keeps_it() -> None:
    profile = replace(make_profile(), output_kind="embedding")
    assert profile.to_json()["output_kind"] == "embedding"
    assert LatencyProfile.from_json(profile.to_json()).output_kind == "embedding"
    assert "output_kind" not in make_profile().to_json(), "nobody said"
    with pytest.raises(ProfileError, match="output_kind is 'words', allowed logits, embedding"):
        LatencyProfile.from_json({**profile.to_json(), "output_kind": "words"})


def test_a_profile_of_before_is_told_by_the_checkpoint(tmp_path: Path) -> None:
    definition = define_supernet(
        "vit_small_patch14_dinov2", resolution=28, width=48, num_heads=3, heads_choices=(1, 2, 3),
        depth=2, depth_choices=(1, 2),
    )  # fmt: skip
    imported = imported_checkpoint(
        definition, definition.build().state_dict(), name="tower", origin="timm"
    )
    save_checkpoint(imported, tmp_path / "tower")
    tower = load_checkpoint(tmp_path / "tower")
    executor = load_executor(tower, threads=1, max_batch_size=1)
    measured = measure_profile(executor, tower, batch_sizes=(1,), repeats=1)
    executor.close()
    assert measured.output_kind == "embedding"
    replace(measured, output_kind="").save(tmp_path / "profile.json")
    fields = {"checkpoint": str(tmp_path / "tower"), "profile": str(tmp_path / "profile.json")}
    loaded = load(parse_config({**fields, "threads": 1}))
    loaded.executor.close()
    assert loaded.profile.output_kind == "embedding"
