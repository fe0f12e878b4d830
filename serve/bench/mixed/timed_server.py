"""What the live cells of part `mixed` share: a server on the timed device, and even sends."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from serve.client import AsyncClient, InferError
from serve.config import ServeConfig, parse_config

PROFILE = Path(__file__).parents[3] / "profiles" / "superserve_resnet_2080ti.json"
MODEL = "resnet"
SHAPE = (3, 224, 224)
TIMED = "TIMED executor: the device sleeps for the profiled latency, nothing is computed"

Ask = Callable[[int], Any]
"""Sends one query; `ask(index)` is awaited, and true when it was answered with an output."""


def config_of(**settings: Any) -> ServeConfig:
    """Return the settings of a server on the timed device."""
    fields = {
        "device": "timed",
        "profile": str(PROFILE),
        "input_shape": SHAPE,
        "num_classes": 1000,
        "model_name": MODEL,
        "port": 0,
        "grpc_port": 0,
    }
    return parse_config({**fields, **settings})


def on_time_share(metrics: str) -> float:
    """Return the share of the queries that a server's own metrics count as on time, of all models.

    Raises ValueError for metrics without a query.
    """
    ended: Counter[str] = Counter()
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            if sample.name == "supernet_queries_total":
                ended[sample.labels["status"]] += round(sample.value)
    if not ended.total():
        raise ValueError("the server has counted no query")
    return ended["on_time"] / ended.total()


async def in_time(ask: Ask, *, rate_qps: float, duration_s: float, slo_s: float) -> float:
    """Send at even times; return the share that was answered within `slo_s` of its time."""
    loop = asyncio.get_running_loop()
    start_s = loop.time() + 0.05

    async def one(index: int) -> bool:
        due_s = start_s + index / rate_qps
        await asyncio.sleep(due_s - loop.time())
        return bool(await ask(index)) and loop.time() - due_s <= slo_s

    ends = await asyncio.gather(*(one(index) for index in range(round(rate_qps * duration_s))))
    return sum(ends) / len(ends)


async def is_answered(client: AsyncClient, inputs: Any) -> bool:
    """Ask once; whether an output came back."""
    try:
        await client.infer(inputs)
    except InferError:
        return False
    return True
