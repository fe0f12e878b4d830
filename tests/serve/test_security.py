"""Both doors with a guard: tokens, rates, TLS, bounds before allocation, texts of errors."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import os
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import numpy as np
import pytest
import trustme

from serve.access.build_guard import build_guard
from serve.config import ServeConfig, ServeConfigError, parse_config
from serve.doors.rest import RestDoor
from serve.doors.rpc import RpcDoor, rpc_listening
from serve.hosts.listeners import Listeners
from serve.hosts.uvicorn_listener import listening
from serve.proto import open_inference_pb2 as pb
from serve.proto import open_inference_pb2_grpc as pb_grpc

ADMIN, INFER = "a" * 16, "b" * 20
LIMITS: dict[str, Any] = {"drain_left_s": lambda: 1.0, "max_connections": 100}
SECRET_PATH = "/srv/private/weights.bin"
BODY = {"inputs": [{"name": "input", "datatype": "UINT8", "shape": [1, 1, 2, 2], "data": [0] * 4}]}
URL = "/v2/models/tiny/infer"
MESSAGE = pb.ModelInferRequest(
    model_name="tiny",
    inputs=[
        pb.ModelInferRequest.InferInputTensor(name="input", datatype="UINT8", shape=[1, 1, 2, 2])
    ],
    raw_input_contents=[bytes(4)],
)


@pytest.fixture
def tokens_file(tmp_path: Path) -> str:
    path = tmp_path / "tokens"
    path.write_text(f"alice admin {ADMIN}\nbob infer {INFER}\n")
    return str(path)


@contextlib.asynccontextmanager
async def stub_of(door: RestDoor, **options: Any) -> AsyncIterator[Any]:
    listening = rpc_listening(
        RpcDoor(door.server),
        "127.0.0.1",
        0,
    )
    async with listening as rpc, grpc.aio.insecure_channel(f"127.0.0.1:{rpc.port}", **options) as c:
        yield pb_grpc.GRPCInferenceServiceStub(c)


def with_stub(door: RestDoor, use: Callable[[Any], Any], **options: Any) -> Any:
    async def main() -> Any:
        async with door._lifespan(door._app), stub_of(door, **options) as stub:
            return await use(stub)

    return asyncio.run(main())


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def test_http_asks_for_tokens_and_health_does_not(serve_timed, tokens_file):
    async def main() -> dict[str, list[int]]:
        async with serve_timed(tokens_file=tokens_file) as client:
            paths = ("/v2/health/live", "/v2/health/ready", "/v2", "/metrics", "/admin/config")
            given: list[dict[str, str]] = [{}, bearer("c" * 16), bearer(INFER), bearer(ADMIN)]
            codes = {
                path: [(await client.get(path, headers=h)).status_code for h in given]
                for path in paths
            }
            codes[URL] = [(await client.post(URL, json=BODY, headers=h)).status_code for h in given]
            refused = await client.post(URL, json=BODY)
            assert refused.headers["www-authenticate"] == "Bearer"
            assert refused.json()["reason"] == "unauthenticated"
            return codes

    codes = asyncio.run(main())
    assert codes["/v2/health/live"] == codes["/v2/health/ready"] == [200] * 4
    assert codes["/v2"] == codes[URL] == [401, 401, 200, 200]
    assert codes["/metrics"] == codes["/admin/config"] == [401, 401, 403, 200]


def test_rpc_asks_for_tokens_and_health_does_not(timed_door, tokens_file):
    async def use(stub: Any) -> list[str]:
        assert (await stub.ServerLive(pb.ServerLiveRequest())).live
        assert (await stub.ServerReady(pb.ServerReadyRequest())).ready
        said = []
        for metadata in ((), (("authorization", f"Bearer {ADMIN}x"),)):
            for call, message in (
                (stub.ModelInfer, MESSAGE),
                (stub.ModelMetadata, pb.ModelMetadataRequest(name="tiny")),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call(message, metadata=metadata)
                said.append(caught.value.code().name)
                assert dict(caught.value.trailing_metadata() or ())["reason"] == "unauthenticated"
        answer = await stub.ModelInfer(MESSAGE, metadata=(("authorization", f"Bearer {INFER}"),))
        assert answer.model_version
        return said

    assert set(with_stub(timed_door(tokens_file=tokens_file), use)) == {"UNAUTHENTICATED"}


def test_http_limits_the_rate_of_a_principal(serve_timed):
    async def main() -> list[httpx.Response]:
        async with serve_timed(rate_limit_qps=0.5, rate_limit_burst=3) as client:
            twice = {"inputs": [{**BODY["inputs"][0], "shape": [2, 1, 2, 2], "data": [0] * 8}]}
            asked = [await client.post(URL, json=body) for body in (BODY, twice, BODY)]
            asked.append(await client.get("/v2"))
            return asked

    first, second, third, looked = asyncio.run(main())
    assert (first.status_code, second.status_code) == (200, 200)
    assert (third.status_code, third.json()["reason"]) == (429, "rate_limited")
    assert third.headers["retry-after"] == "2"
    assert 1 < third.json()["retry_after_s"] <= 2
    assert looked.status_code == 200, "looking costs nothing"


def test_rpc_limits_the_rate_of_a_principal(timed_door):
    async def use(stub: Any) -> tuple[str, dict[str, str]]:
        await stub.ModelInfer(MESSAGE)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ModelInfer(MESSAGE)
        return caught.value.code().name, dict(caught.value.trailing_metadata() or ())

    code, details = with_stub(timed_door(rate_limit_qps=0.5, rate_limit_burst=1), use)
    assert (code, details["reason"]) == ("RESOURCE_EXHAUSTED", "rate_limited")
    assert 1 < float(details["retry_after_s"]) <= 2


# --- TLS -----------------------------------------------------------------------------------------


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


def config_tls(config: ServeConfig):
    from serve.access.tls import tls_files

    tls = tls_files(config)
    assert tls is not None
    return tls


def free_port() -> int:
    from serve.hosts.uvicorn_listener import bind

    with contextlib.closing(bind("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


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


# --- bounds --------------------------------------------------------------------------------------


def test_json_that_would_swell_is_refused_before_it_is_parsed(serve_timed, monkeypatch):
    """A model with inputs of four bytes: its largest request has 16 numbers."""

    async def main() -> list[tuple[int, str]]:
        async with serve_timed(max_body_bytes=2**20) as client:
            bombs = (b"[" + b"[]," * 100_000 + b"0]", b"[" + b"0," * 100_000 + b"0]", b"[" * 5000)
            answers = [await client.post(URL, content=bomb) for bomb in bombs]
            return [(a.status_code, a.json()["reason"]) for a in answers]

    def parse(_: object) -> object:
        raise AssertionError("it was parsed")

    monkeypatch.setattr("serve.doors.rest_messages._decode", parse)
    assert asyncio.run(main()) == [(413, "too_large")] * 3


def test_compressed_rpc_messages_are_refused_unopened(timed_door):
    """gRPC holds a message against its limit before it unpacks it: a bomb would pass."""
    bomb = pb.ModelInferRequest(model_name="tiny", id="x" * (16 * 2**20))  # 16 KiB once compressed

    async def use(stub: Any) -> str:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ModelInfer(bomb, compression=grpc.Compression.Gzip)
        assert (await stub.ServerLive(pb.ServerLiveRequest())).live
        return caught.value.code().name

    limits = [("grpc.max_send_message_length", -1)]
    assert with_stub(timed_door(), use, options=limits) == "UNIMPLEMENTED"


# --- texts ---------------------------------------------------------------------------------------


def test_no_answer_tells_what_an_exception_said(timed_door, monkeypatch, tokens_file):
    """Texts of exceptions hold paths, addresses, values: they go to the log alone."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(f"can't read {SECRET_PATH}")

    door = timed_door(tokens_file=tokens_file)
    (model,) = door.server.models
    headers = bearer(INFER)
    metadata = (("authorization", f"Bearer {INFER}"),)

    async def main() -> list[str]:
        said = []
        transport = httpx.ASGITransport(door)
        client = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")
        async with door._lifespan(door._app), client, stub_of(door) as stub:

            async def ask() -> None:
                answer = await client.post(URL, json=BODY, headers=headers)
                said.append(f"{answer.status_code} {answer.text} {answer.headers}")
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.ModelInfer(MESSAGE, metadata=metadata)
                said.append(f"{caught.value.details()} {caught.value.trailing_metadata()}")

            with monkeypatch.context() as patch:
                patch.setattr(model.engine._runner.executor, "launch", fail)  # the model
                await ask()
            with monkeypatch.context() as patch:
                patch.setattr(model, "infer", fail)  # our own code
                await ask()
            patch = monkeypatch
            patch.setattr(model.engine, "_poll", fail)  # the device thread
            await ask()
            for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/tiny/ready"):
                said.append((await client.get(path, headers=headers)).text)
            said.append((await client.get("/metrics", headers=bearer(ADMIN))).text)
            said.append((await client.get("/admin/config", headers=bearer(ADMIN))).text)
        return said

    said = asyncio.run(main())
    assert len(said) == 11
    for text in said:
        assert SECRET_PATH not in text
        assert "OSError" not in text or text.startswith('{"tiny"'), "but for an administrator"
        assert "Traceback" not in text
    assert said[0].startswith("500 ")
    assert "execution_failed" in said[0]
    assert "internal" in said[2]
    assert "device_failed" in said[4]


