"""Policies of streams and their registry; imports `slackfit`'s root, no scheduler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from slackfit.policies.parameters import check_params, split_parameters
from slackfit.policies.streams.fixed_width import Edf, Fcfs, Lars
from slackfit.policies.streams.niyama import Niyama
from slackfit.policies.streams.sarathi import Sarathi
from slackfit.policies.streams.slackwidth import SlackWidth
from slackfit.streams.iteration_cost import IterationCosts
from slackfit.streams.stream_policy import StreamPolicy

__all__ = [
    "Edf",
    "Fcfs",
    "Lars",
    "Niyama",
    "Sarathi",
    "SlackWidth",
    "create_stream_policy",
    "stream_policy_names",
]

_FACTORIES: dict[str, Callable[..., StreamPolicy]] = {
    "slackwidth": SlackWidth,
    "sarathi": Sarathi,
    "niyama": Niyama,
    "fcfs": Fcfs,
    "edf": Edf,
    "lars": Lars,
}
_FIXED = "fixed:"
_FIXED_ALIASES = ("smallest", "middle", "largest")


def stream_policy_names() -> tuple[str, ...]:
    """Return the names that `create_stream_policy` knows.

    >>> "slackwidth" in stream_policy_names()
    True
    """
    return (*_FACTORIES, *(_FIXED + alias for alias in ("<subnet_id>", *_FIXED_ALIASES)))


def create_stream_policy(name: str, costs: IterationCosts, **params: Any) -> StreamPolicy:
    """Build the policy called `name`, whose parameters may follow: `sarathi@budget=64`.

    `fixed:largest` (`smallest`, `middle`, an id) is `slackwidth` that may run one width only.
    Raises ValueError for an unknown name, width or parameter (it lists the known ones) and for a
    bad value.
    """
    name, given = split_parameters(name)
    params = {**given, **params}
    if name.startswith(_FIXED):
        subnet_id = _resolve(name.removeprefix(_FIXED), costs)
        check_params(name, SlackWidth, params)
        params["widths"] = subnet_id
        return SlackWidth(costs, **params)
    if name not in _FACTORIES:
        raise ValueError(
            f"policy {name!r} is unknown for streams, allowed {', '.join(stream_policy_names())}"
        )
    check_params(name, _FACTORIES[name], params)
    return _FACTORIES[name](costs, **params)


def _resolve(which: str, costs: IterationCosts) -> str:
    ids = costs.subnet_ids
    if which in _FIXED_ALIASES:
        return ids[{"smallest": 0, "middle": len(ids) // 2, "largest": -1}[which]]
    return costs.rung(which).subnet_id
