"""`Copies`: the table of extraction: students by arm, budget and seed, each kept in a journal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from serve.audit.copying.bodies import FrozenBody
from serve.audit.copying.extraction import (
    ARMS,
    Answers,
    Judged,
    Student,
    frozen_body_student,
    has_toolbox,
    knockoff_student,
    score,
    table_row,
    targets_of,
)
from serve.bench.journal import Journal
from serve.bench.rows import Tell

_NEAR = 0.01


class CopyScale(NamedTuple):
    """How many students are trained; `has_scratch`: those from scratch too, minutes each."""

    budgets: tuple[int, ...] = (250, 1_000, 2_000, 4_000)
    seeds: int = 3
    has_scratch: bool = False


class Copies:
    """Trains what the journal lacks."""

    def __init__(
        self,
        images: np.ndarray,
        answers: Mapping[str, Answers],
        held_out: np.ndarray,
        judged: Judged,
        body: FrozenBody,
        journal: Journal,
        scale: CopyScale,
        tell: Tell,
    ) -> None:
        """`images` are the attacker's; `judged` lacks features, which the body gives `held_out`."""
        self._images = images
        self._answers = answers
        self._held_out = held_out
        self._judged = judged._replace(features=body.features(held_out))
        self._body = body.features(images)
        self._journal = journal
        self._scale = scale
        self._tell = tell

    def rows(self) -> list[dict[str, Any]]:
        """Return the table, training what it lacks."""
        students: dict[str, Student] = {"frozen_body": frozen_body_student}
        if has_toolbox():
            students["knockoff_nets"] = knockoff_student
        rows = [
            self._row(arm, name, budget, partial(self._frozen, student, arm, budget))
            for name, student in students.items()
            for arm in ARMS
            if arm in self._answers
            for budget in self._scale.budgets
        ]
        if self._scale.has_scratch:
            rows += [
                self._row(arm, "mixmatch", budget, partial(self._scratch, arm, budget))
                for arm in ARMS
                if arm in self._answers
                for budget in self._scale.budgets
            ]
        return rows

    def _row(self, arm: str, name: str, budget: int, train: Any) -> dict[str, Any]:
        cells = [f"extraction/{name}/{arm}/{budget}/{seed}" for seed in range(self._scale.seeds)]
        scores = [self._journal.once(cell, partial(train, seed)) for seed, cell in enumerate(cells)]
        row = table_row(arm, name, budget, scores)
        self._tell(f"extraction {name} {arm} {budget}: fidelity {row['fidelity']:.4f}")
        return row

    def _frozen(self, student: Student, arm: str, budget: int, seed: int) -> dict[str, Any]:
        return score(student, self._body, self._answers[arm], self._judged, budget, seed)

    def _scratch(self, arm: str, budget: int, seed: int) -> dict[str, Any]:
        from serve.audit.copying.mixmatch import mixmatch_student

        places, logits = self._answers[arm]
        order = np.random.default_rng(seed).permutation(len(places))
        chosen, left = places[order[:budget]], places[order[budget:]]
        logits = mixmatch_student(
            self._images[chosen],
            targets_of(logits[order[:budget]]),
            self._images[left] if len(left) else self._images[chosen],
            self._held_out,
            seed,
        )
        labels = logits.argmax(axis=1)
        judged = self._judged
        right = None if judged.labels is None else float((labels == judged.labels).mean())
        return {"accuracy": right, "fidelity": float((labels == judged.victim).mean())}


def copy_needs(rows: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the least budget whose copy is within a point of the best by the victim's name."""
    best = max((row["fidelity"] for row in rows if row["arm"] == "named"), default=None)
    if best is None:
        return None
    near = [row["budget"] for row in rows if row["fidelity"] >= best - _NEAR]
    return min(near, default=None)
