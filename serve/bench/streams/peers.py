"""Streams against llama.cpp's server: the same burst, each at loads scaled to its own capacity.

The same weights (llama.cpp reads the file that ours were imported from, in its own precision), as
many threads, the same client, prompts of token ids, forced lengths. What a system carries is what
it completes in a closed loop; the open-loop runs are at parts of that, so that a faster peer is
not compared at a load it does not feel. Ours is scaled to its largest width alone, which stands
beside it: what the difference is made of.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from serve.bench.rows import Row, Tell, row
from serve.bench.serving.server_process import server_process
from serve.bench.streams.setting import OURS, mean_fluidity, mean_quality, on_time_share, skipped
from serve.client.streams.openai_target import OpenAITarget
from serve.config import parse_config
from slackfit.profile import LatencyProfile
from slackfit.streams.stream_query import StreamOutcome, StreamQuery
from supernet.checkpoint import load_checkpoint
from traces.generators.arrivals import gamma
from traces.open_loop.stream_replay import as_client_saw, replay_streams
from traces.open_loop.stream_target import StreamCall
from traces.simulation.stream_simulation import StreamSlo, stream_queries

LLAMACPP_PYTHON = Path(".venv-lm/bin/python")
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
    """Return capacities, on-time shares and fluidities of each system; one row where it can't."""
    if setting.checkpoint is None or setting.gguf is None:
        reason = "no weights: give --checkpoint of a decoder, and --gguf it was imported from"
        return [skipped("peers", reason)]
    if not LLAMACPP_PYTHON.exists():
        reason = f"{LLAMACPP_PYTHON} is not there: a venv with requirements-lm.txt makes it"
        return [skipped("peers", reason)]
    rows: list[Row] = []
    systems: dict[str, Callable[[], AbstractContextManager[str]]] = {
        "largest": lambda: _ours(setting, _LARGEST),
        "ours": lambda: _ours(setting, OURS),
        "llamacpp": lambda: _llamacpp(setting),
    }
    capacity_qps: dict[str, float] = {}
    found: dict[tuple[str, float], list[StreamOutcome]] = {}
    for name, serving in systems.items():
        with serving() as url:
            if name == "ours":  # scaled to what the largest width carries
                capacity_qps[name] = capacity_qps["largest"]
            else:
                capacity_qps[name] = asyncio.run(_capacity_qps(url, setting.capacity_s))
                detail = {"threads": setting.threads, "streams_at_once": SLOTS}
                rows.append(
                    row(f"streams/peers/{name}/capacity", capacity_qps[name], "1/s", detail)
                )
                tell(f"{name}: {capacity_qps[name]:.3f} streams/s in a closed loop")
            for load in LOADS:
                queries = _queries(load * capacity_qps[name], setting.run_s)
                found[name, load] = asyncio.run(_replay(url, queries))
                rows += _rows_of(name, load, capacity_qps[name], found[name, load], tell)
    for load in LOADS:
        for peer in ("largest", "llamacpp"):
            gained = on_time_share(found["ours", load]) - on_time_share(found[peer, load])
            figure = f"streams/peers/load{load:g}/on_time_ours_less_{peer}"
            rows.append(row(figure, gained, "fraction", "each at its own capacity's load"))
    return rows


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
def _ours(setting: PeerSetting, policy: str) -> Iterator[str]:
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
                "policy": policy,
                "threads": setting.threads,
                "max_running": SLOTS,
                "kv_tokens": SLOTS * _CONTEXT,
                "prefix_cache": False,
                "port": 0,
            }
        )
        with server_process(config) as server:
            yield server.url


@contextlib.contextmanager
def _llamacpp(setting: PeerSetting) -> Iterator[str]:
    order = {
        "gguf": str(setting.gguf),
        "slots": SLOTS,
        "context": _CONTEXT,
        "threads": setting.threads,
    }
    command = [
        str(LLAMACPP_PYTHON), "-m", "serve.bench.streams.llamacpp_server", json.dumps(order)
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
