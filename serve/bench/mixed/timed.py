"""Mixed traffic against a live server with the timed executor: several models, one loose query.

The device sleeps for the profiled latency and computes nothing. Profile and SLO are ten times the
published ones, so that what this machine adds to a batch, a millisecond or two, does not count.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import aiohttp

from serve.bench.mixed.cell import Finding, MixedCell
from serve.bench.mixed.timed_server import on_time_share
from serve.bench.serving.load import samples
from serve.bench.serving.server_process import server_process
from serve.client.dial import dial
from serve.commands.live_replay import LiveReplay
from serve.config import ServeConfig, parse_config
from slackfit.profile import LatencyProfile
from slackfit.query import Outcome
from traces.open_loop.replay_options import ReplayOptions
from traces.open_loop.target import ReplayRequest
from traces.spec.spec import parse_spec

_SLOWER = 10.0  # than published
_SLO_S = 0.36
_SHAPE = (3, 8, 8)
_DURATION_S = 30.0
_WARMUP_S = 2.0
_LOADS = {"": 0.23, "load60/": 0.6}
_MODELS = (2, 4)
_POLICIES = ("drainfit", "slackfit")
_LOOSE_SLO_S = 20.0
_LOOSE_QPS, _LOOSE_CV2 = 62.5, 8


class Score(NamedTuple):
    """Attainment and mean accuracy of what was sent, how much that was, what the server says.

    The clients judge from the intended send, without the warm-up, which the server counts too.
    """

    attainment: float
    accuracy: float
    num_queries: int
    server_attainment: float

    def __str__(self) -> str:
        return f"{self.attainment:.4f}/{self.accuracy:.4f} of {self.num_queries}"


def timed_cells(profile: LatencyProfile, out: Path) -> list[MixedCell]:
    """Return the cells; the slower profile is written to `out`."""
    path = out / "mixed_profile.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    slower = profile.scaled(_SLOWER)
    slower.save(path)
    cells = [
        MixedCell(f"{prefix}models{count}", partial(_models, slower, path, prefix, load, count))
        for prefix, load in _LOADS.items()
        for count in _MODELS
    ]
    return [*cells, MixedCell("first_loose", partial(_first_loose, path))]


def _models(
    profile: LatencyProfile, path: Path, prefix: str, load: float, count: int
) -> list[Finding]:
    rate_qps = load * profile.fastest().capacity_qps / count
    names = [f"model{number}" for number in range(count)]
    specs = [f"poisson:rate={rate_qps:.3f},duration={_WARMUP_S + _DURATION_S:g}"] * count
    scores: list[Score] = []
    for policy in _POLICIES:
        with server_process(_config(path, policy, names)) as server:
            scores.append(asyncio.run(_replayed(server.url, names, specs)))
    ours, theirs = scores
    figure = f"{prefix}models{count}"
    detail = (
        f"{ours}, SlackFit {theirs}; live, TIMED device, {count} models at {load:g} of its "
        f"capacity together, Poisson, SLO {_SLO_S * 1e3:g} ms, {_DURATION_S:g} s"
    )
    least = theirs.accuracy - 0.003
    return [
        Finding(f"{figure}/attainment", ours.attainment, "fraction", ">= 0.995", detail),
        Finding(f"{figure}/accuracy", ours.accuracy, "fraction", f">= {least:.4f}", detail),
        _agreement(figure, ours),
    ]


def _first_loose(path: Path) -> list[Finding]:
    loose, usual = (_after_a_first_query(path, slo_s) for slo_s in (_LOOSE_SLO_S, _SLO_S))
    detail = (
        f"{loose}, after a first query with the usual SLO {usual}; live, TIMED device, "
        f"{_LOOSE_QPS:g} queries/s, CV^2 {_LOOSE_CV2}, the first with an SLO of {_LOOSE_SLO_S:g} s"
    )
    return [
        Finding("first_loose/attainment", loose.attainment, "fraction", ">= 0.995", detail),
        _agreement("first_loose", loose),
    ]


def _agreement(figure: str, score: Score) -> Finding:
    gap = abs(score.server_attainment - score.attainment)
    detail = f"the server says {score.server_attainment:.4f}, its clients {score.attainment:.4f}"
    return Finding(f"{figure}/server_less_clients", gap, "fraction", "<= 0.005", detail)


def _after_a_first_query(path: Path, slo_s: float) -> Score:
    """Return the score of a trace that a fresh server gets after one query with this SLO."""
    name = "model0"
    spec = f"gamma:rate={_LOOSE_QPS:g},cv2={_LOOSE_CV2},duration={_DURATION_S:g}"

    async def run(url: str) -> Score:
        target, model = await dial(url, name)
        try:
            sample = samples(None, model)[0]
            await target.infer(ReplayRequest(query_id=0, payload=sample, slo_s=slo_s))
        finally:
            await target.close()
        return await _replayed(url, [name], [spec], warmup_s=0.0)

    with server_process(_config(path, _POLICIES[0], [name])) as server:
        return asyncio.run(run(server.url))


def _config(path: Path, policy: str, names: Sequence[str]) -> ServeConfig:
    model = {"profile": str(path), "input_shape": _SHAPE, "num_classes": 10}
    return parse_config(
        {
            "device": "timed",
            "port": 0,
            "slo_ms": _SLO_S * 1e3,
            "policy": policy,
            "models": dict.fromkeys(names, model),
        }
    )


async def _replayed(
    url: str, names: Sequence[str], specs: Sequence[str], *, warmup_s: float = _WARMUP_S
) -> Score:
    """Send each model its trace, all at once, and return the score of all together."""
    runs = [
        LiveReplay(
            trace=parse_spec(spec, seed=seed),
            url=url,
            options=ReplayOptions(
                slo_s=_SLO_S, seed=seed, timeout_s=10 * _SLO_S, warmup_s=warmup_s
            ),
            model=name,
            num_processes=1,
        ).run()
        for seed, (name, spec) in enumerate(zip(names, specs, strict=True))
    ]
    ended: list[Outcome] = []
    for _, result in await asyncio.gather(*runs):
        if result.is_partial:  # Ctrl-C: a cut run is no cell
            raise KeyboardInterrupt
        ended += result.outcomes
    on_time = [o.accuracy for o in ended if o.status == "on_time"]
    accuracy = sum(on_time) / max(len(on_time), 1)
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as answer:
        server_attainment = on_time_share(await answer.text())
    return Score(len(on_time) / max(len(ended), 1), accuracy, len(ended), server_attainment)
