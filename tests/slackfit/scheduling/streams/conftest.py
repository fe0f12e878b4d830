"""A policy with one answer, for tests of what the scheduler makes of it."""

from __future__ import annotations

from typing import Any

import pytest


class Decides:
    """A policy with one answer; an exception is raised."""

    name = "decides"
    granule = 1
    ranks_age = False

    def __init__(self, answer: object) -> None:
        self._answer = answer

    def rank(self, prompt: object, now_s: float) -> float:
        return 0.0

    def relegates(self, prompt: object, view: object, now_s: float) -> bool:
        return False

    def decide(self, view: object, now_s: float) -> Any:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


@pytest.fixture
def decides() -> type[Decides]:
    return Decides
