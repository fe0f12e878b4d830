"""TLS at both doors: who is trusted, renewed certificates, files that are no pair."""

from __future__ import annotations

import asyncio
import os
import re
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import numpy as np
import pytest
import trustme

from serve.access.build_guard import build_guard
from serve.access.tls import tls_files
from serve.client import Client
from serve.config import ServeConfig, ServeConfigError, parse_config
from serve.hosts.listeners import Listeners
from serve.hosts.uvicorn_listener import listening
from serve.proto import open_inference_pb2 as pb
from serve.proto import open_inference_pb2_grpc as pb_grpc
from tests.serve.conftest import free_port

LIMITS: dict[str, Any] = {"drain_left_s": lambda: 1.0, "max_connections": 100}
BODY = {"inputs": [{"name": "input", "datatype": "UINT8", "shape": [1, 1, 2, 2], "data": [0] * 4}]}
URL = "/v2/models/tiny/infer"
MESSAGE = pb.ModelInferRequest(
    model_name="tiny",
    inputs=[
        pb.ModelInferRequest.InferInputTensor(name="input", datatype="UINT8", shape=[1, 1, 2, 2])
    ],
    raw_input_contents=[bytes(4)],
)


class Certificates:
    def __init__(self, folder: Path) -> None:
        self.ca = trustme.CA()
        leaf = self.ca.issue_cert("127.0.0.1")
        self.cert, self.key = str(folder / "cert.pem"), str(folder / "key.pem")
        self.ca_file = str(folder / "ca.pem")
        self.ca.cert_pem.write_to_path(self.ca_file)
        Path(self.cert).write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
        leaf.private_key_pem.write_to_path(self.key)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


def test_both_doors_speak_tls_and_nothing_else(
    timed_config: ServeConfig, timed_door, certificates: Certificates
):
    settings = {"tls_cert": certificates.cert, "tls_key": certificates.key, "grpc_port": 0}
    config = timed_config.model_copy(update=settings)
    door = timed_door()
    trust = ssl.create_default_context(cafile=certificates.ca_file)
    credentials = grpc.ssl_channel_credentials(Path(certificates.ca_file).read_bytes())

    async def main() -> None:
        listeners = Listeners(config, door.server, is_replica=False)
        port = free_port()
        async with door._lifespan(door._app), listeners.opened():
            tls = config_tls(config)
            async with listening(door, "127.0.0.1", port, **LIMITS, tls=tls):
                async with httpx.AsyncClient(verify=trust) as client:
                    answer = await client.post(f"https://127.0.0.1:{port}{URL}", json=BODY)
                    assert answer.status_code == 200
                async with httpx.AsyncClient(verify=tls.client_context()) as client:
                    assert (await client.get(f"https://127.0.0.1:{port}/v2")).status_code == 200
                async with httpx.AsyncClient() as client:
                    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                        await client.get(f"https://127.0.0.1:{port}/v2")
                    with pytest.raises(httpx.RemoteProtocolError):
                        await client.get(f"http://127.0.0.1:{port}/v2")
            address = f"127.0.0.1:{listeners.rpc_port}"
            async with grpc.aio.secure_channel(address, credentials) as channel:
                stub = pb_grpc.GRPCInferenceServiceStub(channel)
                assert (await stub.ModelInfer(MESSAGE, timeout=10)).model_version
            async with grpc.aio.insecure_channel(address) as channel:
                stub = pb_grpc.GRPCInferenceServiceStub(channel)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.ModelInfer(MESSAGE, timeout=5)
                assert caught.value.code() == grpc.StatusCode.UNAVAILABLE

    asyncio.run(main())


