"""The client for people against a real server process, over HTTP and gRPC, waiting and awaited."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serve.client import AsyncClient, Client
from serve.client import errors as errors
from serve.client.errors import InferError, refusal_error
from serve.client.rest_answers import ClientError, Refusal
from serve.models.limits import REASONS

pytestmark = pytest.mark.alone

NO_HURRY_MS = 20_000.0  # nothing here may fail for a slow machine


@pytest.fixture(scope="module")
def server(running, profile, tmp_path_factory) -> Iterator[Any]:
    path = tmp_path_factory.mktemp("client") / "profile.json"
    profile.save(path)
    slo_ms = str(NO_HURRY_MS)
    with running(path, "--no-ray", "--slo-ms", slo_ms, "--set", "max_body_bytes=4096") as process:
        yield process


def sync_call(url: str, use: Callable[[Any], Any], **options: Any) -> Any:
    """Return `use(client)` of a client that waits."""
    with Client(url, "tiny", **options) as client:
        return use(client)


def async_call(url: str, use: Callable[[Any], Any], **options: Any) -> Any:
    """Return `use(client)` of a client that is awaited."""

    async def main() -> Any:
        async with AsyncClient(url, "tiny", **options) as client:
            return await use(client)

    return asyncio.run(main())


CALLS = [
    pytest.param(("url", sync_call, {}), id="http"),
    pytest.param(("url", sync_call, {"is_json": True}), id="http-json"),
    pytest.param(("url", async_call, {}), id="http-async"),
    pytest.param(("rpc_url", sync_call, {}), id="grpc"),
    pytest.param(("rpc_url", async_call, {}), id="grpc-async"),
]


@pytest.fixture(params=CALLS)
def call(request, server) -> Callable[..., Any]:
    """`call(use, **options)` is what `use` makes of each kind of client."""
    name, how, given = request.param
    return lambda use, **options: how(getattr(server, name), use, **(given | options))


def images(*values: int) -> np.ndarray:
    """Samples whose answer by the timed device is their value (its sum, mod 10)."""
    batch = np.zeros((len(values), 1, 2, 2), dtype=np.uint8)
    batch[:, 0, 0, 0] = values
    return batch


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(images(value)[0, 0]).save(file, "PNG")
    return file.getvalue()


def test_result_says_what_was_answered_by_whom_and_when(call):
    result = call(lambda client: client.infer(images(3, 1, 4)))
    assert result.labels.tolist() == [3, 1, 4]
    assert (result.logits.dtype, result.logits.shape) == (np.float32, (3, 10))
    assert (result.subnet_id, result.accuracy, result.policy) == ("large", 0.9, "drainfit")
    assert result.execution_s >= 0.004
    assert 0 < result.queue_s + result.execution_s <= result.latency_s
    assert 0 < result.slack_s < NO_HURRY_MS * 1e-3
    assert (result.is_late, result.num_retries) == (False, 0)


def test_deadline_is_the_earliest_given_else_the_deployments(call):
    def slack_s(**given: float) -> float:
        return call(lambda client: client.infer(images(0), **given)).slack_s

    assert 10 < slack_s() < NO_HURRY_MS * 1e-3
    assert slack_s(slo_ms=9_000) < 9
    assert slack_s(timeout_s=8) < 8
    assert slack_s(slo_ms=9_000, timeout_s=60) < 9


def test_one_sample_and_image_files_are_taken(call):
    assert call(lambda client: client.infer(images(7)[0])).labels.tolist() == [7]
    assert call(lambda client: client.infer(png(5))).labels.tolist() == [5]
    assert call(lambda client: client.infer([png(2), png(9)])).labels.tolist() == [2, 9]


def test_wishes_reach_the_scheduler(call):
    pinned = call(lambda client: client.infer(images(0), subnet="small"))
    assert pinned.subnet_id == "small"
    floor = call(lambda client: client.infer(images(0), min_accuracy=0.8, priority=1))
    assert floor.accuracy >= 0.8


@pytest.mark.parametrize(
    ("options", "kind", "reason"),
    [
        ({"slo_ms": 0.1}, errors.InfeasibleError, "infeasible"),
        ({"subnet": "huge"}, errors.UnknownSubnetError, "unknown_subnet"),
        ({"min_accuracy": 2.0}, errors.BadRequestError, "bad_request"),
    ],
)
def test_refusals_are_typed_and_keep_the_servers_words(call, options, kind, reason):
    with pytest.raises(kind) as caught:
        call(lambda client: client.infer(images(0), **options))
    assert caught.value.reason == reason
    assert caught.value.num_retries == 0
    if reason == "infeasible":  # asked too much of an idle device: waiting would not help
        assert caught.value.earliest_finish_s >= 0.001
        assert caught.value.retry_after_s == 0.0


def test_too_large_a_request_is_said_to_be_that(server):
    with pytest.raises(errors.TooLargeError, match="4096"):
        sync_call(server.url, lambda client: client.infer(np.zeros((5000, 1, 1), np.uint8)))


def test_a_timeout_is_hard_and_the_servers_word_comes_first(call):
    """Pinned to 4 ms with 2 ms to live: the server says that it gave up, before the client must."""
    with pytest.raises(InferError) as caught:
        call(lambda client: client.infer(images(0), subnet="large", timeout_s=0.002))
    assert caught.value.reason in ("infeasible", "expired")


def test_unknown_model_is_an_error_of_its_own(server):
    for url in (server.url, server.rpc_url):
        with Client(url, "nobody") as client:
            with pytest.raises(errors.UnknownModelError, match="served: tiny"):
                client.infer(images(0))
            with pytest.raises(errors.UnknownModelError):
                client.is_ready("nobody")


def test_server_tells_of_itself(call):
    info = call(lambda client: client.model_info())
    assert info.name == "tiny"
    assert set(info.subnet_ids) == {"small", "middle", "large"}
    assert (info.input_shape, info.num_classes) == ((1, 2, 2), 10)
    assert call(lambda client: client.is_ready())
    assert call(lambda client: client.is_ready("tiny"))
    assert call(lambda client: client.server_info())["name"] == "supernet"


def test_statistics_count_what_was_asked(call):
    before = served(call)
    call(lambda client: client.infer(images(1, 2, 3), subnet="middle"))
    assert served(call) == before + 3


def served(call: Callable[..., Any]) -> int:
    rows = call(lambda client: client.statistics())
    assert all(row.model == "tiny" for row in rows)
    return sum(row.num_served for row in rows if row.subnet_id == "middle")


def test_first_model_is_found_over_http_and_must_be_named_over_grpc(server):
    with Client(server.url) as client:
        assert client.infer(images(6)).labels.tolist() == [6]
    with Client(server.rpc_url) as client, pytest.raises(ClientError, match="give model="):
        client.infer(images(6))


def test_many_calls_at_once_on_one_client(server):
    async def use(client: AsyncClient) -> list[int]:
        results = await asyncio.gather(*(client.infer(images(i % 10)) for i in range(100)))
        return [int(result.labels[0]) for result in results]

    for url in (server.url, server.rpc_url):
        assert async_call(url, use) == [i % 10 for i in range(100)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((1, 2, 2), np.float32), "float32"),
        (np.zeros((2, 2), np.uint8), r"\(2, 2\)"),
        ([], "sequence of something else"),
        (["seven.png"], "sequence of something else"),
    ],
)
def test_what_no_model_takes_is_refused_here(given, message):
    with Client("http://127.0.0.1:9", "tiny") as client:
        with pytest.raises(ValueError, match=message):
            client.infer(given)
        with pytest.raises(ValueError, match="slo_ms is -1"):
            client.infer(images(0), slo_ms=-1)
    with pytest.raises(ClientError, match="not a URL"):
        Client("127.0.0.1:8000")


@pytest.mark.parametrize("reason", sorted(REASONS))
def test_every_reason_has_an_error_of_its_kind_at_both_doors(reason):
    code = REASONS[reason]
    said = Refusal("rejected", reason, "text")
    over_http, over_rpc = refusal_error(said, code.http), refusal_error(said, code.grpc)
    assert type(over_http) is type(over_rpc)
    assert (type(over_http) is InferError) == (reason == "cancelled"), "nobody is there to read it"
    assert over_http.reason == reason


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (500, errors.ConnectionLostError),
        (502, errors.ConnectionLostError),
        ("UNAVAILABLE", errors.ConnectionLostError),
        (404, errors.UnknownModelError),
        (429, errors.OverloadError),
        (418, InferError),
    ],
)
def test_word_of_a_proxy_reads_by_its_code(code, kind):
    error = refusal_error(Refusal("", "", "<html>"), code)
    assert type(error) is kind
    assert str(code) in error.reason


class Scripted:
    """An HTTP server of one process that answers each request as told; None hangs up."""

    def __init__(self, *answers: tuple[int, dict[str, Any]] | None) -> None:
        self.heads: list[str] = []
        self.bodies: list[bytes] = []
        self._answers = list(answers)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                text = head.decode().lower()
                length = int(text.partition("content-length: ")[2].partition("\r\n")[0] or 0)
                self.bodies.append(await reader.readexactly(length))
                self.heads.append(text)
                answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
                if answer is None:
                    break
                body = json.dumps(answer[1]).encode()
                head = f"HTTP/1.1 {answer[0]} X\r\ncontent-length: {len(body)}\r\n\r\n"
                writer.write(head.encode() + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def ask(self, is_async: bool, **options: Any) -> Any:
        """Ask once, by either kind of client; return the result."""

        def wait(url: str) -> Any:
            with Client(url, "tiny", token="secret", **options) as client:
                return client.infer(images(0))

        async def main() -> Any:
            listening = await asyncio.start_server(self.serve, "127.0.0.1", 0)
            host, port = listening.sockets[0].getsockname()
            url = f"http://{host}:{port}"
            async with listening:
                if not is_async:
                    return await asyncio.to_thread(wait, url)
                async with AsyncClient(url, "tiny", token="secret", **options) as client:
                    return await client.infer(images(0))

        return asyncio.run(main())


OK = (200, {"outputs": [{"datatype": "FP32", "shape": [1, 2], "data": [0.0, 1.0]}],
            "parameters": {"subnet": "s", "status": "late", "slack_s": -0.25}})  # fmt: skip
DRAINING = (503, {"error": "bye", "reason": "draining", "status": "rejected"})
FULL = (429, {"error": "full", "reason": "queue_full", "status": "rejected",
              "retry_after_s": 0.03, "earliest_finish_s": 0.02})  # fmt: skip


@pytest.mark.parametrize("is_async", [False, True])
def test_lost_connection_and_draining_server_are_asked_again_within_the_slack(is_async):
    scripted = Scripted(None, DRAINING, (502, {}), OK)
    result = scripted.ask(is_async, slo_ms=NO_HURRY_MS)
    assert result.labels.tolist() == [1]
    assert (result.num_retries, len(scripted.heads)) == (3, 4)
    assert (result.is_late, result.slack_s) == (True, -0.25)
    slos = [float(head.partition("x-slo-ms: ")[2].partition("\r\n")[0]) for head in scripted.heads]
    assert slos == sorted(slos, reverse=True)
    assert slos[-1] < NO_HURRY_MS - 70, "waits of 10, 20 and 40 ms are off the last one"
    assert all("authorization: bearer secret" in head for head in scripted.heads)


@pytest.mark.parametrize("is_async", [False, True])
def test_refusal_for_load_is_raised_at_once(is_async):
    scripted = Scripted(FULL)
    with pytest.raises(errors.QueueFullError) as caught:
        scripted.ask(is_async, slo_ms=NO_HURRY_MS)
    assert (caught.value.retry_after_s, caught.value.earliest_finish_s) == (0.03, 0.02)
    assert len(scripted.heads) == 1


@pytest.mark.parametrize("is_async", [False, True])
def test_server_that_stays_away_is_given_up_with_the_slack(is_async):
    scripted = Scripted(DRAINING)
    with pytest.raises(errors.DrainingError) as caught:
        scripted.ask(is_async, slo_ms=50)
    assert caught.value.num_retries == len(scripted.heads) - 1 <= 2, "10 ms, 20 ms, then too late"


@pytest.mark.parametrize("is_async", [False, True])
def test_answer_that_nobody_can_read_is_said(is_async):
    for answer in ((200, {}), (200, {"outputs": [{"datatype": "FP32", "data": []}]})):
        with pytest.raises(errors.UnreadableAnswerError):
            Scripted(answer).ask(is_async)


@pytest.mark.parametrize("is_async", [False, True])
def test_silent_server_is_given_up_after_the_timeout(is_async):
    class Silent(Scripted):
        async def serve(self, reader, writer) -> None:
            try:
                await reader.read()
            finally:
                writer.close()

    with pytest.raises(errors.TimedOutError) as caught:
        Silent().ask(is_async, timeout_s=0.05)
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.num_retries == 0, "the server may still be at it"


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "grpc://127.0.0.1:9"])
def test_server_that_is_not_there_is_a_lost_connection(url):
    with Client(url, "tiny", slo_ms=20) as client:
        assert not client.is_ready()
        with pytest.raises(errors.ConnectionLostError):
            client.infer(images(0))


def test_json_of_image_files_is_base64():
    scripted = Scripted(OK)
    scripted.ask(True, is_json=True)
    (tensor,) = json.loads(scripted.bodies[0])["inputs"]
    assert tensor["data"] == [0, 0, 0, 0]
    from serve.client.rest_transport import _tensor

    fields, tail = _tensor((b"file",), is_json=True)
    assert fields["data"] == [base64.b64encode(b"file").decode()]
    assert tail == b""


def test_client_needs_neither_torch_nor_ray_nor_grpc():
    code = (
        "import sys, serve.client; print([m for m in ('torch','ray','grpc') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
