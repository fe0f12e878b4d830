"""Extensions of the protocol that tritonclient uses: served, or refused by their names."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.alone

SESSION = Path(__file__).with_name("triton_extensions_session.py")


@pytest.fixture(scope="module")
def seen(running, tmp_path_factory, wire_python: str) -> dict[str, Any]:
    from tests.serve.conftest import make_profile

    profile_file = tmp_path_factory.mktemp("profile") / "profile.json"
    make_profile().save(profile_file)
    with running(profile_file, "--no-ray", "--slo-ms", "2000", "--policy", "slackfit") as server:
        done = subprocess.run(
            [wire_python, str(SESSION), server.address, server.rpc_address],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


DOORS = pytest.mark.parametrize("door", ["http", "grpc"])
BAD = {"http": "400: ", "grpc": "StatusCode.INVALID_ARGUMENT: "}


@DOORS
def test_tensors_in_shared_memory_are_read_and_written(seen, door: str):
    memory = seen[door]["memory"]
    assert memory["labels"] == memory["input_only"] == [3, 7]
    assert not memory["sent"]
    assert memory["status"] == [["both", 0, 144]]
    assert memory["left"] == []


@DOORS
@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("twice", "is registered already"),
        ("small_output", "shared_memory_byte_size is 4, the output needs 80"),
        ("beyond", "bytes 144 to 152 of region 'both' are named, which has 144"),
        ("too_large", "has 144 bytes, the region needs 1048576"),
        ("no_key", "'/supernet_none' can't be opened: No such file"),
        ("path", "key is '../../etc/passwd', allowed the name of a shared memory object"),
        ("unlinked", "can't be opened: No such file"),
        ("unregistered", "region 'both' is not registered, registered: none"),
    ],
)
def test_memory_that_is_not_there_is_one_clear_refusal(seen, door: str, case: str, text: str):
    found = seen[door]["memory"][case]
    assert found.startswith(BAD[door])
    assert text in found


@DOORS
def test_classes_are_values_with_their_index_highest_first(seen, door: str):
    first, second = seen[door]["classes"]
    assert first[0] == "1.000000:3"
    assert second == ["1.000000:7", "0.000000:0", "0.000000:1"]


def test_classes_in_json_are_texts(seen):
    assert seen["http"]["typed_classes"] == ["1.000000:3", "0.000000:0", "1.000000:7", "0.000000:0"]


@DOORS
def test_a_timeout_of_zero_is_none(seen, door: str):
    assert seen[door]["no_timeout"] == "answered"


@DOORS
def test_parameters_that_are_not_served_are_refused_by_name(seen, door: str):
    found = seen[door]["sequence"]
    assert found.startswith(BAD[door])
    assert "sequence_id" in found


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_an_encoded_body_is_refused_as_such(seen, coding: str):
    """It had been "utf-8 codec can't decode byte 0x8b"."""
    assert seen["http"][coding].startswith(f"415: Content-Encoding is '{coding}', allowed identity")


def test_routes_that_are_not_served_say_so_in_the_protocols_form(seen):
    """The client had said: Parse error at offset 1."""
    assert seen["http"]["load"].startswith("404: /v2/repository/models/tiny/load is not served")
    assert seen["http"]["trace"].startswith("404: /v2/trace/setting is not served here")
    assert seen["grpc"]["load"].startswith("StatusCode.UNIMPLEMENTED")
