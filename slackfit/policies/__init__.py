"""One policy per file, and their registry; imports `slackfit`'s root, no scheduler."""

from __future__ import annotations

from typing import Any

from slackfit.policies.drainfit import DrainFit
from slackfit.policies.fixed import Fixed
from slackfit.policies.infaas import Infaas
from slackfit.policies.maxacc import MaxAcc
from slackfit.policies.maxbatch import MaxBatch
from slackfit.policies.modelzoo import ModelZoo
from slackfit.policies.parameters import check_params, split_parameters
from slackfit.policies.proteus import Proteus
from slackfit.policies.slackfit import SlackFit
from slackfit.policies.sushi import Sushi
from slackfit.policy import Policy, PolicyFactory
from slackfit.profile import LatencyProfile

__all__ = [
    "DrainFit",
    "Fixed",
    "Infaas",
    "MaxAcc",
    "MaxBatch",
    "ModelZoo",
    "Proteus",
    "SlackFit",
    "Sushi",
    "create_policy",
    "policy_names",
]

_FACTORIES: dict[str, PolicyFactory] = {
    "slackfit": SlackFit,
    "maxacc": MaxAcc,
    "maxbatch": MaxBatch,
    "drainfit": DrainFit,
    "infaas": Infaas,
    "sushi": Sushi,
    "proteus": Proteus,
    "modelzoo": ModelZoo,
}
_FIXED = "fixed:"
_FIXED_ALIASES = ("smallest", "middle", "largest")


def policy_names() -> tuple[str, ...]:
    """Return the names that `create_policy` knows; `<subnet_id>` stands for an id of the profile.

    >>> "slackfit" in policy_names()
    True
    """
    fixed = tuple(_FIXED + alias for alias in ("<subnet_id>", *_FIXED_ALIASES))
    return (*_FACTORIES, *fixed)


def create_policy(name: str, profile: LatencyProfile, **params: Any) -> Policy:
    """Build the policy called `name` for `profile`.

    `fixed:smallest|middle|largest` name the subnet by its place in ascending order of accuracy;
    the policy's own name is then the resolved one. Parameters may follow the name, as in
    `slackfit@num_buckets=40@variant=bucket`. Raises ValueError for an unknown name, subnet or
    parameter (it lists the known ones) and for a bad value.
    """
    name, given = split_parameters(name)
    params = {**given, **params}
    if name.startswith(_FIXED):
        subnet_id = _resolve(name.removeprefix(_FIXED), profile)
        check_params(name, Fixed, params)
        return Fixed(profile, subnet_id, **params)
    if name not in _FACTORIES:
        raise ValueError(f"policy {name!r} is unknown, allowed {', '.join(policy_names())}")
    check_params(name, _FACTORIES[name], params)
    return _FACTORIES[name](profile, **params)


def _resolve(which: str, profile: LatencyProfile) -> str:
    ids = profile.subnet_ids
    if which in ids:
        return which
    if which not in _FIXED_ALIASES:
        allowed = ", ".join((*_FIXED_ALIASES, *ids))
        raise ValueError(
            f"policy {_FIXED + which!r} names a subnet that profile {profile.name!r} does not "
            f"have, allowed after {_FIXED!r}: {allowed}"
        )
    return ids[{"smallest": 0, "middle": len(ids) // 2, "largest": -1}[which]]