# --- files ---------------------------------------------------------------------------------------

PACKAGES = ("supernet", "subnetact", "slackfit", "training", "traces", "serve", "benchmarks")
SOURCES = sorted(path for package in PACKAGES for path in Path(package).rglob("*.py"))
UNSAFE_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def unsafe(tree: ast.AST) -> list[str]:
    """Return what in a module could run what a file or a peer holds."""
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found += [f"import {n.name}" for n in names if n.name in UNSAFE_MODULES]
            case ast.ImportFrom(module=module) if module in UNSAFE_MODULES:
                found.append(f"from {module}")
            case ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr=attr), keywords=words):
                given = {w.arg: w.value.value for w in words if isinstance(w.value, ast.Constant)}
                call = f"{owner}.{attr}"
                if call == "torch.load" and given.get("weights_only") is not True:
                    found.append("torch.load without weights_only=True")
                if call == "np.load" and given.get("allow_pickle") is not False:
                    found.append("np.load without allow_pickle=False")
                if call in ("yaml.load", "yaml.unsafe_load", "torch.package"):
                    found.append(call)
            case ast.Call(func=ast.Name(id="eval" | "exec" as name)):
                found.append(name)
    return found


@pytest.mark.parametrize(
    "text",
    ["import pickle", "torch.load(p)", "np.load(p)", "np.load(p, allow_pickle=True)", "eval(x)"],
)
def test_the_search_finds_what_it_is_for(text: str):
    assert unsafe(ast.parse(text))


