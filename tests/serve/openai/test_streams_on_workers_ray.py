"""A replica on Ray whose decoder runs on two workers; one is killed while streams run on both.

The client waits for events and does nothing else. Slow: a cluster takes long to start.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.config import parse_config
from serve.hosts.ray_host import RayHost
from slackfit.streams.iteration_cost import IterationCosts
from slackfit.streams.parallel_cost import ParallelCost
from subnetact.decoding.stream_executor import StreamExecutor
from subnetact.profiling.iteration_profiler import measure_iterations
from supernet import define_supernet, load_checkpoint, save_checkpoint
from supernet.text import TextSpec
from supernet.weights.import_decoder import decoder_checkpoint
from tests.serve.ray_cluster import ON_RAY, on_ray

tokenizers = pytest.importorskip("tokenizers")
torch = pytest.importorskip("torch")

pytestmark = [*ON_RAY, pytest.mark.slow]

BREAK_EVEN = 128
LONG, SHORT = "a long prompt " * 50, "short"  # 700 and 5 tokens, which are bytes


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A tiny decoder of bytes, and a profile of it that says that two shards pay from 128 on."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    encoder = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    encoder.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder.decoder = tokenizers.decoders.ByteLevel()
    definition = define_supernet("decoder_tiny", vocab_size=256, max_positions=4096)
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(tensor.shape, generator=generator) * 0.2
        if tensor.dim() > 1
        else torch.ones(tensor.shape)
        for name, tensor in definition.build().state_dict().items()
    }
    text = TextSpec(tokenizer=encoder.to_str(), chat_template="", eos_ids=(7,))
    ids = [torch.arange(64)[None]]
    made = decoder_checkpoint(definition, state, ids, name="lm", text=text)
    folder = tmp_path_factory.mktemp("lm")
    save_checkpoint(made, folder / "checkpoint")
    checkpoint = load_checkpoint(folder / "checkpoint")
    executor = StreamExecutor(checkpoint, capacity_tokens=2560)
    measured = measure_iterations(
        executor, checkpoint, decodes=(1, 2), repeats=1, max_error=float("inf")
    )
    grid = ParallelCost(shards=2, break_even_tokens=BREAK_EVEN, gather_s=1e-3)
    costs = IterationCosts.of(measured).on_workers(grid)
    costs.in_profile(measured).save(folder / "profile.json")
    return {
        "checkpoint": str(folder / "checkpoint"),
        "profile": str(folder / "profile.json"),
        "model_name": "lm",
        "policy": "fixed:largest",
        "port": 0,
        "ttft_ms": 60_000,
        "tpot_ms": 5_000,
    }


@pytest.fixture(scope="module")
def host(settings: dict[str, Any]) -> Iterator[RayHost]:
    with on_ray(parse_config(settings)) as host:
        yield host


def workers() -> dict[str, int]:
    """Processes of workers that descend from this one, by what they are called."""
    parents: dict[int, int] = {}
    named: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
        except OSError:
            continue  # it has ended meanwhile
        name, _, rest = stat.partition("(")[2].rpartition(")")
        parents[int(folder.name)] = int(rest.split()[1])
        if name.startswith("supernet-w"):
            named[int(folder.name)] = name

    def is_ours(pid: int) -> bool:
        while pid in parents and pid != os.getpid():
            pid = parents[pid]
        return pid == os.getpid()

    return {name: pid for pid, name in named.items() if is_ours(pid)}


class Reader(threading.Thread):
    """An idle client: it reads a stream's events, with their times, until it ends."""

    def __init__(self, url: str, prompt: str, max_tokens: int) -> None:
        super().__init__(daemon=True)
        self.url, self.prompt, self.max_tokens = url, prompt, max_tokens
        self.events: list[tuple[float, Any]] = []
        self.start()

    def run(self) -> None:
        body = {"model": "lm", "prompt": self.prompt, "max_tokens": self.max_tokens}
        body |= {"stream": True, "temperature": 0, "ignore_eos": True}
        url = f"{self.url}/v1/completions"
        with (
            contextlib.suppress(httpx.TransportError),  # of a replica that is gone
            httpx.stream("POST", url, json=body, timeout=60.0) as response,
        ):
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    self.events.append((time.monotonic(), json.loads(line[6:])))

    @property
    def failure(self) -> str | None:
        """Why it was cut short, or None."""
        codes = [event["error"]["code"] for _, event in self.events if "error" in event]
        return codes[0] if codes else None

    @property
    def outputs(self) -> list[float]:
        """When each output came."""
        return [at_s for at_s, event in self.events if event.get("choices")]

    @property
    def text(self) -> str:
        """What it read."""
        return "".join(e["choices"][0]["text"] for _, e in self.events if e.get("choices"))


