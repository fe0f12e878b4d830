"""The earliest answer that a device can promise: what a refusal tells its client."""

from __future__ import annotations

from typing import NamedTuple


class EarliestAnswer(NamedTuple):
    """Seconds from now until an answer, at the earliest.

    `finish_s` behind all that waits and runs, `idle_finish_s` on an idle device.
    """

    finish_s: float
    idle_finish_s: float
