"""How often one subnet can be made to answer: naive, adaptive, by repeating, by perturbing.

The naive attacker stays at the fingerprinted corner. The adaptive one tries a grid of
specifications, halves the field by the best share so far, and stays with the winner: it is told
which subnet served, which no real attacker is, so that what it reaches bounds them all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np

from serve.audit.prober import Probe, Prober, Seen

_FIRST_TRIES = 24
_EXPLORED = 0.2  # of the queries
_REPEATS = 8
_REPEATED = 240


def best_share(seen: Sequence[Seen]) -> float:
    """Return the share of the subnet that answered most, of all answers."""
    served = [one.subnet_id for one in seen if one.is_answered]
    return Counter(served).most_common(1)[0][1] / len(served) if served else 0.0


async def naive_share(
    prober: Prober, images: np.ndarray, corner: Probe, in_flight: int
) -> tuple[float, list[Seen]]:
    """Return the best share at one specification, each image once, and the answers."""
    seen = await prober.ask_all(images, [corner] * len(images), in_flight)
    return best_share(seen), seen


async def adaptive_share(
    prober: Prober,
    images: np.ndarray,
    floors: Sequence[float],
    slos_ms: Sequence[float],
    in_flight: int,
) -> tuple[float, Probe]:
    """Return the best share that halving finds, on answers of its own, and where."""
    field = [Probe(floor, slo_ms) for floor, slo_ms in product(floors, slos_ms)]
    left, tries = int(len(images) * _EXPLORED), _FIRST_TRIES
    at = 0
    while len(field) > 1:
        tries = max(4, min(tries, left // len(field)))
        shares: list[tuple[float, Probe]] = []
        for asked in field:
            part = images[at : at + tries]
            at += len(part)
            shares.append(
                (best_share(await prober.ask_all(part, [asked] * len(part), in_flight)), asked)
            )
        left -= tries * len(field)
        shares.sort(key=lambda one: -one[0])
        field = [asked for share, asked in shares[: max(1, len(shares) // 2)] if share > 0]
        tries *= 2
        if left < 4 * len(field):
            field = field[:1]
    if not field:
        return 0.0, Probe()
    rest = images[at:]
    return best_share(await prober.ask_all(rest, [field[0]] * len(rest), in_flight)), field[0]


async def repetition(
    prober: Prober,
    images: np.ndarray,
    corner: Probe,
    victim: np.ndarray | None,
    share: float,
    in_flight: int,
    seed: int,
) -> dict[str, Any]:
    """Return what it gains to ask each image several times, as it is and changed a little.

    `victim` (N,) are the victim's labels, where they are known: how much nearer the majority of the
    answers is to them than a single one.
    """
    images = images[:_REPEATED]
    rng = np.random.default_rng(seed)
    single = await prober.ask_all(images, [corner] * len(images), in_flight)
    result: dict[str, Any] = {}
    for kind in ("exact", "perturbed"):
        repeats = [single]
        for _ in range(_REPEATS - 1):
            again = images if kind == "exact" else perturbed(images, rng)
            repeats.append(await prober.ask_all(again, [corner] * len(images), in_flight))
        answers = [seen for repeat in repeats for seen in repeat]
        before = best_share(single) if kind == "exact" else share
        result[f"{kind}_gain"] = best_share(answers) - before
        if victim is not None:
            result[f"{kind}_label_gain"] = label_gain(repeats, victim[: len(images)])
    result["repetition_gain"] = max(result["exact_gain"], result["perturbed_gain"])
    return result


def perturbed(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return images of which each pixel is changed by at most 1."""
    noise = rng.integers(-1, 2, images.shape)
    return np.clip(images.astype(np.int16) + noise, 0, 255).astype(np.uint8)


def label_gain(repeats: Sequence[Sequence[Seen]], victim: np.ndarray) -> float:
    """Return how much more the majority of repeats agrees with the victim than the first."""
    labels = np.array(
        [[-1 if s.logits is None else int(s.logits.argmax()) for s in repeat] for repeat in repeats]
    )
    voted = np.array([Counter(column).most_common(1)[0][0] for column in labels.T.tolist()])
    return float((voted == victim).mean() - (labels[0] == victim).mean())