def read(url: str, prompt: str, max_tokens: int) -> Reader:
    reader = Reader(url, prompt, max_tokens)
    reader.join(60.0)
    assert not reader.is_alive()
    return reader


def test_a_killed_worker_ends_its_streams_and_service_is_back(host: RayHost) -> None:
    from ray.util import placement_group_table

    (group,) = [g for g in placement_group_table().values() if g["state"] == "CREATED"]
    assert group["strategy"] == "STRICT_PACK"
    assert [bundle["CPU"] for bundle in group["bundles"].values()] == [1.0, 1.0, 1.0]
    before = workers()
    assert sorted(before) == ["supernet-w0", "supernet-w1"]
    expected = read(host.url, LONG, 10).text
    long = [Reader(host.url, LONG, 3000) for _ in range(2)]
    short = [Reader(host.url, SHORT, 400) for _ in range(2)]
    while not all(reader.outputs for reader in (*long, *short)):
        time.sleep(0.005)
    assert not any(reader.failure for reader in (*long, *short))
    killed_s = time.monotonic()
    os.kill(before["supernet-w1"], signal.SIGKILL)
    for reader in long:
        reader.join(10.0)
    ended_s = max(reader.events[-1][0] for reader in long) - killed_s
    assert [reader.failure for reader in long] == ["device_failed"] * 2
    assert ended_s < 2.0
    again = read(host.url, LONG, 10)
    while workers().get("supernet-w1") in (None, before["supernet-w1"]):
        time.sleep(0.02)
        again = read(host.url, LONG, 10)
    back_s = again.outputs[0] - killed_s
    assert again.text == expected
    assert back_s < 15.0
    assert workers()["supernet-w0"] == before["supernet-w0"]  # it has gone on
    for reader in short:
        reader.join(60.0)
        assert reader.failure is None
        assert reader.events[-1][1]["choices"][0]["finish_reason"] == "length"
    gap_s = max(b - a for r in short for a, b in zip(r.outputs, r.outputs[1:], strict=False))
    print(f"its streams ended after {ended_s:.2f} s, the others' longest gap was {gap_s:.2f} s, ")
    print(f"a stream over both workers had its first output after {back_s:.2f} s")


def test_no_worker_outlives_a_killed_replica(host: RayHost) -> None:
    before = workers()
    server = int(
        Path(f"/proc/{before['supernet-w0']}/stat").read_text().rpartition(")")[2].split()[1]
    )
    replica = int(Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()[1])
    assert (Path(f"/proc/{replica}/cmdline")).read_bytes().startswith(b"ray::ServeReplica")
    killed_s = time.monotonic()
    os.kill(replica, signal.SIGKILL)
    while any(Path(f"/proc/{pid}").exists() for pid in before.values()):
        assert time.monotonic() < killed_s + 5.0
        time.sleep(0.02)
    while not read(host.url, LONG, 10).outputs:
        assert time.monotonic() < killed_s + 60.0, "no replica serves again"
        time.sleep(0.3)
    print(f"a new replica served after {time.monotonic() - killed_s:.1f} s")
