"""`StreamPromise`: when outputs are due, and how many streams must keep to that."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from slackfit.metrics import as_good
from traces.planning.promise import parse_fraction
from traces.simulation.stream_simulation import StreamSlo
from traces.trace import TraceError

_DUE = ("first_output", "first_output_per_token", "period")
_SHARES = ("attainment", "fluidity", "accuracy")
_TIME = re.compile(r"([0-9.]+)\s*(ms|s)")
_EXAMPLE = "first_output<=500ms,period<=50ms,attainment>=0.99,fluidity>=0.95"


class StreamPromise(NamedTuple):
    """First outputs are due so long after arrival, each later one a period after the one before.

    Of all streams at least `attainment` come with a fluidity of 0.9 or more; their mean fluidity is
    at least `fluidity`, the mean quality of all outputs at least `accuracy`. Times in seconds,
    the rest fractions; a first output may take `first_output_per_token_s` longer for each token of
    its prompt.
    """

    first_output_s: float
    period_s: float
    attainment: float = 0.0
    fluidity: float = 0.0
    accuracy: float = 0.0
    first_output_per_token_s: float = 0.0

    @property
    def slo(self) -> StreamSlo:
        """When outputs are due."""
        return StreamSlo(
            ttft_s=self.first_output_s, tpot_s=self.period_s,
            ttft_per_token_s=self.first_output_per_token_s,
        )  # fmt: skip

    def is_kept(self, attainment: float, fluidity: float, accuracy: float) -> bool:
        """Whether a run with these keeps it."""
        return (
            attainment >= as_good(self.attainment)
            and fluidity >= as_good(self.fluidity)
            and accuracy >= as_good(self.accuracy)
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data, times in milliseconds."""
        times = {f"{name}_ms": getattr(self, f"{name}_s") * 1e3 for name in _DUE}
        return times | {name: getattr(self, name) for name in _SHARES}


def parse_stream_promise(text: str) -> StreamPromise:
    """Return the promise of `first_output<=500ms,period<=50ms,attainment>=0.99`.

    Raises TraceError for any other text, and for one that lacks a due time or any share.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\w+)\s*(<=|>=)\s*(.+?)\s*", part)
        name, sign, value = ("", "", "") if match is None else match.groups()
        key = f"{name}_s" if name in _DUE else name
        wanted = "<=" if name in _DUE else ">="
        if match is None or name not in (*_DUE, *_SHARES) or sign != wanted or key in found:
            raise TraceError(
                f"promise {part!r} of streams is not understood; give each once, as in "
                f"{_EXAMPLE}; allowed are {', '.join(f'{n}<=TIME' for n in _DUE)} and "
                f"{', '.join(f'{n}>=FRACTION' for n in _SHARES)}"
            )
        found[key] = _seconds(name, value) if name in _DUE else parse_fraction(name, value)
    lacking = [name for name in ("first_output", "period") if not found.get(f"{name}_s", 0.0) > 0]
    if lacking:
        raise TraceError(
            f"promise {text!r} does not say when outputs are due: {lacking[0]}<=TIME is lacking, "
            f"as in {_EXAMPLE}"
        )
    if not max(found.get("attainment", 0.0), found.get("fluidity", 0.0)) > 0:
        raise TraceError(
            f"promise {text!r} names no share of streams: give attainment>=FRACTION or "
            f"fluidity>=FRACTION above 0, as in {_EXAMPLE}"
        )
    return StreamPromise(**found)


def _seconds(name: str, text: str) -> float:
    match = _TIME.fullmatch(text)
    try:
        value = float(match[1]) if match else -1.0
    except ValueError:
        value = -1.0
    if match is None or value < 0:
        raise TraceError(f"{name}<={text} is no time; give it in ms or s, as in {name}<=50ms")
    return value * (1e-3 if match[2] == "ms" else 1.0)
