"""Parameters that follow a policy's name, as in `slackfit@num_buckets=40@variant=bucket`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any

_KINDS: dict[str, tuple[type, str]] = {
    "bool": (bool, "true or false"),
    "int": (Integral, "a whole number"),
    "float": (Real, "a number"),
}
"""What a value must be for a parameter annotated so, and how that is said."""


def split_parameters(name: str) -> tuple[str, dict[str, Any]]:
    """Return a policy's bare name and the parameters that follow it.

    A value is a number, true, false or a text. Raises ValueError for one that is not key=value.

    >>> split_parameters("slackfit@num_buckets=40@variant=bucket")
    ('slackfit', {'num_buckets': 40, 'variant': 'bucket'})
    """
    bare, *texts = name.split("@")
    return bare, dict(_parameter(text) for text in texts)


def check_params(name: str, factory: Callable[..., object], params: Mapping[str, Any]) -> None:
    """Raise ValueError for a parameter that the policy does not have, or of another kind.

    The first lists the known ones, the second says what is allowed.
    """
    known = {
        key: parameter
        for key, parameter in inspect.signature(factory).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    unknown = sorted(set(params) - set(known))
    if unknown:
        raise ValueError(
            f"policy {name!r} has no parameter {', '.join(unknown)}; it has {', '.join(known)}"
        )
    for key, value in params.items():
        for kind in filter(_KINDS.get, str(known[key].annotation).split(" | ")):
            wanted, allowed = _KINDS[kind]
            is_right = isinstance(value, wanted) and isinstance(value, bool) == (kind == "bool")
            if not is_right and value is not None:
                raise ValueError(f"{key} of policy {name!r} is {value!r}, allowed {allowed}")


def _parameter(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise ValueError(f"policy parameter {text!r} is not of the form key=value")
    for convert in (int, float, {"true": True, "false": False}.__getitem__):
        try:
            return key, convert(value)
        except (ValueError, KeyError):
            continue
    return key, value