def test_certificates_are_renewed_at_both_doors_while_they_serve(
    timed_config: ServeConfig, timed_door, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr("serve.access.watched_files.LOOK_EVERY_S", 0.0)
    first, second = Certificates(tmp_path), Certificates(make_folder(tmp_path / "second"))
    settings = {"tls_cert": first.cert, "tls_key": first.key, "grpc_port": 0}
    config, door = timed_config.model_copy(update=settings), timed_door()

    def shown(port: int) -> bytes:
        """Return whose certificate a port shows."""
        pem = ssl.get_server_certificate(("127.0.0.1", port), timeout=5)
        return ssl.PEM_cert_to_DER_cert(pem)

    def of(certificates: Certificates) -> bytes:
        return ssl.PEM_cert_to_DER_cert(
            Path(certificates.cert).read_text().partition("-----\n\n")[0]
        )

    async def main() -> None:
        listeners = Listeners(config, door.server, is_replica=False)
        port, tls = free_port(), config_tls(config)
        https = listening(door, "127.0.0.1", port, **LIMITS, tls=tls)
        async with door.running(), listeners.opened(), https:
            assert listeners.rpc_port is not None
            ports = (port, listeners.rpc_port)
            before, after = of(first), of(second)
            assert [await asyncio.to_thread(shown, p) for p in ports] == [before] * 2
            Path(first.cert).write_bytes(Path(second.cert).read_bytes())
            assert [await asyncio.to_thread(shown, p) for p in ports] == [before] * 2, "no pair"
            Path(first.key).write_bytes(Path(second.key).read_bytes())
            assert [await asyncio.to_thread(shown, p) for p in ports] == [after] * 2

    asyncio.run(main())


def make_folder(path: Path) -> Path:
    path.mkdir()
    return path


OUR_CLIENTS = """
import asyncio, sys
import numpy as np
from serve.client import AsyncClient, Client, InferError
from serve.client.dial import dial
from traces.open_loop.target import ReplayRequest

image = np.zeros((1, 2, 2), dtype=np.uint8)

async def ask(url):
    async with AsyncClient(url, model="tiny") as client:
        assert (await client.infer(image)).subnet_id
    target, _ = await dial(url, "tiny")
    reply = await target.infer(ReplayRequest(query_id=0, payload=image, slo_s=5.0))
    await target.close()
    assert reply.status == "ok", reply

for url in sys.argv[1:]:
    try:
        with Client(url, model="tiny") as client:
            print(client.infer(image).subnet_id)
    except InferError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    asyncio.run(ask(url))
"""


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(
    ("trusted", "expected"),
    [("ca_file", ""), (None, "ConnectionLostError"), ("nowhere", "SSL_CERT_FILE is '/nowhere'")],
)
def test_our_clients_trust_a_ca_that_the_environment_names(
    timed_config: ServeConfig, timed_door, certificates: Certificates, trusted, expected, order
):
    settings = {"tls_cert": certificates.cert, "tls_key": certificates.key, "grpc_port": 0}
    config = timed_config.model_copy(update=settings)
    door = timed_door()
    environment = {k: v for k, v in os.environ.items() if k != "SSL_CERT_FILE"}
    if trusted is not None:
        environment["SSL_CERT_FILE"] = getattr(certificates, trusted, "/nowhere")

    async def main() -> tuple[bytes, bytes]:
        listeners = Listeners(config, door.server, is_replica=False)
        port, tls = free_port(), config_tls(config)
        https = listening(door, "127.0.0.1", port, **LIMITS, tls=tls)
        async with door._lifespan(door._app), listeners.opened(), https:
            urls = [f"https://127.0.0.1:{port}", f"grpcs://127.0.0.1:{listeners.rpc_port}"]
            client = await asyncio.create_subprocess_exec(
                sys.executable, "-c", OUR_CLIENTS, *urls[::order], env=environment,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            return await asyncio.wait_for(client.communicate(), 60)

    output, errors = (text.decode() for text in asyncio.run(main()))
    if expected:
        assert expected in errors
        assert not output
    else:
        assert len(output.split()) == 2, errors


@pytest.mark.parametrize("doors", [1, 2])
def test_the_addresses_that_a_server_prints_can_be_asked(
    profile_file: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch, doors: int
):
    """The one for gRPC was that of a server without TLS."""
    if doors > len(os.sched_getaffinity(0)):
        pytest.skip("two doors take two cores")
    monkeypatch.setenv("SSL_CERT_FILE", certificates.ca_file)
    settings = {"input_shape": "1,2,2", "model_name": "tiny", "doors": doors,
                "tls_cert": certificates.cert, "tls_key": certificates.key}  # fmt: skip
    sets = [word for item in settings.items() for word in ("--set", "{}={}".format(*item))]
    command = [
        sys.executable, "-m", "serve", "serve", "--no-ray", "--device", "timed", "--port", "0",
        "--grpc-port", "0", "--profile", str(profile_file), *sets,
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        urls = re.findall(r"\S+://\S+", process.stdout.readline())
        assert len(urls) == 2
        for url in urls:
            with Client(url, "tiny", slo_ms=20_000) as client:
                assert client.infer(np.zeros((1, 1, 2, 2), np.uint8)).logits.shape == (1, 10)
    finally:
        process.terminate()
        process.communicate(timeout=60)


def config_tls(config: ServeConfig):
    tls = tls_files(config)
    assert tls is not None
    return tls


def test_files_that_are_no_pair_are_refused_before_anything_is_loaded(
    timed_config: ServeConfig, certificates: Certificates, tmp_path
):
    other = trustme.CA().issue_cert("127.0.0.1").private_key_pem
    other.write_to_path(tmp_path / "other.pem")
    for cert, key in (
        (certificates.cert, str(tmp_path / "other.pem")),
        (certificates.cert, str(tmp_path / "none.pem")),
        (certificates.key, certificates.key),
    ):
        config = timed_config.model_copy(update={"tls_cert": cert, "tls_key": key})
        with pytest.raises(ServeConfigError, match="can't be used"):
            build_guard(config, float)
    with pytest.raises(ServeConfigError, match="tls_cert and tls_key go together"):
        parse_config({"checkpoint": "x", "tls_cert": "c"})
    with pytest.raises(ServeConfigError, match="give the rate, too"):
        parse_config({"checkpoint": "x", "rate_limit_burst": 3})
