"""Cell `images` of part `mixed`: goodput of JPEG files beyond what the decoder can take.

The decoder shares the processor with the client that sends, the door and the neighbours, and what
it gets of it changes within minutes. So capacity and overload are measured in turn, several times,
and the middle ratio is told. A hiccup of the machine is no capacity: a rate is served where two of
three runs are.
"""

from __future__ import annotations

import asyncio
import io
import statistics
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from serve.bench.mixed.cell import Finding
from serve.bench.mixed.timed_server import MODEL, TIMED, config_of, in_time, is_answered
from serve.bench.rows import Tell
from serve.bench.serving.server_process import ServerProcess, server_process
from serve.client import AsyncClient

IMAGE_SIZE = (1200, 900)
_SLO_S = 0.2
_RUN_S = 3.0
_OVERLOAD_S = 8.0
_GOOD = 0.99  # in time, at the decoder's capacity
_OVERLOAD = 2.5
_ROUNDS = 3
_START_QPS = 16.0
_LEAST_QPS = 1.0
_WITHIN = 1.04  # how well a capacity is known


def images(tell: Tell) -> list[Finding]:
    """Goodput of JPEG files at 2.5 times the highest rate that the decoder serves in time."""
    files = image_files(8)
    capacities: list[float] = []
    ratios: list[float] = []
    with server_process(config_of(slo_ms=_SLO_S * 1e3)) as server:

        def share(rate_qps: float, duration_s: float = _RUN_S) -> float:
            return asyncio.run(_ask(server, files, rate_qps, duration_s))

        def serves(rate_qps: float) -> bool:
            return _mostly(lambda: share(rate_qps) >= _GOOD)

        share(_START_QPS)  # what a file takes is learned
        growth, start_qps = 1.6, _START_QPS
        for _ in range(_ROUNDS):
            capacity_qps = highest_rate(serves, start_qps, growth=growth)
            goodput = share(_OVERLOAD * capacity_qps, _OVERLOAD_S) * _OVERLOAD
            tell(f"images: capacity {capacity_qps:.1f}/s, goodput over it {goodput:.3f}")
            capacities.append(capacity_qps)
            ratios.append(goodput)
            growth, start_qps = 1.2, capacity_qps
    capacity_qps, goodput = statistics.median(capacities), statistics.median(ratios)
    size = sum(map(len, files)) / len(files)
    detail = (
        f"{IMAGE_SIZE[0]} x {IMAGE_SIZE[1]} JPEG of {size:.0f} bytes, SLO {_SLO_S:g} s; capacity "
        f"({_GOOD:g} in time) {_listed(capacities)}/s, goodput at {_OVERLOAD:g} times that "
        f"{_listed(ratios)}: the median; {TIMED}"
    )
    return [
        Finding("images/decode_capacity", capacity_qps, "queries/s", "", detail),
        Finding("images/goodput_over_decode_capacity", goodput, "ratio", ">= 0.9", detail),
    ]


def highest_rate(
    serves: Callable[[float], bool],
    start_qps: float,
    *,
    growth: float,
    within: float = _WITHIN,
) -> float:
    """Return the highest rate that is served, known `within` a factor; at least 1/s.

    From `start_qps` by steps of `growth` to where it changes, then bisected (the geometric mean).
    """
    low = high = start_qps
    if serves(start_qps):
        while serves(high := low * growth):
            low = high
    else:
        while low > _LEAST_QPS:
            high, low = low, low / growth
            if serves(low):
                break
        else:
            return _LEAST_QPS
    while high / low > within:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if serves(middle) else (low, middle)
    return low


def image_files(count: int) -> list[bytes]:
    """Return JPEG files of pictures with edges and noise, as a camera makes them."""
    rng = np.random.default_rng(0)
    width, height = IMAGE_SIZE
    files: list[bytes] = []
    for _ in range(count):
        coarse = rng.integers(0, 256, (height // 30, width // 30, 3))
        pixels = np.kron(coarse, np.ones((30, 30, 1))) + rng.normal(0, 6, (height, width, 3))
        file = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
        files.append(file.getvalue())
    return files


def _mostly(is_good: Callable[[], bool]) -> bool:
    """Say what two of three tries say."""
    first, second = is_good(), is_good()
    return first if first == second else is_good()


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


async def _ask(
    server: ServerProcess, files: Sequence[bytes], rate_qps: float, duration_s: float
) -> float:
    async with AsyncClient(server.url, MODEL, slo_ms=_SLO_S * 1e3) as client:

        async def ask(index: int) -> bool:
            return await is_answered(client, [files[index % len(files)]])

        return await in_time(ask, rate_qps=rate_qps, duration_s=duration_s, slo_s=_SLO_S)
