"""`supernet replay` of streams, open loop: our server, and others of the same protocol."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from serve.cli import build_app
from serve.client.rest_answers import ClientError
from serve.client.streams.openai_target import EventReader, OpenAITarget
from serve.commands.stream_replay import send_streams
from slackfit.streams.stream_query import StreamQuery
from traces.open_loop.stream_replay import SeenStream, as_client_saw
from traces.open_loop.stream_target import StreamEnd, StreamModel

TRACE = "arrival_s,prompt_tokens,output_tokens\n" + "".join(
    f"{0.02 * i:.3f},{5 + 40 * (i % 3)},{4 + i % 5}\n" for i in range(30)
)


def test_a_replay_notes_every_chunk_and_judges_by_intended_send(
    serve_streams: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "trace.csv").write_text(TRACE)

    async def main() -> tuple[Any, dict[str, int]]:
        async with serve_streams(policy="fixed:smallest") as streams:
            arguments = [
                "replay", "--trace", str(tmp_path / "trace.csv"), "--url", streams.url,
                "--ttft-ms", "2000", "--tpot-ms", "500", "--out", str(tmp_path / "run"),
            ]  # fmt: skip
            result = await asyncio.to_thread(CliRunner().invoke, build_app(arguments), arguments)
            return result, streams.decoder.engine.status().ended

    result, ended = asyncio.run(main())
    assert result.exit_code == 0, result.output
    assert ended == {"on_time": 30}
    assert "30 on_time" in result.output
    (report,) = json.loads((tmp_path / "run/report.json").read_text())
    outputs = sum(4 + i % 5 for i in range(30))
    assert (report["kind"], report["slo_attainment"]) == ("streams", 1.0)
    assert report["streams"]["outputs"] == outputs
    assert report["streams"]["server_fluidity"] == 1.0
    assert report["policy"] == "fixed:smallest"
    (width,) = report["subnets"]
    quality = report["streams"]["mean_quality"]
    assert report["subnets"][width]["accuracy"] == pytest.approx(quality)
    assert quality < 1.0
    chunks = pq.read_table(tmp_path / "run/chunks.parquet").to_pylist()
    assert sum(row["tokens"] for row in chunks) == outputs
    assert all(row["intended_s"] <= row["sent_s"] <= row["chunk_s"] for row in chunks)
    page = (tmp_path / "run/report.html").read_text()
    assert "Outputs per second" in page


def test_refusals_and_torn_streams_are_told_apart(serve_streams: Callable[..., Any]) -> None:
    async def main() -> list[SeenStream]:
        async with serve_streams(kv_tokens=640) as streams:
            queries = [
                StreamQuery(0, 0.0, 600, 100, 2.0, 0.5),  # longer than may be
                StreamQuery(1, 0.0, 10, 3, 2.0, 0.5),
                StreamQuery(2, 0.0, 10, 600, 2.0, 0.5),  # still runs when the server goes
            ]
            sending = asyncio.ensure_future(send_streams(queries, streams.url))
            await asyncio.sleep(0.5)
            await streams.server.models.stop()
            return (await sending)[1]

    seen = asyncio.run(main())
    assert [stream.end.status for stream in seen] == ["rejected", "ok", "dropped"]
    assert [stream.end.reason for stream in seen] == ["context_length_exceeded", "", "draining"]
    assert seen[2].chunks


def test_a_late_client_time_is_late_whatever_the_server_says() -> None:
    query = StreamQuery(0, 1.0, 5, 3, 1.5, 0.1)
    chunks = [(1.4, 1), (1.85, 2)]
    seen = SeenStream(query, 1.0, chunks, StreamEnd("ok", "", (("a", 1), ("b", 2)), 1.0), 1.9)
    model = StreamModel("lm", 256, qualities={"a": 0.5, "b": 1.0})
    outcome = as_client_saw(seen, model)
    assert outcome.output_s == (1.4, 1.85, 1.85)
    assert (outcome.status, outcome.qualities) == ("late", (0.5, 1.0, 1.0))
    assert outcome.missed == 3  # due at 1.6: three periods went by empty
    other = as_client_saw(seen, StreamModel("gpt", 256))
    assert other.qualities == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("lines", "counts", "status"),
    [
        (  # a server that counts nothing but at the end
            ['{"choices":[{"text":"a"}]}', '{"choices":[{"text":"b"}]}', ": ping",
             '{"choices":[{"text":"","finish_reason":"length"}]}',
             '{"choices":[],"usage":{"completion_tokens":2}}', "[DONE]"],
            [1, 1], "ok",
        ),
        (  # one that counts in each
            ['{"choices":[{"text":"ab"}],"usage":{"completion_tokens":3}}',
             '{"choices":[{"text":"","finish_reason":"stop"}],"usage":{"completion_tokens":3}}'],
            [3], "ok",
        ),
        (['{"choices":[{"text":"a"}]}'], [1], "failed"),
        (['{"choices":[{"text":"a"}]}', '{"error":{"code":"expired"}}'], [1], "dropped"),
        (['{"error":{"type":"server_error","code":"internal"}}'], [], "failed"),
    ],
)  # fmt: skip
def test_events_of_any_server_are_counted(lines: list[str], counts: list[int], status: str) -> None:
    told: list[int] = []
    reader = EventReader(told.append)
    for line in lines:
        text = line if line.startswith(":") else f"data: {line}"
        if reader.take(f"{text}\n".encode()):
            break
    assert (told, reader.end().status) == (counts, status)


def test_what_is_no_such_server_is_said(serve_streams: Callable[..., Any]) -> None:
    async def main() -> None:
        with pytest.raises(ClientError, match="can't be reached"):
            await OpenAITarget.open("127.0.0.1:1")
        async with serve_streams() as streams:
            with pytest.raises(ClientError, match="served: lm"):
                await OpenAITarget.open(streams.url, "other")

    asyncio.run(main())


def test_options_of_queries_are_refused_for_streams(tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text(TRACE)
    common = ["replay", "--trace", str(tmp_path / "trace.csv"), "--url", "x", "--out", "y"]
    for more, word in (
        (["--ttft-ms", "100"], "--tpot-ms"),
        (["--ttft-ms", "100", "--tpot-ms", "10", "--slo-ms", "5"], "--slo-ms"),
    ):
        arguments = [*common, *more]
        result = CliRunner().invoke(build_app(arguments), arguments)
        assert result.exit_code == 2, result.output
        assert word in result.output
