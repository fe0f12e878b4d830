"""Membership inference: whether an image was trained on, told by how sure the answers are.

The attack by a threshold on confidence (Yeom et al., CSF 2018): chosen on one half of the answers,
judged on the other. Advantage is the rate of members found less the rate of others called members:
0 for who guesses. The area under the curve needs no threshold.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from serve.audit.copying.extraction import targets_of


def membership(members: np.ndarray, others: np.ndarray, seed: int) -> dict[str, Any]:
    """Return the attack's figures from logits (N, classes) of members and of others."""
    scores = [_confidence(logits) for logits in (members, others)]
    rng = np.random.default_rng(seed)
    halves = [np.array_split(rng.permutation(some), 2) for some in scores]
    chosen, judged = zip(*halves, strict=True)
    threshold = _best_threshold(*chosen)
    advantage = float((judged[0] >= threshold).mean() - (judged[1] >= threshold).mean())
    deviation = 1 / np.sqrt(min(map(len, judged)))
    return {
        "auc": _auc(*scores),
        "advantage": advantage,
        "advantage_ci95": float(1.96 * deviation / np.sqrt(2)),
        "members": len(members),
        "others": len(others),
    }


def _confidence(logits: np.ndarray) -> np.ndarray:
    return targets_of(logits).max(axis=1)


def _best_threshold(members: np.ndarray, others: np.ndarray) -> float:
    candidates = np.unique(np.concatenate([members, others]))
    found = [(members >= t).mean() - (others >= t).mean() for t in candidates]
    return float(candidates[int(np.argmax(found))])


def _auc(members: np.ndarray, others: np.ndarray) -> float:
    """Return the chance that a member is surer than another image (ties count half)."""
    ordered = np.sort(others)
    below = np.searchsorted(ordered, members, side="left")
    up_to = np.searchsorted(ordered, members, side="right")
    return float(((below + up_to) / 2).mean() / len(others))
