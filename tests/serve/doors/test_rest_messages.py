"""Messages of the HTTP door, read and written without one."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest

from serve.doors.rest_messages import BodyForm, build_response, parse_infer
from serve.engine.reply import Reply
from serve.models.limits import RefusedError
from serve.models.request import InferRequest, ModelSpec, WantedOutput
from slackfit.query import Outcome
from supernet.sample import SampleSpec


@pytest.mark.parametrize("request_id", [None, "q7", 'a"%s\u00e9'])
@pytest.mark.parametrize("status", ["on_time", "late"])
def test_the_answer_to_one_query_is_the_plain_ones_word_by_word(request_id, status: str):
    """The short way, against the one by dictionaries that several queries take."""
    spec = ModelSpec("m%", SampleSpec(shape=(1, 2, 2)), 10, 4, ("small",))
    outcome = Outcome(1, status, "", 0.1, 0.3, 0.15, 0.2, "d=%s", 0.9, 2, samples=2)
    logits = np.arange(20, dtype=np.float32).reshape(2, 10)
    reply = Reply(outcome, logits, 0.05, 17, "graph 100%")
    asked = InferRequest((), request_id, {}, WantedOutput(is_binary=True))
    body, length = build_response(asked, spec, "slackfit@x=1", [reply])
    assert length is not None
    plain = InferRequest((), request_id, {}, WantedOutput(is_binary=False))
    text, _ = build_response(plain, spec, "slackfit@x=1", [reply])
    expected = json.loads(text)
    del expected["outputs"][0]["data"]
    expected["outputs"][0]["parameters"] = {"binary_data_size": 80}
    assert body[:length].decode() == json.dumps(expected)
    assert np.frombuffer(body, "<f4", offset=length).tolist() == logits.ravel().tolist()


def test_a_head_that_comes_again_is_read_as_the_first_time():
    spec = ModelSpec("m", SampleSpec(shape=(1, 2, 2)), 10, 4, ("small",))
    shared = {"shape": [1, 1, 2, 2], "name": "input", "datatype": "UINT8"}
    fields = {
        "parameters": {"slo_ms": 50, "priority": 2},
        "inputs": [{**shared, "parameters": {"binary_data_size": 4}}],
    }
    text = json.dumps(fields).encode()
    form = BodyForm("", str(len(text)))
    for data in (b"abcd", b"efgh"):
        parsed = parse_infer(text + data, form, spec, max_json_bytes=1000)
        assert parsed.samples.tobytes() == data
        assert parsed.parameters == {"slo_ms": 50, "priority": 2}
        parsed.parameters["subnet"] = "small"  # as the door adds a version
    for wrong in (b"abc", b"abcde"):
        with pytest.raises(RefusedError, match="bytes follow the JSON"):
            parse_infer(text + wrong, form, spec, max_json_bytes=1000)


@pytest.mark.parametrize("kind", ["pixels", "ids", "nested ids"])
def test_a_text_among_numbers_takes_no_more_memory_than_it_has(kind: str):
    """NumPy gave each number of the tensor as much as the text: 60 kB took 100 MB."""
    text, count = "a" * 60_000, 400
    if kind == "pixels":
        sample, shape = SampleSpec(shape=(1, 20, 20)), [1, 1, 20, 20]
        data: list[Any] = [[[[text] + [1] * 19] + [[1] * 20] * 19]]
    else:
        sample, shape = SampleSpec(shape=(1,), dtype="int64", highest=99), [count]
        data = [text] + [1] * (count - 1)
        if kind == "nested ids":
            shape, data = [count, 1], [[value] for value in data]
    spec = ModelSpec("m", sample, 10, count, ("small",))
    tensor = {"name": "input", "datatype": spec.datatypes[0], "shape": shape, "data": data}
    body = json.dumps({"inputs": [tensor]}).encode()
    tracemalloc.start()
    try:
        with pytest.raises(RefusedError, match=f"something else than {count} whole numbers"):
            parse_infer(body, BodyForm(), spec, max_json_bytes=100_000)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 2**20


@pytest.mark.parametrize("data", [[True, 1], [1, 2.0], [[1], 2], [1, None], [1, 2**70], [1, 100]])
def test_ids_are_whole_numbers_and_nothing_else(data: list[Any]):
    spec = ModelSpec("m", SampleSpec(shape=(1,), dtype="int64", highest=99), 10, 4, ("small",))
    tensor = {"name": "input", "datatype": "INT64", "shape": [2], "data": data}
    with pytest.raises(RefusedError, match="something else than 2 whole numbers 0 to 99"):
        parse_infer(
            json.dumps({"inputs": [tensor]}).encode(), BodyForm(), spec, max_json_bytes=1000
        )
