"""`trace fetch` against a stand-in server on loopback that breaks off when told to."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from traces.cli import app
from traces.sources.fetch import ORIGINALS, Original, fetch, original
from traces.trace import TraceError

BODY = b"arrival_s\n" + b"".join(b"%d.5\n" % i for i in range(5000))


class StandIn(ThreadingHTTPServer):
    """Serves `body` under any name; sends only `cut` bytes of the next answer when it is set."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body = BODY
        self.cut: int | None = None
        self.ranges: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/trace.csv"


class Handler(BaseHTTPRequestHandler):
    server: StandIn

    def do_GET(self) -> None:
        wanted = self.headers["Range"]
        self.server.ranges.append(wanted)
        etag = f'"{hashlib.md5(self.server.body).hexdigest()}"'
        start = 0
        if wanted and self.headers["If-Range"] == etag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        body = self.server.body[start:]
        self.send_response(206 if start else 200)
        self.send_header("ETag", etag)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut, self.server.cut = self.server.cut, None
        self.wfile.write(body if cut is None else body[:cut])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[StandIn]:
    standin = StandIn()
    thread = threading.Thread(target=standin.serve_forever, args=(0.01,))
    thread.start()
    yield standin
    standin.shutdown()
    thread.join()
    standin.server_close()


def published(server: StandIn, body: bytes = BODY, **changes) -> Original:
    digest = hashlib.sha256(body).hexdigest()
    return Original(
        **{"url": server.url, "spec": "{path}", "licence": "none", "sha256": digest, **changes}
    )


def test_a_file_is_downloaded_checked_and_not_asked_for_again(server, tmp_path):
    told = []
    what = published(server)
    path, digest = fetch(what, tmp_path, progress=lambda done, total: told.append((done, total)))
    assert path.read_bytes() == BODY
    assert digest == what.sha256
    assert told[-1] == (len(BODY), len(BODY))
    fetch(what, tmp_path)
    assert len(server.ranges) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["trace.csv"]


def test_a_broken_download_goes_on_where_it_ended(server, tmp_path):
    server.cut = 12_345
    with pytest.raises(TraceError, match=r"12,345 bytes are kept; the same command goes on"):
        fetch(published(server), tmp_path)
    path, _ = fetch(published(server), tmp_path)
    assert server.ranges == [None, "bytes=12345-"]
    assert path.read_bytes() == BODY


def test_a_file_that_changed_meanwhile_is_fetched_anew(server, tmp_path):
    server.cut = 100
    with pytest.raises(TraceError):
        fetch(published(server), tmp_path)
    server.body = BODY[::-1]
    path, _ = fetch(published(server, server.body), tmp_path)
    assert path.read_bytes() == BODY[::-1]


def test_another_file_than_the_published_one_is_refused(server, tmp_path):
    with pytest.raises(TraceError, match="this is not the published file"):
        fetch(published(server, b"other"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_put_there_by_hand_is_checked_and_kept(server, tmp_path):
    (tmp_path / "trace.csv").write_bytes(b"by hand")
    with pytest.raises(TraceError, match="move it away"):
        fetch(published(server), tmp_path)
    assert (tmp_path / "trace.csv").read_bytes() == b"by hand"
    assert server.ranges == []


def test_without_a_published_sum_the_first_one_counts(server, tmp_path):
    what = published(server, sha256=None)
    path, digest = fetch(what, tmp_path)
    assert (tmp_path / "trace.csv.sha256").read_text().split() == [digest, "trace.csv"]
    path.write_bytes(b"damaged")
    with pytest.raises(TraceError, match=f"expected {digest}"):
        fetch(what, tmp_path)


def test_an_archive_is_unpacked(server, tmp_path):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz") as tar:
        entry = tarfile.TarInfo("d01.csv")
        entry.size = len(BODY)
        tar.addfile(entry, io.BytesIO(BODY))
    server.body = packed.getvalue()
    what = published(server, server.body, unpacked="days")
    folder, _ = fetch(what, tmp_path)
    assert (folder / "d01.csv").read_bytes() == BODY
    assert fetch(what, tmp_path)[0] == folder


def test_a_closed_network_says_where_to_put_the_file(tmp_path):
    arguments = ["trace", "fetch", "mooncake", "--out", str(tmp_path), "--url"]
    result = CliRunner().invoke(app, [*arguments, "http://127.0.0.1:9/x"])
    assert result.exit_code == 2
    assert f"put it at {tmp_path / 'conversation_trace.jsonl'}" in result.stderr


def test_the_command_downloads_and_says_how_to_read_it(server, tmp_path):
    arguments = ["trace", "fetch", "azure-llm-2024-code", "--out", str(tmp_path), "--url"]
    result = CliRunner().invoke(app, [*arguments, server.url])
    assert result.exit_code == 0, result.output
    assert "supernet trace info 'azure-llm:path=" in result.output


def test_names_are_listed_and_unknown_ones_refused():
    listed = CliRunner().invoke(app, ["trace", "fetch", "list"]).output
    assert all(name in listed for name in ORIGINALS)
    with pytest.raises(TraceError, match="known: azure2019, "):
        original("azure2018")
