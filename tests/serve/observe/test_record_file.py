"""The record of a scheduler's calls on a disk that fills up: it ends, serving goes on."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from serve.config import ServeConfigError
from serve.observe.record_file import RecordFile

URL = "/v2/models/tiny/infer"
BODY = {"inputs": [{"name": "input", "datatype": "UINT8", "shape": [1, 1, 2, 2], "data": [0] * 4}]}


def test_lines_are_in_the_file_once_it_is_closed(tmp_path: Path):
    file = RecordFile(str(tmp_path / "log.jsonl"))
    for number in range(10_000):
        file.write(json.dumps({"line": number}) + "\n")
    file.close()
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in lines] == list(range(10_000))


def test_a_path_that_cannot_be_opened_is_named_at_once(tmp_path: Path):
    with pytest.raises(ServeConfigError, match=r"record .*nowhere.*: can't be written"):
        RecordFile(str(tmp_path / "nowhere" / "log.jsonl"))


_FILLS_UP = """
import json, sys
from serve.observe.record_file import RecordFile
file = RecordFile(sys.argv[1])
for number in range(20_000):
    file.write(json.dumps({"line": number}) + chr(10))
file.close()
"""


def test_a_full_disk_leaves_whole_lines_and_says_so_once(tmp_path: Path):
    """The limit on the size of files stands in for the disk: writes beyond it fail half-way."""
    path = tmp_path / "log.jsonl"

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))

    run = subprocess.run(
        [sys.executable, "-c", _FILLS_UP, str(path)],
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stderr.count("recording stops here") == 1
    lines = path.read_text().splitlines()
    assert [json.loads(line)["line"] for line in lines] == list(range(len(lines)))
    assert 60_000 < path.stat().st_size < 150_000


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_server_whose_record_is_full_serves_on(serve_timed, caplog):
    """An OSError under the engine's lock had ended the device thread: `device_failed` for all."""

    async def main() -> list[int]:
        async with serve_timed(record="/dev/full", log_queries="none") as client:
            codes = [(await client.post(URL, json=BODY)).status_code for _ in range(200)]
            return [*codes, (await client.get("/v2/health/live")).status_code]

    assert set(asyncio.run(main())) == {200}
    assert caplog.text.count("recording stops here") == 1
