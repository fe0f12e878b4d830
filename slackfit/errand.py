"""`Errand`: work that a device has of its own, for times at which no query needs it.

Capturing a graph, for instance: it makes later batches faster, and no query asked for it.
`slackfit.scheduling.spare` says when there is time.
"""

from __future__ import annotations

from typing import NamedTuple


class Errand(NamedTuple):
    """The device is away for `takes_s` seconds; `slows`: until others follow it runs slower."""

    takes_s: float
    slows: bool = False
