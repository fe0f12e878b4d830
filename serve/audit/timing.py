"""The response time as a channel: how well a classifier tells the subnet from what a client sees.

An attacker trains on answers whose subnet it knows. Features are the response time, and what the
answer itself tells of time and batch; a random forest is cross-validated. Chance is the largest
class: what one gets who always says the same.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from serve.audit.prober import Probe, Prober, Seen
from serve.client import InferError

_FOLDS = 5
_TREES = 60


async def under_load(
    prober: Prober,
    background: Prober,
    images: np.ndarray,
    asked: Sequence[Probe],
    *,
    rate_qps: float,
    in_flight: int,
    seed: int,
) -> list[Seen]:
    """Ask while another principal sends `rate_qps` at drawn times; 0 is an idle server."""
    rng = np.random.default_rng(seed)
    sent: set[asyncio.Task[object]] = set()

    async def one(image: np.ndarray) -> None:
        try:
            await background.ask(image, Probe(slo_ms=1000.0))
        except InferError:
            return  # what is refused is load as well

    async def others() -> None:
        while True:
            await asyncio.sleep(rng.exponential(1 / rate_qps))
            image = images[int(rng.integers(len(images)))]
            task = asyncio.create_task(one(image))
            sent.add(task)
            task.add_done_callback(sent.discard)

    load = asyncio.create_task(others()) if rate_qps else None
    try:
        return await prober.ask_all(images[: len(asked)], asked, in_flight)
    finally:
        if load is not None:
            load.cancel()
            await asyncio.gather(load, *sent, return_exceptions=True)


def classified(seen: Sequence[Seen], *, sees_told: bool, seed: int) -> dict[str, float]:
    """Return the classifier's accuracy and chance; `sees_told`: with the times in the answer."""
    answered = [one for one in seen if one.is_answered]
    features = np.array([(one.took_s, *(one.told if sees_told else ())) for one in answered])
    names = [one.subnet_id for one in answered]
    chance = Counter(names).most_common(1)[0][1] / len(names)
    return {"accuracy": cross_validated(features, names, seed), "chance": chance}


def cross_validated(features: np.ndarray, names: Sequence[str], seed: int) -> float:
    """Return the share that a random forest names rightly, of those it was not trained on."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import KFold, cross_val_score

    forest = RandomForestClassifier(_TREES, min_samples_leaf=3, random_state=seed)
    folds = KFold(_FOLDS, shuffle=True, random_state=seed)
    return float(cross_val_score(forest, features, np.array(names), cv=folds).mean())


def summary(
    idle: Sequence[Seen], loaded: Sequence[Seen], *, sees_told: bool, seed: int
) -> dict[str, Any]:
    """Return the figures of one server; `accuracy` and `chance` are those under load."""
    under = classified(loaded, sees_told=sees_told, seed=seed)
    return {
        "accuracy": under["accuracy"],
        "chance": under["chance"],
        "response_time_only": classified(loaded, sees_told=False, seed=seed)["accuracy"],
        "idle": classified(idle, sees_told=sees_told, seed=seed),
        "answers": len(loaded),
        "p50_s": float(np.median([one.took_s for one in loaded if one.is_answered])),
    }