# What may touch the module, and what of it: its errors, which torch's `weights_only` reader raises,
# and a reader of CIFAR's Python files whose `find_class` knows arrays alone.
ALLOWED = {
    "supernet/weights/weight_files.py": {"UnpicklingError"},
    "training/data/cifar.py": {"Unpickler", "UnpicklingError"},
}


def test_nothing_of_ours_unpickles_what_comes_from_outside():
    found = {
        (str(path), what)
        for path in SOURCES
        for what in unsafe(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert found == {(path, "import pickle") for path in ALLOWED}
    for path, allowed in ALLOWED.items():
        tree = ast.parse(Path(path).read_text(encoding="utf-8"))
        used = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "pickle"
        }
        assert used <= allowed, path
        if "Unpickler" in used:
            defined = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
            assert "find_class" in defined, f"{path}: an unpickler that builds anything"


def test_our_commands_bring_the_token_of_the_environment(timed_door, tokens_file, monkeypatch):
    """What `supernet replay` sends, at both doors."""
    from serve.client.dial import dial
    from traces.open_loop.target import ReplayRequest

    door = timed_door(tokens_file=tokens_file)

    async def main() -> list[str]:
        port = free_port()
        rpc = rpc_listening(
            RpcDoor(door.server),
            "127.0.0.1",
            0,
        )
        said = []
        async with (
            door._lifespan(door._app),
            listening(door, "127.0.0.1", port, drain_left_s=lambda: 1.0, max_connections=100),
            rpc as opened,
        ):
            for url in (f"http://127.0.0.1:{port}", f"grpc://127.0.0.1:{opened.port}"):
                target, model = await dial(url, "tiny")
                payload = np.zeros((1, 2, 2), dtype=np.uint8)
                request = ReplayRequest(query_id=0, payload=payload, slo_s=5.0, timeout_s=5.0)
                said.append(f"{model.parameters['policy']} {(await target.infer(request)).status}")
                await target.close()
        return said

    monkeypatch.setenv("SUPERNET_TOKEN", INFER)
    assert asyncio.run(main()) == ["slackfit ok"] * 2
