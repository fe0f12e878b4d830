"""What a door costs: processor time beside bare servers, goodput beyond what it carries, memory.

The part `doors` has these rows as well. Processor time is what all threads of the server use, in a
closed loop that keeps it busy, with the timed device (it sleeps); bare servers
(`bare_server.py`), which parse and run nothing, are measured in between. Beyond what the door
carries an open loop asks for 1.25 times the closed loop's rate, of the real device, at the SLO of
the static networks' table and at the benchmark's own. Tensors in shared memory, input and output,
are asked for one at a time, so that both threads sleep in between; one image among the requests
shows what that costs by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from serve.bench.journal import Journal
from serve.bench.rows import Row, Tell, row
from serve.bench.serving.closed_loop import (
    TimedRequest,
    http_loop,
    http_post,
    http_request,
    processor_s,
    rpc_loop,
    rpc_request,
)
from serve.bench.serving.paced_load import PacedScore, paced_load
from serve.bench.serving.server_process import server_process
from serve.bench.serving.setting import Setting
from serve.doors.shared_memory import FOLDER
from serve.proto.names import BINARY_HEADER, OUTPUT_NAME

_POLICY = "fixed:smallest"
_CONNECTIONS = 64
_BATCH = 16
_BATCH_CONNECTIONS = 16
_OVER = 1.25
_IMAGE = (3, 224, 224)
_CLASSES = 1000
_BARS = {"http": 4.0, "grpc": 2.5}
_BATCH_BAR_US = 30.0
_GOODPUT_BAR = 0.6
_WARM_UP_S = 1.0
_TABLE_SLO_S = 0.05  # of the static networks' table
_IN_BODY = "/in_body"  # where a run's SLO stands, in its name
_MEMORY_BAR = 0.5


class CostScale(NamedTuple):
    """How much is measured."""

    rounds: int = 3
    loop_s: float = 3.0
    overload_s: float = 8.0
    exchanges: int = 60


QUICK = CostScale()
FULL = CostScale(rounds=5, loop_s=10.0, overload_s=30.0, exchanges=300)


class DoorCostBench:
    """Our doors and bare ones in turns; what is measured goes to the journal at once."""

    def __init__(self, setting: Setting, journal: Journal, *, scale: CostScale, tell: Tell) -> None:
        self._setting = setting
        self._journal = journal
        self._scale = scale
        self._tell = tell

    def run(self) -> None:
        """Measure what the journal lacks."""
        for name, measure in {
            "cost/processor": self._processor,
            "cost/overload": self._overload,
            "cost/memory": self._memory,
        }.items():
            self._tell(f"{name}: {self._journal.once(name, measure)}")

    def rows(self) -> list[Row]:
        """Return the rows of what is measured so far."""
        return [*self._processor_rows(), *self._overload_rows(), *self._memory_rows()]

    # --- processor time --------------------------------------------------------------------------

    def _processor(self) -> dict[str, list[float]]:
        """Return the microseconds of processor time per request, of each kind in every round."""
        setting = self._setting
        config = setting.timed_config(policy=_POLICY, grpc_port=0)
        subnet_id = setting.sized()["smallest"]
        model, shape = setting.load.model, setting.input_shape
        one, many = (np.zeros((count, *shape), np.uint8) for count in (1, _BATCH))
        found: dict[str, list[float]] = {}
        with (
            server_process(config) as server,
            bare_process("http") as bare_http,
            bare_process("grpc") as bare_rpc,
        ):
            http = http_request(server.url, model, one, subnet_id)
            batch = http_request(server.url, model, many, subnet_id)
            rpc = rpc_request(model, one, subnet_id)
            for number in range(self._scale.rounds):
                runs = {
                    "http": (server.pid, server.url, http, _CONNECTIONS),
                    "bare_http": (*bare_http, http, _CONNECTIONS),
                    "http_batch": (server.pid, server.url, batch, _BATCH_CONNECTIONS),
                    "grpc": (server.pid, server.rpc_url, rpc, _CONNECTIONS),
                    "bare_grpc": (*bare_rpc, rpc, _CONNECTIONS),
                }
                names = list(runs)
                for name in names[number % len(names) :] + names[: number % len(names)]:
                    found.setdefault(name, []).append(asyncio.run(self._cost_us(*runs[name])))
        return found

    async def _cost_us(self, pid: int, url: str, request: bytes, at_once: int) -> float:
        loop_s = self._scale.loop_s
        is_rpc = url.startswith("grpc://")
        for duration_s in (loop_s / 4, loop_s):  # the first warms up
            before_s = processor_s(pid)
            if is_rpc:
                count = await rpc_loop(url, request, calls=at_once, duration_s=duration_s)
            else:
                count = await http_loop(url, request, connections=at_once, duration_s=duration_s)
            used_s = processor_s(pid) - before_s
        return used_s / max(count, 1) * 1e6

    def _processor_rows(self) -> list[Row]:
        if "cost/processor" not in self._journal:
            return []
        found: dict[str, list[float]] = self._journal.get("cost/processor")
        rows: list[Row] = []
        for door, bar in _BARS.items():
            ours, bare = np.median(found[door]), np.median(found[f"bare_{door}"])
            detail = (
                f"<= {bar:g} asked for; processor time of all threads per request of one sample, "
                f"{ours:.0f} us over {bare:.0f} us, median of {len(found[door])} rounds in turns; "
                "TIMED device"
            )
            figure = f"serving/doors/{door}_cpu_over_bare_server"
            rows.append(row(figure, float(ours / bare), "ratio", detail, digits=3))
        batch_us = float(np.median(found["http_batch"])) / _BATCH
        detail = f"<= {_BATCH_BAR_US:g} asked for; HTTP, {_BATCH} samples a request; TIMED device"
        figure = "serving/doors/cpu_per_sample_in_batch16_us"
        return [*rows, row(figure, batch_us, "us", detail, digits=3)]

    # --- beyond what it carries ------------------------------------------------------------------

    def _overload(self) -> dict[str, Any]:
        """Return the closed loop's rate, and the scores beyond it by SLO in milliseconds.

        The SLO is sent in a header, as our clients do; the table's also in the body.
        """
        setting, scale, scores = self._setting, self._scale, dict[str, PacedScore]()
        sample = np.zeros((1, *setting.input_shape), np.uint8)
        with server_process(setting.config()) as server:
            smallest = setting.sized()["smallest"]  # so that it is the door which is full
            request = http_request(server.url, setting.load.model, sample, smallest)
            loop = http_loop(server.url, request, connections=_CONNECTIONS, duration_s=scale.loop_s)
            capacity_qps = asyncio.run(loop) / scale.loop_s
        runs = {f"{slo_s * 1e3:g}": slo_s for slo_s in (_TABLE_SLO_S, setting.load.slo_s)}
        runs[f"{_TABLE_SLO_S * 1e3:g}{_IN_BODY}"] = _TABLE_SLO_S
        for name, slo_s in runs.items():
            with server_process(setting.config(slo_ms=slo_s * 1e3)) as server:
                request = http_request(
                    server.url, setting.load.model, sample, None,
                    slo_s=slo_s, has_slo_header=not name.endswith(_IN_BODY),
                )  # fmt: skip
                for duration_s in (_WARM_UP_S, scale.overload_s):
                    load = paced_load(
                        server.url, TimedRequest(request), rate_qps=_OVER * capacity_qps,
                        duration_s=duration_s, slo_s=slo_s,
                    )  # fmt: skip
                    scores[name] = asyncio.run(load)
        return {"capacity_qps": capacity_qps, "scores": scores}

    def _overload_rows(self) -> list[Row]:
        if "cost/overload" not in self._journal:
            return []
        found = self._journal.get("cost/overload")
        capacity_qps, rows = found["capacity_qps"], list[Row]()
        for run, values in found["scores"].items():
            score = PacedScore(*values)
            goodput_qps = score.on_time / self._scale.overload_s
            aim = f">= {_GOODPUT_BAR:g} asked for; " if run == f"{_TABLE_SLO_S * 1e3:g}" else ""
            carrier = "the body" if run.endswith(_IN_BODY) else "a header"
            detail = (
                f"{aim}on-time answers at {_OVER:g} times the {capacity_qps:.0f} requests/s of a "
                f"closed loop on the smallest subnet, over those; SLO in {carrier}; {score.ends}, "
                f"client's lag p99 {score.lag_p99_s * 1e3:.1f} ms"
            )
            utility_detail = f"attainment {score.attainment:.4f} x accuracy {score.accuracy:.4f}"
            name = f"serving/doors/slo{run}"
            rows += [
                row(f"{name}/goodput_at_1.25x_over_capacity", goodput_qps / capacity_qps, "ratio",
                    detail, digits=3),
                row(f"{name}/utility_at_1.25x", score.attainment * score.accuracy, "fraction",
                    utility_detail, digits=4),
            ]  # fmt: skip
        return rows

    # --- shared memory ---------------------------------------------------------------------------

    def _memory(self) -> dict[str, list[float]]:
        """Return latency less execution of 16 large images, sent and in shared memory."""
        config = self._setting.config(
            checkpoint=None, device="timed", policy=_POLICY, input_shape=_IMAGE,
            num_classes=_CLASSES, model_name="images",
        )  # fmt: skip
        samples = np.random.default_rng(0).integers(0, 256, (_BATCH, *_IMAGE), dtype=np.uint8)
        with server_process(config) as server, _region(samples) as key:
            return asyncio.run(self._exchange(server.url, samples, key))

    async def _exchange(self, url: str, samples: np.ndarray, key: str) -> dict[str, list[float]]:
        subnet_id = self._setting.sized()["smallest"]
        size = samples.nbytes + _room(samples)
        register = json.dumps({"key": key, "offset": 0, "byte_size": size}).encode()
        path = "/v2/systemsharedmemory/region/bench/register"
        requests = {
            "binary": http_request(url, "images", samples, subnet_id),
            "shared": _shared_post(url, samples, subnet_id),
            "shared_one": _shared_post(url, samples[:1], subnet_id),
        }
        where = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(where[0], int(where[1]))
        await _ask(reader, writer, http_post(url, path, register, {}))
        found: dict[str, list[float]] = {name: [] for name in requests}
        for number in range(self._scale.exchanges):
            for name in sorted(requests, reverse=bool(number % 2)):
                start_s = time.perf_counter()
                answer = await _ask(reader, writer, requests[name])
                took_s = time.perf_counter() - start_s
                execution = re.search(rb'"execution_s": ([0-9.e+-]+)', answer)
                assert execution is not None, "an answer of ours says how long it ran"
                found[name].append(took_s - float(execution.group(1)))
        writer.close()
        return found

    def _memory_rows(self) -> list[Row]:
        if "cost/memory" not in self._journal:
            return []
        found: dict[str, list[float]] = self._journal.get("cost/memory")
        ours, sent, one = (
            float(np.median(found[name])) * 1e3 for name in ("shared", "binary", "shared_one")
        )
        detail = (
            f"<= {_MEMORY_BAR:g} asked for; latency less execution of {_BATCH} x 3 x 224 x 224, "
            f"{ours:.2f} ms with input and output in shared memory over {sent:.2f} ms sent, "
            f"medians of {len(found['shared'])} each in turns; TIMED device"
        )
        beyond = f"the same less the {one:.2f} ms of one image in shared memory"
        figure = "serving/doors/shared_memory_over_binary"
        return [
            row(figure, ours / sent, "ratio", detail, digits=3),
            row(f"{figure}/beyond_one", (ours - one) / (sent - one), "ratio", beyond, digits=3),
        ]


def _shared_post(url: str, samples: np.ndarray, subnet_id: str) -> bytes:
    head = json.dumps(_shared_request(samples, subnet_id)).encode()
    return http_post(url, "/v2/models/images/infer", head, {BINARY_HEADER: str(len(head))})


def _shared_request(samples: np.ndarray, subnet_id: str) -> dict[str, Any]:
    tensor = {
        "name": "input",
        "datatype": "UINT8",
        "shape": list(samples.shape),
        "parameters": {"shared_memory_region": "bench", "shared_memory_byte_size": samples.nbytes},
    }
    output = {
        "name": OUTPUT_NAME,
        "parameters": {
            "shared_memory_region": "bench",
            "shared_memory_offset": len(samples) * math.prod(_IMAGE),
            "shared_memory_byte_size": _room(samples),
        },
    }
    asked = {"slo_ms": 10_000, "subnet": subnet_id}
    return {"inputs": [tensor], "outputs": [output], "parameters": asked}


def _room(samples: np.ndarray) -> int:
    """Return the bytes of the samples' logits."""
    return len(samples) * _CLASSES * np.dtype(np.float32).itemsize


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> bytes:
    """Return the body of the answer to one request."""
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = head.lower().partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0]
    body = await reader.readexactly(int(length))
    if not head.startswith(b"HTTP/1.1 200 "):
        raise RuntimeError(f"refused: {head!r} {body[:500]!r}")
    return body


@contextlib.contextmanager
def _region(samples: np.ndarray) -> Iterator[str]:
    """Yield the key of a shared memory object that holds the samples, and has room for logits."""
    path = Path(FOLDER) / f"supernet_bench_{os.getpid()}"
    path.write_bytes(samples.tobytes() + bytes(_room(samples)))
    try:
        yield f"/{path.name}"
    finally:
        path.unlink()


@contextlib.contextmanager
def bare_process(protocol: str) -> Iterator[tuple[int, str]]:
    """Run a bare server for the length of a `with` block; yield its process id and URL."""
    command = [sys.executable, "-m", "serve.bench.serving.bare_server", protocol]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None, "asked for"
            line = process.stdout.readline()
            if not line.startswith("ready: "):
                raise RuntimeError("the bare server did not come up; its own words are above")
            yield process.pid, line.removeprefix("ready: ").strip()
        finally:
            process.kill()
