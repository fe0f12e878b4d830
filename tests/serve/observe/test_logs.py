"""Structured logs: which queries get a line, what it says, and how many there are at most."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import httpx
import numpy as np
import pytest

from serve.commands.serve_command import serve
from serve.doors.headers import RequestIds
from serve.engine.reply import Reply
from serve.observe.logs import JsonFormatter, QueryLog, TextFormatter, configure_logs, query_logger
from serve.observe.request_record import RequestRecord
from slackfit.query import Outcome

LOGITS = np.zeros(10, dtype=np.float32)
INFER = "/v2/models/tiny/infer"
BODY = {
    "id": "mine",
    "inputs": [{"name": "input", "datatype": "UINT8", "shape": [1, 1, 2, 2], "data": [0] * 4}],
}


def outcome(status: str, reason: str = "") -> Outcome:
    if status in ("on_time", "late"):
        finish_s = 1.02 if status == "on_time" else 1.2
        return Outcome(7, status, reason, 1.0, 1.1, 1.005, finish_s, "large", 0.9, 2)
    return Outcome(7, status, reason, 1.0, 1.1, None, 1.01, None, 0.0, 0)


def entry(*outcomes: Outcome) -> RequestRecord:
    replies = [Reply(o, LOGITS if o.start_s is not None else None, 0.015, 3) for o in outcomes]
    return RequestRecord("tiny", "r-1", "mine", {}, 1.0, 1.001, 1.02, replies)


@pytest.fixture
def lines() -> Iterator[list[logging.LogRecord]]:
    kept: list[logging.LogRecord] = []

    class Keeping(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            kept.append(record)

    handler = Keeping()
    level = query_logger.level
    query_logger.addHandler(handler)
    query_logger.setLevel(logging.INFO)
    yield kept
    query_logger.removeHandler(handler)
    query_logger.setLevel(level)


@pytest.mark.parametrize(
    ("what", "logged"),
    [("none", []), ("misses", ["late", "dropped"]), ("all", ["on_time", "late", "dropped"])],
)
def test_the_setting_says_which_queries_get_a_line(what, logged, lines):
    log = QueryLog(what, 10.0, lambda: 0.0)
    for each in (outcome("on_time"), outcome("late"), outcome("dropped", "expired")):
        log(entry(each))
    assert [line.facts["status"] for line in lines] == logged


def test_a_request_is_as_good_as_its_worst_sample_and_names_the_cause(lines):
    log = QueryLog("misses", 10.0, lambda: 0.0)
    withdrawn, cause = outcome("dropped", "cancelled"), outcome("rejected", "queue_full")
    log(entry(outcome("on_time"), withdrawn, cause))
    assert (lines[0].facts["status"], lines[0].facts["reason"]) == ("rejected", "queue_full")


def test_a_client_that_went_away_is_a_line(lines):
    QueryLog("misses", 10.0, lambda: 0.0)(entry())
    assert lines[0].facts["reason"] == "cancelled"


def test_lines_are_bounded_and_the_next_one_says_how_many_were_left_out(lines):
    now_s = 0.0
    log = QueryLog("misses", 2.0, lambda: now_s)
    for _ in range(100):
        log(entry(outcome("late")))
    assert len(lines) == 2
    now_s = 0.5
    log(entry(outcome("late")))
    log(entry(outcome("late")))
    assert [line.facts.get("left_out") for line in lines] == [None, None, 98]


def record(**facts: object) -> logging.LogRecord:
    made = logging.LogRecord("serve.queries", logging.INFO, "", 0, "query %s", ("late",), None)
    made.facts = facts
    return made


def test_json_lines_hold_the_facts_as_values():
    line = JsonFormatter().format(record(**entry(outcome("late")).facts()))
    fields = json.loads(line)
    assert datetime.fromisoformat(fields.pop("time")).tzinfo is not None
    assert fields == {
        "level": "info", "logger": "serve.queries", "message": "query late", "model": "tiny",
        "request_id": "r-1", "id": "mine", "query_id": 7, "status": "late", "subnet": "large",
        "accuracy": 0.9, "batch_size": 2, "queue_ms": 5.0, "execution_ms": 195.0,
        "latency_ms": 200.0, "slack_ms": -100.0,
    }  # fmt: skip


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
def test_what_a_client_sends_stays_on_its_line(formatter: logging.Formatter):
    line = formatter.format(record(id="a\nWARNING forged: line", other='say "yes"'))
    assert len(line.splitlines()) == 1
    assert line.startswith(("{", "INFO serve.queries: query late id="))


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
def test_exceptions_come_with_their_traceback(formatter: logging.Formatter):
    made = record()
    error = ValueError("poison")
    made.exc_info = (ValueError, error, None)
    assert "poison" in formatter.format(made)


def test_configuring_twice_leaves_one_handler():
    root = logging.getLogger()
    before, level = root.handlers[:], query_logger.level
    first, second = io.StringIO(), io.StringIO()
    try:
        configure_logs("text", first)
        configure_logs("json", second)
        logging.getLogger("serve.test").warning("hello")
    finally:
        root.handlers[:] = before
        query_logger.setLevel(level)
    assert first.getvalue() == ""
    assert json.loads(second.getvalue())["message"] == "hello"


def test_the_command_line_chooses_the_format(
    profile_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    root = logging.getLogger()
    before, level = root.handlers[:], query_logger.level

    def serving(_: object) -> None:
        logging.getLogger("serve.test").warning("it is up")

    monkeypatch.setattr("serve.hosts.uvicorn_host.serve_forever", serving)
    try:
        serve(profile=[str(profile_file)], device="timed", no_ray=True, log_format="json")
    finally:
        root.handlers[:] = before
        query_logger.setLevel(level)
    assert json.loads(capsys.readouterr().err)["message"] == "it is up"
    with pytest.raises(SystemExit):
        serve(profile=[str(profile_file)], device="timed", no_ray=True, log_format="xml")
    assert "log_format: Input should be 'text' or 'json', got 'xml'" in capsys.readouterr().err


def test_ids_of_clients_are_kept_if_they_are_fit_for_a_log():
    ids = RequestIds("ab12")
    assert ids.give("order/17:2") == "order/17:2"
    for unfit in (None, "", "two words", "line\nbreak", "x" * 129, "\u00e9"):
        assert ids.give(unfit).startswith("ab12-")
    assert ids.give(None) != ids.give(None)


def test_a_refused_query_is_logged_under_the_id_that_its_answer_names(serve_timed, lines):
    async def main() -> list[httpx.Response]:
        async with serve_timed(log_queries="misses") as client:
            return [
                await client.post(INFER, json=BODY, headers={"x-request-id": "good"}),
                await client.post(
                    INFER, json=BODY, headers={"x-request-id": "late-1", "x-slo-ms": "0.1"}
                ),
                await client.get("/v2"),
            ]

    answers = asyncio.run(main())
    assert [a.headers["x-request-id"] for a in answers[:2]] == ["good", "late-1"]
    assert answers[2].headers["x-request-id"].endswith("-0")
    (line,) = lines
    assert line.facts["request_id"] == "late-1"
    assert line.facts["id"] == "mine"
    assert (line.facts["status"], line.facts["reason"]) == ("rejected", "infeasible")


def test_what_clients_and_models_write_is_cut_in_a_line():
    """A request's own id had gone into every line whole: 3 MB of it, ten times a second."""
    outcome = Outcome(0, "failed", "x" * 10_000, 0.0, 0.1, 0.0, 0.2, "large", 0.9, 1)
    record = RequestRecord(
        "tiny", "r", "i" * 3_000_000, {}, 0.0, 0.0, 0.2, [Reply(outcome)]
    )  # fmt: skip
    facts = record.facts()
    assert facts["id"] == "i" * 128
    assert facts["reason"] == "x" * 128
