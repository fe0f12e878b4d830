"""What a server says of its settings, over either protocol, and what none of ours says."""

from __future__ import annotations

import json

import pytest

from serve.client.info import ServerSettings, read_settings
from serve.client.rpc_answers import read_metadata

TOLD = {
    "policy": "slackfit@num_buckets=3",
    "slo_ms": 50.0,
    "max_batch_size": 4,
    "reply_allowance_ms": 2.0,
    "max_queue": 7,
    "drop_hopeless": False,
    "triage": False,
    "correct_latency": True,
    "of_a_later_version": 1,
}
READ = ServerSettings(
    policy="slackfit@num_buckets=3",
    slo_s=0.05,
    max_batch_size=4,
    reply_allowance_s=0.002,
    max_queue=7,
    drop_hopeless=False,
    triage=False,
    correct_latency=True,
)


def test_settings_are_read_from_metadata_and_from_a_trailer_of_texts():
    assert read_settings({"settings": TOLD}) == READ
    trailer = [("policy", "slackfit"), ("settings", json.dumps(TOLD)), ("input_range", "[0, 9]")]
    parameters = read_metadata([*trailer, ("pad_id", "?"), ("of-bytes-bin", b"1")])
    assert read_settings(parameters) == READ
    assert parameters["policy"] == "slackfit"
    assert parameters["input_range"] == [0, 9]
    assert parameters["pad_id"] == "?", "what is no JSON is left as it came"
    assert read_metadata(None) == {}


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"settings": None},
        {"settings": "{"},
        {"settings": ["max_queue"]},
        {"settings": {k: v for k, v in TOLD.items() if k != "max_queue"}},
        {"settings": TOLD | {"slo_ms": "soon"}},
        {"settings": TOLD | {"max_queue": float("inf")}},
        {"settings": "[" * 100_000},
    ],
)
def test_what_is_not_told_or_not_readable_is_not_guessed(parameters):
    assert read_settings(parameters) is None
